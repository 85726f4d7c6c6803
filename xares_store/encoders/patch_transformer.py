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


def htk_mel_filters() -> torch.Tensor:
    """Triangles of height 1, equally spaced on the scale 2595 log10(1 + f / 700); (WINDOW // 2 + 1, MELS) float32."""

    def mel(hz: float) -> float:
        return 2595.0 * math.log10(1.0 + hz / 700.0)

    edges_mel = torch.linspace(mel(LOW_HZ), mel(HIGH_HZ), MELS + 2, dtype=torch.float64)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    bins_hz = torch.linspace(0.0, RATE_HZ / 2, WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])
    return torch.minimum(rising, falling).clamp_min(0.0).float()


def hann_window() -> torch.Tensor:
    """(WINDOW,) float32; in float64 first, because the last bit of float32 differs between machines."""
    return torch.hann_window(WINDOW, periodic=True, dtype=torch.float64).float()


def log_mel(
    audio: torch.Tensor, lengths: torch.Tensor, window: torch.Tensor, filters: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the published log-mel spectrogram, each clip as if alone.

    Args:
        audio: (batch, samples) float32 at 16 kHz.
        lengths: (batch,) samples of each clip that count, above WINDOW // 2.
        window: (WINDOW,).
        filters: (WINDOW // 2 + 1, MELS).

    Returns:
        Decibels (batch, MELS, frames), and valid frames (batch,): one every HOP samples and one more.
    """
    half = WINDOW // 2
    # Reflected at each clip's own end, not at the end of the batch: hence by index.
    place = torch.arange(-half, audio.shape[1] + half, device=audio.device).abs()[None, :]
    last = (lengths - 1)[:, None]
    place = torch.where(place > last, (2 * last - place).clamp_min(0), place)
    pieces = audio.gather(1, place).unfold(1, WINDOW, HOP)
    spectrum = torch.fft.rfft(pieces * window)
    decibels = 10.0 * ((spectrum.real.square() + spectrum.imag.square()) @ filters).clamp_min(AMIN).log10()
    valid = torch.div(lengths, HOP, rounding_mode="floor") + 1
    inside = torch.arange(decibels.shape[1], device=audio.device)[None, :] < valid[:, None]
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
            inside = torch.arange(columns, device=grid.device)[None, :] < valid[:, None]
            mask = inside.repeat(1, rows)[:, None, None, :]  # tokens lie row by row
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
    window: torch.Tensor
    filters: torch.Tensor

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
        self.network = PatchTransformer(shape)
        self.register_buffer("window", hann_window(), persistent=False)
        self.register_buffer("filters", htk_mel_filters(), persistent=False)

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode (batch, samples) with (batch,) samples that count; returns (batch, frames, dim) and valid frames.

        A clip below one patch is encoded as if it were followed by silence.
        """
        lengths = lengths.to(audio.device)
        audio = audio * (torch.arange(audio.shape[1], device=audio.device)[None, :] < lengths[:, None])
        audio = F.pad(audio, (0, max(0, self.shortest - audio.shape[1])))
        decibels, frames = log_mel(audio, lengths.clamp_min(self.shortest), self.window, self.filters)
        valid = torch.div(frames, self.shape.patch[1], rounding_mode="floor")
        return self.network(decibels, valid).mean(1), valid
