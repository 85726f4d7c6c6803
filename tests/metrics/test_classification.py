"""Classification metrics against the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from xares_store.errors import MetricError
from xares_store.metrics.classification import (
    accuracy,
    average_precision,
    class_counts,
    correct,
    eer,
    macro_accuracy,
    macro_f1,
    mae,
    mean_average_precision,
    micro_f1,
    mse,
    pearson,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "classification.json").read_text())


def test_every_case_of_the_file_is_known():
    """Each of the lists is run here, in test_frames, in test_multilabel or in test_text."""
    assert {name: len(cases) for name, cases in GOLDEN.items() if isinstance(cases, list)} == {
        "accuracy": 6,
        "eer": 8,
        "map_multilabel": 7,
        "map_beans": 3,
        "map_string": 10,
        "segment_f1": 11,
        "segment_f1_pool_sizes": 50,
        "mae_mse": 5,
    }
    assert {name for name, cases in GOLDEN.items() if not isinstance(cases, list)} == {
        "eer_epochmetric_batched_gauss_40",
        "beans_macro_binary_f1",
        "beans_f1_empty",
        "beans_accuracy_empty",
        "map_string_identity",
    }


def by_name(case):
    return case["name"]


def joined(batches):
    """One array from a case's batches; non-finite numbers are strings there."""
    return np.concatenate([np.array(batch, dtype=object).astype(float) for batch in batches])


def check(expected, compute):
    if "raises" in expected:
        with pytest.raises(MetricError):
            compute()
    else:
        assert compute() == pytest.approx(expected["value"], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN["accuracy"], ids=by_name)
def test_accuracy(case):
    scores, labels = joined(case["logit_batches"]), joined(case["label_batches"]).astype(int)
    check(case["expected"], lambda: accuracy(labels, scores))


def test_accuracy_of_classes_and_its_errors():
    assert accuracy([2, 1], [2, 0]) == 0.5
    assert correct([2, 1], [2, 0]).tolist() == [1.0, 0.0]
    for target, prediction in [([], []), ([1], [1, 2]), ([[1, 0]], [1])]:
        with pytest.raises(MetricError):
            accuracy(target, prediction)


@pytest.mark.parametrize("case", GOLDEN["eer"], ids=by_name)
@pytest.mark.parametrize(("variant", "key"), [("nearest", "nearest_point"), ("interpolated", "interpolated")])
def test_eer(case, variant, key):
    check(case[f"expected_{key}"], lambda: eer(case["labels"], case["scores"], variant=variant))


def test_eer_of_batches_is_that_of_all_clips():
    batched = GOLDEN["eer_epochmetric_batched_gauss_40"]
    (case,) = [case for case in GOLDEN["eer"] if case["name"] == "gauss_40"]
    parts = [slice(*bounds) for bounds in zip(batched["batches"], batched["batches"][1:], strict=False)]
    labels, scores = (np.concatenate([case[key][part] for part in parts]) for key in ("labels", "scores"))
    assert eer(labels, scores, variant="nearest") == pytest.approx(batched["expected"], abs=1e-9)


def test_eer_refuses_what_is_no_detection():
    with pytest.raises(MetricError):
        eer([0, 2], [0.1, 0.2])
    with pytest.raises(MetricError):
        eer([0, 1], [0.1, np.nan])


@pytest.mark.parametrize("case", GOLDEN["map_multilabel"], ids=by_name)
def test_mean_average_precision(case):
    # The reference works in float32, which is what makes the near ties of one case ties.
    scores, targets = np.array(case["scores"]), np.array(case["targets"])
    assert mean_average_precision(targets, scores) == pytest.approx(case["expected_macro"]["value"], abs=1e-9)
    assert average_precision(targets, scores) == pytest.approx(case["per_class_ap"], abs=1e-9)


