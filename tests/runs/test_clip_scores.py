"""Scores of clips with several labels or a number: against scikit-learn and numpy, with crops that vote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from xares_store.metrics.aggregate import mean_over, voted_logits
from xares_store.protocol import Fold
from xares_store.runs.clip_scores import score_multilabel, score_regression
from xares_store.runs.features import Features
from xares_store.runs.score import Scored
from xares_store.task import Task

LABELS = ("rain", "wind", "bird", "engine", "never")


def make_task(kind: str) -> Task:
    names = '"map"\nalso = ["map_present", "macro_f1", "micro_f1", "auroc", "d_prime"]'
    if kind == "regression":
        names = '"mse"\nalso = ["mae", "pearson"]\nworst = 100.0'
    labels = f"labels = {list(LABELS)}" if kind == "multi-label" else ""
    text = f"""
format = 1
name = "made"
title = "Made"
domain = "environment"
[data]
folds = {{ 0 = ["a.tar"], 1 = ["b.tar"] }}
[target]
kind = "{kind}"
key = "label"
{labels}
[metric]
name = {names}
"""
    return Task.from_text(text, where="made.toml", base=None)


def make_features(target: np.ndarray, crops: int = 1) -> Features:
    """Two folds of as many recordings each, ``crops`` clips a recording."""
    n = len(target)
    rows, recording = np.arange(n), np.arange(n) // crops
    halves = np.array_split(rows, 2)
    texts = np.array([f"k{index}" for index in recording], dtype=object)
    number = np.zeros(n)
    return Features(
        values=np.zeros((n, 2), np.float32),
        target=target,
        recording=recording,
        split=np.full(n, "all", dtype=object),
        clip_id=np.array([f"{text}#{row}" for row, text in enumerate(texts)], dtype=object),
        key=texts,
        folds=[Fold(str(index), rows, rows, half) for index, half in enumerate(halves)],
        cropped=crops > 1,
        dropped=0,
        start_s=number,
        duration_s=number,
        parts=(),
        part_of=rows,
        offset=rows,
        n_frames=rows,
    )


def overall(scored: Scored) -> dict[str, dict[str, Any]]:
    return {entry["metric"]: entry for entry in scored.scores if entry["fold"] is None}


def tags(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = (rng.random((n, len(LABELS))) < 0.3).astype(np.uint8)
    target[:, -1] = 0
    return target, (2 * target + rng.standard_normal(target.shape) - 1).astype(np.float32)


def test_every_metric_of_tags_is_the_mean_over_folds_of_the_library_s() -> None:
    target, logits = tags(120)
    features = make_features(target)
    halves = [fold.test for fold in features.folds]
    found = score_multilabel(
        make_task("multi-label"), features, [logits[half] for half in halves], vote=False, details={}, tensors=None
    )
    expected: dict[str, list[float]] = {}
    for half in halves:
        y, z = target[half], logits[half]
        ap = [sk.average_precision_score(y[:, c], z[:, c]) for c in range(4)]
        values = {
            "map": float(np.sum(ap)) / 5,
            "map_present": float(np.mean(ap)),
            "macro_f1": sk.f1_score(y, z > 0, average="macro", zero_division=0),
            "micro_f1": sk.f1_score(y, z > 0, average="micro"),
            "auroc": float(np.mean([sk.roc_auc_score(y[:, c], z[:, c]) for c in range(4)])),
        }
        for name, value in values.items():
            expected.setdefault(name, []).append(value)
    scores = overall(found)
    for name, both in expected.items():
        assert scores[name]["value"] == pytest.approx(np.mean(both), abs=1e-9), name
        per_fold = [entry["value"] for entry in found.scores if entry["metric"] == name and entry["fold"] is not None]
        assert per_fold == pytest.approx(both, abs=1e-9)
        assert scores[name]["n"] == 120
    for name in ("map", "map_present", "macro_f1", "micro_f1"):
        assert scores[name]["low"] < scores[name]["value"] < scores[name]["high"]
    assert scores["map_present"]["low"] > scores["map"]["high"]  # a class without positives takes a fifth away
    assert scores["auroc"]["low"] is None


def test_where_every_class_occurs_the_two_averages_are_one() -> None:
    target, logits = tags(120)
    target[:, -1] = target[:, 0]
    features = make_features(target)
    raw = [logits[fold.test] for fold in features.folds]
    scores = overall(score_multilabel(make_task("multi-label"), features, raw, vote=False, details={}, tensors=None))
    one, other = ({key: scores[name][key] for key in ("value", "low", "high")} for name in ("map", "map_present"))
    assert one == other


def test_crops_of_a_recording_are_one_row_and_vote_with_their_mean_probabilities() -> None:
    target, logits = tags(60)
    target = np.repeat(target[::3], 3, axis=0)
    features = make_features(target, crops=3)
    raw = [logits[fold.test] for fold in features.folds]
    found = score_multilabel(make_task("multi-label"), features, raw, vote=True, details={}, tensors=None)
    assert found.n_test == len(found.predictions) == 20
    mean = (1 / (1 + np.exp(-logits.astype(np.float64)))).reshape(20, 3, -1).mean(axis=1)
    stored = np.array(found.predictions["scores"].to_pylist())
    np.testing.assert_allclose(1 / (1 + np.exp(-stored)), mean, rtol=1e-5)
    for text, row, wanted in zip(
        found.predictions["prediction"].to_pylist(), mean, found.predictions["correct"].to_pylist(), strict=True
    ):
        assert text == ";".join(label for label, value in zip(LABELS, row, strict=True) if value > 0.5)
        assert isinstance(wanted, bool)
    assert found.predictions["clip_id"].to_pylist() == [f"k{index}" for index in range(20)]


def test_certain_crops_do_not_tie() -> None:
    logits = np.array([[40.0, -800.0], [41.0, -801.0], [90.0, -900.0], [45.0, 0.0]], dtype=np.float32)
    alone = voted_logits(logits, np.arange(4))
    np.testing.assert_allclose(alone[:, 0], logits[:, 0], rtol=1e-12)
    assert np.isfinite(alone).all()
    voted = voted_logits(logits, np.array([0, 0, 1, 1]))
    assert 40 < voted[0, 0] < 41 < voted[1, 0] < 46
    assert voted[1, 1] == pytest.approx(np.log(0.25 / 0.75))
    assert len(np.unique(voted[:, 0].astype(np.float32))) == 2


def test_means_of_items_in_any_order() -> None:
    rng = np.random.default_rng(0)
    items = np.concatenate([np.arange(7), rng.integers(0, 7, 30)])
    values = rng.standard_normal((37, 2, 3)).astype(np.float32)
    expected = [values[items == item].astype(np.float64).mean(axis=0) for item in range(7)]
    np.testing.assert_allclose(mean_over(values, items), expected, rtol=1e-12)


@pytest.mark.parametrize("crops", [1, 2])
def test_numbers(crops: int) -> None:
    rng = np.random.default_rng(1)
    target = np.repeat(rng.uniform(0, 10, 40 // crops), crops).astype(np.float32)
    outputs = (target + rng.standard_normal(40)).astype(np.float32)
    features = make_features(target, crops)
    raw = [outputs[fold.test, None] for fold in features.folds]
    found = score_regression(make_task("regression"), features, raw, vote=crops > 1, details={}, tensors=None)
    item, wanted = outputs.astype(np.float64).reshape(-1, crops).mean(axis=1), target[::crops].astype(np.float64)
    halves = [slice(None, len(item) // 2), slice(len(item) // 2, None)]
    scores = overall(found)
    assert scores["mse"]["value"] == pytest.approx(np.mean(np.square(item - wanted)))
    assert scores["mae"]["value"] == pytest.approx(np.mean(np.abs(item - wanted)))
    correlation = np.mean([np.corrcoef(item[half], wanted[half])[0, 1] for half in halves])
    assert scores["pearson"]["value"] == pytest.approx(correlation)
    assert scores["mse"]["low"] < scores["mse"]["value"] < scores["mse"]["high"]
    np.testing.assert_allclose(found.predictions["value"].to_numpy(), np.square(item - wanted), rtol=1e-6)
    assert [float(text) for text in found.predictions["target"].to_pylist()] == pytest.approx(wanted.tolist())
