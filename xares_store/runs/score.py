"""From class probabilities to scores: one item a recording, intervals over test items, a row a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from xares_store.errors import MetricError
from xares_store.metrics import aggregate, classification
from xares_store.metrics.resampling import bootstrap_ratio
from xares_store.metrics.statistics import Interval, bootstrap_interval
from xares_store.protocol import Fold
from xares_store.runs.features import Features

JOINED = " | "  # what stands between several references in the column target


@dataclass
class Scored:
    """What a run stores: scores, predictions, and the probe itself.

    Attributes:
        scores: a dictionary a metric and fold: ``metric, value, fold, low, high, n``; ``fold`` None is the mean over folds.
        predictions: a row a scored item.
        n_test: scored items over all folds.
        details: what was chosen on validation and how training went.
        tensors: the trained probe; None when nothing is trained.
        main_metric: name of the main metric among the scores, where it is not the task's own: a score made with
            stand-in models carries their names.
    """

    scores: list[dict[str, Any]]
    predictions: pa.Table
    n_test: int
    details: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] | None = None
    main_metric: str | None = None


def score_run(
    features: Features,
    probabilities: Sequence[np.ndarray],
    labels: Sequence[str],
    metrics: Sequence[str],
    *,
    vote: bool,
    details: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Scored:
    """Score one run of a single-label task.

    Args:
        features: the clips; ``probabilities[i]`` belongs to the test clips of ``features.folds[i]``.
        probabilities: one array (test clips, classes) a fold.
        labels: class names by index.
        metrics: names of the task's metrics, the main one first.
        vote: score recordings, averaging the probabilities of their crops, instead of crops.
        details: what to keep beside the scores.
        tensors: the trained probe.
    """
    names = pa.array(labels, pa.string())
    tables: list[pa.Table] = []
    items: list[tuple[np.ndarray, np.ndarray]] = []
    for fold, raw in zip(features.folds, probabilities, strict=True):
        rows, scores_of = items_of(features, fold, raw, vote=vote)
        target, prediction = features.target[rows], scores_of.argmax(axis=1)
        item = np.arange(len(rows))
        tables.append(
            prediction_table(
                features,
                fold,
                rows,
                vote=vote,
                target=names.take(pa.array(target)),
                prediction=names.take(pa.array(prediction)),
                correct=prediction == target,
                probability=scores_of[item, prediction],
                target_probability=scores_of[item, target],
                value=(prediction == target).astype(np.float64),
            )
        )
        items.append((target, scores_of))
    groups = drawn_together(features, vote=vote)
    scores = [entry for name in metrics for entry in _metric_entries(name, features.folds, items, groups)]
    return Scored(scores, pa.concat_tables(tables), sum(len(t) for t in tables), details or {}, tensors)


def items_of(features: Features, fold: Fold, raw: np.ndarray, *, vote: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a fold's scored items and what was predicted for each.

    Args:
        features: the clips.
        fold: the fold.
        raw: ``(test clips, outputs)`` in the order of ``fold.test``.
        vote: one item a recording, with the mean over its crops, at the row of its first crop.
    """
    if not vote:
        return fold.test, raw
    first, mean = aggregate.vote(raw, features.recording[fold.test])
    return fold.test[first], mean


def drawn_together(features: Features, *, vote: bool) -> list[np.ndarray] | None:
    """Return which items of each fold are crops of one recording, for intervals; None where every item is its own.

    Crops of a recording are alike: intervals that drew them one by one would be too narrow. Only the published protocol
    scores them one by one.
    """
    if vote or not features.cropped:
        return None
    return [features.recording[fold.test] for fold in features.folds]


def mean_intervals(
    values: Sequence[np.ndarray], groups: Sequence[np.ndarray] | None
) -> tuple[list[Interval | None], Interval]:
    """Return the intervals of means over items: of each fold, and of the mean over folds.

    Args:
        values: ``(items,)`` a fold.
        groups: what :func:`drawn_together` gives.
    """
    strata = np.repeat(np.arange(len(values)), [len(one) for one in values])
    together = np.concatenate(values)
    if groups is None:
        return [bootstrap_interval(one) for one in values], bootstrap_interval(together, strata=strata)
    each: list[Interval | None] = [
        bootstrap_ratio(one, np.ones(len(one)), groups=group) for one, group in zip(values, groups, strict=True)
    ]
    return each, bootstrap_ratio(together, np.ones(len(together)), strata=strata, groups=np.concatenate(groups))


