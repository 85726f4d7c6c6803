"""Events found in time: from frame probabilities to events, and event-based scores of them.

An event is matched within its file and label, each at most once, so that as many as possible are matched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.frames import event_segments, segment_errors
from xares_store.targets import EventTable

Counts = npt.NDArray[np.int64]

# Post-processing that is tried on validation data, milliseconds.
MEDIAN_FILTER_MS = 250.0
MIN_DURATIONS_MS = (125.0, 250.0)

# Times are compared to a microsecond: 0.35 - 0.15 lies within a collar of 0.2.
_DECIMALS = 6


@dataclass(frozen=True)
class EventScores:
    """F1, precision and recall over all events, 0 to 1."""

    f1: float
    precision: float
    recall: float


def event_counts(
    target: EventTable,
    prediction: EventTable,
    *,
    n_classes: int,
    onset_collar_s: float = 0.2,
    offset_collar_s: float | None = None,
    offset_share: float = 0.2,
) -> Counts:
    """Count matched, wrong and missed events of one file.

    A target and a predicted event of one label can match when their onsets are at most the collar apart and, where
    offsets count, their offsets at most ``offset_collar_s`` or ``offset_share`` of the target's length, whichever is
    more. Collars are inclusive. The matching is maximal.

    The usual scores: event-based F1 with the defaults; onset F1 with ``onset_collar_s=0.05``; onset and offset F1 with
    ``onset_collar_s=0.05, offset_collar_s=0.05``.

    Args:
        target: events to be found.
        prediction: events that were found; one that ends before it starts keeps its onset.
        n_classes: number of labels.
        onset_collar_s: largest distance of onsets.
        offset_collar_s: largest distance of offsets; None: offsets do not count.
        offset_share: share of the target's length up to which offsets may differ.

    Returns:
        True positives, false positives and false negatives, ``(3, n_classes)``.

    Raises:
        MetricError: times that are not finite, or labels outside 0..n_classes - 1.

    Example:
        >>> found = EventTable(np.array([1.15]), np.array([2.0]), np.array([0]))
        >>> wanted = EventTable(np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.array([0, 0]))
        >>> event_counts(wanted, found, n_classes=1).ravel().tolist()
        [1, 0, 1]
    """
    _check(target, n_classes)
    _check(prediction, n_classes)
    in_target = np.bincount(target.label, minlength=n_classes)
    in_prediction = np.bincount(prediction.label, minlength=n_classes)
    matched = np.zeros(n_classes, dtype=np.int64)
    for label in np.flatnonzero((in_target > 0) & (in_prediction > 0)):
        wanted, found = target.label == label, prediction.label == label
        near = _near(target.onset_s[wanted], prediction.onset_s[found], np.array(onset_collar_s))
        if offset_collar_s is not None:
            offset = target.offset_s[wanted]
            allowed = np.maximum(offset_collar_s, offset_share * (offset - target.onset_s[wanted]))
            near &= _near(offset, prediction.offset_s[found], allowed[:, None])
        matched[label] = _largest_matching(near)
    return np.stack([matched, in_prediction - matched, in_target - matched]).astype(np.int64)


def event_scores(counts: npt.ArrayLike, *, undefined: float = 0.0) -> EventScores:
    """Score counts that were summed over files, over all labels together (micro).

    Args:
        counts: ``(3, classes)`` from :func:`event_counts`.
        undefined: value of the precision without predictions, of the recall without targets, and of F1 then: 0 by
            default; NaN as in the published tables of HEAR.

    Example:
        >>> event_scores([[2], [2], [0]])
        EventScores(f1=0.6666666666666666, precision=0.5, recall=1.0)
        >>> event_scores([[0], [0], [3]])
        EventScores(f1=0.0, precision=0.0, recall=0.0)
    """
    array = np.asarray(counts)
    if array.ndim != 2 or array.shape[0] != 3:
        raise MetricError(f"Wanted counts (3, classes), found shape {array.shape}.")
    hits, wrong, missed = (int(value) for value in array.sum(axis=1))
    precision = hits / (hits + wrong) if hits + wrong else undefined
    recall = hits / (hits + missed) if hits + missed else undefined
    if math.isnan(precision) or math.isnan(recall):
        return EventScores(undefined, precision, recall)
    total = 2 * hits + wrong + missed
    return EventScores(2 * hits / total if total else undefined, precision, recall)


def event_segment_errors(
    target: EventTable, prediction: EventTable, *, n_classes: int, segment_s: float = 1.0
) -> tuple[int, int]:
    """Count the errors of one file for the segment error rate, from events on both sides.

    Args:
        target, prediction: events of the file; a prediction that ends before it starts fills the segment it starts in.
        n_classes: number of labels.
        segment_s: length of a segment; the grid reaches to the last offset of either side.

    Returns:
        Errors, and labels to be found, as :func:`xares_store.metrics.frames.segment_errors`.

    Example:
        >>> one = EventTable(np.array([0.0]), np.array([0.5]), np.array([0]))
        >>> event_segment_errors(one, EventTable(np.array([]), np.array([]), np.array([], dtype=int)), n_classes=1)
        (1, 1)
    """
    _check(target, n_classes)
    _check(prediction, n_classes)
    ends = [np.maximum(events.onset_s, events.offset_s) for events in (target, prediction)]
    # One segment more, so that an event without length at the very end has a segment to lie in.
    duration_s = max((float(end.max()) for end in ends if len(end)), default=0.0) + segment_s
    active = [
        event_segments(
            events.onset_s, end, events.label, n_classes=n_classes, duration_s=duration_s, segment_s=segment_s
        )
        for events, end in zip((target, prediction), ends, strict=True)
    ]
    return segment_errors(*active)


def error_rate(errors: Sequence[tuple[int, int]]) -> float:
    """Segment error rate over files: all errors over all labels to be found, 0 (best) upwards.

    Args:
        errors: errors and labels to be found of each file.

    Raises:
        MetricError: when there is no label to be found.

    Example:
        >>> error_rate([(1, 3), (1, 1)])
        0.5
    """
    wanted = sum(count for _, count in errors)
    if not wanted:
        raise MetricError("Wanted at least one target event, found none: the segment error rate is undefined.")
    return sum(count for count, _ in errors) / wanted


def events_from_frames(
    probabilities: npt.ArrayLike,
    *,
    hop_ms: float | None = None,
    timestamps_ms: npt.ArrayLike | None = None,
    median_filter_ms: float = MEDIAN_FILTER_MS,
    min_duration_ms: float = MIN_DURATIONS_MS[0],
    threshold: float = 0.5,
) -> EventTable:
    """Turn frame probabilities into events: median filter, threshold, runs of frames, shortest ones dropped.

    Args:
        probabilities: ``(frames, classes)``.
        hop_ms: for the default rule, in which frame i is the time from i to i + 1 hops: an event lasts from the start
            of its first frame to the end of its last.
        timestamps_ms: ``(frames,)``, instead of ``hop_ms``, for the rule of the HEAR tables: an event lasts from the
            time of its first frame to the time of its last, so that one of a single frame has no length.
        median_filter_ms: width of the filter, rounded to frames; borders are mirrored; 0: no filter.
        min_duration_ms: shorter events are dropped.
        threshold: a frame is active above it.

    Returns:
        Events ordered by onset, then label.

    Raises:
        MetricError: probabilities that are no (frames, classes), not finite, or both or neither of the two times.

    Example:
        >>> events = events_from_frames([[0.9], [0.9], [0.1]], hop_ms=100, median_filter_ms=0)
        >>> events.onset_s.tolist(), events.offset_s.tolist()
        ([0.0], [0.2])
    """
    scores = np.asarray(probabilities)
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise MetricError(f"Wanted finite probabilities (frames, classes), found shape {scores.shape}.")
    if (hop_ms is None) == (timestamps_ms is None):
        raise MetricError("Wanted either hop_ms or timestamps_ms.")
    if timestamps_ms is None:
        assert hop_ms is not None
        spacing = hop_ms
        first_ms = np.arange(len(scores)) * hop_ms
        last_ms = first_ms + hop_ms
    else:
        first_ms = last_ms = np.asarray(timestamps_ms, dtype=np.float64)
        if first_ms.shape != scores.shape[:1]:
            raise MetricError(f"Wanted one timestamp per frame, found {first_ms.shape} for {len(scores)} frames.")
        spacing = float(np.diff(first_ms).mean()) if len(first_ms) > 1 else 1.0
    if not spacing > 0:
        raise MetricError(f"Wanted frames that follow each other in time, found a spacing of {spacing} ms.")
    active = median_above(scores, round(median_filter_ms / spacing), threshold)
    edge = np.zeros((1, active.shape[1]), dtype=np.int8)
    change = np.diff(np.concatenate([edge, active.astype(np.int8), edge]), axis=0).T
    label, first = np.nonzero(change == 1)
    stop = np.nonzero(change == -1)[1]
    onset, offset = first_ms[first], last_ms[stop - 1]
    kept = offset - onset >= min_duration_ms - 10.0**-_DECIMALS
    order = np.lexsort((label[kept], onset[kept]))
    return EventTable(onset[kept][order] / 1000, offset[kept][order] / 1000, label[kept][order].astype(np.int64))


def median_above(values: npt.ArrayLike, width: int, threshold: float) -> npt.NDArray[np.bool_]:
    """Whether the running median of each column lies above a threshold.

    The median (the upper one for an even width) lies above it exactly when enough values in the window do, so counting
    replaces sorting: ten minutes of 87 notes take milliseconds at any width.

    Args:
        values: ``(frames, classes)``.
        width: frames in a window; up to 1: no filter. Borders are mirrored, the outermost frame included.
        threshold: compared strictly.

    Returns:
        ``(frames, classes)``.

    Example:
        >>> median_above([[1.0], [0.0], [1.0], [0.0], [0.0]], 3, 0.5).ravel().tolist()
        [True, True, False, False, False]
    """
    above = np.asarray(values) > threshold
    if width <= 1 or not len(above):
        return np.asarray(above, dtype=bool)
    padded = np.pad(above, ((width // 2, width - 1 - width // 2), (0, 0)), mode="symmetric")
    total = np.cumsum(np.concatenate([np.zeros_like(padded[:1]), padded]), axis=0, dtype=np.int32)
    return np.asarray(total[width:] - total[:-width] >= width - width // 2, dtype=bool)


def _near(wanted: npt.NDArray[np.float64], found: npt.NDArray[np.float64], allowed: npt.NDArray[np.float64]) -> Counts:
    distance = np.abs(wanted[:, None] - found[None, :])
    return np.asarray(np.round(distance - allowed, _DECIMALS) <= 0)


def _largest_matching(near: npt.NDArray[np.generic]) -> int:
    from scipy.sparse import csr_array  # late: only events need it
    from scipy.sparse.csgraph import maximum_bipartite_matching

    # Its search keeps a stack of its own; a recursive one overflows on a thousand repeated notes.
    return int((maximum_bipartite_matching(csr_array(near), perm_type="column") >= 0).sum())


def _check(events: EventTable, n_classes: int) -> None:
    if not events.onset_s.shape == events.offset_s.shape == events.label.shape:
        raise MetricError(
            "Wanted one onset, offset and label per event, "
            f"found {events.onset_s.shape}, {events.offset_s.shape} and {events.label.shape}."
        )
    if not (np.isfinite(events.onset_s).all() and np.isfinite(events.offset_s).all()):
        raise MetricError("Wanted finite times of events, found NaN or Inf.")
    if len(events.label) and not (events.label.min() >= 0 and events.label.max() < n_classes):
        raise MetricError(f"Wanted labels from 0 to {n_classes - 1}, found {events.label.min()}..{events.label.max()}.")
