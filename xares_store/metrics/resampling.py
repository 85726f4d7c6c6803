"""Bootstrap of scores that are no mean over clips: F1, mean average precision, error rates.

How often each clip is drawn is all that a replicate is, so sums over replicates are a product of matrices, and rankings
are sorted once. The unit that is drawn is the recording: crops, captions and frames of one go together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.frames import Average, f1_from_counts
from xares_store.metrics.ranking import Ranking, Weights
from xares_store.metrics.statistics import Interval, check_options, index_blocks, percentile_interval

Values = npt.NDArray[np.float64]

# Replicates at once in a ranking: their weights then stay in the processor's cache.
_REPLICATES = 64
# Whole numbers up to this are exact in float32.
_EXACT_FLOAT32 = 2**24
# Share of counts above 0 below which a sparse product is faster.
_SPARSE = 0.1


def bootstrap_counts(
    counts: npt.ArrayLike,
    average: Average = "macro",
    *,
    present_only: bool = False,
    strata: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    replicates: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of F1 from the counts of each clip.

    Args:
        counts: ``(items, 3, classes)`` true positives, false positives and false negatives.
        average: as in :func:`xares_store.metrics.frames.f1_from_counts`.
        present_only: leave classes out that no item has a count of; the classes are the same in all replicates.
        strata: ``(items,)`` fold of each item: the score is then the mean over folds, and items are drawn within theirs.
        groups: ``(items,)`` recording of each item, drawn as a whole.
        replicates: number of resamples.
        confidence: of the interval, between 0 and 1.
        seed: of the generator.

    Raises:
        MetricError: without items, or for shapes and options that do not fit.

    Example:
        >>> bootstrap_counts([[[1], [0], [0]], [[1], [0], [0]]], replicates=100)
        Interval(point=1.0, low=1.0, high=1.0)
    """
    array = np.asarray(counts)
    if array.ndim != 3 or array.shape[1] != 3 or not array.size:
        raise MetricError(f"Wanted counts (items, 3, classes) of at least one item, found shape {array.shape}.")
    if average == "micro":
        array = array.sum(axis=2, keepdims=True)

    def score(units: _Units) -> tuple[float, Iterator[Values]]:
        part = array[units.rows]
        if present_only:
            part = part[:, :, part.any(axis=(0, 1))]
        if not part.shape[2]:
            return 0.0, (np.zeros(len(block)) for block in units.blocks(replicates, rng))
        total = np.zeros((units.n, *part.shape[1:]))
        np.add.at(total, units.member, part)
        flat = total.reshape(units.n, -1)
        exact = units.n * np.abs(flat).max() < _EXACT_FLOAT32
        columns: Any = np.ascontiguousarray(flat.T, dtype=np.float32 if exact else np.float64)
        if np.count_nonzero(columns) < _SPARSE * columns.size:
            from scipy.sparse import csr_array  # late: few tasks have so many classes

            columns = csr_array(columns)
        found = (
            np.asarray(f1_from_counts((columns @ np.ascontiguousarray(block.T)).T.reshape(-1, *part.shape[1:])))
            for block in units.blocks(replicates, rng)
        )
        return float(f1_from_counts(total.sum(axis=0))), found

    check_options(replicates, confidence)
    rng = np.random.default_rng(seed)
    return _mean_over_strata(score, len(array), strata, groups, replicates, confidence)


