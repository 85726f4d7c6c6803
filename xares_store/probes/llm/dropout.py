"""Dropout that belongs to a clip: the same numbers are dropped whatever stands beside it in the batch.

What LoRA drops is drawn for each clip from the seed of the training, the clip's number in the order of draws and the
layer's place in the decoder. So the division of a batch by the frame budget, over processes, or after running out of
memory changes nothing, and neither does computing activations twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Clips:
    """The batch that passes through the decoder now.

    Attributes:
        seed: of the training.
        numbers: of each clip of the batch, in the order of draws.
        real: bool ``(batch, length)``, False for padding.
    """

    seed: int
    numbers: Sequence[int] = field(default_factory=list)
    real: Tensor | None = None


class ClipDropout(nn.Module):
    """Drop inputs of one layer, each clip with numbers of its own.

    Args:
        share: how much is dropped, 0 to 1.
        layer: the layer's number in the decoder.
        clips: says which clips pass.
    """

    def __init__(self, share: float, layer: int, clips: Clips) -> None:
        super().__init__()
        self.p, self.layer, self.clips = share, layer, clips

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(batch, length, features)`` with the share dropped and the rest made larger, in training."""
        if not self.training or self.p == 0.0:
            return values
        assert self.clips.real is not None
        kept = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
        generator = torch.Generator(values.device)
        for row, number in enumerate(self.clips.numbers):
            seed = np.random.SeedSequence((self.clips.seed, number, self.layer)).generate_state(1, np.uint64)
            generator.manual_seed(int(seed[0]) >> 1)
            places = self.clips.real[row]
            shape = (int(places.sum()), values.shape[-1])
            kept[row, places] = torch.rand(shape, generator=generator, device=values.device) >= self.p
        return values * kept / (1.0 - self.p)


def own_dropout(adapted: Any, clips: Clips) -> int:
    """Put :class:`ClipDropout` in place of PEFT's dropout; return how many layers have one."""
    count = 0
    for name, module in list(adapted.named_modules()):
        if name.endswith("lora_dropout"):
            for adapter, layer in list(module.items()):
                module[adapter] = ClipDropout(float(getattr(layer, "p", 0.0)), count, clips)
            count += 1
    return count
