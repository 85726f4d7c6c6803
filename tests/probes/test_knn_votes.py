"""The k-NN probe: golden vectors, a brute-force reference, ties, blocks, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.errors import ProbeError
from xares_store.probes import knn
from xares_store.probes.knn import knn_predict, neighbours

CASES = json.loads((Path(__file__).parents[1] / "golden" / "knn.json").read_text())["cases"]
assert len(CASES) == 11


def predict(case, variant):
    train = np.array(case["train"], dtype=np.float32)
    features = np.concatenate([train, np.array(case["queries"], dtype=np.float32)])
    labels = np.array(case["train_labels"])
    pad = np.zeros((len(features) - len(train), *labels.shape[1:]), dtype=labels.dtype)
    rows = np.arange(len(features))
    return knn_predict(
        features,
        np.concatenate([labels, pad]),
        case["num_classes"],
        rows[: len(train)],
        rows[len(train) :],
        k=case["k"],
        temperature=case["temperature"],
        variant=variant,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize(("variant", "key"), [("cosine", "row_normalised"), ("published", "compat")])
def test_golden(case, variant, key):
    if case["name"] == "k_larger_than_n":  # the reference raises; all clips vote instead
        assert neighbours(len(case["train"]), case["k"]) == 6
        smaller = {**case, "k": 6}
        np.testing.assert_array_equal(predict(case, variant), predict(smaller, variant))
        return
    if case["name"] in ("label_minus_one", "multi_label_matrix"):  # the latter has no meaning: refused
        with pytest.raises(ProbeError):
            predict(case, variant)
        return
    found = predict(case, variant)
    np.testing.assert_allclose(found, case[f"{key}_scores"]["value"], rtol=2e-6, atol=2e-6)
    assert found.argmax(axis=1).tolist() == case[f"{key}_argmax"]


def brute_force(features, target, n_classes, train_idx, test_idx, k, temperature, variant):
    train, query = features[train_idx].astype(float), features[test_idx].astype(float)
    axis = 1 if variant == "cosine" else 0
    train = train / np.maximum(np.linalg.norm(train, axis=axis, keepdims=True), 1e-12)
    query = query / np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-12)
    similarity = query @ train.T
    result = np.zeros((len(query), n_classes))
    for row, values in enumerate(similarity):
        nearest = np.argsort(-values, kind="stable")[:k]
        weight = np.exp((values[nearest] - values.max()) / temperature)
        np.add.at(result[row], target[train_idx][nearest], weight / weight.sum())
    return result


def make_data(n, dim, n_classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim), dtype=np.float32), rng.integers(0, n_classes, n)


@settings(max_examples=40, deadline=None)
@given(
    n_train=st.integers(1, 60),
    n_test=st.integers(1, 40),
    dim=st.integers(1, 20),
    k=st.integers(1, 12),
    variant=st.sampled_from(["cosine", "published"]),
    seed=st.integers(0, 1000),
)
def test_equals_brute_force(n_train, n_test, dim, k, variant, seed):
    features, target = make_data(n_train + n_test, dim, 4, seed)
    if dim == 1:
        features += np.sign(features)  # one dimension: cosine is a sign, ties everywhere
    rows = np.random.default_rng(seed).permutation(len(features))
    train_idx, test_idx = rows[:n_train], rows[n_train:]
    found = knn_predict(features, target, 4, train_idx, test_idx, k=k, temperature=0.2, variant=variant)
    expected = brute_force(features, target, 4, train_idx, test_idx, k, 0.2, variant)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("variant", ["cosine", "published"])
@pytest.mark.parametrize("value", [0.0, 1.7])
def test_many_equal_clips_vote_in_order(variant, value):
    # Far more equally near clips than are fetched: the first ten vote, whatever the search returned.
    features = np.full((400, 33), value, dtype=np.float32)
    features[300:310] = np.random.default_rng(0).standard_normal((10, 33))
    target = np.ones(400, dtype=np.int64)
    target[:10] = 0
    found = knn_predict(features, target, 2, np.arange(300), np.arange(310, 400), k=10, variant=variant)
    np.testing.assert_allclose(found, [[1.0, 0.0]] * 90)
    backwards = knn_predict(features, target, 2, np.arange(300)[::-1], np.arange(310, 400), k=10, variant=variant)
    np.testing.assert_allclose(backwards, [[0.0, 1.0]] * 90)


@pytest.mark.parametrize("variant", ["cosine", "published"])
def test_blocks_and_threads_change_nothing(monkeypatch, variant):
    features, target = make_data(900, 40, 6)
    rows = np.arange(900)
    whole = knn_predict(features, target, 6, rows[:500], rows[500:], variant=variant)
    single = knn_predict(features, target, 6, rows[:500], rows[500:], variant=variant, threads=1)
    np.testing.assert_allclose(single, whole, rtol=1e-6)
    monkeypatch.setattr(knn, "_BLOCK_BYTES", 5000)
    blocked = knn_predict(features, target, 6, rows[:500], rows[500:], variant=variant)
    np.testing.assert_allclose(blocked, whole, rtol=1e-6, atol=1e-7)


def test_scale_of_a_clip_does_not_matter_to_cosine():
    features, target = make_data(100, 8, 3)
    rows = np.arange(100)
    before = knn_predict(features, target, 3, rows[:60], rows[60:])
    features *= np.random.default_rng(1).uniform(0.01, 100, (100, 1)).astype(np.float32)
    np.testing.assert_allclose(knn_predict(features, target, 3, rows[:60], rows[60:]), before, atol=1e-4)


def test_leaves_its_input_alone():
    features, target = make_data(50, 8, 3)
    features.flags.writeable = False
    rows = np.arange(50)
    for variant in ("cosine", "published"):
        knn_predict(features, target, 3, rows[:30], rows[30:], variant=variant)


def test_unusable_input():
    features, target = make_data(20, 4, 3)
    rows = np.arange(20)
    train, test = rows[:12], rows[12:]
    infinite = features.copy()
    infinite[15, 2] = np.inf
    for call, message in [
        (lambda: knn_predict(infinite, target, 3, train, test), "row 15"),
        (lambda: knn_predict(features.astype(float), target, 3, train, test), "float32"),
        (lambda: knn_predict(features[0], target, 3, train, test), "clips, dim"),
        (lambda: knn_predict(features, target, 3, train[:0], test), "training clips"),
        (lambda: knn_predict(features, target, 3, train, test + 9), "0 to 19"),
        (lambda: knn_predict(features, target, 2, train, test), "0 to 1"),
        (lambda: knn_predict(features, target, 3, train, test, k=0), "k of at least 1"),
        (lambda: knn_predict(features, target, 3, train, test, temperature=0.0), "temperature"),
        (lambda: knn_predict(features, target, 3, train, test, variant="euclidean"), "euclidean"),
    ]:
        with pytest.raises(ProbeError, match=message):
            call()
