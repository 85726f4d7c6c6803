"""Bootstrap and permutation of scores that are no mean over clips: F1, mean average precision, error rates.

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
from xares_store.metrics.statistics import Interval, PairedTest, check_options, index_blocks, percentile_interval

Values = npt.NDArray[np.float64]

# Replicates at once in a ranking: their weights then stay in the processor's cache.
_REPLICATES = 64
# Whole numbers up to this are exact in float32.
_EXACT_FLOAT32 = 2**24
# Share of counts above 0 below which a sparse product is faster.
_SPARSE = 0.1
# Numbers drawn at once.
_BLOCK = 4_000_000


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
    values = np.stack([np.asarray(side, dtype=np.float64) for side in (numerator, denominator)], axis=-1)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all() or (values[:, 1] < 0).any():
        raise MetricError(f"Wanted finite values and sizes of at least 0 for each item, found shape {values.shape}.")

    def score(units: _Units) -> tuple[float, Iterator[Values]]:
        total = np.zeros((units.n, 2))
        np.add.at(total, units.member, values[units.rows])
        above, below = total.sum(axis=0)
        if not below:
            raise MetricError("Wanted a denominator above 0, found 0: the ratio is undefined.")

        def found() -> Iterator[Values]:
            for block in units.blocks(replicates, rng):
                sums = block @ total
                # A replicate without any size has no ratio of its own; it gets the one of all items.
                yield np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), above / below), where=sums[:, 1] > 0)

        return float(above / below), found()

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
    wanted, scores = _checked(target, prediction)

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


def paired_swap_test(
    difference: Callable[[npt.NDArray[np.bool_]], float],
    n_items: int,
    *,
    groups: npt.ArrayLike | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> PairedTest:
    """Two-sided permutation test of any score of two encoders: their predictions are swapped clip by clip.

    All patterns are tried where there are not more of them than ``permutations``.

    Args:
        difference: computes the first encoder's score minus the second's after the marked clips ``(n_items,)`` swapped
            their predictions.
        n_items: number of test clips.
        groups: ``(n_items,)`` recording of each clip, swapped as a whole.
        permutations: number of random patterns.
        seed: of the generator.

    Raises:
        MetricError: without clips or permutations.

    Example:
        >>> first, second = np.ones(6), np.zeros(6)
        >>> paired_swap_test(lambda swap: float(np.where(swap, second - first, first - second).mean()), 6)
        PairedTest(difference=1.0, p_value=0.03125, exact=True)
    """

    def differences(swaps: npt.NDArray[np.bool_]) -> Values:
        return np.array([difference(row) for row in swaps])

    return _swap_test(differences, n_items, groups, permutations, seed)


def paired_swap_counts(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    average: Average = "macro",
    *,
    groups: npt.ArrayLike | None = None,
    permutations: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Two-sided permutation test of the F1 of two encoders, from the counts of each clip.

    Args:
        first, second: ``(items, 3, classes)`` counts of the two on the same items.
        average, groups, permutations, seed: as in :func:`bootstrap_counts` and :func:`paired_swap_test`.

    Raises:
        MetricError: for different shapes, or without items.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 3 or a.shape[1] != 3 or a.shape != b.shape or not a.size:
        raise MetricError(f"Wanted counts (items, 3, classes) of the same items, found {a.shape} and {b.shape}.")
    if average == "micro":
        a, b = a.sum(axis=2, keepdims=True), b.sum(axis=2, keepdims=True)
    change = (b - a).reshape(len(a), -1)
    total_a, total_b = a.sum(axis=0), b.sum(axis=0)

    def differences(swaps: npt.NDArray[np.bool_]) -> Values:
        moved = (swaps @ change).reshape(-1, *total_a.shape)
        return np.asarray(f1_from_counts(total_a + moved) - f1_from_counts(total_b - moved))

    return _swap_test(differences, len(a), groups, permutations, seed)


def paired_swap_map(
    target: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> PairedTest:
    """Two-sided permutation test of the mean average precision of two encoders.

    Args:
        target: ``(items, classes)`` 0 or 1.
        first, second: ``(items, classes)`` scores of the two. Scores of one clip meet the other encoder's scores of
            other clips, so both must be on one scale: probabilities or logits of the same kind of probe.
        groups, permutations, seed: as in :func:`paired_swap_test`.

    Raises:
        MetricError: for different shapes, without items, or scores that are not finite.
    """
    wanted, a = _checked(target, first)
    _, b = _checked(target, second)
    # Both sets of scores in one ranking; a pattern says which of a clip's two rows belongs to the first encoder.
    ranking = Ranking(np.vstack([wanted, wanted]), np.vstack([a, b]))

    def differences(swaps: npt.NDArray[np.bool_]) -> Values:
        found = []
        for part in np.array_split(swaps, range(_REPLICATES, len(swaps), _REPLICATES)):
            marked = part.T.astype(np.float32)
            sides = (np.vstack([1 - marked, marked]), np.vstack([marked, 1 - marked]))
            one, other = (ranking.average_precision(side).mean(axis=1) for side in sides)
            found.append(one - other)
        return np.concatenate(found)

    return _swap_test(differences, len(wanted), groups, permutations, seed)


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
    fold = _ids(strata, n_items, "fold")
    unit = np.arange(n_items) if groups is None else _ids(groups, n_items, "recording")
    parts = [np.flatnonzero(fold == number) for number in range(int(fold.max()) + 1)]
    points, total = [], np.zeros(replicates)
    for rows in parts:
        _, member = np.unique(unit[rows], return_inverse=True)
        point, found = score(_Units(rows, member, int(member.max()) + 1))
        points.append(point)
        total += np.concatenate(list(found))
    return percentile_interval(float(np.mean(points)), total / len(parts), confidence)


def _swap_test(
    differences: Callable[[npt.NDArray[np.bool_]], Values],
    n_items: int,
    groups: npt.ArrayLike | None,
    permutations: int,
    seed: int,
) -> PairedTest:
    if n_items < 1 or permutations < 1:
        raise MetricError(f"Wanted clips and at least 1 permutation, found {n_items} and {permutations}.")
    member = np.arange(n_items) if groups is None else _ids(groups, n_items, "recording")
    n_units = int(member.max()) + 1
    observed = float(differences(np.zeros((1, n_items), dtype=bool))[0])
    # Rounding must not turn a pattern that is as extreme as the observed one into a less extreme one.
    bound = abs(observed) - 1e-12
    if n_units < 63 and 2**n_units <= permutations:
        swaps = (np.arange(2**n_units)[:, None] >> np.arange(n_units)) % 2 == 1
        return PairedTest(observed, float(np.mean(np.abs(differences(swaps[:, member])) >= bound)), True)
    rng = np.random.default_rng(seed)
    hits, step = 0, max(1, _BLOCK // n_items)
    for start in range(0, permutations, step):
        rows = min(step, permutations - start)
        swaps = rng.integers(0, 2, size=(rows, n_units)) == 1
        hits += int((np.abs(differences(swaps[:, member])) >= bound).sum())
    return PairedTest(observed, (1 + hits) / (1 + permutations), False)


def _ids(names: npt.ArrayLike | None, n_items: int, what: str) -> npt.NDArray[np.int64]:
    if names is None:
        return np.zeros(n_items, dtype=np.int64)
    array = np.asarray(names)
    if array.shape != (n_items,):
        raise MetricError(f"Wanted one {what} for each of {n_items} items, found shape {array.shape}.")
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def _checked(target: npt.ArrayLike, prediction: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
    wanted, scores = np.asarray(target), np.asarray(prediction)
    if wanted.ndim != 2 or wanted.shape != scores.shape or not wanted.size:
        raise MetricError(
            f"Wanted targets and scores of one shape (items, classes), found {wanted.shape} and {scores.shape}."
        )
    if not np.isfinite(scores).all():
        raise MetricError("Wanted finite scores, found NaN or Inf.")
    return wanted.astype(bool), scores
