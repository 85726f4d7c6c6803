from __future__ import annotations

import numpy as np
import pytest

from xares_store.errors import MetricError
from xares_store.metrics.registry import metric_for, metric_names


def test_every_metric_is_found_and_scores_a_perfect_prediction_best():
    assert "accuracy" in metric_names()
    for name in metric_names():
        metric = metric_for(name)
        assert metric.name == name
        assert metric(np.array([0, 1]), np.array([0, 1])) == metric.best
        with pytest.raises(MetricError):
            metric(np.array([], dtype=int), np.array([], dtype=int))


def test_an_unknown_metric_gets_a_suggestion():
    with pytest.raises(MetricError, match='Did you mean "accuracy"'):
        metric_for("acuracy")
