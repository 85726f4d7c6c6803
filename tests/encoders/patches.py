"""Weights and audio by formula: what the golden outputs of the published networks were computed with."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def weights(names: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A sine for every tensor, shifted by its place in sorted order; statistics and scales where a network has them."""
    found: dict[str, torch.Tensor] = {}
    for place, (name, tensor) in enumerate(sorted(names.items())):
        if not tensor.is_floating_point():
            found[name] = tensor.clone()
            continue
        values = 0.05 * torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + place)
        if name.endswith("running_var"):
            values = values.abs() * 200 + 300.0
        if name.endswith(("norm1.weight", "norm2.weight", "init_bn.weight")) or name == "norm.weight":
            values = values + 1
        if name.endswith("running_mean"):
            values = values - 30
        found[name] = values.reshape(tensor.shape).float()
    return found


def audio(samples: int) -> torch.Tensor:
    """(1, samples) of broadband noise, the same on every machine."""
    time = torch.arange(samples, dtype=torch.int64)
    return (((time * time * 7919 + time * 104729) % 65521).double() / 65521 - 0.5).mul(0.2).float()[None]
