"""From clips to recordings, from tasks to one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError


def vote(
    probabilities: npt.NDArray[np.float32], recordings: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Let the crops of each recording vote with their mean probabilities.

    Args:
        probabilities: ``(clips, classes)``.
        recordings: ``(clips,)`` id of the recording each clip is a crop of.

    Returns:
        For each recording, in the order of first appearance: the position of its first clip ``(recordings,)`` and the
        mean probabilities ``(recordings, classes)``.

    Raises:
        MetricError: when there is not one id per clip.

    Example:
        >>> first, mean = vote(np.array([[1, 0], [0, 1], [0.5, 0.5]], dtype=np.float32), np.array([7, 3, 7]))
        >>> first.tolist(), mean.tolist()
        ([0, 1], [[0.75, 0.25], [0.0, 1.0]])
    """
    if probabilities.ndim != 2 or recordings.shape != probabilities.shape[:1]:
        raise MetricError(
            f"Wanted probabilities (clips, classes) and one recording id per clip, "
            f"found {probabilities.shape} and {recordings.shape}."
        )
    _, first, member, count = np.unique(recordings, return_index=True, return_inverse=True, return_counts=True)
    total = np.zeros((len(first), probabilities.shape[1]))
    np.add.at(total, member, probabilities)
    order = np.argsort(first)
    mean = (total / count[:, None])[order].astype(np.float32)
    return first[order].astype(np.int64), mean


def mean_over(values: npt.NDArray[Any], items: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Return the mean of the rows of each item.

    Args:
        values: ``(rows, ...)``.
        items: ``(rows,)`` number of the item each row belongs to: 0 and up, none left out.

    Returns:
        ``(items, ...)``.

    Example:
        >>> mean_over(np.array([[1.0], [5.0], [2.0]]), np.array([1, 0, 1])).tolist()
        [[5.0], [1.5]]
    """
    order = np.argsort(items, kind="stable")
    count = np.bincount(items)
    total = np.add.reduceat(values[order], np.cumsum(count) - count, axis=0, dtype=np.float64)
    return np.asarray(total / count.reshape(-1, *[1] * (values.ndim - 1)))


def voted_logits(logits: npt.NDArray[Any], items: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Let the crops of each recording vote on each label with their mean probabilities.

    Recordings are ranked by the mean probability, but probabilities near 1 tie when they are rounded. Its log odds keep the
    order and are the logit itself where a recording is one crop.

    Args:
        logits: ``(crops, classes)``, finite.
        items: ``(crops,)`` number of the recording each crop belongs to, as in :func:`mean_over`.

    Returns:
        Log odds of the mean probabilities, ``(recordings, classes)``, finite; above 0 where the mean is above 0.5.

    Example:
        >>> voted_logits(np.array([[2.0], [-2.0], [90.0]]), np.array([0, 0, 1])).tolist()
        [[0.0], [90.0]]
    """
    wide = logits.astype(np.float64)
    # Probabilities of the likelier and of the other side, each exact where the first is all but 1.
    odds = np.exp(-np.abs(wide))
    likely = 1.0 / (1.0 + odds)
    sides = (likely, odds * likely)
    total = (mean_over(np.where(wide > 0, *pair), items) for pair in (sides, sides[::-1]))
    present, absent = (np.maximum(mean, np.finfo(np.float64).tiny) for mean in total)
    return np.asarray(np.log(present) - np.log(absent))


def normalised_score(value: float, *, worst: float, best: float) -> float:
    """Map a metric to 0 (worst) to 1 (best), so that metrics with different directions can be averaged.

    Example:
        >>> normalised_score(0.1, worst=1.0, best=0.0)
        0.9
    """
    if worst == best:
        raise MetricError(f"Wanted a worst and a best value that differ, found {worst} for both.")
    return (value - worst) / (best - worst)


def weighted_average(scores: Sequence[float], weights: Sequence[Any]) -> float:
    """Average scores over tasks.

    Args:
        scores: one value per task, already on a common scale.
        weights: one per task, at least 0: the number of test clips, or the constants of a published table. A task of
            weight 0 does not count.

    Returns:
        The average; 0.0 when all weights are 0.

    Raises:
        MetricError: for different lengths or a negative weight.

    Example:
        >>> weighted_average([0.9, 0.7], [200, 100])
        0.8333333333333334
    """
    if len(scores) != len(weights) or any(weight < 0 for weight in weights):
        raise MetricError(f"Wanted one weight of at least 0 per score, found {len(scores)} and {list(weights)}.")
    used = [(score, weight) for score, weight in zip(scores, weights, strict=True) if weight]
    total = sum(weight for _, weight in used)
    return float(sum(score * weight for score, weight in used) / total) if total else 0.0
