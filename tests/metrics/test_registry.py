from __future__ import annotations

import math

import pytest

from xares_store.errors import MetricError
from xares_store.kinds import METRICS_OF_KIND, UNBOUNDED
from xares_store.metrics.registry import metric_for

NAMES = sorted({name for names in METRICS_OF_KIND.values() for name in names})


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_a_task_may_name_is_known_with_its_range(name: str) -> None:
    metric = metric_for(name)
    assert metric.name == name
    assert metric.worst != metric.best
    finite = math.isfinite(metric.worst) and math.isfinite(metric.best)
    assert finite == (name not in UNBOUNDED and name not in ("mse", "mae"))  # the task file says the worst error


def test_an_unknown_metric_gets_a_suggestion() -> None:
    with pytest.raises(MetricError, match='Did you mean "accuracy"'):
        metric_for("acuracy")
