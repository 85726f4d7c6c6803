"""Classification metrics against the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xares_store.errors import MetricError
from xares_store.metrics.classification import (
    accuracy,
    average_precision,
    correct,
    eer,
    mae,
    mean_average_precision,
    mse,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "classification.json").read_text())


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
