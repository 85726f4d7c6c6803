"""Scoring frame predictions clip by clip: what remains of a clip is counts and events, never its frames.

Times of events are those of the recording; a clip may be a crop of it, and its events and segments begin with it. Under
``strict`` segments are stretches of time (see :mod:`xares_store.metrics.frames`), under ``published`` they are counted as
the published tables did. Event-based metrics, which those tables do not have, are the same under both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.events import event_counts, events_from_frames
from xares_store.metrics.frame_map import FrameAveragePrecision
from xares_store.metrics.frames import (
    Rule,
    count_active,
    event_segments,
    f1_from_counts,
    frame_roll,
    predicted_segments,
    published_frames,
    segment_counts_published,
    segment_errors,
    segment_pool_size,
)
from xares_store.metrics.registry import metric_for
from xares_store.metrics.statistics import Interval
from xares_store.targets import EventTable

FloatArray = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

# What is counted for each metric. Average precision needs more than counts.
COUNTED: Mapping[str, str] = MappingProxyType(
    {
        "segment_f1_macro": "segments",
        "segment_f1_micro": "segments",
        "segment_error_rate": "errors",
        "event_f1": "event_f1",
        "onset_f1": "onset_f1",
    }
)
# Memory of one FrameAveragePrecision for a class.
AVERAGE_PRECISION_BYTES = 1 << 20
_REPLICATES = 10_000
_REPLICATES_AT_ONCE = 500


@dataclass(frozen=True)
class EventRule:
    """How frames become events, and how near the onset of a match has to be.

    Attributes:
        onset_collar_s: largest distance of onsets.
        median_filter_ms: width of the median filter over frames; 0: none.
        min_duration_ms: shorter events are dropped.
    """

    onset_collar_s: float
    median_filter_ms: float
    min_duration_ms: float


# HEAR's settings for sound events and for notes. Fixed beforehand, so nothing is chosen on any clip.
EVENT_RULES: Mapping[str, EventRule] = MappingProxyType(
    {"event_f1": EventRule(0.2, 250.0, 125.0), "onset_f1": EventRule(0.05, 150.0, 50.0)}
)


class FrameScorer:
    """Targets of clips and what is counted when they are compared with predictions.

    Args:
        events: the events of each clip's recording.
        start_s: ``(clips,)`` where the clip begins in its recording.
        duration_s: ``(clips,)`` its length.
        n_frames: ``(clips,)`` its frames.
        hop_ms: time from one frame to the next.
        n_classes: number of labels.
        segment_s: length of a segment; None without segment metrics.
        rule: ``strict`` or ``published``.
        published_length_s: under ``published``, events after this time do not count.
    """

    def __init__(
        self,
        events: Sequence[EventTable],
        start_s: npt.NDArray[np.float64],
        duration_s: npt.NDArray[np.float64],
        n_frames: Counts,
        *,
        hop_ms: float,
        n_classes: int,
        segment_s: float | None,
        rule: Rule = "strict",
        published_length_s: float | None = None,
    ) -> None:
        self._events, self._start_s, self._duration_s, self._n_frames = events, start_s, duration_s, n_frames
        self.hop_ms, self.n_classes, self.rule = hop_ms, n_classes, rule
        self._segment_s = segment_s
        self._length_s = published_length_s if rule == "published" else None

    def events(self, row: int) -> EventTable:
        """Return the events that sound in a clip, in seconds from its start."""
        table, start = self._events[row], float(self._start_s[row])
        onset, offset = table.onset_s - start, table.offset_s - start
        length = float(self._duration_s[row])
        if self._length_s is not None:
            length = min(length, self._length_s)
        heard = (onset < length) & ((offset > 0) | (onset >= 0))
        onset, offset = np.maximum(onset[heard], 0.0), offset[heard]
        if self.rule == "strict":
            offset = np.minimum(offset, length)
        return EventTable(onset, offset, table.label[heard])

    def roll(self, row: int) -> npt.NDArray[np.uint8]:
        """Return the frame targets of a clip, ``(n_frames, classes)``, cut or filled with 0 to its frames."""
        events, count = self.events(row), int(self._n_frames[row])
        known = count if self._length_s is None else min(count, published_frames(self._length_s, self.hop_ms))
        found = frame_roll(
            events.onset_s,
            events.offset_s,
            events.label,
            n_classes=self.n_classes,
            n_frames=known,
            hop_ms=self.hop_ms,
            rule=self.rule,
        )
        return np.pad(found, ((0, count - known), (0, 0)))

    def counts(self, kinds: Sequence[str], row: int, logits: FloatArray) -> dict[str, Counts]:
        """Compare the predictions of several probes for one clip with its events.

        Args:
            kinds: what to count: values of :data:`COUNTED`.
            row: which clip.
            logits: ``(n_frames, models, classes)``.

        Returns:
            For ``errors``: errors and labels to be found, ``(models, 2)``. For the others: true positives, false
            positives and false negatives, ``(models, 3 * classes)``.
        """
        found: dict[str, Counts] = {}
        for kind in kinds:
            if kind == "segments" and self.rule == "published":
                found[kind] = self._published_segments(row, logits)
            elif kind in EVENT_RULES:
                found[kind] = self._matched(kind, row, logits)
        if "errors" in kinds or ("segments" in kinds and self.rule == "strict"):
            target, prediction = self._segments(row, logits)
            if "segments" in kinds and self.rule == "strict":
                found["segments"] = self._by_model(count_active(np.tile(target, logits.shape[1]), prediction))
            if "errors" in kinds:
                each = prediction.reshape(len(target), logits.shape[1], self.n_classes)
                found["errors"] = np.array([segment_errors(target, each[:, m]) for m in range(each.shape[1])])
        return found

    def predicted(self, rule: EventRule, logits: FloatArray) -> EventTable:
        """Return the events in logits ``(n_frames, classes)`` of one probe; a logit of 0 is a probability of a half."""
        return events_from_frames(
            logits,
            hop_ms=self.hop_ms,
            median_filter_ms=rule.median_filter_ms,
            min_duration_ms=rule.min_duration_ms,
            threshold=0.0,
        )

    def _segments(self, row: int, logits: FloatArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Active target segments ``(segments, classes)`` and predicted ones ``(segments, models * classes)``."""
        assert self._segment_s is not None
        events, duration_s = self.events(row), float(self._duration_s[row])
        target = event_segments(
            events.onset_s,
            events.offset_s,
            events.label,
            n_classes=self.n_classes,
            duration_s=duration_s,
            segment_s=self._segment_s,
        )
        active = logits.reshape(len(logits), -1) > 0
        return target, predicted_segments(active, hop_ms=self.hop_ms, duration_s=duration_s, segment_s=self._segment_s)

    def _published_segments(self, row: int, logits: FloatArray) -> Counts:
        assert self._segment_s is not None
        pool, models = segment_pool_size(self._segment_s, self.hop_ms), logits.shape[1]
        if len(logits) < pool:  # no whole segment: nothing of the clip is scored
            return np.zeros((models, 3 * self.n_classes), np.int64)
        target = np.tile(self.roll(row), models)
        return self._by_model(segment_counts_published(target, logits.reshape(len(logits), -1), pool))

    def _matched(self, kind: str, row: int, logits: FloatArray) -> Counts:
        rule, target = EVENT_RULES[kind], self.events(row)
        each = [
            event_counts(
                target,
                self.predicted(rule, logits[:, model]),
                n_classes=self.n_classes,
                onset_collar_s=rule.onset_collar_s,
            )
            for model in range(logits.shape[1])
        ]
        return np.stack(each).reshape(len(each), -1)

    def _by_model(self, counts: Counts) -> Counts:
        """Turn counts ``(3, models * classes)`` into ``(models, 3 * classes)``."""
        return counts.reshape(3, -1, self.n_classes).swapaxes(0, 1).reshape(-1, 3 * self.n_classes)


