"""Products of large matrices on a CPU, by the library that is fast on any processor.

Torch multiplies float32 matrices with MKL, which leaves the wide vector units of other makers' processors alone: on an AMD
EPYC with AVX-512, oneDNN, which every x86 build of torch brings along as well, took less than half the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

# Multiplications below which choosing and preparing takes longer than is won.
_LARGE = 2_000_000


def is_large(rows: int, inner: int, columns: int, device: torch.device) -> bool:
    """Return whether :func:`product` beats a batched product of torch for matrices of this size."""
    return device.type == "cpu" and rows * inner * columns >= _LARGE and _onednn() is not None


def product(first: Tensor, second: Tensor) -> Tensor:
    """Return ``first @ second.T``.

    Args:
        first: ``(rows, inner)`` float32.
        second: ``(columns, inner)`` float32; may be a transposed view.

    Returns:
        ``(rows, columns)``, freshly allocated.

    Example:
        >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])).tolist()
        [[11.0, 17.0]]
    """
    if is_large(len(first), first.shape[1], len(second), first.device):
        multiply = _onednn()
        if multiply is not None:
            return multiply(first, second)
    return first @ second.T


@cache
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return oneDNN's product, or None where this build of torch has none that gives the right numbers.

    The operator is torch's own, yet not part of its documented interface; hence the trial.
    """

    def multiply(first: Tensor, second: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(first, second, None, "none", [], "")
        return found

    first, second = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4).T
    try:
        found = multiply(first, second)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return multiply if torch.equal(found, first @ second.T) else None
