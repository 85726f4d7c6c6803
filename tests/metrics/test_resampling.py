"""Bootstrap by weights: equal to recomputing the score for each replicate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from xares_store.errors import MetricError
from xares_store.metrics import resampling, statistics
from xares_store.metrics.frames import f1_from_counts
from xares_store.metrics.ranking import Ranking
from xares_store.metrics.resampling import (
    bootstrap_counts,
    bootstrap_inverse_rate,
    bootstrap_map,
    bootstrap_ratio,
)
from xares_store.metrics.statistics import bootstrap_statistic
from xares_store.metrics.text import ErrorCount, error_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "aggregate.json").read_text())


def bounds(interval):
    return interval.point, interval.low, interval.high


def test_bootstrap_of_map():
    case = GOLDEN["bootstrap_percentile_map_resample_clips"]
    found = bootstrap_map(case["targets"], case["scores"], replicates=case["B"], seed=case["seed"])
    assert bounds(found) == pytest.approx((case["point"], case["ci_low"], case["ci_high"]), abs=1e-9)


def test_bootstrap_of_iwer():
    case = GOLDEN["bootstrap_percentile_iwer_from_clip_counts"]
    found = bootstrap_ratio(case["errors"], case["ref_words"], replicates=case["B"], seed=case["seed"])
    assert (1 - found.point, 1 - found.high, 1 - found.low) == pytest.approx(
        (case["point"], case["ci_low"], case["ci_high"]), abs=1e-12
    )


def test_bootstrap_of_inverse_rates():
    case = GOLDEN["bootstrap_percentile_iwer_from_clip_counts"]
    found = bootstrap_inverse_rate(case["errors"], case["ref_words"], replicates=case["B"], seed=case["seed"])
    assert bounds(found) == pytest.approx((case["point"], case["ci_low"], case["ci_high"]), abs=1e-12)
    # Recomputing the score, where it meets its floor and where a replicate has no word.
    errors, words = np.array([9, 0, 1, 4, 2]), np.array([3, 4, 0, 6, 0])

    def score(rows):
        counts = [ErrorCount(int(errors[row]), 0, 0, units=int(words[row])) for row in rows]
        return max(0.0, 1.0 - error_rate(counts))

    slow = bootstrap_statistic(score, 5, replicates=400)
    assert (slow.low, slow.point < slow.high) == (0.0, True)
    assert bounds(bootstrap_inverse_rate(errors, words, replicates=400)) == pytest.approx(bounds(slow), abs=1e-12)


def test_bootstrap_of_a_mean():
    case = GOLDEN["bootstrap_percentile_mean"]
    ones = np.ones(len(case["values"]))
    found = bootstrap_ratio(case["values"], ones, replicates=case["B"], seed=case["seed"])
    assert bounds(found) == pytest.approx((case["point"], case["ci_low"], case["ci_high"]), abs=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), levels=st.sampled_from([2, 5, 1000]))
def test_weights_are_repeated_clips(seed, levels):
    rng = np.random.default_rng(seed)
    targets, scores = rng.integers(0, 2, (12, 3)), rng.integers(0, levels, (12, 3)) / levels
    targets[0] = 1
    weights = rng.integers(0, 4, (12, 5)).astype(np.float32)
    weights[0] += 1
    found = Ranking(targets.astype(bool), scores).average_precision(weights)
    for number, weight in enumerate(weights.T.astype(int)):
        rows = np.repeat(np.arange(12), weight)
        expected = average_precision_score(targets[rows], scores[rows], average=None)
        assert found[number] == pytest.approx(expected, abs=1e-12)


def counts_of(seed, items=40, classes=3):
    return np.random.default_rng(seed).integers(0, 4, (items, 3, classes))


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_bootstrap_of_counts_is_recomputing(average, monkeypatch):
    counts = counts_of(0)
    slow = bootstrap_statistic(lambda rows: f1_from_counts(counts[rows].sum(axis=0), average), 40, replicates=300)
    assert bounds(bootstrap_counts(counts, average, replicates=300)) == pytest.approx(bounds(slow), abs=1e-12)
    monkeypatch.setattr(resampling, "_SPARSE", 2.0)
    assert bounds(bootstrap_counts(counts, average, replicates=300)) == pytest.approx(bounds(slow), abs=1e-12)
    large = counts * 2**22  # beyond what float32 counts exactly
    assert bounds(bootstrap_counts(large, average, replicates=300)) == pytest.approx(bounds(slow), abs=1e-12)


def test_drawing_in_blocks_changes_nothing(monkeypatch):
    counts = counts_of(1)
    case = GOLDEN["bootstrap_percentile_map_resample_clips"]
    targets, scores = case["targets"], case["scores"]
    whole = bootstrap_counts(counts, replicates=200), bootstrap_map(targets, scores, replicates=200)
    monkeypatch.setattr(statistics, "_BLOCK", 700)
    monkeypatch.setattr(resampling, "_REPLICATES", 7)
    assert (bootstrap_counts(counts, replicates=200), bootstrap_map(targets, scores, replicates=200)) == whole


def test_classes_that_no_item_has():
    counts = np.concatenate([counts_of(2), np.zeros((40, 3, 1), int)], axis=2)
    present = bootstrap_counts(counts, present_only=True, replicates=100)
    assert present == bootstrap_counts(counts[:, :, :3], replicates=100)
    assert bootstrap_counts(counts, replicates=100).point == pytest.approx(present.point * 3 / 4)
    assert bounds(bootstrap_counts(counts * 0, present_only=True, replicates=10)) == (0.0, 0.0, 0.0)
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, (20, 4)) * [1, 1, 1, 0], rng.random((20, 4))
    expected = bootstrap_map(targets[:, :3], scores[:, :3], replicates=50)
    assert bootstrap_map(targets, scores, present_only=True, replicates=50) == expected


@pytest.mark.parametrize("kind", ["counts", "map", "ratio"])
def test_recordings_are_drawn_whole(kind):
    """Crops that repeat their recording must not make the interval narrower."""
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, (60, 2)), rng.random((60, 2))
    crops = np.repeat(np.arange(60), 4)
    counts, values = counts_of(0, 60), rng.random(60)
    names = np.array([f"r{number:02}" for number in crops])
    run = {
        "counts": lambda rows, **k: bootstrap_counts(counts[rows], replicates=400, **k),
        "map": lambda rows, **k: bootstrap_map(targets[rows], scores[rows], replicates=400, **k),
        "ratio": lambda rows, **k: bootstrap_ratio(values[rows], np.ones(len(rows)), replicates=400, **k),
    }[kind]
    whole, grouped, apart = run(np.arange(60)), run(crops, groups=names), run(crops)
    assert bounds(grouped) == pytest.approx(bounds(whole), abs=1e-12)
    assert apart.high - apart.low < 0.7 * (whole.high - whole.low)


@pytest.mark.parametrize("kind", ["counts", "map", "ratio"])
def test_folds_are_drawn_apart_and_count_the_same(kind):
    rng = np.random.default_rng(0)
    fold = ["a"] * 10 + ["b"] * 30
    targets, scores = rng.integers(0, 2, (40, 2)), rng.random((40, 2))
    counts, values = counts_of(0), rng.random(40)
    run = {
        "counts": lambda rows, **k: bootstrap_counts(counts[rows], replicates=300, **k),
        "map": lambda rows, **k: bootstrap_map(targets[rows], scores[rows], replicates=300, **k),
        "ratio": lambda rows, **k: bootstrap_ratio(values[rows], np.ones(len(rows)), replicates=300, **k),
    }[kind]
    both, first, second = run(np.arange(40), strata=fold), run(np.arange(10)), run(np.arange(10, 40))
    assert both.point == pytest.approx((first.point + second.point) / 2)
    assert both.high - both.low < first.high - first.low


def test_what_cannot_be_drawn_is_refused():
    counts = counts_of(0)
    calls = [
        lambda: bootstrap_counts(counts[0]),
        lambda: bootstrap_counts(counts[:0]),
        lambda: bootstrap_counts(counts, replicates=0),
        lambda: bootstrap_counts(counts, strata=[1, 2]),
        lambda: bootstrap_counts(counts, groups=[1, 2]),
        lambda: bootstrap_ratio([1.0], [0.0]),
        lambda: bootstrap_ratio([1.0], [-1.0]),
        lambda: bootstrap_ratio([np.nan], [1.0]),
        lambda: bootstrap_map([[1]], [[np.nan]]),
        lambda: bootstrap_map([[1]], [[0.1, 0.2]]),
        lambda: bootstrap_inverse_rate([], []),
        lambda: bootstrap_inverse_rate([1.0], [-1.0]),
        lambda: bootstrap_inverse_rate([np.nan], [1.0]),
    ]
    for call in calls:
        with pytest.raises(MetricError):
            call()
    # A replicate without any word has no rate of its own.
    assert bounds(bootstrap_ratio([1, 0], [2, 0], replicates=50)) == (0.5, 0.5, 0.5)