def prediction_table(features: Features, fold: Fold, rows: np.ndarray, *, vote: bool, **columns: Any) -> pa.Table:
    """Return rows of ``predictions.parquet`` for scored items.

    Args:
        features: the clips.
        fold: the fold that was tested.
        rows: the items' rows in ``features``.
        vote: whether items are recordings: they go by their key then.
        columns: target, prediction and what else the kind of task has; a missing column is null.
    """
    clip_id = (features.key if vote else features.clip_id)[rows]
    return pa.table(
        {
            "fold": pa.repeat(pa.scalar(fold.name, pa.string()), len(rows)),
            "split": pa.array(features.split[rows], pa.string()),
            "clip_id": pa.array(clip_id, pa.string()),
            "key": pa.array(features.key[rows], pa.string()),
            **{
                name: (columns[name] if isinstance(columns.get(name), pa.Array) else pa.array(columns[name], kind))
                if name in columns
                else pa.nulls(len(rows), kind)
                for name, kind in _COLUMNS.items()
            },
        }
    )


def score_entries(
    metric: str,
    folds: Sequence[Fold],
    values: Sequence[float],
    counts: Sequence[int],
    intervals: Sequence[Interval | None],
    overall: Interval | None,
) -> list[dict[str, Any]]:
    """Return the scores of one metric: the mean over folds first, then one a fold.

    Args:
        metric: its name.
        folds: the folds, as many as values, counts and intervals.
        values: the metric's value in each fold.
        counts: scored items in each fold.
        intervals: 95 % intervals over the items of each fold; None for a metric without one.
        overall: the same for the mean over folds.
    """
    mean = _entry(metric, float(np.mean(values)), None, overall, sum(counts))
    each = zip(values, folds, intervals, counts, strict=True)
    return [mean, *(_entry(metric, value, fold.name, interval, n) for value, fold, interval, n in each)]


_COLUMNS: dict[str, pa.DataType] = {
    "target": pa.string(),
    "prediction": pa.string(),
    "correct": pa.bool_(),
    "probability": pa.float32(),
    "target_probability": pa.float32(),
    "value": pa.float64(),
    "scores": pa.list_(pa.float32()),
    "counts": pa.list_(pa.int32()),
    "substitutions": pa.int32(),
    "deletions": pa.int32(),
    "insertions": pa.int32(),
    "reference_units": pa.int32(),
}


def _metric_entries(
    name: str,
    folds: Sequence[Fold],
    items: Sequence[tuple[np.ndarray, np.ndarray]],
    groups: Sequence[np.ndarray] | None,
) -> list[dict[str, Any]]:
    counts = [len(target) for target, _ in items]
    if name != "accuracy":
        function = {
            "macro_accuracy": classification.macro_accuracy,
            "macro_f1": classification.macro_f1,
        }[name]
        values = [function(target, scores) for target, scores in items]
        return score_entries(name, folds, values, counts, [None] * len(folds), None)
    hits = [classification.correct(target, scores) for target, scores in items]
    for fold, values_of in zip(folds, hits, strict=True):
        if not len(values_of):
            raise MetricError(f"Wanted at least one clip, found none: {name} is undefined.", where=f"fold {fold.name}")
    intervals, overall = mean_intervals(hits, groups)
    return score_entries(name, folds, [float(values_of.mean()) for values_of in hits], counts, intervals, overall)


def _entry(metric: str, value: float, fold: str | None, interval: Interval | None, n: int) -> dict[str, Any]:
    low, high = (interval.low, interval.high) if interval is not None else (None, None)
    return {"metric": metric, "value": value, "fold": fold, "low": low, "high": high, "n": n}
