"""Scores of written text: one item a recording, intervals over recordings, a row an item.

Under ``strict`` an item is a recording with all its references. Under ``published`` it is a crop, and every pair of it
with one of its references counts by itself, as in XARES-LLM, which also leaves out references that look corrupt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xares_store.errors import MetricError
from xares_store.metrics.captioning import DateKind
from xares_store.metrics.cider import cider_d
from xares_store.metrics.classification import mean_average_precision
from xares_store.metrics.resampling import (
    bootstrap_counts,
    bootstrap_inverse_rate,
    bootstrap_map,
    bootstrap_ratio,
)
from xares_store.metrics.statistics import Interval
from xares_store.metrics.strings import confusion, f1_of_matrices, label_matrices, labels_of, map_of_matrices
from xares_store.metrics.text import Unit, error_counts
from xares_store.runs.llm.answers import Answers, answers_of
from xares_store.runs.score import JOINED, Scored, mean_intervals, prediction_table, score_entries

if TYPE_CHECKING:
    from xares_store.probes.captions import CaptionModels
    from xares_store.runs.features import Features
    from xares_store.task import Task

UNITS: Mapping[str, Unit] = {"iwer": "word", "icer": "character"}
_COUNTS = ("substitutions", "deletions", "insertions", "reference_units")

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Likelihood:
    """How likely a language model finds each label, clip by clip.

    Attributes:
        labels: the labels, as they would be written.
        folds: one array (test clips, labels) of log-likelihoods a fold, finite, in the order of ``fold.test``.
    """

    labels: tuple[str, ...]
    folds: Sequence[npt.NDArray[Any]]


@dataclass(frozen=True)
class _Outcome:
    """One metric over all folds.

    Attributes:
        name: as it is stored.
        values, intervals: of each fold; ``overall``: interval of their mean.
        items: each item's own value, of a mean over items.
        counts: (items, 4) what error rates are made of.
        details: of captions, what they were scored with.
    """

    name: str
    values: list[float]
    intervals: list[Interval | None]
    overall: Interval | None
    items: list[Values] | None = None
    counts: Sequence[npt.NDArray[np.int64]] | None = None
    details: list[Any] | None = None


def score_texts(
    task: Task,
    features: Features,
    fold_hypotheses: Sequence[Sequence[str]],
    *,
    protocol: str,
    captions: CaptionModels | None,
    details: dict[str, Any] | None = None,
    likelihood: Likelihood | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Scored:
    """Score one run of a task whose answers are texts.

    Args:
        task: its metrics, the separator of its labels, and whether its answers are labels.
        features: the clips; ``target`` is a list of :class:`~xares_store.targets.Texts`, of which the test texts count.
            A clip without any is not scored, and counted in the details.
        fold_hypotheses: what was written about each test clip, one sequence a fold in the order of ``fold.test``.
        protocol: ``strict``: crops of a recording are joined in time, or vote where answers are labels; one right
            reference is enough; error rates go by the reference with the fewest errors. ``published``: every crop and
            every reference by itself; transcripts are only made lower case, as X-ARES did.
        captions: what FENSE and DATE are computed with; None where the task has neither.
        details: what to keep beside the scores; the part ``text`` is added.
        likelihood: adds ``likelihood_accuracy``, or ``likelihood_map`` where a text may hold several labels; crops of a
            recording count with the mean of their log-likelihoods.
        tensors: the trained probe.

    Returns:
        Scores of all metrics of the task with 95 % intervals from drawing recordings, and a row an item. For ``iwer``
        and ``icer`` as main metric the row has the errors by kind, in words or characters. With stand-in models the
        name of a metric says so, and so does ``main_metric``.

    Raises:
        MetricError: hypotheses or likelihoods do not fit the clips, or a fold has nothing to score.
    """
    folds = [
        answers_of(task, features, fold, hypotheses, protocol=protocol)
        for fold, hypotheses in zip(features.folds, fold_hypotheses, strict=True)
    ]
    # Crops of one recording are drawn together.
    groups = [features.recording[one.rows] for one in folds] if protocol == "published" and features.cropped else None
    found = [_outcome(name, task, folds, captions, groups) for name in task.metric.names]
    main = found[0]
    columns: list[dict[str, Any]] = [{} for _ in folds]
    text: dict[str, Any] = {
        "normaliser": folds[0].form.normaliser,
        "n_references": sum(len(one.item) for one in folds),
        "empty_hypotheses": sum(not one.form.comparable(written) for one in folds for written in one.hypotheses),
        "corrupt_references_dropped": sum(one.n_corrupt for one in folds),
        "clips_dropped": sum(one.n_dropped for one in folds),
    }
    said = {one.name: one.details for one in found if one.details is not None}
    if captions is not None and said:
        text["captions"] = {"models": captions.identity(), "folds": said}
    if likelihood is not None:
        both = zip(features.folds, folds, likelihood.folds, strict=True)
        rows = [_by_item(one, raw, likelihood.labels, len(fold.test)) for fold, one, raw in both]
        outcome, unlisted = _of_likelihood(folds, rows, likelihood.labels, groups)
        found.append(outcome)
        text["likelihood"] = {"labels": list(likelihood.labels), "unlisted_references": unlisted}
        for mine, row in zip(columns, rows, strict=True):
            mine["scores"] = list(row.astype(np.float32))
    for number, mine in enumerate(columns):
        if main.items is not None:
            mine["value"] = main.items[number]
        if main.counts is not None:
            mine.update(zip(_COUNTS, main.counts[number].T.astype(np.int32), strict=True))
    tables = [
        prediction_table(
            features,
            fold,
            one.rows,
            vote=protocol == "strict" and features.cropped,
            target=[JOINED.join(references) for references in one.references],
            prediction=one.hypotheses,
            correct=one.best(one.hits()) > 0,
            **mine,
        )
        for fold, one, mine in zip(features.folds, folds, columns, strict=True)
    ]
    n = [len(one.rows) for one in folds]
    scores: list[dict[str, Any]] = []
    for one in found:
        scores += score_entries(one.name, features.folds, one.values, n, one.intervals, one.overall)
    renamed = None if main.name == task.metric.name else main.name
    return Scored(scores, pa.concat_tables(tables), sum(n), {**(details or {}), "text": text}, tensors, renamed)


def _outcome(
    name: str,
    task: Task,
    folds: Sequence[Answers],
    captions: CaptionModels | None,
    groups: Sequence[npt.NDArray[Any]] | None,
) -> _Outcome:
    if name in UNITS:
        return _inverse_rate(name, [edit_counts(one, UNITS[name]) for one in folds], groups)
    if name in ("string_map", "string_macro_f1"):
        return _of_labels(name, task, folds, groups)
    if name == "string_accuracy":
        return _mean(name, [one.of_items(one.hits()) for one in folds], [one.weight for one in folds], groups)
    if name == "cider":  # of all references of a clip under either protocol: no published table has it
        items = [cider_d(one.references, one.hypotheses) for one in folds]
        return _mean(name, items, [np.ones(len(one)) for one in items], groups)
    return _of_captions(name, folds, captions, groups, kind=task.metric.date_kind or "long")


def edit_counts(one: Answers, unit: Unit) -> npt.NDArray[np.int64]:
    """Return substitutions, deletions, insertions and reference units of each item, ``(items, 4)``."""
    target, prediction = (
        [one.form.comparable(text) for text in side] for side in (one.pair_target, one.pair_prediction)
    )
    counts = error_counts(target, prediction, unit=unit)
    table = np.array([[c.substitutions, c.deletions, c.insertions, c.units] for c in counts], dtype=np.int64)
    if one.form.every_pair:
        total = np.zeros((len(one.rows), 4), dtype=np.int64)
        np.add.at(total, one.item, table)
        return total
    # Pairs of an item stand together; the first of those with the fewest errors counts.
    order = np.lexsort((table[:, :3].sum(axis=1), one.item))
    _, first = np.unique(one.item[order], return_index=True)
    return np.asarray(table[order[first]])


def _inverse_rate(
    name: str, counts: Sequence[npt.NDArray[np.int64]], groups: Sequence[npt.NDArray[Any]] | None
) -> _Outcome:
    sums = [(one[:, :3].sum(axis=1), one[:, 3]) for one in counts]
    values = [max(0.0, 1.0 - errors.sum() / max(1, units.sum())) for errors, units in sums]
    return _Outcome(name, values, *_resampled(bootstrap_inverse_rate, sums, groups), counts=counts)


def _mean(
    name: str, items: list[Values], weights: Sequence[Values], groups: Sequence[npt.NDArray[Any]] | None
) -> _Outcome:
    """Return a mean over items that count so much."""
    values = [float(np.average(one, weights=weight)) for one, weight in zip(items, weights, strict=True)]
    if all((weight == 1).all() for weight in weights):
        intervals, overall = mean_intervals(items, groups)
        return _Outcome(name, values, intervals, overall, items)
    sums = [(one * weight, weight) for one, weight in zip(items, weights, strict=True)]
    return _Outcome(name, values, *_resampled(bootstrap_ratio, sums, groups), items)


def _of_labels(name: str, task: Task, folds: Sequence[Answers], groups: Sequence[npt.NDArray[Any]] | None) -> _Outcome:
    n_classes = task.metric.n_classes or 1  # task files give it
    form = folds[0].form
    wanted, written = label_matrices(
        [text for one in folds for text in one.pair_target],
        [text for one in folds for text in one.pair_prediction],
        separator=form.separator or ";",
        trim=not form.every_pair,
    )
    ends = np.cumsum([len(one.item) for one in folds])[:-1]
    pairs = list(zip(np.split(wanted, ends), np.split(written, ends), strict=True))
    function = map_of_matrices if name == "string_map" else f1_of_matrices
    values = [function(*pair, n_classes=n_classes) for pair in pairs]
    if not wanted.shape[1]:
        return _Outcome(name, values, [None] * len(folds), None)
    together = [one.item if groups is None else groups[number][one.item] for number, one in enumerate(folds)]
    if name == "string_map":
        intervals, overall = _resampled(bootstrap_map, pairs, together)
    else:
        intervals, overall = _resampled(bootstrap_counts, [(confusion(*pair),) for pair in pairs], together)
    share = wanted.shape[1] / n_classes  # labels that do not occur add 0
    return _Outcome(name, values, [_scaled(one, share) for one in intervals], _scaled(overall, share))


def _of_captions(
    name: str,
    folds: Sequence[Answers],
    captions: CaptionModels | None,
    groups: Sequence[npt.NDArray[Any]] | None,
    *,
    kind: DateKind,
) -> _Outcome:
    if captions is None:
        raise MetricError(
            f"Wanted a sentence encoder for {name}, found none.", hint="Name one: --sentence-encoder FOLDER."
        )
    from xares_store.probes.captions import caption_scores, metric_label

    metric: Literal["fense", "date"] = "date" if name == "date" else "fense"
    rule: Literal["strict", "published"] = "published" if folds[0].form.every_pair else "strict"
    found = [
        caption_scores(one.hypotheses, one.references, metric=metric, models=captions, protocol=rule, kind=kind)
        for one in folds
    ]
    outcome = _mean(
        metric_label(metric, captions), [one.per_clip for one in found], [one.weight for one in folds], groups
    )
    # As published, the score of a fold is rounded.
    return replace(outcome, values=[one.value for one in found], details=[one.details for one in found])


def _by_item(one: Answers, likelihood: npt.NDArray[Any], labels: Sequence[str], n_clips: int) -> Values:
    """Return the mean log-likelihoods over the clips of each item, ``(items, labels)``."""
    if likelihood.shape != (n_clips, len(labels)) or not np.isfinite(likelihood).all():
        raise MetricError(
            f"Wanted finite log-likelihoods of {len(labels)} labels for {n_clips} test clips, found shape "
            f"{likelihood.shape}."
        )
    return np.stack([likelihood[clips].mean(axis=0, dtype=np.float64) for clips in one.clips])


def _of_likelihood(
    folds: Sequence[Answers],
    rows: Sequence[Values],
    labels: Sequence[str],
    groups: Sequence[npt.NDArray[Any]] | None,
) -> tuple[_Outcome, int]:
    """Return the metric of the labels' likelihoods, and how many reference labels are none of them."""
    separator = folds[0].form.separator
    if separator is None:
        known = {folds[0].form.same(label) for label in labels}
        unlisted = sum(one.form.same(text) not in known for one in folds for text in one.pair_target)
        likeliest = [[labels[column] for column in row.argmax(axis=1).tolist()] for row in rows]
        items = [one.of_items(one.hits(answers)) for one, answers in zip(folds, likeliest, strict=True)]
        return _mean("likelihood_accuracy", items, [one.weight for one in folds], groups), unlisted
    names = [labels_of(label, separator=separator) for label in labels]
    pairs, unlisted = [], 0
    for one, row in zip(folds, rows, strict=True):
        wanted = [set().union(*(labels_of(text, separator=separator) for text in own)) for own in one.references]
        unlisted += sum(len(own.difference(*names)) for own in wanted)
        pairs.append((np.array([[bool(name & own) for name in names] for own in wanted]), row))
    values = [mean_average_precision(*pair) for pair in pairs]
    return _Outcome("likelihood_map", values, *_resampled(bootstrap_map, pairs, groups)), unlisted


def _resampled(
    interval: Callable[..., Interval],
    folds: Sequence[tuple[npt.NDArray[Any], ...]],
    groups: Sequence[npt.NDArray[Any]] | None,
) -> tuple[list[Interval | None], Interval | None]:
    """Return the intervals of each fold and of the mean over folds, from arrays a fold."""
    each: list[Interval | None] = [
        interval(*arrays, groups=None if groups is None else groups[number]) for number, arrays in enumerate(folds)
    ]
    if len(folds) == 1:
        return each, each[0]
    strata = np.repeat(np.arange(len(folds)), [len(arrays[0]) for arrays in folds])
    together = [np.concatenate(side) for side in zip(*folds, strict=True)]
    return each, interval(*together, strata=strata, groups=None if groups is None else np.concatenate(groups))


def _scaled(interval: Interval | None, share: float) -> Interval | None:
    if interval is None:
        return None
    return Interval(interval.point * share, interval.low * share, interval.high * share)
