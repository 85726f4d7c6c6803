"""Transformer blocks of vision transformers that normalise first, with the parameter names of timm and DINO.

``atst`` and ``msm_mae`` are built of them; they differ in the biases of their attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

NORM_EPS = 1e-6


class Attention(torch.nn.Module):
    """Self-attention with one projection for queries, keys and values.

    Args:
        dim: length of a token.
        heads: number of heads, a divisor of ``dim``.
        biased: queries and values have a bias, keys have none (as BEiT); else none of the three has.
    """

    def __init__(self, dim: int, heads: int, *, biased: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = torch.nn.Parameter(torch.zeros(dim)) if biased else None
        self.v_bias = torch.nn.Parameter(torch.zeros(dim)) if biased else None
        self.qkv = torch.nn.Linear(dim, 3 * dim, bias=False)
        self.proj = torch.nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Attend over (batch, tokens, dim); ``seen`` (batch, tokens) says which keys may be seen, None for all."""
        batch, length, dim = tokens.shape
        query, key, value = self.qkv(tokens).split(dim, dim=2)
        if self.q_bias is not None and self.v_bias is not None:
            query, value = query + self.q_bias, value + self.v_bias
        query, key, value = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in (query, key, value))
        mask = None if seen is None else seen[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return torch.as_tensor(self.proj(mixed.transpose(1, 2).reshape(batch, length, dim)))


class Mlp(torch.nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(dim, 4 * dim)
        self.fc2 = torch.nn.Linear(4 * dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, tokens, dim) to the same shape."""
        return torch.as_tensor(self.fc2(F.gelu(self.fc1(tokens))))


class Block(torch.nn.Module):
    """One block; arguments as of ``Attention``."""

    def __init__(self, dim: int, heads: int, *, biased: bool) -> None:
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads, biased=biased)
        self.norm2 = torch.nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim)

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Map (batch, tokens, dim) to the same shape; ``seen`` as of ``Attention``."""
        tokens = tokens + self.attn(self.norm1(tokens), seen)
        return torch.as_tensor(tokens + self.mlp(self.norm2(tokens)))


def depth_of(names: list[str]) -> int:
    """Return the number of blocks in a checkpoint from its names, ``blocks.0.`` and so on.

    Example:
        >>> depth_of(["blocks.0.norm1.weight", "blocks.11.norm1.weight", "norm.weight"])
        12
    """
    numbers = [name.split(".")[1] for name in names if name.startswith("blocks.")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)
