"""Events on the time axis: frame targets, segments, and the counts that segment F1 is made of.

Two rules exist. ``strict`` measures in seconds: a segment is the same stretch of audio for every encoder, no event and no
tail is lost. ``published`` counts frames as the published tables did, where the length of a segment depends on the hop.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError

Rule = Literal["strict", "published"]
Average = Literal["macro", "micro"]
Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

# A time this close to a boundary, as a share of the step, lies on it: 0.3 / 0.1 is meant to be 3.
_ON_BOUNDARY = 1e-6


def frame_roll(
    onset_s: npt.ArrayLike,
    offset_s: npt.ArrayLike,
    label: npt.ArrayLike,
    *,
    n_classes: int,
    n_frames: int,
    hop_ms: float,
    rule: Rule = "strict",
) -> npt.NDArray[np.uint8]:
    """Mark the frames in which each event sounds; frame i is the time from i to i + 1 hops.

    Args:
        onset_s, offset_s: ``(events,)`` seconds.
        label: ``(events,)`` class indices.
        n_classes: number of columns.
        n_frames: number of rows; what lies beyond is cut off.
        hop_ms: time from one frame to the next.
        rule: ``strict``: every frame that the event touches, and at least one. ``published``: from the first frame that
            starts inside the event to the last, in the float arithmetic of the original; a short event may have none.

    Returns:
        0 or 1, ``(n_frames, n_classes)``.

    Raises:
        MetricError: times that are not finite or run backwards, a label without a column, a hop that is not positive.

    Example:
        >>> frame_roll([0.05], [0.07], [0], n_classes=1, n_frames=3, hop_ms=40).ravel().tolist()
        [0, 1, 0]
        >>> frame_roll([0.05], [0.07], [0], n_classes=1, n_frames=3, hop_ms=40, rule="published").ravel().tolist()
        [0, 0, 0]
    """
    onset, offset, column = _events(onset_s, offset_s, label, n_classes)
    _positive("hop_ms", hop_ms)
    if rule == "strict":
        return _roll(onset * 1000.0 / hop_ms, offset * 1000.0 / hop_ms, column, n_frames, n_classes).astype(np.uint8)
    hop_s = hop_ms / 1000
    return _marked(np.ceil(onset / hop_s), np.ceil(offset / hop_s), column, n_frames, n_classes).astype(np.uint8)


def published_frames(length_s: float, hop_ms: float) -> int:
    """Return the number of target frames of the published tables for a length in seconds, the last one partial.

    Example:
        >>> published_frames(10.0, 160)
        63
    """
    _positive("hop_ms", hop_ms)
    return math.ceil(length_s / (hop_ms / 1000))


def segment_pool_size(segment_s: float, hop_ms: float) -> int:
    """Return the frames in a segment of the published tables, rounded up: 0.1 s is 3 frames, or 120 ms, at a hop of 40.

    Example:
        >>> segment_pool_size(0.1, 40)
        3
    """
    _positive("segment_s", segment_s)
    return published_frames(segment_s, hop_ms)


def segment_counts_published(target_frames: npt.ArrayLike, logits: npt.ArrayLike, pool: int) -> Counts:
    """Count hits and errors of one clip as the published tables did.

    A frame is predicted where the float32 sigmoid of its logit lies above 0.5, so that a logit of 1e-9 is negative.
    Segments are ``pool`` frames; the frames after the last whole segment are dropped.

    Args:
        target_frames: ``(frames, classes)`` 0 or 1.
        logits: ``(frames, classes)``.
        pool: frames in a segment: :func:`segment_pool_size`.

    Returns:
        True positives, false positives and false negatives in segments, ``(3, classes)``. One class gives two columns,
        "not active" and "active", because the original scored a single class as two: see ``present_only`` of
        :func:`f1_from_counts`.

    Raises:
        MetricError: different shapes, or fewer frames than one segment.

    Example:
        >>> segment_counts_published([[1, 0], [0, 0], [0, 1]], [[2.0, 2.0], [-2.0, -2.0], [9.0, 9.0]], 2).tolist()
        [[1, 0], [0, 1], [0, 0]]
    """
    wanted, scores = np.asarray(target_frames), np.asarray(logits, dtype=np.float32)
    _same_grid(wanted, scores)
    if pool < 1 or len(wanted) < pool:
        raise MetricError(f"Wanted at least one segment of {pool} frames, found {len(wanted)} frames.")
    n_segments = len(wanted) // pool
    with np.errstate(over="ignore"):
        probabilities = np.float32(1) / (np.float32(1) + np.exp(-scores))
    shape = (n_segments, pool, wanted.shape[1])
    target = (wanted[: n_segments * pool] > 0).reshape(shape).any(axis=1)
    prediction = (probabilities[: n_segments * pool] > np.float32(0.5)).reshape(shape).any(axis=1)
    if wanted.shape[1] == 1:
        target, prediction = np.hstack([~target, target]), np.hstack([~prediction, prediction])
    return count_active(target, prediction)


def event_segments(
    onset_s: npt.ArrayLike,
    offset_s: npt.ArrayLike,
    label: npt.ArrayLike,
    *,
    n_classes: int,
    duration_s: float,
    segment_s: float,
) -> Bools:
    """Mark the segments that each event overlaps, at least one for each event inside the clip.

    Args:
        onset_s, offset_s, label: as in :func:`frame_roll`.
        n_classes: number of columns.
        duration_s: length of the clip; an event that starts after it does not count.
        segment_s: length of a segment.

    Returns:
        ``(segments, n_classes)``, as many rows as :func:`segment_count` says.

    Example:
        >>> event_segments([0.5], [1.2], [0], n_classes=1, duration_s=2.5, segment_s=1.0).ravel().tolist()
        [True, True, False]
    """
    onset, offset, column = _events(onset_s, offset_s, label, n_classes)
    n_segments = segment_count(duration_s, segment_s)
    heard = onset < duration_s
    return _roll(onset[heard] / segment_s, offset[heard] / segment_s, column[heard], n_segments, n_classes)


def segment_count(duration_s: float, segment_s: float) -> int:
    """Return the number of segments in a clip, a partial last one included.

    Example:
        >>> segment_count(0.3, 0.1), segment_count(0.31, 0.1)
        (3, 4)
    """
    _positive("segment_s", segment_s)
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise MetricError(f"Wanted a duration above 0 seconds, found {duration_s}.")
    return max(1, int(_ceil(np.asarray(duration_s / segment_s))))


def predicted_segments(active: npt.ArrayLike, *, hop_ms: float, duration_s: float, segment_s: float) -> Bools:
    """Turn active frames into active segments of a grid in seconds.

    A segment is active when any frame whose centre lies in it is. Where frames are longer than segments, a segment
    without a centre takes the frame that covers its own centre. A segment after the last frame is not active.

    Args:
        active: ``(frames, classes)`` whether each frame is predicted; frame i is the time from i to i + 1 hops.
        hop_ms: time from one frame to the next.
        duration_s: length of the clip; frames with their centre after it do not count.
        segment_s: length of a segment.

    Returns:
        ``(segments, classes)``, as many rows as :func:`segment_count` says.

    Example:
        >>> predicted_segments([[True], [False]], hop_ms=200, duration_s=0.4, segment_s=0.1).ravel().tolist()
        [True, True, False, False]
    """
    frames = np.asarray(active, dtype=bool)
    if frames.ndim != 2:
        raise MetricError(f"Wanted frames (frames, classes), found shape {frames.shape}.")
    _positive("hop_ms", hop_ms)
    n_segments = segment_count(duration_s, segment_s)
    segment_ms, duration_ms = segment_s * 1000.0, duration_s * 1000.0
    centre_ms = (np.arange(len(frames)) + 0.5) * hop_ms
    home = _floor(centre_ms[centre_ms < duration_ms] / segment_ms)
    grid = np.arange(n_segments)
    first, last = np.searchsorted(home, grid), np.searchsorted(home, grid, side="right")
    result = np.zeros((n_segments, frames.shape[1]), dtype=bool)
    filled = np.flatnonzero(first < last)
    if len(filled):
        # Segments with frames are neighbours in the frames, so each stretch ends where the next one starts.
        result[filled] = np.logical_or.reduceat(frames[: last[-1]], first[filled], axis=0)
    empty = np.flatnonzero(first == last)
    middle_ms = (empty * segment_ms + np.minimum((empty + 1) * segment_ms, duration_ms)) / 2
    cover = _floor(middle_ms / hop_ms)
    inside = cover < len(frames)
    result[empty[inside]] = frames[cover[inside]]
    return result


def segment_counts(
    onset_s: npt.ArrayLike,
    offset_s: npt.ArrayLike,
    label: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    hop_ms: float,
    duration_s: float,
    segment_s: float,
    threshold: float = 0.5,
) -> Counts:
    """Count hits and errors of one clip on a grid in seconds, the partial last segment included.

    Args:
        onset_s, offset_s, label: the target events, as in :func:`frame_roll`.
        probabilities: ``(frames, classes)`` of the frames that the encoder made of the clip, at any hop.
        hop_ms: time from one frame to the next.
        duration_s: length of the clip; events after it do not count.
        segment_s: length of a segment.
        threshold: a frame is predicted above it.

    Returns:
        True positives, false positives and false negatives in segments, ``(3, classes)``. A target segment is active
        when an event overlaps it, a predicted one by the rule of :func:`predicted_segments`.

    Raises:
        MetricError: as :func:`frame_roll`, or for probabilities that are not finite.

    Example:
        >>> found = [[0.9], [0.1], [0.8]]  # frames of 0.5 s
        >>> segment_counts([0.2], [0.4], [0], found, hop_ms=500, duration_s=1.5, segment_s=1.0).ravel().tolist()
        [1, 1, 0]
    """
    scores = np.asarray(probabilities)
    if scores.ndim != 2:
        raise MetricError(f"Wanted probabilities (frames, classes), found shape {scores.shape}.")
    if not np.isfinite(scores).all():
        raise MetricError("Wanted finite probabilities, found NaN or Inf.")
    target = event_segments(
        onset_s, offset_s, label, n_classes=scores.shape[1], duration_s=duration_s, segment_s=segment_s
    )
    prediction = predicted_segments(scores > threshold, hop_ms=hop_ms, duration_s=duration_s, segment_s=segment_s)
    return count_active(target, prediction)


def count_active(target: npt.ArrayLike, prediction: npt.ArrayLike) -> Counts:
    """Count true positives, false positives and false negatives of each class.

    Args:
        target, prediction: ``(items, classes)`` 0 or 1; items are segments or clips.

    Returns:
        ``(3, classes)``.

    Example:
        >>> count_active([[1, 0], [1, 0]], [[1, 1], [0, 0]]).tolist()
        [[1, 0], [0, 1], [1, 0]]
    """
    wanted, found = np.asarray(target, dtype=bool), np.asarray(prediction, dtype=bool)
    _same_grid(wanted, found)
    hit = wanted & found
    return np.stack([hit.sum(axis=0), (found & ~hit).sum(axis=0), (wanted & ~hit).sum(axis=0)]).astype(np.int64)


def f1_from_counts(counts: npt.ArrayLike, average: Average = "macro", *, present_only: bool = False) -> Any:
    """F1 = 2 TP / (2 TP + FP + FN), 0 to 1, from counts that were summed over clips; 0 where nothing was to be found.

    Args:
        counts: ``(..., 3, classes)`` true positives, false positives, false negatives.
        average: ``macro``: mean over classes, each counting the same. ``micro``: from the counts of all classes.
        present_only: leave classes without any count out of the macro mean instead of counting them as 0. The published
            tables do so for a single class, and for it alone.

    Returns:
        A float for ``(3, classes)``, else an array of the leading shape.

    Example:
        >>> f1_from_counts([[1, 0], [0, 0], [0, 0]]), f1_from_counts([[1, 0], [0, 0], [0, 0]], "micro")
        (0.5, 1.0)
    """
    array = np.asarray(counts, dtype=np.float64)
    if array.ndim < 2 or array.shape[-2] != 3 or not array.shape[-1]:
        raise MetricError(f"Wanted counts (..., 3, classes), found shape {array.shape}.")
    if average == "micro":
        array = array.sum(axis=-1, keepdims=True)
    hits = 2 * array[..., 0, :]
    total = hits + array[..., 1, :] + array[..., 2, :]
    values = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    if present_only and average == "macro":
        result = values.sum(axis=-1) / np.maximum(1, (total > 0).sum(axis=-1))
    else:
        result = values.mean(axis=-1)
    return float(result) if result.ndim == 0 else result


def segment_errors(target: npt.ArrayLike, prediction: npt.ArrayLike) -> tuple[int, int]:
    """Count the errors of a clip for the segment error rate: errors of all clips over target labels of all clips.

    In each segment a missed label and a wrong one make a substitution; what is left over are deletions or insertions.
    The rate is 0 at best and may exceed 1.

    Args:
        target, prediction: ``(segments, classes)`` from :func:`event_segments` and :func:`predicted_segments`.

    Returns:
        Errors, and labels to be found.

    Example:
        >>> segment_errors([[1, 0], [0, 0]], [[0, 1], [0, 1]])
        (2, 1)
    """
    wanted, found = np.asarray(target, dtype=bool), np.asarray(prediction, dtype=bool)
    _same_grid(wanted, found)
    missed, wrong = (wanted & ~found).sum(axis=1), (found & ~wanted).sum(axis=1)
    return int(np.maximum(missed, wrong).sum()), int(wanted.sum())


def _roll(start: npt.NDArray[Any], end: npt.NDArray[Any], column: Counts, n_rows: int, n_classes: int) -> Bools:
    first = _floor(start)
    return _marked(first, np.maximum(_ceil(end), first + 1), column, n_rows, n_classes)


def _marked(start: npt.NDArray[Any], end: npt.NDArray[Any], column: Counts, n_rows: int, n_classes: int) -> Bools:
    roll = np.zeros((n_rows, n_classes), dtype=bool)
    first, stop = np.clip(start, 0, n_rows).astype(np.int64), np.clip(end, 0, n_rows).astype(np.int64)
    for row, last, label in zip(first.tolist(), stop.tolist(), column.tolist(), strict=True):
        roll[row:last, label] = True
    return roll


def _floor(position: npt.NDArray[Any]) -> Counts:
    return np.floor(position + _ON_BOUNDARY).astype(np.int64)


def _ceil(position: npt.NDArray[Any]) -> Counts:
    return np.ceil(position - _ON_BOUNDARY).astype(np.int64)


def _events(
    onset_s: npt.ArrayLike, offset_s: npt.ArrayLike, label: npt.ArrayLike, n_classes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Counts]:
    onset, offset = np.asarray(onset_s, dtype=np.float64), np.asarray(offset_s, dtype=np.float64)
    column = np.asarray(label, dtype=np.int64)
    if onset.ndim != 1 or not onset.shape == offset.shape == column.shape:
        raise MetricError(
            f"Wanted one onset, offset and label per event, found {onset.shape}, {offset.shape} and {column.shape}."
        )
    if not (np.isfinite(onset).all() and np.isfinite(offset).all() and (offset >= onset).all()):
        raise MetricError("Wanted finite times and events that do not end before they start.")
    if len(column) and not (column.min() >= 0 and column.max() < n_classes):
        raise MetricError(f"Wanted labels from 0 to {n_classes - 1}, found {column.min()} to {column.max()}.")
    return onset, offset, column


def _same_grid(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
    if wanted.ndim != 2 or wanted.shape != found.shape:
        raise MetricError(f"Wanted targets and predictions of one shape, found {wanted.shape} and {found.shape}.")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise MetricError(f"Wanted {name} above 0, found {value}.")
