"""Swapping two encoders' predictions: equal to recomputing the score for each pattern."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xares_store.errors import MetricError
from xares_store.metrics import swaps
from xares_store.metrics.classification import mean_average_precision
from xares_store.metrics.frames import f1_from_counts
from xares_store.metrics.statistics import paired_permutation_test
from xares_store.metrics.swaps import paired_swap_counts, paired_swap_map, paired_swap_rates, paired_swap_test
from xares_store.metrics.text import ErrorCount, error_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "aggregate.json").read_text())


def counts_of(seed, items=40, classes=3):
    return np.random.default_rng(seed).integers(0, 6, (items, 3, classes))


def test_swaps_of_a_mean_are_sign_flips():
    case = GOLDEN["paired_permutation_exact"][2]
    a, b = np.array(case["a"]), np.array(case["b"])

    def difference(swap):
        return float(np.where(swap, b - a, a - b).mean())

    found = paired_swap_test(difference, len(a))
    assert found.exact
    assert found.p_value == pytest.approx(case["p_two_sided_exact"])
    random = paired_swap_test(difference, len(a), permutations=200, seed=1)
    assert not random.exact
    assert random.p_value == pytest.approx(found.p_value, abs=0.05)
    # Three crops of each recording are swapped together: as many patterns as recordings.
    crops = np.repeat(np.arange(8), 3)
    grouped = paired_swap_test(lambda swap: difference(swap[::3]), 24, groups=crops)
    assert (grouped.exact, grouped.p_value) == (True, found.p_value)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_swapped_counts_are_recomputed(average):
    first, second = counts_of(3), counts_of(4)

    def difference(swap):
        marked = swap[:, None, None]
        a, b = np.where(marked, second, first), np.where(marked, first, second)
        return f1_from_counts(a.sum(axis=0), average) - f1_from_counts(b.sum(axis=0), average)

    slow = paired_swap_test(difference, 40, permutations=300)
    found = paired_swap_counts(first, second, average, permutations=300)
    assert (found.difference, found.p_value) == pytest.approx((slow.difference, slow.p_value))


def test_swapped_rankings_are_recomputed():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (25, 3))
    first, second = targets + rng.normal(size=(25, 3)), targets + 2 * rng.normal(size=(25, 3)).round(1)

    def difference(swap):
        a, b = np.where(swap[:, None], second, first), np.where(swap[:, None], first, second)
        return mean_average_precision(targets, a) - mean_average_precision(targets, b)

    slow = paired_swap_test(difference, 25, permutations=200)
    found = paired_swap_map(targets, first, second, permutations=200)
    assert (found.difference, found.p_value) == pytest.approx((slow.difference, slow.p_value))
    assert paired_swap_map(targets, first, first, permutations=50).p_value == 1.0


def rates_of(seed, items=30):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 6, items), rng.integers(0, 9, items)], axis=1)


@pytest.mark.parametrize("folds", [1, 3])
def test_swapped_rates_are_recomputed(folds):
    """Three folds count the same; in one of them errors outnumber the words, which is 0 and not less."""
    first, second = rates_of(1), rates_of(2)
    fold = np.arange(30) % folds
    first[fold == 1, 0] += 3

    def score(rows):
        found = []
        for number in range(folds):
            counts = [ErrorCount(int(errors), 0, 0, units=int(units)) for errors, units in rows[fold == number]]
            found.append(max(0.0, 1.0 - error_rate(counts)))
        return float(np.mean(found))

    def difference(swap):
        a, b = np.where(swap[:, None], second, first), np.where(swap[:, None], first, second)
        return score(a) - score(b)

    slow = paired_swap_test(difference, 30, permutations=300)
    found = paired_swap_rates(first, second, strata=None if folds == 1 else fold, permutations=300)
    assert (found.difference, found.p_value) == pytest.approx((slow.difference, slow.p_value))
    assert 0 < found.p_value < 1
    assert paired_swap_rates(first, first, permutations=50).p_value == 1.0


def test_seeds_of_an_item_are_swapped_together():
    first, second = rates_of(3, items=6), rates_of(4, items=6)
    twice = [np.concatenate([side, side]) for side in (first, second)]
    found = paired_swap_rates(*twice, strata=np.repeat([0, 1], 6), groups=np.tile(np.arange(6), 2))
    alone = paired_swap_rates(first, second)
    assert found.exact
    assert (found.difference, found.p_value) == pytest.approx((alone.difference, alone.p_value))


def test_the_test_keeps_its_level():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        truth = rng.integers(0, 2, (30, 1))
        a, b = (truth ^ (rng.random((30, 1)) < 0.3) for _ in range(2))
        counts = [np.stack([truth & x, x & (1 - truth), truth & (1 - x)], axis=1) for x in (a, b)]
        hits += paired_swap_counts(*counts, permutations=199, seed=trial).p_value <= 0.05
    assert hits <= 20
    assert paired_permutation_test([0.0], [0.0]).p_value == 1.0


def test_trying_patterns_in_blocks_changes_nothing(monkeypatch):
    case = GOLDEN["bootstrap_percentile_map_resample_clips"]
    targets, scores = case["targets"], case["scores"]
    paired = paired_swap_map(targets, scores, np.negative(scores), permutations=200)
    monkeypatch.setattr(swaps, "_BLOCK", 700)
    monkeypatch.setattr(swaps, "_PATTERNS", 7)
    assert paired_swap_map(targets, scores, np.negative(scores), permutations=200) == paired


def test_what_cannot_be_swapped_is_refused():
    counts = counts_of(0)
    calls = [
        lambda: paired_swap_counts(counts, counts[:3]),
        lambda: paired_swap_rates(counts[:, :2, 0], counts[:3, :2, 0]),
        lambda: paired_swap_rates(counts[:0, :2, 0], counts[:0, :2, 0]),
        lambda: paired_swap_rates([[1, 2]], [[1, 2]], strata=[1, 2]),
        lambda: paired_swap_test(lambda swap: 0.0, 0),
        lambda: paired_swap_test(lambda swap: 0.0, 3, permutations=0),
        lambda: paired_swap_map([[1]], [[0.1]], [[0.1], [0.2]]),
    ]
    for call in calls:
        with pytest.raises(MetricError):
            call()
