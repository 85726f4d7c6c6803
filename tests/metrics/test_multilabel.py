"""Ranking metrics and the variants of other benchmarks against the golden vectors and scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from xares_store.errors import MetricError
from xares_store.metrics.classification import average_precision, chroma_accuracy, macro_f1, mean_average_precision
from xares_store.metrics.multilabel import (
    auroc,
    beans_accuracy,
    beans_average_precision,
    beans_scores,
    d_prime,
    map_present,
    mean_auroc,
    mean_d_prime,
)

CLASSIFICATION = json.loads((Path(__file__).parents[1] / "golden" / "classification.json").read_text())
HEAR = json.loads((Path(__file__).parents[1] / "golden" / "events_hear.json").read_text())


def test_d_prime_and_auroc():
    cases = HEAR["dprime_aucroc_map"]
    assert len(cases) == 4
    for case in cases:
        scores, targets = np.array(case["scores"]), np.array(case["targets"])
        found = {
            "d_prime": d_prime(targets, scores, clip=False).mean(),
            "aucroc": auroc(targets, scores).mean(),
            "mAP": mean_average_precision(targets, scores),
        }
        expected = {name: float(case[name]["value"]) for name in found}
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True), case["name"]


def test_strict_d_prime_is_finite_and_skips_undefined_classes():
    targets = [[1, 0], [1, 0], [0, 0], [0, 0]]
    scores = [[0.9, 0.1], [0.8, 0.2], [0.1, 0.3], [0.2, 0.4]]
    assert mean_auroc(targets, scores) == 1.0
    # Four pairs: the area is kept an eighth away from 1.
    assert mean_d_prime(targets, scores) == pytest.approx(np.sqrt(2) * 1.1503493803760079)
    assert d_prime(targets, -np.array(scores))[0] == pytest.approx(-mean_d_prime(targets, scores))
    with pytest.raises(MetricError):
        mean_auroc(np.zeros((2, 2)), np.zeros((2, 2)))


@settings(deadline=None)
@given(
    seed=st.integers(0, 2000), levels=st.sampled_from([1, 3, 10, 1000]), dtype=st.sampled_from([np.float16, np.float64])
)
def test_equal_to_scikit_learn_ties_included(seed, levels, dtype):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, (25, 3)) / levels).astype(dtype)
    targets = np.vstack([np.eye(3, dtype=int), np.zeros((1, 3), int), rng.integers(0, 2, (21, 3))])
    expected = average_precision_score(targets, scores, average=None)
    assert average_precision(targets, scores) == pytest.approx(expected, abs=1e-12)
    assert auroc(targets, scores) == pytest.approx(roc_auc_score(targets, scores, average=None), abs=1e-12)
    order, names = rng.permutation(25), rng.permutation(3)
    moved = average_precision(targets[order][:, names], scores[order][:, names])
    assert moved == pytest.approx(expected[names], abs=1e-12)


def test_map_of_present_classes():
    targets, scores = [[1, 0], [0, 0]], [[0.2, 0.2], [0.9, 0.7]]
    assert mean_average_precision(targets, scores) == 0.25
    assert map_present(targets, scores) == 0.5
    with pytest.raises(MetricError):
        map_present([[0, 0]], [[0.1, 0.2]])


def test_beans_map():
    cases = CLASSIFICATION["map_beans"]
    assert len(cases) == 3
    for case in cases:
        found = beans_average_precision(case["targets"], case["scores"])
        # The reference sums in float32.
        assert found == pytest.approx(case["per_class_ap"], abs=1.2e-7), case["name"]
        assert found.mean() == pytest.approx(case["expected"], abs=1.2e-7), case["name"]


def test_beans_f1_and_accuracy():
    case = CLASSIFICATION["beans_macro_binary_f1"]
    found = beans_scores(case["targets"], case["logits"])
    expected = case["expected"]
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(
        (expected["macro_prec"], expected["macro_rec"], expected["macro_f1"]), abs=1e-9
    )
    assert macro_f1(case["targets"], case["logits"], threshold=0.0) == pytest.approx(expected["macro_f1"])
    empty = beans_scores(np.zeros((0, 2)), np.zeros((0, 2)))
    expected = CLASSIFICATION["beans_f1_empty"]["expected"]
    assert (empty["precision"], empty["recall"], empty["f1"]) == (expected["prec"], expected["rec"], expected["f1"])
    assert beans_accuracy([], np.zeros((0, 2))) == CLASSIFICATION["beans_accuracy_empty"]["expected"]["acc"]
    assert beans_accuracy([0, 1], [[0.9, 0.1], [0.8, 0.2]]) == 0.5


def test_chroma_accuracy():
    cases = HEAR["chroma"]
    assert len(cases) == 2
    for case in cases:
        target, found = case["target_argmax"], case["pred_argmax"]
        assert chroma_accuracy(target, found) == case["chroma_acc"]
        assert chroma_accuracy(target, np.eye(30)[found]) == case["chroma_acc"]
        assert np.mean(np.equal(target, found)) == case["top1_acc"]


def test_what_has_no_rank_is_refused():
    for target, scores in [
        ([[1, 0]], [[0.1]]),
        ([[1]], [[np.nan]]),
        (np.zeros((0, 1)), np.zeros((0, 1))),
        ([1], [0.1]),
    ]:
        with pytest.raises(MetricError):
            auroc(target, scores)
