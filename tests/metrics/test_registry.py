from __future__ import annotations

import numpy as np
import pytest

from xares_store.errors import MetricError
from xares_store.metrics.registry import metric_for
from xares_store.task import METRICS_OF_KIND

NAMES = sorted({name for names in METRICS_OF_KIND.values() for name in names})


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_a_task_may_name_is_found_and_scores_a_perfect_prediction_best(name: str) -> None:
    metric = metric_for(name)
    assert metric.name == name
    assert metric(np.array([0, 1]), np.array([0, 1])) == metric.best
    with pytest.raises(MetricError):
        metric(np.array([], dtype=int), np.array([], dtype=int))


def test_an_unknown_metric_gets_a_suggestion() -> None:
    with pytest.raises(MetricError, match='Did you mean "accuracy"'):
        metric_for("acuracy")
