"""What lies between stored frames and the decoder: frames that are combined, and the layer that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from xares_store.probes.swiglu import SwiGlu

if TYPE_CHECKING:
    from xares_store.recipe import Projector


def combined_length(n_frames: int, stride: int) -> int:
    """Return how many positions a clip's frames take.

    Example:
        >>> combined_length(7, 3)
        3
    """
    return -(-n_frames // stride)


def combine(frames: NDArray[np.float32], stride: int, how: str) -> NDArray[np.float32]:
    """Make one row of every ``stride`` frames.

    Args:
        frames: ``(frames, dim)``.
        stride: how many; 1 changes nothing.
        how: ``stack`` lays them side by side, the last frame again where the clip ends; ``mean`` averages those there are.

    Returns:
        ``(ceil(frames / stride), dim * stride)`` or ``(..., dim)``.

    Example:
        >>> combine(np.arange(3, dtype=np.float32)[:, None], 2, "stack").tolist()
        [[0.0, 1.0], [2.0, 2.0]]
        >>> combine(np.arange(3, dtype=np.float32)[:, None], 2, "mean").tolist()
        [[0.5], [2.0]]
    """
    if stride == 1:
        return frames
    rows = combined_length(len(frames), stride)
    missing = rows * stride - len(frames)
    whole = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames
    grouped = whole.reshape(rows, stride, frames.shape[1])
    if how == "stack":
        return grouped.reshape(rows, -1)
    mean: NDArray[np.float32] = grouped.mean(axis=1, dtype=np.float32)
    if missing:
        mean[-1] = frames[(rows - 1) * stride :].mean(axis=0, dtype=np.float32)
    return mean


def make_projector(projector: Projector, dim: int, hidden: int, inner: int) -> nn.Module:
    """Return the trained layer.

    Args:
        projector: its kind, and how frames are combined.
        dim: size of a stored frame.
        hidden: width of a token's vector in the decoder.
        inner: the decoder's intermediate size, which a gated adapter takes over.
    """
    width = dim * projector.stride if projector.combine == "stack" else dim
    return nn.Linear(width, hidden) if projector.kind == "linear" else SwiGlu(width, inner, hidden)
