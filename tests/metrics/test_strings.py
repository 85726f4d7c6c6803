"""Labels that were written as text: golden vectors, and scikit-learn over the same zeros and ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from xares_store.errors import MetricError
from xares_store.metrics.strings import (
    label_matrices,
    labels_of,
    string_macro_f1,
    string_map,
)

FOLDER = Path(__file__).parents[1] / "golden"


def test_string_map_as_published():
    cases = json.loads((FOLDER / "classification.json").read_text())["map_string"]
    assert len(cases) == 10
    for case in cases:
        texts, options = (case["targets"], case["predictions"]), {"n_classes": case["num_classes"], "trim": False}
        if "raises" in case["expected"]:
            with pytest.raises(MetricError):
                string_map(*texts, **options)
        else:
            assert string_map(*texts, **options) == pytest.approx(case["expected"]["value"], abs=1e-9), case["name"]


def texts(seed, n, labels):
    rng = np.random.default_rng(seed)
    return [";".join(label for label in labels if rng.random() < 0.4) for _ in range(n)]


@pytest.mark.parametrize("n_classes", [4, 9])
def test_both_metrics_are_those_of_the_matrices(n_classes):
    """A fifth label is written but never wanted: it changes nothing."""
    labels = ["air horn", "bee", "cat", "dog"]
    target, prediction = texts(0, 50, labels), texts(1, 50, [*labels, "engine"])
    wanted, written = (np.array([[label in text.split(";") for label in labels] for text in side]) for side in (target, prediction))  # fmt: skip
    found = label_matrices(target, prediction)
    np.testing.assert_array_equal(found[0], wanted)
    np.testing.assert_array_equal(found[1], written)
    precision = average_precision_score(wanted, written, average=None)
    assert string_map(target, prediction, n_classes=n_classes) == pytest.approx(precision.sum() / n_classes)
    f1 = f1_score(wanted, written, average=None)
    assert string_macro_f1(target, prediction, n_classes=n_classes) == pytest.approx(f1.sum() / n_classes)


def test_writing_nothing_scores_the_share_of_clips_in_one_and_nothing_in_the_other():
    target = ["a;b", "b", "b", "a"]
    assert string_map(target, [""] * 4, n_classes=2) == (0.5 + 0.75) / 2
    assert string_macro_f1(target, [""] * 4, n_classes=2) == 0.0
    assert string_macro_f1(target, target, n_classes=2) == 1.0
    assert string_macro_f1(target, target, n_classes=8) == 0.25
    assert string_macro_f1(["", ""], ["a", ""], n_classes=2) == string_map(["", ""], ["a", ""], n_classes=2) == 0.0


def test_labels_are_trimmed_but_for_the_published_tables():
    assert string_map(["a;b;", "b"], [" a ; b", "b;"], n_classes=2) == 1.0
    assert string_macro_f1(["a;b;", "b"], [" a ; b", "b;"], n_classes=2) == 1.0
    assert string_macro_f1(["a;b", "b"], ["a; b", "b"], n_classes=2, trim=False) == pytest.approx((1 + 2 / 3) / 2)


def test_another_separator():
    assert labels_of("Dog bark, Cat;fish", separator=",") == {"dog bark", "cat;fish"}
    assert labels_of("a | b|c", separator=" | ") == {"a", "b", "c"}
    assert string_map(["a,b", "b"], ["b , a", "b"], n_classes=2, separator=",") == 1.0
    assert string_macro_f1(["a,b", "b"], ["b , a", "b"], n_classes=2, separator=",") == 1.0
    with pytest.raises(MetricError, match="separator"):
        labels_of("a-b", separator="-")


def test_what_cannot_be_scored_is_refused():
    for metric in (string_map, string_macro_f1):
        with pytest.raises(MetricError):
            metric([], [], n_classes=1)
        with pytest.raises(MetricError):
            metric(["a"], ["a", "b"], n_classes=1)
        with pytest.raises(MetricError, match="at most 1 distinct"):
            metric(["a", "b"], ["a", "b"], n_classes=1)
