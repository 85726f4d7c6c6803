"""``logmel``: log-mel band energies, the baseline that needs no weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

_BLOCK_FRAMES = 8192  # bounds memory for 10-minute audio: 8192 frames of 400 samples are 13 MB
_FLOOR = 1e-3  # about 65 dB below a full-scale tone: what is quieter is called silence


def mel_matrix(n_bands: int, n_fft: int, rate_hz: int, low_hz: float, high_hz: float) -> torch.Tensor:
    """Triangular filters, equally spaced on the mel scale 2595 log10(1 + f / 700), each of unit sum.

    Args:
        n_bands: number of filters.
        n_fft: length of the transform in samples.
        rate_hz: sample rate in Hz.
        low_hz: lower edge of the first filter in Hz.
        high_hz: upper edge of the last filter in Hz.

    Returns:
        (n_fft // 2 + 1, n_bands) float32, non-negative. A filter narrower than a bin takes its nearest bin.
    """
    edges_mel = torch.linspace(_mel(low_hz), _mel(high_hz), n_bands + 2, dtype=torch.float64)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    bins_hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate_hz / n_fft
    rising = (bins_hz[:, None] - edges_hz[None, :-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[None, 2:] - bins_hz[:, None]) / (edges_hz[2:] - edges_hz[1:-1])
    weights = torch.minimum(rising, falling).clamp_min(0.0)
    empty = weights.sum(0) == 0
    if bool(empty.any()):
        nearest = (bins_hz[:, None] - edges_hz[None, 1:-1]).abs().argmin(0)
        weights[nearest[empty], empty.nonzero()[:, 0]] = 1.0
    return (weights / weights.sum(0)).float()


def _mel(hz: float) -> float:
    return 2595.0 * math.log10(1.0 + hz / 700.0)


def band_log_power(
    audio: torch.Tensor, lengths: torch.Tensor, window: torch.Tensor, mel: torch.Tensor, hop: int, floor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the natural log of mel-band power, in frames that start every ``hop`` samples.

    Args:
        audio: (batch, samples) float.
        lengths: (batch,) samples of each clip that count; what lies behind is taken as silence.
        window: (window samples,).
        mel: (bins, bands) as of ``mel_matrix``.
        hop: samples between frames.
        floor: power added before the logarithm.

    Returns:
        (batch, frames, bands) float32, and valid frames (batch,), at least 1 each.
    """
    samples = audio.shape[1]
    lengths = lengths.to(audio.device)
    audio = audio.float() * frame_mask(lengths, samples)
    frames = max(1, -(-samples // hop))
    valid = torch.div(lengths + hop - 1, hop, rounding_mode="floor").clamp_min(1)
    width = len(window)
    pieces = F.pad(audio, (0, (frames - 1) * hop + width - samples)).unfold(1, width, hop)
    n_fft = 2 * (mel.shape[0] - 1)
    blocks = []
    for start in range(0, frames, _BLOCK_FRAMES):
        spectrum = torch.fft.rfft(pieces[:, start : start + _BLOCK_FRAMES] * window, n_fft)
        power = spectrum.real.square() + spectrum.imag.square()
        blocks.append((power @ mel + floor).log())
    return torch.cat(blocks, dim=1), valid


def frame_mask(valid: torch.Tensor, frames: int) -> torch.Tensor:
    """Return (batch, frames) booleans, true for the first ``valid`` of each clip."""
    return torch.arange(frames, device=valid.device)[None, :] < valid[:, None]


class LogMelEncoder(torch.nn.Module):
    """Log energies of 64 mel bands, shifted and scaled by constants, a frame every 10 ms.

    A frame sees only the 25 ms that start at its own time, silence after the clip's end, so a clip's frames depend
    neither on padding nor on other clips.

    Args:
        bands: number of mel bands, 1 to 256.
        hop_ms: distance of frames in milliseconds, a whole number of samples at 16 kHz.

    Example:
        >>> frames, valid = LogMelEncoder()(torch.zeros(2, 16000), torch.tensor([16000, 8000]))
        >>> tuple(frames.shape), valid.tolist()
        ((2, 100, 64), [100, 50])
    """

    sampling_rate = 16000
    window: torch.Tensor
    mel: torch.Tensor

    def __init__(self, bands: int = 64, hop_ms: float = 10.0) -> None:
        super().__init__()
        if not 1 <= bands <= 256:
            raise ValueError(f"bands must be 1 to 256; found {bands}")
        self.hop = round(hop_ms * self.sampling_rate / 1000)
        if self.hop < 1 or abs(self.hop * 1000 / self.sampling_rate - hop_ms) > 1e-9:
            raise ValueError(f"hop_ms must be a whole number of samples at {self.sampling_rate} Hz; found {hop_ms}")
        self.output_dim = bands
        self.hop_size_in_ms = hop_ms
        self.window_length = 400
        self.n_fft = 512
        # In float64 first: the last bit of float32 differs between machines, and constants are part of the identity.
        window = torch.hann_window(self.window_length, periodic=True, dtype=torch.float64).float()
        self.register_buffer("window", window, persistent=False)
        mel = mel_matrix(bands, self.n_fft, self.sampling_rate, 40.0, self.sampling_rate / 2)
        self.register_buffer("mel", mel, persistent=False)

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-mel frames.

        Args:
            audio: (batch, samples) float in -1 to 1 at 16 kHz.
            lengths: (batch,) samples of each clip that count.

        Returns:
            Frames (batch, frames, bands) float32, about zero mean and unit spread, and valid frames (batch,).
        """
        log_power, valid = band_log_power(audio, lengths, self.window, self.mel, self.hop, _FLOOR)
        return log_power / 2 + 1.5, valid
