"""The learning-rate schedule of the clip probes."""

from __future__ import annotations

import math

from xares_store.errors import ProbeError


def epoch_learning_rate(learning_rate: float, epoch: int, epochs: int) -> float:
    """Learning rate used during one epoch: a cosine from the full rate towards a tenth of it.

    The rate is set at the start of an epoch and constant inside it. The tenth itself would belong to the epoch after
    the last one, so it is approached and never used; a single epoch runs at the full rate.

    Args:
        learning_rate: rate of the first epoch, above 0.
        epoch: 1-based number of the epoch, 1 to ``epochs``.
        epochs: number of epochs of the whole training.

    Returns:
        The rate, above 0.1 and at most 1.0 times ``learning_rate``.

    Raises:
        ProbeError: when ``epoch`` is not one of the ``epochs``.

    Example:
        >>> [round(epoch_learning_rate(1e-3, epoch, 3), 6) for epoch in (1, 2, 3)]
        [0.001, 0.000775, 0.000325]
    """
    if not 1 <= epoch <= epochs:
        raise ProbeError(f"Wanted an epoch from 1 to {epochs}, found {epoch}.", hint="Epochs are counted from 1.")
    return learning_rate - 0.45 * learning_rate * (1.0 - math.cos(math.pi * (epoch - 1) / epochs))