def test_mean_average_precision_refuses():
    with pytest.raises(MetricError):
        mean_average_precision([[1, 0]], [[0.1, 0.2, 0.3]])
    with pytest.raises(MetricError):
        mean_average_precision([[1, 0]], [[np.inf, 0.2]])


@pytest.mark.parametrize("case", GOLDEN["mae_mse"], ids=by_name)
def test_mae_and_mse(case):
    targets, predictions = joined(case["target_batches"]), joined(case["pred_batches"])
    check(case["MAE"], lambda: mae(targets, predictions))
    check(case["MSE"], lambda: mse(targets, predictions))


def test_mae_refuses_other_shapes():
    with pytest.raises(MetricError):
        mae([[1.0, 2.0]], [[1.0]])
    with pytest.raises(MetricError):
        mse([], [])


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_macro_and_micro_scores_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    target, scores = rng.integers(0, 4, 20), rng.random((20, 6))
    prediction = scores.argmax(axis=1)
    assert macro_f1(target, scores) == pytest.approx(f1_score(target, prediction, average="macro"))
    assert macro_f1(target, prediction) == macro_f1(target, scores)
    assert micro_f1(target, scores) == pytest.approx(accuracy(target, prediction))
    recall = recall_score(target, prediction, labels=np.unique(target), average="macro")
    assert macro_accuracy(target, scores) == pytest.approx(recall)
    labels, found = rng.integers(0, 2, (20, 6)), rng.random((20, 6))
    labels[:, 5], found[:, 5] = 0, 0.1
    for average, function in (("macro", macro_f1), ("micro", micro_f1)):
        expected = f1_score(labels, found > 0.5, average=average, zero_division=0)
        assert function(labels, found) == pytest.approx(expected)
        assert function(labels, found - 0.5, threshold=0.0) == pytest.approx(expected)


@given(seed=st.integers(0, 1000))
def test_renaming_classes_and_reordering_clips_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    target, scores = rng.integers(0, 4, 15), rng.random((15, 4))
    order, names = rng.permutation(15), rng.permutation(4)
    moved = np.argsort(names)[target[order]], scores[order][:, names]
    for function in (accuracy, macro_accuracy, macro_f1, micro_f1):
        assert function(*moved) == pytest.approx(function(target, scores), abs=1e-12)


def test_class_counts_refuse():
    for target, prediction in [([], []), ([0, 1], [0]), ([-1], [0]), ([[1, 0]], [[0.1, 0.2, 0.3]]), ([[1]], [1])]:
        with pytest.raises(MetricError):
            class_counts(target, prediction)
    with pytest.raises(MetricError):
        macro_accuracy([], [])


@given(seed=st.integers(0, 1000))
def test_pearson(seed):
    target, prediction = np.random.default_rng(seed).normal(size=(2, 12))
    assert pearson(target, prediction) == pytest.approx(np.corrcoef(target, prediction)[0, 1])
    assert pearson(target, 3 * target - 1) == pytest.approx(1.0)
    assert pearson(target[:, None], -prediction) == pytest.approx(-pearson(target, prediction))


def test_pearson_of_a_constant_is_0_and_what_it_refuses():
    assert pearson([1.0, 2.0], [3.0, 3.0]) == 0.0
    assert pearson([2.0, 2.0], [3.0, 4.0]) == 0.0
    for seed in range(20):  # whatever the targets, and however they round
        target, constant = np.random.default_rng(seed).normal(size=9), np.full(9, 0.1 * seed + 0.3, np.float32)
        assert pearson(target, constant) == 0.0
        constant[3] = np.nextafter(constant[3], np.float32(9))
        assert pearson(target, constant) == 0.0
    for target, prediction in [
        ([], []),
        ([[1.0, 2.0]], [[1.0, 2.0]]),
        ([1.0, 2.0], [np.nan, 1.0]),
        ([1.0], [1.0, 2.0]),
    ]:
        with pytest.raises(MetricError):
            pearson(target, prediction)
