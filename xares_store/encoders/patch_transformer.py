"""The architecture that Dasheng and CED share: log-mel patches through a vision transformer. Written from the published facts.

Front end, as published for both: 16 kHz, Hann window of 512 samples (periodic), hop 160, centred with reflected edges,
power spectrum, 64 triangular mel filters of height 1 on the HTK scale from 0 to 8000 Hz, decibels with floors of 1e-10 and
of 120 dB below the loudest bin. Then batch normalisation per mel band, one convolution that cuts patches, learned
positions in time and frequency, and transformer blocks that normalise first.

One thing differs on purpose: the 120 dB are counted from the loudest bin of each clip; the published code takes the
loudest bin of the whole batch, so that a clip's embedding depends on its neighbours. A batch of one clip is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from xares_store.encoders.logmel import frame_mask
from xares_store.encoders.melfront import CentredMel, followed_by_silence

RATE_HZ = 16000
WINDOW = 512
HOP = 160
MELS = 64
LOW_HZ = 0.0
HIGH_HZ = 8000.0
AMIN = 1e-10
TOP_DB = 120.0
NORM_EPS = 1e-6
MLP_RATIO = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a patch transformer.

    Attributes:
        dim: length of a token.
        depth: number of blocks.
        heads: attention heads, a divisor of ``dim``.
        patch: height (mel bands) and width (spectrogram frames) of a patch, which is also its stride.
        columns: patches in time for which there are positions.
    """

    dim: int
    depth: int
    heads: int
    patch: tuple[int, int]
    columns: int

    @property
    def rows(self) -> int:
        """Patches in frequency."""
        return MELS // self.patch[0]

    @property
    def hop_ms(self) -> float:
        """Distance of patches in milliseconds."""
        return 1000.0 * self.patch[1] * HOP / RATE_HZ

    @property
    def longest_s(self) -> float:
        """Audio for whose patches there are positions, in seconds."""
        return self.columns * self.hop_ms / 1000


class LogMel(torch.nn.Module):
    """The published front end, each clip as if alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = CentredMel(MELS, n_fft=WINDOW, hop=HOP, low_hz=LOW_HZ, high_hz=HIGH_HZ, scale="htk", rate_hz=RATE_HZ)

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute decibels.

        Args:
            audio: (batch, samples) float32 at 16 kHz.
            lengths: (batch,) samples of each clip that count.

        Returns:
            Decibels (batch, MELS, frames), and valid frames (batch,): one every HOP samples and one more.
        """
        power, valid = self.mel(audio, lengths)
        decibels = 10.0 * power.clamp_min(AMIN).log10()
        inside = frame_mask(valid, decibels.shape[1])
        loudest = decibels.masked_fill(~inside[:, :, None], -math.inf).amax((1, 2), keepdim=True)
        return torch.maximum(decibels, loudest - TOP_DB).transpose(1, 2), valid


class _Attention(torch.nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(dim, 3 * dim)
        self.proj = torch.nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = self.proj(mixed.transpose(1, 2).flatten(2))
        return torch.as_tensor(mixed)


class _Mlp(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = torch.nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.fc2(F.gelu(self.fc1(tokens))))


class _Block(torch.nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = _Attention(dim, heads)
        self.norm2 = torch.nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = _Mlp(dim)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), mask)
        return torch.as_tensor(tokens + self.mlp(self.norm2(tokens)))


class _Patches(torch.nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.proj = torch.nn.Conv2d(1, shape.dim, shape.patch, stride=shape.patch)


class PatchTransformer(torch.nn.Module):
    """The network without front end. Its parameters have the published names.

    Args:
        shape: its sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.init_bn = torch.nn.BatchNorm2d(MELS)
        self.patch_embed = _Patches(shape)
        self.time_pos_embed = torch.nn.Parameter(torch.zeros(1, shape.dim, 1, shape.columns))
        self.freq_pos_embed = torch.nn.Parameter(torch.zeros(1, shape.dim, shape.rows, 1))
        self.blocks = torch.nn.Sequential(*(_Block(shape.dim, shape.heads) for _ in range(shape.depth)))
        self.norm = torch.nn.LayerNorm(shape.dim, eps=NORM_EPS)

    def forward(self, decibels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Encode a spectrogram.

        Args:
            decibels: (batch, MELS, frames), at least one patch wide.
            valid: (batch,) patches in time that count, at least 1.

        Returns:
            (batch, rows, columns, dim), one token a patch.
        """
        normalised = self.init_bn(decibels[:, :, None]).transpose(1, 2)
        grid = self.patch_embed.proj(normalised)
        rows, columns = grid.shape[2:]
        grid = grid + self.time_pos_embed[..., :columns] + self.freq_pos_embed
        tokens = grid.flatten(2).transpose(1, 2)
        mask = None
        if int(valid.min()) < columns:
            mask = frame_mask(valid, columns).repeat(1, rows)[:, None, None, :]  # tokens lie row by row
        for block in self.blocks:
            tokens = block(tokens, mask)
        return torch.as_tensor(self.norm(tokens).reshape(len(tokens), rows, columns, -1))


class PatchEncoder(torch.nn.Module):
    """Front end and network under the encoder contract; a frame is the mean over a column of patches.

    Args:
        shape: sizes of the network.
        max_length_s: longest window in seconds, at most what there are positions for.

    Raises:
        ValueError: ``max_length_s`` is out of range.
    """

    sampling_rate = RATE_HZ

    def __init__(self, shape: Shape, max_length_s: float) -> None:
        super().__init__()
        if not shape.hop_ms / 1000 <= max_length_s <= shape.longest_s:
            raise ValueError(
                f"max_length_s must be {shape.hop_ms / 1000:g} to {shape.longest_s:g}; found {max_length_s}"
            )
        self.output_dim = shape.dim
        self.hop_size_in_ms = shape.hop_ms
        self.max_length_s = max_length_s
        self.shape = shape
        self.shortest = (shape.patch[1] - 1) * HOP  # samples that give one patch
        self.front = LogMel()
        self.network = PatchTransformer(shape)

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode (batch, samples) with (batch,) samples that count; returns (batch, frames, dim) and valid frames.

        A clip below one patch is encoded as if it were followed by silence.
        """
        audio, lengths = followed_by_silence(audio, lengths, self.shortest)
        decibels, frames = self.front(audio, lengths)
        valid = torch.div(frames, self.shape.patch[1], rounding_mode="floor")
        return self.network(decibels, valid).mean(1), valid
