"""Paired permutation tests of scores that are no mean over clips: two encoders' predictions are swapped clip by clip.

A pattern of swaps is a row of marks, so sums over many patterns are a product of matrices, and rankings are sorted once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.frames import Average, f1_from_counts
from xares_store.metrics.ranking import Ranking
from xares_store.metrics.resampling import number_names, same_shape
from xares_store.metrics.statistics import PairedTest

Values = npt.NDArray[np.float64]

# Patterns at once in a ranking: their weights then stay in the processor's cache.
_PATTERNS = 64
# Numbers drawn at once.
_BLOCK = 4_000_000


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
        average, groups, permutations, seed: as in
            :func:`xares_store.metrics.resampling.bootstrap_counts` and :func:`paired_swap_test`.

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


def paired_swap_rates(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    permutations: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Two-sided permutation test of ``max(0, 1 - errors / units)`` of two encoders, from the counts of each clip.

    Args:
        first, second: ``(items, 2)`` errors and reference units of the two on the same items.
        strata: ``(items,)`` fold or training of each item: the score is then the mean over them.
        groups, permutations, seed: as in :func:`paired_swap_test`.

    Raises:
        MetricError: for different shapes, or without items.

    Example:
        >>> paired_swap_rates([[0, 5]] * 6, [[5, 5]] * 6)
        PairedTest(difference=1.0, p_value=0.03125, exact=True)
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 2 or a.shape[1] != 2 or a.shape != b.shape or not len(a):
        raise MetricError(f"Wanted counts (items, 2) of the same items, found {a.shape} and {b.shape}.")
    fold = number_names(strata, len(a), "fold")
    n_folds = int(fold.max()) + 1
    # Two columns a fold: what an item's swap moves from one encoder to the other there.
    change = np.zeros((len(a), n_folds, 2))
    change[np.arange(len(a)), fold] = b - a
    totals = [np.zeros((n_folds, 2)) for _ in range(2)]
    for total, side in zip(totals, (a, b), strict=True):
        np.add.at(total, fold, side)

    def score(sums: Values) -> Values:
        rates = sums[..., 0] / np.maximum(1.0, sums[..., 1])
        return np.asarray(np.maximum(0.0, 1.0 - rates).mean(axis=-1))

    def differences(swaps: npt.NDArray[np.bool_]) -> Values:
        moved = (swaps @ change.reshape(len(a), -1)).reshape(-1, n_folds, 2)
        return score(totals[0] + moved) - score(totals[1] - moved)

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
    wanted, a = same_shape(target, first)
    _, b = same_shape(target, second)
    # Both sets of scores in one ranking; a pattern says which of a clip's two rows belongs to the first encoder.
    ranking = Ranking(np.vstack([wanted, wanted]), np.vstack([a, b]))

    def differences(swaps: npt.NDArray[np.bool_]) -> Values:
        found = []
        for part in np.array_split(swaps, range(_PATTERNS, len(swaps), _PATTERNS)):
            marked = part.T.astype(np.float32)
            sides = (np.vstack([1 - marked, marked]), np.vstack([marked, 1 - marked]))
            one, other = (ranking.average_precision(side).mean(axis=1) for side in sides)
            found.append(one - other)
        return np.concatenate(found)

    return _swap_test(differences, len(wanted), groups, permutations, seed)


def _swap_test(
    differences: Callable[[npt.NDArray[np.bool_]], Values],
    n_items: int,
    groups: npt.ArrayLike | None,
    permutations: int,
    seed: int,
) -> PairedTest:
    if n_items < 1 or permutations < 1:
        raise MetricError(f"Wanted clips and at least 1 permutation, found {n_items} and {permutations}.")
    member = np.arange(n_items) if groups is None else number_names(groups, n_items, "recording")
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
