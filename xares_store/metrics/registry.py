"""The metrics that a task can name: what is known of one before it is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xares_store.errors import MetricError, did_you_mean


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        name: as task files write it.
        version: changes when the number for the same input changes; part of a run's identity.
        worst: value that counts as 0 when tasks are averaged; infinite where the task file has to say it.
        best: value that counts as 1.
        per_item: whether it is a mean over scored items, so that each item has a value of its own.
    """

    name: str
    version: str
    worst: float
    best: float
    per_item: bool = False


def _directions(name: str, worst: float, best: float, *, per_item: bool) -> list[Metric]:
    return [Metric(direction + name, "1", worst, best, per_item) for direction in ("", "a2t_", "t2a_")]


_METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "1", 0.0, 1.0, per_item=True),
        Metric("macro_accuracy", "1", 0.0, 1.0),
        Metric("macro_f1", "1", 0.0, 1.0),
        Metric("micro_f1", "1", 0.0, 1.0),
        Metric("map", "1", 0.0, 1.0),
        Metric("map_present", "1", 0.0, 1.0),
        Metric("auroc", "1", 0.0, 1.0),
        Metric("d_prime", "1", 0.0, math.inf),
        Metric("segment_f1_macro", "1", 0.0, 1.0),
        Metric("segment_f1_micro", "1", 0.0, 1.0),
        Metric("segment_error_rate", "1", 1.0, 0.0),
        Metric("frame_map", "1", 0.0, 1.0),
        Metric("event_f1", "1", 0.0, 1.0),
        Metric("onset_f1", "1", 0.0, 1.0),
        *_directions("recall_at_1", 0.0, 1.0, per_item=True),
        *_directions("recall_at_5", 0.0, 1.0, per_item=True),
        *_directions("recall_at_10", 0.0, 1.0, per_item=True),
        *_directions("map_at_10", 0.0, 1.0, per_item=True),
        *_directions("median_rank", math.inf, 1.0, per_item=False),
        *_directions("mean_rank", math.inf, 1.0, per_item=False),
        Metric("mse", "1", math.inf, 0.0, per_item=True),
        Metric("mae", "1", math.inf, 0.0, per_item=True),
        Metric("pearson", "2", 0.0, 1.0),
        Metric("iwer", "1", 0.0, 1.0),
        Metric("icer", "1", 0.0, 1.0),
        Metric("string_accuracy", "1", 0.0, 1.0, per_item=True),
        Metric("string_map", "1", 0.0, 1.0),
        Metric("string_macro_f1", "1", 0.0, 1.0),
        Metric("likelihood_accuracy", "1", 0.0, 1.0, per_item=True),
        Metric("likelihood_map", "1", 0.0, 1.0),
        Metric("fense", "1", 0.0, 1.0, per_item=True),
        Metric("date", "1", 0.0, 1.0, per_item=True),
        Metric("cider", "1", 0.0, 10.0, per_item=True),
    )
}


def metric_names() -> list[str]:
    """Return the names of all metrics."""
    return list(_METRICS)


def metric_for(name: str) -> Metric:
    """Find a metric by name.

    Raises:
        MetricError: for an unknown name, with a suggestion.

    Example:
        >>> metric_for("accuracy").best
        1.0
    """
    if name not in _METRICS:
        raise MetricError(
            f'Wanted a metric, found "{name}".',
            hint=did_you_mean(name, _METRICS, listing="Known: " + ", ".join(_METRICS) + "."),
        )
    return _METRICS[name]