def value_of(metric: str, counts: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return a metric from counts that were summed over clips.

    Args:
        metric: a key of :data:`COUNTED`.
        counts: ``(..., k)`` as :meth:`FrameScorer.counts` gives them.

    Returns:
        ``(...)``; NaN for an error rate without labels to be found.
    """
    array = np.asarray(counts, dtype=np.float64)
    if metric == "segment_error_rate":
        errors, wanted = array[..., 0], array[..., 1]
        return np.divide(errors, wanted, out=np.full_like(errors, np.nan), where=wanted > 0)
    by_class = array.reshape(*array.shape[:-1], 3, -1)
    return np.asarray(f1_from_counts(by_class, "macro" if metric == "segment_f1_macro" else "micro"))


class MainScore:
    """The main metric of several probes on validation clips, turned so that larger is better.

    Args:
        scorer: the clips' targets.
        metric: name of the metric.
        models: number of probes.
    """

    def __init__(self, scorer: FrameScorer, metric: str, models: int) -> None:
        self._scorer, self._metric = scorer, metric
        self._total: Counts | int = 0
        self._precision = [FrameAveragePrecision(scorer.n_classes) for _ in range(models * (metric == "frame_map"))]

    def add(self, row: int, logits: FloatArray) -> None:
        """Take in the logits ``(n_frames, models, classes)`` of a clip."""
        if self._precision:
            target = self._scorer.roll(row)
            for model, precision in enumerate(self._precision):
                precision.update(target, logits[:, model])
            return
        kind = COUNTED[self._metric]
        self._total = self._total + self._scorer.counts([kind], row, logits)[kind]

    def values(self) -> list[float]:
        """Return one score a probe."""
        if self._precision:
            return [float(precision.value().mean()) for precision in self._precision]
        found: list[float] = (sign_of(self._metric) * value_of(self._metric, np.asarray(self._total))).tolist()
        return found


def sign_of(metric: str) -> float:
    """Return 1 for a metric of which more is better, else -1."""
    known = metric_for(metric)
    return 1.0 if known.best > known.worst else -1.0


def resample(metrics: Sequence[str], counts: Mapping[str, Counts], *, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Compute metrics over and over from test items drawn with replacement.

    Args:
        metrics: keys of :data:`COUNTED`.
        counts: kind to ``(items, models, k)``.
        seed: of the generator; the same items are drawn for all metrics and probes.

    Returns:
        Metric to ``(models, replicates)``.
    """
    rng = np.random.default_rng(seed)
    n_items = len(next(iter(counts.values())))
    blocks: dict[str, list[npt.NDArray[np.float64]]] = {metric: [] for metric in metrics}
    for start in range(0, _REPLICATES, _REPLICATES_AT_ONCE):
        size = min(_REPLICATES_AT_ONCE, _REPLICATES - start)
        drawn = rng.multinomial(n_items, np.full(n_items, 1.0 / n_items), size=size).astype(np.float64)
        for kind, each in counts.items():
            totals = np.stack([drawn @ each[:, model].astype(np.float64) for model in range(each.shape[1])])
            for metric in metrics:
                if COUNTED[metric] == kind:
                    blocks[metric].append(value_of(metric, totals))
    return {metric: np.concatenate(found, axis=1) for metric, found in blocks.items()}


def interval(point: float, replicates: npt.NDArray[np.float64]) -> Interval:
    """Return the 95 % percentile interval of replicates; those in which nothing was to be found do not count."""
    low, high = np.nanquantile(replicates, [0.025, 0.975])
    return Interval(point, float(low), float(high))


def defined(metric: str, value: float, fold: str) -> float:
    """Return a test score.

    Raises:
        MetricError: the metric is undefined.
    """
    if not np.isfinite(value):
        raise MetricError(
            f"Wanted at least one event among the test clips, found none: {metric} is undefined.", where=f"fold {fold}"
        )
    return value
