"""From class probabilities to scores: one item a recording, intervals over test items, a row a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from xares_store.metrics import aggregate
from xares_store.metrics.registry import Metric
from xares_store.metrics.statistics import Interval, bootstrap_interval
from xares_store.runs.features import Features


@dataclass
class Scored:
    """What a run stores: scores, predictions, and the probe itself.

    Attributes:
        scores: a dictionary a metric and fold: ``metric, value, fold, low, high, n``; ``fold`` None is the mean over folds.
        predictions: a row a scored item.
        n_test: scored items over all folds.
        details: what was chosen on validation and how training went.
        tensors: the trained probe; None when nothing is trained.
    """

    scores: list[dict[str, Any]]
    predictions: pa.Table
    n_test: int
    details: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] | None = None


def score_run(
    features: Features,
    probabilities: Sequence[np.ndarray],
    labels: Sequence[str],
    metric: Metric,
    *,
    vote: bool,
    details: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Scored:
    """Score one run.

    Args:
        features: the clips; ``probabilities[i]`` belongs to the test clips of ``features.folds[i]``.
        probabilities: one array (test clips, classes) a fold.
        labels: class names by index.
        metric: the task's main metric.
        vote: score recordings, averaging the probabilities of their crops, instead of crops.
        details: what to keep beside the scores.
        tensors: the trained probe.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    per_fold: list[np.ndarray] = []
    scores: list[dict[str, Any]] = []
    for fold, raw in zip(features.folds, probabilities, strict=True):
        rows, scores_of = fold.test, raw
        if vote:
            first, scores_of = aggregate.vote(raw, features.recording[fold.test])
            rows = fold.test[first]
        target = features.target[rows]
        prediction = scores_of.argmax(axis=1)
        values = metric.per_clip(target, scores_of)
        per_fold.append(values)
        interval = bootstrap_interval(values)
        scores.append(_entry(metric.name, metric(target, scores_of), fold.name, interval, len(rows)))
        item = np.arange(len(rows))
        columns["fold"] += [fold.name] * len(rows)
        columns["split"] += features.split[rows].tolist()
        columns["clip_id"] += (features.key if vote else features.clip_id)[rows].tolist()
        columns["key"] += features.key[rows].tolist()
        columns["target"] += [labels[index] for index in target]
        columns["prediction"] += [labels[index] for index in prediction]
        columns["correct"] += (prediction == target).tolist()
        columns["probability"] += scores_of[item, prediction].tolist()
        columns["target_probability"] += scores_of[item, target].tolist()
    strata = np.repeat(np.arange(len(per_fold)), [len(values) for values in per_fold])
    overall = bootstrap_interval(np.concatenate(per_fold), strata=strata)
    total = len(strata)
    mean = float(np.mean([entry["value"] for entry in scores]))
    scores.insert(0, _entry(metric.name, mean, None, overall, total))
    table = pa.table({name: pa.array(columns[name], type=kind) for name, kind in _COLUMNS.items()})
    return Scored(scores, table, total, details or {}, tensors)


_COLUMNS: dict[str, pa.DataType] = {
    "fold": pa.string(),
    "split": pa.string(),
    "clip_id": pa.string(),
    "key": pa.string(),
    "target": pa.string(),
    "prediction": pa.string(),
    "correct": pa.bool_(),
    "probability": pa.float32(),
    "target_probability": pa.float32(),
}


def _entry(metric: str, value: float, fold: str | None, interval: Interval, n: int) -> dict[str, Any]:
    return {"metric": metric, "value": value, "fold": fold, "low": interval.low, "high": interval.high, "n": n}
