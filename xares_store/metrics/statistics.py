"""Uncertainty of a mean over test clips, and tests between two encoders."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError

Values = npt.NDArray[np.float64]
Method = Literal["auto", "clips", "counts"]

# Distinct values up to which counts are drawn instead of clips.
_FEW_VALUES = 64
# Clips up to which all sign patterns are tried.
_EXACT_CLIPS = 20
# Random numbers drawn at once.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A confidence interval with the point estimate it belongs to."""

    point: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Difference of two means over the same clips (first minus second) and its two-sided p-value."""

    difference: float
    p_value: float
    exact: bool


def bootstrap_interval(
    values: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    replicates: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    method: Method = "auto",
) -> Interval:
    """Percentile bootstrap interval of a mean over clips.

    Args:
        values: ``(clips,)`` one value per test clip or recording, such as 1.0 for a correct one.
        strata: ``(clips,)`` fold of each clip. When given, the score is the mean over folds of the folds' means, and
            clips are resampled within their fold.
        replicates: number of resamples.
        confidence: of the interval, between 0 and 1.
        seed: of the generator; the same seed gives the same interval.
        method: ``"clips"`` draws clip indices, one row per replicate. ``"counts"`` draws how often each distinct value
            occurs: the same distribution, thousands of times faster for many clips with few distinct values.
            ``"auto"`` takes counts whenever the values have few distinct values.

    Returns:
        Mean and bounds.

    Raises:
        MetricError: without clips, or with values that are not finite.

    Example:
        >>> bootstrap_interval([1.0] * 50)
        Interval(point=1.0, low=1.0, high=1.0)
    """
    groups = _groups(values, strata)
    check_options(replicates, confidence)
    rng = np.random.default_rng(seed)
    total = np.zeros(replicates)
    for group in groups:
        total += _resampled_means(group, replicates, rng, method)
    means = total / len(groups)
    point = float(np.mean([group.mean() for group in groups]))
    return percentile_interval(point, means, confidence)


def bootstrap_statistic(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    n_clips: int,
    *,
    replicates: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of any metric of whole clips.

    Args:
        statistic: computes the metric from clip indices ``(n_clips,)``, in which clips may repeat.
        n_clips: number of test clips.
        replicates: number of resamples.
        confidence: of the interval, between 0 and 1.
        seed: of the generator.

    Example:
        >>> errors, words = np.array([1, 0, 2, 1]), np.array([9, 8, 7, 8])
        >>> bootstrap_statistic(lambda i: 1 - errors[i].sum() / words[i].sum(), 4, replicates=100).point
        0.875
    """
    if n_clips < 1:
        raise MetricError("Wanted at least one clip, found none.")
    check_options(replicates, confidence)
    rng = np.random.default_rng(seed)
    found = [statistic(row) for block in index_blocks(n_clips, replicates, rng) for row in block]
    return percentile_interval(float(statistic(np.arange(n_clips))), np.array(found), confidence)


def paired_permutation_test(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    permutations: int = 10_000,
    seed: int = 0,
    method: Method = "auto",
) -> PairedTest:
    """Two-sided sign-flip test of the mean difference of two encoders over the same clips.

    Up to 20 clips all sign patterns are tried; beyond, ``(1 + hits) / (1 + permutations)`` of random ones.

    Args:
        first: ``(clips,)`` values of one encoder.
        second: ``(clips,)`` values of the other on the same clips.
        strata: ``(clips,)`` fold of each clip; the difference is then the mean over folds of the folds' means.
        permutations: number of random patterns.
        seed: of the generator.
        method: ``"clips"`` draws a sign per clip. ``"counts"`` draws, per distinct difference, how many keep their
            sign: the same distribution. ``"auto"`` takes counts whenever there are few distinct differences.

    Returns:
        Mean of ``first - second`` and the p-value.

    Raises:
        MetricError: for different numbers of clips or values that are not finite.

    Example:
        >>> paired_permutation_test([1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0])
        PairedTest(difference=1.0, p_value=0.03125, exact=True)
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise MetricError(
            f"Wanted the same clips from both, found {a.shape} and {b.shape}.",
            hint="Compare runs over the same task, protocol and selection of clips.",
        )
    groups = _groups(a - b, strata)
    # Weights that turn the mean over folds into one sum over clips.
    parts = [group / (len(group) * len(groups)) for group in groups]
    difference = np.concatenate(parts)
    observed = float(np.mean([group.mean() for group in groups]))
    # Rounding must not turn a pattern that is as extreme as the observed one into a less extreme one.
    bound = abs(observed) - 1e-12 * max(1.0, float(np.abs(difference).sum()))
    if len(difference) <= _EXACT_CLIPS:
        sums = np.zeros(1)
        for value in difference:
            sums = np.concatenate([sums + value, sums - value])
        return PairedTest(observed, float(np.mean(np.abs(sums) >= bound)), True)
    if permutations < 1:
        raise MetricError(f"Wanted at least 1 permutation, found {permutations}.")
    rng = np.random.default_rng(seed)
    size, count = np.unique(np.abs(difference), return_counts=True)
    if method == "counts" or (method == "auto" and len(size) <= _FEW_VALUES):
        kept = rng.binomial(count, 0.5, size=(permutations, len(size)))
        hits = int((np.abs((2 * kept - count) @ size) >= bound).sum())
    else:
        hits = 0
        step = max(1, _BLOCK // len(difference))
        for start in range(0, permutations, step):
            rows = min(step, permutations - start)
            signs = rng.integers(0, 2, size=(rows, len(difference))) * 2 - 1
            hits += int((np.abs(signs @ difference) >= bound).sum())
    return PairedTest(observed, (1 + hits) / (1 + permutations), False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several comparisons by Holm's step-down rule.

    Args:
        p_values: any number of p-values, 0 to 1.

    Returns:
        Adjusted p-values in the same order, at most 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise MetricError(f"Wanted p-values from 0 to 1, found {list(p_values)}.")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[position] * (len(p_values) - rank)))
        adjusted[position] = highest
    return adjusted


def standard_error(values: npt.ArrayLike) -> float:
    """Return the standard error of a mean: sample standard deviation over the root of the number of clips.

    Raises:
        MetricError: for fewer than two values.

    Example:
        >>> standard_error([0.0, 1.0, 1.0, 0.0])
        0.28867513459481287
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise MetricError(f"Wanted at least two values, found shape {array.shape}.")
    return float(array.std(ddof=1) / math.sqrt(len(array)))


