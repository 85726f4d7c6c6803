"""Bootstrap intervals, paired tests and aggregation against the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.errors import MetricError
from xares_store.metrics.aggregate import normalised_score, vote, weighted_average
from xares_store.metrics.classification import mean_average_precision
from xares_store.metrics.statistics import (
    bootstrap_interval,
    bootstrap_standard_error,
    bootstrap_statistic,
    holm,
    paired_permutation_test,
    pooled_standard_error,
    standard_error,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "aggregate.json").read_text())


def test_every_case_of_the_file_is_known():
    """The recomputed averages of the published table are run with that table, the others here and in test_resampling."""
    assert {name: len(value) for name, value in GOLDEN.items() if isinstance(value, list)} == {
        "weighted_average": 5,
        "paired_permutation_exact": 4,
    }
    assert {name for name, value in GOLDEN.items() if not isinstance(value, list)} == {
        "xares_readme_recomputed_from_task_weights",
        "bootstrap_percentile_mean",
        "bootstrap_percentile_map_resample_clips",
        "bootstrap_percentile_iwer_from_clip_counts",
        "paired_permutation_monte_carlo",
        "mcnemar_exact_same_data",
        "lm_eval_harness",
    }


def test_standard_errors():
    case = GOLDEN["lm_eval_harness"]
    values, pooled = case["values"], case["pooled_stderr"]
    assert standard_error(values) == pytest.approx(case["mean_stderr"], abs=1e-12)
    found = bootstrap_standard_error(np.mean, values, replicates=2000)
    assert found == pytest.approx(case["bootstrap_stderr_of_mean_2000"], abs=1e-12)
    assert pooled_standard_error(pooled["stderrs"], pooled["sizes"]) == pytest.approx(pooled["expected"], abs=1e-12)
    for call in (
        lambda: standard_error([1.0]),
        lambda: bootstrap_standard_error(np.mean, []),
        lambda: pooled_standard_error([0.1], [1]),
        lambda: pooled_standard_error([0.1], [1, 2]),
    ):
        with pytest.raises(MetricError):
            call()


@pytest.mark.parametrize("case", GOLDEN["weighted_average"], ids=lambda case: case["name"])
def test_weighted_average(case):
    columns = zip(*case["scores"].values(), strict=True)
    found = [weighted_average(*zip(*column, strict=True)) for column in columns]
    assert found == pytest.approx(case["expected"]["value"], abs=1e-12)


def test_weighted_average_refuses_uneven_input():
    with pytest.raises(MetricError):
        weighted_average([0.5], [1, 2])
    with pytest.raises(MetricError):
        weighted_average([0.5], [-1])


def test_normalised_score():
    assert normalised_score(0.25, worst=1.0, best=0.0) == 0.75
    with pytest.raises(MetricError):
        normalised_score(0.25, worst=1.0, best=1.0)


def test_bootstrap_of_a_mean():
    case = GOLDEN["bootstrap_percentile_mean"]
    found = bootstrap_interval(case["values"], replicates=case["B"], seed=case["seed"], method="clips")
    assert found.point == pytest.approx(case["point"], abs=1e-12)
    assert (found.low, found.high) == pytest.approx((case["ci_low"], case["ci_high"]), abs=1e-12)
    seen: list[float] = []
    bootstrap_statistic(
        lambda rows: seen.append(np.mean(np.array(case["values"])[rows])) or 0.0,
        len(case["values"]),
        replicates=case["B"],
        seed=case["seed"],
    )
    assert seen[:5] == pytest.approx(case["first_5_replicates"], abs=1e-12)
    assert np.std(seen[: case["B"]], ddof=1) == pytest.approx(case["stderr_ddof1"], abs=1e-12)


def test_bootstrap_of_map():
    case = GOLDEN["bootstrap_percentile_map_resample_clips"]
    scores, targets = np.array(case["scores"]), np.array(case["targets"])
    found = bootstrap_statistic(
        lambda rows: mean_average_precision(targets[rows], scores[rows]),
        len(scores),
        replicates=case["B"],
        seed=case["seed"],
    )
    assert (found.point, found.low, found.high) == pytest.approx(
        (case["point"], case["ci_low"], case["ci_high"]), abs=1e-9
    )


def test_bootstrap_of_iwer():
    case = GOLDEN["bootstrap_percentile_iwer_from_clip_counts"]
    errors, words = np.array(case["errors"]), np.array(case["ref_words"])
    found = bootstrap_statistic(
        lambda rows: max(0.0, 1 - errors[rows].sum() / words[rows].sum()),
        len(words),
        replicates=case["B"],
        seed=case["seed"],
    )
    assert (found.point, found.low, found.high) == pytest.approx(
        (case["point"], case["ci_low"], case["ci_high"]), abs=1e-12
    )


def test_counts_have_the_distribution_of_clips():
    values = np.random.default_rng(0).integers(0, 3, 300) / 2
    clips = bootstrap_interval(values, replicates=40_000, method="clips")
    counts = bootstrap_interval(values, replicates=40_000, method="counts", seed=1)
    assert counts.point == pytest.approx(clips.point)
    assert counts.low == pytest.approx(clips.low, abs=0.004)
    assert counts.high == pytest.approx(clips.high, abs=0.004)


def test_drawing_in_blocks_changes_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=101)
    whole = bootstrap_interval(values, replicates=500)
    monkeypatch.setattr("xares_store.metrics.statistics._BLOCK", 1000)
    assert bootstrap_interval(values, replicates=500) == whole


def test_strata_are_resampled_apart_and_averaged():
    values = [1.0] * 10 + [0.0] * 90
    fold = ["a"] * 10 + ["b"] * 90
    # Within each fold nothing varies, and each fold counts the same whatever its size.
    found = bootstrap_interval(values, strata=fold)
    assert (found.point, found.low, found.high) == (0.5, 0.5, 0.5)
    assert bootstrap_interval(values).point == pytest.approx(0.1)


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        found = bootstrap_interval(rng.random(200) < 0.7, replicates=1000, seed=trial)
        hits += found.low <= 0.7 <= found.high
    assert 0.90 <= hits / 300 <= 0.99


@pytest.mark.parametrize("values", [[], [np.nan, 1.0], [[1.0]]])
def test_bootstrap_refuses(values):
    with pytest.raises(MetricError):
        bootstrap_interval(values)


def test_bootstrap_refuses_options():
    with pytest.raises(MetricError):
        bootstrap_interval([1.0], confidence=95)
    with pytest.raises(MetricError):
        bootstrap_interval([1.0, 0.0], strata=["a"])
    with pytest.raises(MetricError):
        bootstrap_statistic(lambda rows: 0.0, 0)


@pytest.mark.parametrize("case", GOLDEN["paired_permutation_exact"], ids=lambda case: case["name"])
def test_exact_permutation(case):
    found = paired_permutation_test(case["a"], case["b"])
    assert found.exact
    assert found.difference == pytest.approx(case["mean_diff"], abs=1e-12)
    assert found.p_value == pytest.approx(case["p_two_sided_exact"], abs=1e-12)


def test_random_permutation():
    case = GOLDEN["paired_permutation_monte_carlo"]
    found = paired_permutation_test(case["a"], case["b"], permutations=case["K"], seed=case["seed"], method="clips")
    assert not found.exact
    assert found.difference == pytest.approx(case["mean_diff"], abs=1e-12)
    assert found.p_value == pytest.approx(case["p_two_sided"], abs=1e-12)
    counts = paired_permutation_test(case["a"], case["b"], permutations=100_000)
    # For 0/1 values the sign-flip test is McNemar's exact test.
    assert counts.p_value == pytest.approx(GOLDEN["mcnemar_exact_same_data"]["p"], abs=0.005)


def test_permutation_with_folds_weighs_folds_equally():
    first = [1.0] * 4 + [0.0] * 36
    fold = [0] * 4 + [1] * 36
    assert paired_permutation_test(first, [0.0] * 40, strata=fold).difference == pytest.approx(0.5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_permutation_is_symmetric(pairs):
    first, second = np.array(pairs, dtype=float).T
    there, back = paired_permutation_test(first, second), paired_permutation_test(second, first)
    assert there.p_value == back.p_value
    assert there.difference == -back.difference
    assert 0 < there.p_value <= 1


def test_permutation_refuses_other_clips():
    with pytest.raises(MetricError):
        paired_permutation_test([1.0, 0.0], [1.0])
    with pytest.raises(MetricError):
        paired_permutation_test([1.0] * 30, [0.0] * 30, permutations=0)


def test_holm():
    assert holm([]) == []
    assert holm([0.01, 0.02, 0.04]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(MetricError):
        holm([1.5])


def test_vote_keeps_the_order_of_recordings():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6]], dtype=np.float32)
    first, mean = vote(probabilities, np.array([5, 2, 5, 2]))
    assert first.tolist() == [0, 1]
    np.testing.assert_allclose(mean, [[0.5, 0.5], [0.3, 0.7]], rtol=1e-6)
    assert mean.dtype == np.float32
    with pytest.raises(MetricError):
        vote(probabilities, np.array([1, 2]))
