"""Scores of clips with several labels or a number: one item a recording, intervals over recordings, a row a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from xares_store.metrics import classification, multilabel
from xares_store.metrics.aggregate import mean_over, voted_logits
from xares_store.metrics.resampling import bootstrap_counts, bootstrap_map
from xares_store.metrics.statistics import Interval, percentile_interval
from xares_store.runs.features import Features
from xares_store.runs.score import Scored, drawn_together, mean_intervals, prediction_table, score_entries
from xares_store.task import Task

# Metrics of the order of scores that have no interval.
_RANKED: dict[str, Callable[[Any, Any], float]] = {
    "auroc": multilabel.mean_auroc,
    "d_prime": multilabel.mean_d_prime,
}
_REPLICATES = 2000
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
    groups = drawn_together(features, vote=vote)
    rare = not all(target.any(axis=0).all() for target in targets)  # else all classes are present ones
    mean_ap: dict[bool, _Values] = {}
    for name in task.metric.names:
        if name in ("map", "map_present"):
            present = rare and name == "map_present"
            if present not in mean_ap:
                mean_ap[present] = _mean_average_precision(targets, ranks, groups, present=present)
            values, intervals, overall = mean_ap[present]
        elif name in _RANKED:
            values = [_RANKED[name](target, ranked) for target, ranked in zip(targets, ranks, strict=True)]
            intervals, overall = [None] * len(counts), None
        else:
            average: Literal["macro", "micro"] = "macro" if name == "macro_f1" else "micro"
            function = classification.macro_f1 if average == "macro" else classification.micro_f1
            pairs = zip(targets, ranks, strict=True)
            values = [function(target, (ranked > 0).astype(int)) for target, ranked in pairs]
            each: list[np.ndarray | None] = [*groups] if groups else [None for _ in hits]
            intervals = [bootstrap_counts(one, average, groups=group) for one, group in zip(hits, each, strict=True)]
            overall = intervals[0]
            if len(hits) > 1:
                together = None if groups is None else np.concatenate(groups)
                overall = bootstrap_counts(np.concatenate(hits), average, strata=_strata(counts), groups=together)
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
    intervals: list[Interval | None]
    overall: Interval | None
    for name in task.metric.names:
        if name in _ERRORS:
            errors = [_ERRORS[name](found - target) for target, found in pairs]
            values = [float(one.mean()) for one in errors]
            intervals, overall = mean_intervals(errors, drawn_together(features, vote=vote))
        else:
            values = [classification.pearson(target, found) for target, found in pairs]
            intervals, overall = _pearson_intervals(pairs, drawn_together(features, vote=vote))
        scores += score_entries(name, features.folds, values, counts, intervals, overall)
    return Scored(scores, pa.concat_tables(tables), sum(counts), details, tensors)


def _mean_average_precision(
    targets: Sequence[np.ndarray], ranks: Sequence[np.ndarray], groups: Sequence[np.ndarray] | None, *, present: bool
) -> _Values:
    function = multilabel.map_present if present else classification.mean_average_precision
    pairs = list(zip(targets, ranks, strict=True))
    each: list[np.ndarray | None] = [*groups] if groups else [None for _ in pairs]
    intervals: list[Interval | None] = [
        bootstrap_map(*pair, present_only=present, groups=group) for pair, group in zip(pairs, each, strict=True)
    ]
    overall = intervals[0]
    if len(pairs) > 1:
        strata = _strata([len(target) for target in targets])
        together = None if groups is None else np.concatenate(groups)
        overall = bootstrap_map(
            np.concatenate(targets), np.concatenate(ranks), present_only=present, strata=strata, groups=together
        )
    return [function(*pair) for pair in pairs], intervals, overall


def _pearson_intervals(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], groups: Sequence[np.ndarray] | None
) -> tuple[list[Interval | None], Interval | None]:
    """Return the intervals of the correlation in each fold, and of their mean, from recordings drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = []
    for number, (target, found) in enumerate(pairs):
        x, y = target - target.mean(), found - found.mean()
        member = np.arange(len(x)) if groups is None else np.unique(groups[number], return_inverse=True)[1]
        sums = np.zeros((int(member.max()) + 1, 6))
        np.add.at(sums, member, np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1))
        shares, block = np.full(len(sums), 1 / len(sums)), _REPLICATES // 20  # so many at a time, to bound memory
        blocks = [rng.multinomial(len(sums), shares, size=block) @ sums for _ in range(20)]
        n, sx, sy, sxx, syy, sxy = np.concatenate(blocks).T
        spread = np.sqrt(np.maximum(n * sxx - sx * sx, 0) * np.maximum(n * syy - sy * sy, 0))
        # Where one side is constant nothing is correlated.
        drawn.append(np.divide(n * sxy - sx * sy, spread, out=np.zeros(len(n)), where=spread > 1e-12 * spread.max()))
    points = [classification.pearson(*pair) for pair in pairs]
    each: list[Interval | None] = [percentile_interval(*one, 0.95) for one in zip(points, drawn, strict=True)]
    return each, percentile_interval(float(np.mean(points)), np.mean(drawn, axis=0), 0.95)


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
