"""The gated adapter between an audio encoder and a language model: what the published speech recognition probe trains."""

from __future__ import annotations

from torch import Tensor, nn


class SwiGlu(nn.Module):
    """Map frames into the space of a decoder: ``proj(silu(fc_1 x) * (fc_2 x))``, all three with bias.

    Args:
        dim: size of a frame.
        inner: the decoder's intermediate size; 4864 for Qwen2.5-0.5B.
        hidden: the decoder's hidden size; 896 there.

    Reference:
        Shazeer, GLU Variants Improve Transformer, 2020 (arXiv 2002.05202).

    Example:
        >>> import torch
        >>> SwiGlu(8, 16, 4)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, dim: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(dim, inner)
        self.fc_2 = nn.Linear(dim, inner)
        self.proj = nn.Linear(inner, hidden)

    def forward(self, frames: Tensor) -> Tensor:
        """Return ``(..., hidden)`` for frames ``(..., dim)``."""
        gated: Tensor = self.proj(nn.functional.silu(self.fc_1(frames)) * self.fc_2(frames))
        return gated
