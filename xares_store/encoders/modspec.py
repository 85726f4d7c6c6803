"""``modspec``: level, spectral detail and modulation of mel bands, a baseline by hand that needs no weights.

The mean over time is what clip-level probes see. The mean of log-mel bands says how loud each band is, and nothing about
how it moves. Here every frame also carries how strongly its surroundings fluctuate, so that the mean does too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from xares_store.encoders.logmel import band_log_power, frame_mask, mel_matrix

MODULATION_HZ = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_BASE_HZ = 100  # rate of the band envelopes: a base frame every 10 ms
_STEP = 4  # base frames a frame
_TREND = 101  # base frames over which the slow level is taken, about one second
_FLOOR = 1e-3


class ModSpecEncoder(torch.nn.Module):
    """Modulation spectrum of mel bands, a frame every 40 ms.

    A frame of 223 numbers has, all shifted and scaled by constants to about zero mean and unit spread:

    * 64 log energies of mel bands (level);
    * 63 absolute differences of neighbouring bands (spectral detail: tonal sounds have much, noise little);
    * 6 x 16 log energies of the envelopes of 16 wider bands around 1, 2, 4, 8, 16 and 32 Hz (modulation), of the level's
      deviation from its own one-second trend.

    Everything is computed inside the clip: neither padding nor other clips enter.

    Example:
        >>> frames, valid = ModSpecEncoder()(torch.zeros(2, 16000), torch.tensor([16000, 8000]))
        >>> tuple(frames.shape), valid.tolist()
        ((2, 25, 223), [25, 13])
    """

    sampling_rate = 16000
    hop_size_in_ms = 1000.0 * _STEP / _BASE_HZ
    window: torch.Tensor
    mel: torch.Tensor
    trend: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bands = 64
        self.wide_bands = 16
        self.output_dim = self.bands + self.bands - 1 + self.wide_bands * len(MODULATION_HZ)
        self.hop = self.sampling_rate // _BASE_HZ
        self.register_buffer("window", torch.hann_window(512, dtype=torch.float64).float(), persistent=False)
        mel = mel_matrix(self.bands, 512, self.sampling_rate, 50.0, self.sampling_rate / 2)
        self.register_buffer("mel", mel, persistent=False)
        self.register_buffer("trend", _bump(_TREND).float()[None, None], persistent=False)
        for index, hz in enumerate(MODULATION_HZ):
            self.register_buffer(f"filters_{index}", _modulation_filters(hz), persistent=False)

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute modulation frames.

        Args:
            audio: (batch, samples) float in -1 to 1 at 16 kHz.
            lengths: (batch,) samples of each clip that count.

        Returns:
            Frames (batch, frames, 223) float32 and valid frames (batch,).
        """
        level, base_valid = band_log_power(audio, lengths, self.window, self.mel, self.hop, _FLOOR)
        batch, base_frames, _ = level.shape
        frames = -(-base_frames // _STEP)
        level = F.pad(level, (0, 0, 0, frames * _STEP - base_frames))
        inside = frame_mask(base_valid, frames * _STEP)
        # Means over the base frames of each frame that lie inside the clip.
        counts = inside.reshape(batch, frames, _STEP, 1).sum(2).clamp_min(1)
        static = torch.cat([level / 2 + 1.5, (level.diff(dim=2).abs() - 0.5) * 2], dim=2) * inside[..., None]
        static = static.reshape(batch, frames, _STEP, -1).sum(2) / counts
        wide = level.reshape(batch, frames * _STEP, self.wide_bands, -1).mean(3)
        return torch.cat([static, self._modulation(wide, inside)], dim=2), -(-base_valid // _STEP)

    def _modulation(self, wide: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """(batch, base frames, wide bands) levels -> (batch, frames, modulations x wide bands) log energies."""
        batch, base_frames, bands = wide.shape
        weight = inside[:, None].to(wide.dtype)  # (batch, 1, base frames)
        series = (wide.transpose(1, 2) * weight).reshape(batch * bands, 1, base_frames)
        half = _TREND // 2
        slow = F.conv1d(series, self.trend, padding=half).reshape(batch, bands, base_frames)
        slow = slow / F.conv1d(weight, self.trend, padding=half).clamp_min(1e-6)
        moving = (series.reshape(batch, bands, base_frames) - slow) * weight
        moving = moving.reshape(batch * bands, 1, base_frames)
        found = []
        for index in range(len(MODULATION_HZ)):
            filters = self.get_buffer(f"filters_{index}")
            half = filters.shape[2] // 2
            # Taken in the middle of each frame's base frames.
            output = F.conv1d(F.pad(moving, (half - _STEP // 2, half)), filters, stride=_STEP)[
                ..., : base_frames // _STEP
            ]
            energy = output.square().sum(1).reshape(batch, bands, -1)
            found.append(((energy + 1e-3).log() + 4.5) / 2)
        return torch.cat(found, dim=1).transpose(1, 2)


def _bump(length: int) -> torch.Tensor:
    """A Hann window without its zeros, of unit sum."""
    window = torch.hann_window(length + 2, periodic=False, dtype=torch.float64)[1:-1]
    return window / window.sum()


def _modulation_filters(hz: float) -> torch.Tensor:
    """Cosine and sine of three periods under a bump, blind to a constant: (2, 1, base frames)."""
    length = 2 * int(1.5 * _BASE_HZ / hz) + 1
    time_s = (torch.arange(length, dtype=torch.float64) - length // 2) / _BASE_HZ
    bump = _bump(length)
    cosine = bump * torch.cos(2 * math.pi * hz * time_s)
    cosine = cosine - bump * cosine.sum()
    sine = bump * torch.sin(2 * math.pi * hz * time_s)
    return torch.stack([cosine, sine]).float()[:, None]