def bootstrap_ratio(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    replicates: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a sum over a sum: errors over words, or a mean of crops with their recordings drawn.

    Args:
        numerator, denominator: ``(items,)``; ones in the denominator make the ratio a mean.
        strata, groups, replicates, confidence, seed: as in :func:`bootstrap_counts`.

    Raises:
        MetricError: without items, for values that are not finite, or a denominator that is negative or sums to 0.

    Example:
        >>> bootstrap_ratio([1, 0, 2, 1], [9, 8, 7, 8], replicates=100).point
        0.125
    """

    def ratio(sums: Values) -> Values:
        if not sums[0, 1]:
            raise MetricError("Wanted a denominator above 0, found 0: the ratio is undefined.")
        # A replicate without any size has no ratio of its own; it gets the one of all items, which come first.
        whole = np.full(len(sums), sums[0, 0] / sums[0, 1])
        return np.asarray(np.divide(sums[:, 0], sums[:, 1], out=whole, where=sums[:, 1] > 0))

    return _of_sums(numerator, denominator, ratio, strata, groups, replicates, confidence, seed)


def bootstrap_inverse_rate(
    errors: npt.ArrayLike,
    units: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    replicates: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of ``max(0, 1 - errors / units)``, both summed: iWER and iCER.

    Args:
        errors, units: ``(items,)``; without any unit, errors are divided by 1, as
            :func:`xares_store.metrics.text.error_rate` does.
        strata, groups, replicates, confidence, seed: as in :func:`bootstrap_counts`.

    Raises:
        MetricError: without items, or for values that are not finite or below 0.

    Example:
        >>> bootstrap_inverse_rate([1, 0, 2, 1], [9, 8, 7, 8], replicates=100).point
        0.875
    """

    def inverse(sums: Values) -> Values:
        return np.maximum(0.0, 1.0 - sums[:, 0] / np.maximum(1.0, sums[:, 1]))

    return _of_sums(errors, units, inverse, strata, groups, replicates, confidence, seed)


def _of_sums(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    function: Callable[[Values], Values],
    strata: npt.ArrayLike | None,
    groups: npt.ArrayLike | None,
    replicates: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Resample two sums; ``function`` maps ``(rows, 2)`` of them to scores, the first row being that of all items."""
    values = np.stack([np.asarray(side, dtype=np.float64) for side in (numerator, denominator)], axis=-1)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all() or (values[:, 1] < 0).any():
        raise MetricError(f"Wanted finite values and sizes of at least 0 for each item, found shape {values.shape}.")

    def score(units: _Units) -> tuple[float, Iterator[Values]]:
        total = np.zeros((units.n, 2))
        np.add.at(total, units.member, values[units.rows])
        whole = total.sum(axis=0)
        point = float(function(whole[None])[0])
        blocks = units.blocks(replicates, rng)
        return point, (function(np.vstack([whole, block @ total]))[1:] for block in blocks)

    check_options(replicates, confidence)
    rng = np.random.default_rng(seed)
    return _mean_over_strata(score, len(values), strata, groups, replicates, confidence)


def bootstrap_map(
    target: npt.ArrayLike,
    prediction: npt.ArrayLike,
    *,
    present_only: bool = False,
    strata: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean average precision over classes.

    The classes are the same in all replicates: one that lost its positives in a replicate scores 0 there.

    Args:
        target: ``(items, classes)`` 0 or 1.
        prediction: ``(items, classes)`` scores.
        present_only: leave classes without positives out instead of counting them as 0.
        strata, groups, replicates, confidence, seed: as in :func:`bootstrap_counts`.

    Returns:
        The score and its bounds: those of recomputing the metric for each replicate, some 20 times faster.

    Raises:
        MetricError: without items, for different shapes, or scores that are not finite.
    """
    wanted, scores = same_shape(target, prediction)

    def score(units: _Units) -> tuple[float, Iterator[Values]]:
        seen = wanted[units.rows].any(axis=0)
        columns = seen if present_only and seen.any() else np.ones_like(seen)
        ranking = Ranking(wanted[units.rows][:, columns], scores[units.rows][:, columns])
        ones = np.ones((len(units.rows), 1), dtype=np.float32)
        found = (
            ranking.average_precision(np.ascontiguousarray(part[:, units.member].T)).mean(axis=1)
            for block in units.blocks(replicates, rng)
            for part in np.array_split(block, range(_REPLICATES, len(block), _REPLICATES))
        )
        return float(ranking.average_precision(ones).mean()), found

    check_options(replicates, confidence)
    rng = np.random.default_rng(seed)
    return _mean_over_strata(score, len(wanted), strata, groups, replicates, confidence)


@dataclass(frozen=True)
class _Units:
    """What is drawn in one fold: ``n`` units, and for each of the fold's ``rows`` the unit it belongs to."""

    rows: npt.NDArray[np.int64]
    member: npt.NDArray[np.int64]
    n: int

    def blocks(self, replicates: int, rng: np.random.Generator) -> Iterator[Weights]:
        """Draw how often each unit counts, ``(some replicates, n)`` at a time."""
        for drawn in index_blocks(self.n, replicates, rng):
            shifted = drawn + np.arange(len(drawn))[:, None] * self.n
            count = np.bincount(shifted.ravel(), minlength=len(drawn) * self.n)
            yield count.reshape(len(drawn), self.n).astype(np.float32)


def _mean_over_strata(
    score: Callable[[_Units], tuple[float, Iterator[Values]]],
    n_items: int,
    strata: npt.ArrayLike | None,
    groups: npt.ArrayLike | None,
    replicates: int,
    confidence: float,
) -> Interval:
    fold = number_names(strata, n_items, "fold")
    unit = np.arange(n_items) if groups is None else number_names(groups, n_items, "recording")
    parts = [np.flatnonzero(fold == number) for number in range(int(fold.max()) + 1)]
    points, total = [], np.zeros(replicates)
    for rows in parts:
        _, member = np.unique(unit[rows], return_inverse=True)
        point, found = score(_Units(rows, member, int(member.max()) + 1))
        points.append(point)
        total += np.concatenate(list(found))
    return percentile_interval(float(np.mean(points)), total / len(parts), confidence)


def number_names(names: npt.ArrayLike | None, n_items: int, what: str) -> npt.NDArray[np.int64]:
    """Return a number for each name, counted from 0; 0 for every item without names.

    Raises:
        MetricError: as many names as items were wanted; ``what`` says of what.
    """
    if names is None:
        return np.zeros(n_items, dtype=np.int64)
    array = np.asarray(names)
    if array.shape != (n_items,):
        raise MetricError(f"Wanted one {what} for each of {n_items} items, found shape {array.shape}.")
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def same_shape(target: npt.ArrayLike, prediction: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
    """Return targets and scores as arrays ``(items, classes)``.

    Raises:
        MetricError: for different shapes, no item, or scores that are not finite.
    """
    wanted, scores = np.asarray(target), np.asarray(prediction)
    if wanted.ndim != 2 or wanted.shape != scores.shape or not wanted.size:
        raise MetricError(
            f"Wanted targets and scores of one shape (items, classes), found {wanted.shape} and {scores.shape}."
        )
    if not np.isfinite(scores).all():
        raise MetricError("Wanted finite scores, found NaN or Inf.")
    return wanted.astype(bool), scores
