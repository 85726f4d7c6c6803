"""The metrics that a task can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError, did_you_mean
from xares_store.metrics import classification


@dataclass(frozen=True)
class Metric:
    """A metric that is a mean of one value per clip.

    Attributes:
        name: as task files write it.
        version: changes when the number for the same input changes.
        worst: value that counts as 0 when tasks are averaged.
        best: value that counts as 1.
        per_clip: (target, prediction) to one value per clip.
    """

    name: str
    version: str
    worst: float
    best: float
    per_clip: Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.float64]]

    def __call__(self, target: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> float:
        """Mean over clips.

        Raises:
            MetricError: without clips.
        """
        values = self.per_clip(target, prediction)
        if not len(values):
            raise MetricError(f"Wanted at least one clip, found none: {self.name} is undefined.")
        return float(values.mean())


_METRICS = {metric.name: metric for metric in (Metric("accuracy", "1", 0.0, 1.0, classification.correct),)}


def metric_for(name: str) -> Metric:
    """Find a metric by name.

    Raises:
        MetricError: for an unknown name, with a suggestion.

    Example:
        >>> metric_for("accuracy")(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]))
        0.5
    """
    if name not in _METRICS:
        raise MetricError(
            f'Wanted a metric, found "{name}".',
            hint=did_you_mean(name, _METRICS, listing="Known: " + ", ".join(_METRICS) + "."),
        )
    return _METRICS[name]
