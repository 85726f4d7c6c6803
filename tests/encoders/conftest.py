"""Encoder files for the tests: one that keeps the contract, and ways to break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = """
import torch

class ToyEncoder(torch.nn.Module):
    def __init__(self, dim: int = 8, seed: int = 0, scale: float = 1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.sampling_rate = 16000
        self.output_dim = dim
        self.hop_size_in_ms = 20
        self.scale = scale
        self.conv = torch.nn.Conv1d(1, dim, 320, stride=320)

    def forward(self, audio):
        return self.conv(audio[:, None]).transpose(1, 2) * self.scale
"""

# The convention with a mask: its attributes hold nothing but the dimension.
MASKED = """
import torch

class MaskedEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.output_dim = 8
        self.conv = torch.nn.Conv1d(1, 8, 320, stride=320)

    def forward(self, audio, audio_attention_mask=None):
        features = self.conv(audio[:, None]).transpose(1, 2)
        if audio_attention_mask is None:
            return features, None
        lengths = audio_attention_mask.sum(1) // 320
        mask = torch.arange(features.shape[1])[None] < lengths[:, None]
        return features, mask.long()
"""


@pytest.fixture
def encoder_file(tmp_path: Path) -> Callable[..., str]:
    """Write an encoder file: ``encoder_file(source, ("old", "new"), ..., name="enc.py") -> path``."""

    def write(source: str = GOOD, *changes: tuple[str, str], name: str = "enc.py") -> str:
        for old, new in changes:
            assert old in source, f"{old!r} is not in the source"
            source = source.replace(old, new)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        return str(path)

    return write
