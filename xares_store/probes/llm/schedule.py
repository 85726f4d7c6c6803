"""The learning rate of every step of an LLM-projector training, and which epoch a step belongs to."""

from __future__ import annotations

from xares_store.probes.schedule import epoch_learning_rate
from xares_store.recipe import Optimiser


def epoch_count(steps: int, steps_per_epoch: int) -> int:
    """Return how many epochs a training has; the last one may be shorter.

    Example:
        >>> epoch_count(10, 4)
        3
    """
    return -(-steps // steps_per_epoch)


def epoch_steps(epoch: int, steps: int, steps_per_epoch: int) -> range:
    """Return the steps, counted from 0, of an epoch, counted from 1.

    Example:
        >>> epoch_steps(3, 10, 4)
        range(8, 10)
    """
    return range((epoch - 1) * steps_per_epoch, min(epoch * steps_per_epoch, steps))


def learning_rate(optimiser: Optimiser, step: int, *, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate that one step uses.

    ``linear`` rises from 0, which the first step uses, over ``warmup_steps`` and falls so that it would reach 0 at the
    step after the last; a training no longer than its warm-up never reaches the full rate. ``cosine-epochs`` is constant
    inside an epoch (:func:`~xares_store.probes.schedule.epoch_learning_rate`).

    Args:
        optimiser: rate and schedule of a recipe.
        step: counted from 0.
        steps: of the whole training.
        steps_per_epoch: of an epoch; only ``cosine-epochs`` looks at it.

    Returns:
        The rate, 0 at least.

    Example:
        >>> linear = Optimiser(name="adamw", learning_rate=1.0, schedule="linear", warmup_steps=2)
        >>> [learning_rate(linear, step, steps=6, steps_per_epoch=3) for step in range(6)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
        >>> cosine = Optimiser(name="adam", learning_rate=1.0, schedule="cosine-epochs")
        >>> [round(learning_rate(cosine, step, steps=6, steps_per_epoch=3), 9) for step in range(6)]
        [1.0, 1.0, 1.0, 0.55, 0.55, 0.55]
    """
    if optimiser.schedule == "cosine-epochs":
        epoch = step // steps_per_epoch + 1
        return epoch_learning_rate(optimiser.learning_rate, epoch, epoch_count(steps, steps_per_epoch))
    warmup = optimiser.warmup_steps
    if step < warmup:
        return optimiser.learning_rate * step / warmup
    return optimiser.learning_rate * (steps - step) / max(1, steps - warmup)
