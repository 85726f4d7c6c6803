"""Which clips go through the encoder together: pure functions of their lengths."""

from __future__ import annotations

from collections.abc import Sequence

from xares_store.errors import ConfigError


def group_batches(lengths: Sequence[int], *, budget: int, equal_only: bool, max_items: int = 256) -> list[list[int]]:
    """Group clips into batches that hold a budget of samples.

    The longest clips come first, so that a budget too large for the device shows at once.

    Args:
        lengths: samples of each clip.
        budget: most samples of a padded batch (longest clip times number of clips). A clip longer than the budget is a
            batch of its own.
        equal_only: only clips of exactly the same length share a batch; otherwise neighbours in length do.
        max_items: most clips in a batch.

    Returns:
        Batches of indices into ``lengths``, each index once. The same lengths always give the same batches, and clips
        of equal length keep their order.

    Raises:
        ConfigError: ``budget`` or ``max_items`` below 1.

    Example:
        >>> group_batches([3, 5, 3, 4], budget=10, equal_only=False)
        [[1, 3], [0, 2]]
        >>> group_batches([3, 5, 3, 4], budget=10, equal_only=True)
        [[1], [3], [0, 2]]
    """
    if budget < 1 or max_items < 1:
        raise ConfigError(f"A batch needs room for one sample and one clip, found budget={budget}, {max_items=}.")
    batches: list[list[int]] = []
    longest = -1
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        batch = batches[-1] if batches else []
        full = (len(batch) + 1) * longest > budget or len(batch) >= max_items
        if not batch or full or (equal_only and length != longest):
            batches.append([index])
            longest = length
        else:
            batch.append(index)
    return batches
