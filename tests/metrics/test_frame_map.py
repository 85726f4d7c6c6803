"""Frame mAP by counting equals the exact value where float16 can tell scores apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.errors import MetricError
from xares_store.metrics.classification import average_precision
from xares_store.metrics.frame_map import FrameAveragePrecision


def counted(target, scores, n_clips=3):
    metric = FrameAveragePrecision(target.shape[1])
    for rows in np.array_split(np.arange(len(target)), n_clips):
        metric.update(target[rows], scores[rows])
    return metric


@settings(deadline=None)  # the first example pays for an import
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 0.1, 1.0, 100.0]), frames=st.integers(3, 60))
def test_exact_for_float16_scores(seed, scale, frames):
    rng = np.random.default_rng(seed)
    scores = (rng.normal(size=(frames, 3)) * scale).astype(np.float16)
    scores[rng.random(scores.shape) < 0.2] = -0.0
    scores[rng.random(scores.shape) < 0.1] = 0.0
    target = (rng.random((frames, 3)) < 0.3).astype(np.uint8)
    metric = counted(target, scores)
    assert metric.value() == pytest.approx(average_precision(target, scores.astype(np.float64)), abs=1e-12)
    assert metric.positives.tolist() == target.sum(axis=0).tolist()


def test_near_the_exact_value_for_other_scores():
    rng = np.random.default_rng(0)
    target = (rng.random((20_000, 3)) < [0.02, 0.2, 0.0]).astype(np.uint8)
    scores = (rng.normal(size=target.shape) + 2 * target - 4).astype(np.float32)
    exact = average_precision(target, scores)
    assert counted(target, scores).value() == pytest.approx(exact, abs=1e-3)
    assert exact[0] > 0.1
    assert exact[2] == 0.0


def test_scores_beyond_float16_are_kept_at_its_ends():
    assert counted(np.array([[1], [0]]), np.array([[1e30], [-1e30]]), 1).value().tolist() == [1.0]


def test_what_cannot_be_counted_is_refused():
    metric = FrameAveragePrecision(2)
    with pytest.raises(MetricError):
        metric.value()
    with pytest.raises(MetricError):
        metric.update([[1]], [[0.5]])
    with pytest.raises(MetricError):
        metric.update([[1, 0]], [[np.nan, 0.5]])
    with pytest.raises(MetricError):
        FrameAveragePrecision(0)
