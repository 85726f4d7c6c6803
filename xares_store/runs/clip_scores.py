"""Scores of clips with several labels or a number: one item a recording, intervals over recordings, a row a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from xares_store.metrics import classification, multilabel
from xares_store.metrics.aggregate import mean_over, voted_logits
from xares_store.metrics.resampling import bootstrap_counts, bootstrap_map
from xares_store.metrics.statistics import Interval, bootstrap_interval
from xares_store.runs.features import Features
from xares_store.runs.score import Scored, prediction_table, score_entries
from xares_store.task import Task

# Metrics of the order of scores that have no interval.
_RANKED: dict[str, Callable[[Any, Any], float]] = {
    "auroc": multilabel.mean_auroc,
    "d_prime": multilabel.mean_d_prime,
}
_ERRORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mse": np.square, "mae": np.abs}
_Values = tuple[list[float], list[Interval | None], Interval | None]  # of each fold, their intervals, that of the mean


def score_multilabel(
    task: Task, features: Features, logits: Sequence[np.ndarray], *, vote: bool, details: dict[str, Any], tensors: Any
) -> Scored:
    """Score one run of a multi-label task.

    Clips are ranked by their logits; crops of a recording vote with their mean probabilities, and recordings are ranked by
    the log odds of these. A label is predicted where its probability is above 0.5. Predictions keep the logits or log
    odds, because probabilities near 1 would tie in float32.

    Args:
        task: labels and metrics.
        features: the clips; ``logits[i]`` (test clips, classes) belongs to the test clips of ``features.folds[i]``.
        logits: one array a fold.
        vote: score recordings instead of crops.
        details, tensors: what to keep beside the scores.
    """
    labels = np.asarray(task.labels, dtype=object)
    targets, ranks, hits, tables = [], [], [], []
    for fold, raw in zip(features.folds, logits, strict=True):
        rows, items = _items(features, fold.test, vote)
        ranked = voted_logits(raw, items) if vote else raw.astype(np.float64)
        target = features.target[rows]
        active = ranked > 0
        tables.append(
            prediction_table(
                features,
                fold,
                rows,
                vote=vote,
                target=_joined(labels, target),
                prediction=_joined(labels, active),
                correct=(active == target.astype(bool)).all(axis=1),
                scores=pa.FixedSizeListArray.from_arrays(pa.array(ranked.astype(np.float32).ravel()), len(labels)).cast(
                    pa.list_(pa.float32())
                ),
            )
        )
        targets.append(target)
        ranks.append(ranked)
        hits.append(_counts(target.astype(bool), active))
    counts = [len(target) for target in targets]
    scores: list[dict[str, Any]] = []
    rare = not all(target.any(axis=0).all() for target in targets)  # else all classes are present ones
    mean_ap: dict[bool, _Values] = {}
    for name in task.metric.names:
        if name in ("map", "map_present"):
            present = rare and name == "map_present"
            if present not in mean_ap:
                mean_ap[present] = _mean_average_precision(targets, ranks, present=present)
            values, intervals, overall = mean_ap[present]
        elif name in _RANKED:
            values = [_RANKED[name](target, ranked) for target, ranked in zip(targets, ranks, strict=True)]
            intervals, overall = [None] * len(counts), None
        else:
            average: Literal["macro", "micro"] = "macro" if name == "macro_f1" else "micro"
            function = classification.macro_f1 if average == "macro" else classification.micro_f1
            pairs = zip(targets, ranks, strict=True)
            values = [function(target, (ranked > 0).astype(int)) for target, ranked in pairs]
            intervals = [bootstrap_counts(one, average) for one in hits]
            overall = bootstrap_counts(np.concatenate(hits), average, strata=_strata(counts))
        scores += score_entries(name, features.folds, values, counts, intervals, overall)
    return Scored(scores, pa.concat_tables(tables), sum(counts), details, tensors)


def score_regression(
    task: Task, features: Features, outputs: Sequence[np.ndarray], *, vote: bool, details: dict[str, Any], tensors: Any
) -> Scored:
    """Score one run of a regression task; crops of a recording vote with their mean.

    Args:
        task: metrics.
        features: the clips; ``outputs[i]`` (test clips, 1) belongs to the test clips of ``features.folds[i]``.
        outputs: one array a fold.
        vote: score recordings instead of crops.
        details, tensors: what to keep beside the scores.
    """
    main = task.metric.name
    pairs, tables = [], []
    for fold, raw in zip(features.folds, outputs, strict=True):
        rows, items = _items(features, fold.test, vote)
        found = (mean_over(raw, items) if vote else raw.astype(np.float64))[:, 0]
        target = features.target[rows].astype(np.float64)
        share = {"value": _ERRORS[main](found - target)} if main in _ERRORS else {}
        texts = {
            "target": [repr(float(value)) for value in features.target[rows].tolist()],
            "prediction": [f"{value:.6g}" for value in found],
        }
        tables.append(prediction_table(features, fold, rows, vote=vote, **texts, **share))
        pairs.append((target, found))
    counts = [len(target) for target, _ in pairs]
    scores: list[dict[str, Any]] = []
    for name in task.metric.names:
        if name in _ERRORS:
            errors = [_ERRORS[name](found - target) for target, found in pairs]
            values = [float(one.mean()) for one in errors]
            intervals: list[Interval | None] = [bootstrap_interval(one) for one in errors]
            overall: Interval | None = bootstrap_interval(np.concatenate(errors), strata=_strata(counts))
        else:
            values = [classification.pearson(target, found) for target, found in pairs]
            intervals, overall = [None] * len(counts), None
        scores += score_entries(name, features.folds, values, counts, intervals, overall)
    return Scored(scores, pa.concat_tables(tables), sum(counts), details, tensors)


def _mean_average_precision(targets: Sequence[np.ndarray], ranks: Sequence[np.ndarray], *, present: bool) -> _Values:
    function = multilabel.map_present if present else classification.mean_average_precision
    pairs = list(zip(targets, ranks, strict=True))
    intervals: list[Interval | None] = [bootstrap_map(*pair, present_only=present) for pair in pairs]
    overall = intervals[0]
    if len(pairs) > 1:
        strata = _strata([len(target) for target in targets])
        overall = bootstrap_map(np.concatenate(targets), np.concatenate(ranks), present_only=present, strata=strata)
    return [function(*pair) for pair in pairs], intervals, overall


def _items(features: Features, test: np.ndarray, vote: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each scored item, and which item each test clip belongs to."""
    if not vote:
        return test, np.arange(len(test))
    _, first, member = np.unique(features.recording[test], return_index=True, return_inverse=True)
    return test[first], member


def _joined(labels: np.ndarray, active: np.ndarray) -> list[str]:
    return [";".join(labels[np.flatnonzero(row)]) for row in active]


def _counts(target: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Return true positives, false positives and false negatives, ``(items, 3, classes)``."""
    return np.stack([target & active, ~target & active, target & ~active], axis=1).astype(np.float32)


def _strata(counts: Sequence[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)