def bootstrap_standard_error(
    statistic: Callable[[Sequence[Any]], float], items: Sequence[Any], *, replicates: int = 1000
) -> float:
    """Return the standard error of any statistic, drawn as lm-evaluation-harness draws it, to stand beside its tables.

    Args:
        statistic: computes the score of a list of items.
        items: one per test clip.
        replicates: number of resamples; chunk i of 1,000 is drawn by Python's generator with seed i.

    Example:
        >>> bootstrap_standard_error(lambda kept: sum(kept) / len(kept), [1, 1], replicates=10)
        0.0
    """
    if not len(items) or replicates < 2:
        raise MetricError(f"Wanted items and at least 2 replicates, found {len(items)} and {replicates}.")
    found: list[float] = []
    while len(found) < replicates:
        drawn = random.Random(len(found) // 1000)  # noqa: S311  (no secret is made of it)
        found += [statistic(drawn.choices(items, k=len(items))) for _ in range(min(1000, replicates - len(found)))]
    return float(np.std(found, ddof=1))


def pooled_standard_error(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the standard error of the mean over all clips of several tasks, from those of the tasks.

    Args:
        errors: standard error of each task's mean.
        sizes: clips of each task.

    Raises:
        MetricError: for different lengths, or when no task has two clips.

    Example:
        >>> round(pooled_standard_error([0.02, 0.05, 0.01], [100, 25, 400]), 6)
        0.008841
    """
    error, size = np.asarray(errors, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    if error.ndim != 1 or error.shape != size.shape or size.sum() <= len(size):
        raise MetricError(f"Wanted one size per error and more clips than tasks, found {error.shape} and {size.shape}.")
    variance = ((size - 1) * size * error**2).sum() / (size.sum() - len(size))
    return float(math.sqrt(variance / size.sum()))


def _groups(values: npt.ArrayLike, strata: npt.ArrayLike | None) -> list[Values]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise MetricError(f"Wanted one value per clip and at least one clip, found shape {array.shape}.")
    if not np.isfinite(array).all():
        raise MetricError("Wanted finite values, found NaN or Inf.")
    if strata is None:
        return [array]
    fold = np.asarray(strata)
    if fold.shape != array.shape:
        raise MetricError(f"Wanted one fold per clip {array.shape}, found {fold.shape}.")
    names, member = np.unique(fold, return_inverse=True)
    return [array[member == number] for number in range(len(names))]


def check_options(replicates: int, confidence: float) -> None:
    """Refuse what no interval can be made of.

    Raises:
        MetricError: fewer than one replicate, or a confidence that is not between 0 and 1.
    """
    if replicates < 1 or not 0.0 < confidence < 1.0:
        raise MetricError(
            f"Wanted at least 1 replicate and a confidence between 0 and 1, found {replicates} and {confidence}."
        )


def index_blocks(n_clips: int, replicates: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Draw ``(replicates, n_clips)`` indices a block of rows at a time: the same numbers as in one draw."""
    step = max(1, _BLOCK // n_clips)
    for start in range(0, replicates, step):
        yield rng.integers(0, n_clips, size=(min(step, replicates - start), n_clips))


def _resampled_means(values: Values, replicates: int, rng: np.random.Generator, method: Method) -> Values:
    if method != "clips":
        distinct, count = np.unique(values, return_counts=True)
        if len(distinct) == 1:
            return np.full(replicates, distinct[0])
        if method == "counts" or len(distinct) <= _FEW_VALUES:
            drawn = rng.multinomial(len(values), count / len(values), size=replicates)
            return np.asarray(drawn @ distinct / len(values), dtype=np.float64)
    return np.concatenate([values[block].mean(axis=1) for block in index_blocks(len(values), replicates, rng)])


def percentile_interval(point: float, replicates: npt.NDArray[Any], confidence: float) -> Interval:
    """Take the interval between the quantiles of replicates, linear between neighbours.

    Example:
        >>> percentile_interval(0.5, np.arange(101) / 100, 0.5)
        Interval(point=0.5, low=0.25, high=0.75)
    """
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return Interval(point, float(low), float(high))
