"""The frame probe of an evaluation: train on streamed frames, score the test clips as they pass by."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xares_store.device import resolve_device, set_threads
from xares_store.errors import MetricError
from xares_store.kinds import Events
from xares_store.metrics.frame_map import FrameAveragePrecision
from xares_store.metrics.frames import segment_pool_size
from xares_store.probes.frame import CLIP_BYTES, FrameJob, FrameResult, FrameSettings, frame_logits, train_frames
from xares_store.protocol import Fold
from xares_store.runs.features import Features
from xares_store.runs.frame_scores import (
    AVERAGE_PRECISION_BYTES,
    COUNTED,
    EVENT_RULES,
    EventRule,
    FrameScorer,
    MainScore,
    defined,
    interval,
    resample,
    sign_of,
    value_of,
)
from xares_store.runs.provenance import describe_device
from xares_store.runs.request import Request
from xares_store.runs.score import Scored, drawn_together, prediction_table, score_entries
from xares_store.store.stream import FrameSource
from xares_store.targets import EventTable
from xares_store.task import Task

Counts = npt.NDArray[np.int64]


@dataclass
class _Tested:
    """What remains of the test clips of one fold.

    Attributes:
        rows: the row of each item, the first one where an item is several crops.
        counts: kind to ``(items, seeds, k)``.
        precision: frame mAP of each seed; empty when it is not asked for.
        found: predicted events in time of the recording, ``found[seed][item]``.
    """

    rows: npt.NDArray[np.int64]
    counts: dict[str, Counts]
    precision: list[float]
    found: list[list[list[EventTable]]]


def frame_outcomes(
    task: Task,
    request: Request,
    settings: dict[str, Any],
    seeds: Sequence[int],
    features: Features,
    progress: Callable[[int, int], None],
) -> tuple[dict[int | None, Scored], str]:
    """Train the frame probe for all folds and seeds and score each seed.

    Under ``strict`` the scored item is the recording: what was counted in its crops is summed. Under ``published`` it is
    the crop. Intervals come from resampling recordings; frame mAP has none.

    Args:
        task: labels, metrics and the kind of events.
        request: protocol, device and memory.
        settings: complete settings of the probe.
        seeds: seeds to train.
        features: clips, events and folds.
        progress: called with (done, total) epochs.

    Returns:
        What each seed scored, and the device it was computed on.
    """
    target = task.target
    assert isinstance(target, Events)
    device = resolve_device(request.device)
    set_threads()
    source = FrameSource(features.parts, features.part_of, features.offset, features.n_frames)
    scorer = FrameScorer(
        features.target,
        features.start_s,
        features.duration_s,
        features.n_frames,
        hop_ms=source.hop_ms,
        n_classes=len(task.labels),
        segment_s=task.metric.segment_s,
        rule="published" if request.protocol == "published" else "strict",
        published_length_s=target.published_length_s,
    )
    main = task.metric.name
    if main == "segment_error_rate":
        for fold in features.folds:
            if not any(len(scorer.events(row).label) for row in fold.valid.tolist()):
                raise MetricError(
                    f"Wanted at least one event among the validation clips, found none: {main} cannot choose a checkpoint.",
                    where=f"fold {fold.name}",
                )
    results = train_frames(
        source,
        scorer.roll,
        scorer.n_classes,
        [FrameJob(fold.name, fold.train, fold.valid, seed) for seed in seeds for fold in features.folds],
        FrameSettings(
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            learning_rates=tuple(settings["learning_rates"]),
            positive_weight=settings["positive_weight"],
        ),
        valid_score=lambda models: MainScore(scorer, main, models),
        score_bytes=AVERAGE_PRECISION_BYTES * scorer.n_classes * (main == "frame_map"),
        device=device,
        memory_bytes=request.memory_bytes,
        progress=progress,
    )
    chosen = [[_one(results, fold, seed) for seed in seeds] for fold in features.folds]
    vote = request.protocol == "strict" and features.cropped
    tested = [
        _test(task, request, features, scorer, source, fold, mine, device, vote)
        for fold, mine in zip(features.folds, chosen, strict=True)
    ]
    scores = _scores(task, features.folds, tested, len(seeds), drawn_together(features, vote=vote))
    general = {"events": _describe(task, scorer, features)}
    found: dict[int | None, Scored] = {}
    for number, seed in enumerate(seeds):
        ordered = [mine[number] for mine in chosen]
        tables = [
            _predictions(task, features, scorer, fold, one, number, vote)
            for fold, one in zip(features.folds, tested, strict=True)
        ]
        found[seed] = Scored(
            scores[number],
            pa.concat_tables(tables),
            sum(len(one.rows) for one in tested),
            {"folds": [_choice(result, sign_of(main)) for result in ordered], **general},
            {f"fold-{result.fold}.{name}": value for result in ordered for name, value in result.state.items()},
        )
    return found, describe_device(device)


def _one(results: Sequence[FrameResult], fold: Fold, seed: int) -> FrameResult:
    return next(result for result in results if (result.fold, result.seed) == (fold.name, seed))


def _choice(result: FrameResult, sign: float) -> dict[str, Any]:
    """Return what was chosen on validation clips, in the metric's own direction."""
    history = [
        {**row, "valid": [None if value is None else sign * value for value in row["valid"]]} for row in result.history
    ]
    return {
        "fold": result.fold,
        "learning_rate": result.learning_rate,
        "epoch": result.best_epoch,
        "valid": sign * result.valid_score,
        "history": history,
    }


def _describe(task: Task, scorer: FrameScorer, features: Features) -> dict[str, Any]:
    """Return how frames became segments and events."""
    found: dict[str, Any] = {
        "rule": scorer.rule,
        "hop_ms": scorer.hop_ms,
        "threshold": 0.5,
        **{name: asdict(rule) for name, rule in EVENT_RULES.items() if name in task.metric.names},
    }
    if task.metric.segment_s is not None:
        found["segment_s"] = task.metric.segment_s
        if scorer.rule == "published":
            pool = segment_pool_size(task.metric.segment_s, scorer.hop_ms)
            tested = np.concatenate([fold.test for fold in features.folds])
            found["segment_frames"] = pool
            found["clips_without_a_segment"] = int((features.n_frames[tested] < pool).sum())
    return found


def _test(
    task: Task,
    request: Request,
    features: Features,
    scorer: FrameScorer,
    source: FrameSource,
    fold: Fold,
    results: Sequence[FrameResult],
    device: str,
    vote: bool,
) -> _Tested:
    rows, item = _items(features, fold, vote)
    kinds = sorted({COUNTED[name] for name in task.metric.names if name in COUNTED})
    width = {kind: 2 if kind == "errors" else 3 * scorer.n_classes for kind in kinds}
    found = _Tested(
        rows,
        {kind: np.zeros((len(rows), len(results), width[kind]), np.int64) for kind in kinds},
        [],
        [[[] for _ in rows] for _ in results],
    )
    rule = _event_rule(task)
    mapped = "frame_map" in task.metric.names
    together = max(1, CLIP_BYTES // (4 * int(features.n_frames[fold.test].max()) * scorer.n_classes))
    if mapped:
        together = min(together, max(1, request.memory_bytes // 4 // (AVERAGE_PRECISION_BYTES * scorer.n_classes)))
    for first in range(0, len(results), together):
        models = slice(first, first + together)
        states = [result.state for result in results[models]]
        precision = [FrameAveragePrecision(scorer.n_classes) for _ in states] if mapped else []
        for row, logits in frame_logits(source, fold.test, states, device=device, memory_bytes=request.memory_bytes):
            for kind, counts in scorer.counts(kinds, row, logits).items():
                found.counts[kind][item[row], models] += counts
            roll = scorer.roll(row) if mapped else None
            start = float(features.start_s[row]) if vote else 0.0
            for model in range(len(states)):
                events = scorer.predicted(rule, logits[:, model])
                found.found[first + model][item[row]].append(_moved(events, start))
                if roll is not None:
                    precision[model].update(roll, logits[:, model])
        found.precision += [float(one.value().mean()) for one in precision]
    return found


def _items(features: Features, fold: Fold, vote: bool) -> tuple[npt.NDArray[np.int64], dict[int, int]]:
    """Return the first row of each scored item, and the item of each row."""
    if not vote:
        return fold.test, {row: number for number, row in enumerate(fold.test.tolist())}
    _, first, member = np.unique(features.recording[fold.test], return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return fold.test[first[order]], dict(zip(fold.test.tolist(), rank[member].tolist(), strict=True))


def _event_rule(task: Task) -> EventRule:
    """Return the rule by which predictions are stored: that of the task's first event-based metric."""
    return next((EVENT_RULES[name] for name in task.metric.names if name in EVENT_RULES), EventRule(0.0, 0.0, 0.0))


def _moved(events: EventTable, seconds: float) -> EventTable:
    return EventTable(events.onset_s + seconds, events.offset_s + seconds, events.label)


def _summed(counts: dict[str, Counts], group: npt.NDArray[np.int64]) -> dict[str, Counts]:
    """Add up the counts of the crops of each recording."""
    _, member = np.unique(group, return_inverse=True)
    found = {}
    for kind, each in counts.items():
        found[kind] = np.zeros((int(member.max()) + 1, *each.shape[1:]), np.int64)
        np.add.at(found[kind], member, each)
    return found


def _scores(
    task: Task,
    folds: Sequence[Fold],
    tested: Sequence[_Tested],
    n_seeds: int,
    groups: Sequence[npt.NDArray[np.int64]] | None,
) -> list[list[dict[str, Any]]]:
    """Return the score entries of each seed; ``groups`` says which items are drawn together for intervals."""
    counted = [name for name in task.metric.names if name in COUNTED]
    drawn_of = [
        one.counts if groups is None else _summed(one.counts, groups[number]) for number, one in enumerate(tested)
    ]
    replicates = [resample(counted, one, seed=number) if counted else {} for number, one in enumerate(drawn_of)]
    counts = [len(one.rows) for one in tested]
    entries: list[list[dict[str, Any]]] = [[] for _ in range(n_seeds)]
    for name in task.metric.names:
        for seed in range(n_seeds):
            if name not in COUNTED:
                values = [one.precision[seed] for one in tested]
                entries[seed] += score_entries(name, folds, values, counts, [None] * len(folds), None)
                continue
            values = [
                defined(name, float(value_of(name, one.counts[COUNTED[name]][:, seed].sum(axis=0))), fold.name)
                for fold, one in zip(folds, tested, strict=True)
            ]
            drawn = [each[name][seed] for each in replicates]
            intervals = [interval(value, each) for value, each in zip(values, drawn, strict=True)]
            overall = interval(float(np.mean(values)), np.mean(drawn, axis=0))
            entries[seed] += score_entries(name, folds, values, counts, intervals, overall)
    return entries


def _predictions(
    task: Task, features: Features, scorer: FrameScorer, fold: Fold, tested: _Tested, seed: int, vote: bool
) -> pa.Table:
    kind = COUNTED.get(task.metric.name)
    columns: dict[str, Any] = {
        "target": [
            _json([features.target[row]] if vote else [scorer.events(row)], task.labels) for row in tested.rows.tolist()
        ],
        "prediction": [_json(each, task.labels) for each in tested.found[seed]],
    }
    if kind not in (None, "errors"):
        columns["counts"] = tested.counts[kind][:, seed].tolist()
    return prediction_table(features, fold, tested.rows, vote=vote, **columns)


def _json(tables: Sequence[EventTable], labels: Sequence[str]) -> str:
    """Write events as a JSON list, ordered by onset."""
    events = [
        {"onset": round(onset, 6), "offset": round(offset, 6), "label": labels[label]}
        for table in tables
        for onset, offset, label in zip(
            table.onset_s.tolist(), table.offset_s.tolist(), table.label.tolist(), strict=True
        )
    ]
    return json.dumps(sorted(events, key=lambda event: event["onset"]), ensure_ascii=False)
