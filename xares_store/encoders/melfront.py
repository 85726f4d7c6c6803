"""The mel front ends of published models, written from their definitions and free of other audio libraries.

Two families cover them:

* ``KaldiFbank``: Kaldi's ``compute-fbank-feats`` without dither: frames that start every hop and lie whole inside the
  clip, each with its mean removed, pre-emphasis 0.97, a Povey window, triangles in mel space, natural logarithm.
* ``CentredMel``: frames centred on multiples of the hop, the clip mirrored at both ends, a periodic Hann window,
  triangles in Hz. It returns power; every model takes its own logarithm.

Frames depend on nothing but the clip's own samples, so that clips may be padded together.

References: S. Davis and P. Mermelstein, "Comparison of parametric representations for monosyllabic word recognition",
1980; S. Young et al., "The HTK Book", 2006 (``htk``); M. Slaney, "Auditory Toolbox", 1998 (``slaney``); D. Povey et
al., "The Kaldi speech recognition toolkit", 2011.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from xares_store.encoders.logmel import frame_mask

Scale = Literal["htk", "slaney"]
_BLOCK_FRAMES = 8192  # bounds memory for long clips: 8192 spectra of 257 bins are 17 MB
_KALDI_LOG_FLOOR = 1.1920928955078125e-07  # the smallest number that float32 adds to 1
_PREEMPHASIS = 0.97
_POVEY_POWER = 0.85

# Slaney's scale: linear below 1 kHz, 200/3 Hz a mel; above it 27 mels for a factor of 6.4.
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = torch.tensor(6.4, dtype=torch.float64).log().item() / 27.0


def hz_to_mel(hz: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Convert frequencies to mels.

    Args:
        hz: frequencies in Hz, float64, at least 0.
        scale: ``htk`` is 2595 log10(1 + f / 700); ``slaney`` is linear up to 1 kHz and logarithmic above.

    Example:
        >>> hz_to_mel(torch.tensor([500.0, 1000.0], dtype=torch.float64), "slaney").round(decimals=6).tolist()
        [7.5, 15.0]
    """
    if scale == "htk":
        return 2595.0 * torch.log10(1.0 + hz / 700.0)
    above = _SLANEY_BREAK_MEL + (hz.clamp_min(_SLANEY_BREAK_HZ) / _SLANEY_BREAK_HZ).log() / _SLANEY_LOG_STEP
    return torch.where(hz < _SLANEY_BREAK_HZ, hz / _SLANEY_HZ_PER_MEL, above)


def mel_to_hz(mel: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Convert mels to frequencies in Hz; the inverse of ``hz_to_mel``."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    above = _SLANEY_BREAK_HZ * ((mel - _SLANEY_BREAK_MEL).clamp_min(0.0) * _SLANEY_LOG_STEP).exp()
    return torch.where(mel < _SLANEY_BREAK_MEL, mel * _SLANEY_HZ_PER_MEL, above)


def hz_triangles(bands: int, n_fft: int, rate_hz: int, low_hz: float, high_hz: float, scale: Scale) -> torch.Tensor:
    """Triangular filters whose corners are equally spaced in mels and whose sides are straight in Hz.

    Args:
        bands: number of filters.
        n_fft: length of the transform in samples.
        rate_hz: sample rate in Hz.
        low_hz: lower edge of the first filter in Hz.
        high_hz: upper edge of the last filter in Hz.
        scale: ``htk`` filters peak at 1, as in HTK and torchaudio; ``slaney`` filters have an area of 1 in Hz, as in
            the Auditory Toolbox, librosa and nnAudio.

    Returns:
        (n_fft // 2 + 1, bands) float32, non-negative.
    """
    ends = hz_to_mel(torch.tensor([low_hz, high_hz], dtype=torch.float64), scale)
    corners = mel_to_hz(torch.linspace(float(ends[0]), float(ends[1]), bands + 2, dtype=torch.float64), scale)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate_hz / n_fft
    weights = _triangles(bins, corners)
    if scale == "slaney":
        weights = weights * 2.0 / (corners[2:] - corners[:-2])
    return weights.float()


def mel_triangles(bands: int, n_fft: int, rate_hz: int, low_hz: float, high_hz: float) -> torch.Tensor:
    """Kaldi's filters: corners equally spaced and sides straight in mels (HTK scale), peaks at 1, no Nyquist bin.

    Args:
        bands: number of filters.
        n_fft: length of the transform in samples.
        rate_hz: sample rate in Hz.
        low_hz: lower edge of the first filter in Hz.
        high_hz: upper edge of the last filter in Hz.

    Returns:
        (n_fft // 2 + 1, bands) float32; the last row is zero.
    """
    ends = hz_to_mel(torch.tensor([low_hz, high_hz], dtype=torch.float64), "htk")
    corners = torch.linspace(float(ends[0]), float(ends[1]), bands + 2, dtype=torch.float64)
    bins = hz_to_mel(torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate_hz / n_fft, "htk")
    weights = _triangles(bins, corners)
    weights[-1] = 0.0
    return weights.float()


def _triangles(bins: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    rising = (bins[:, None] - corners[None, :-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[None, 2:] - bins[:, None]) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp_min(0.0)


def mirrored(audio: torch.Tensor, lengths: torch.Tensor, margin: int) -> torch.Tensor:
    """Mirror every clip at its own two ends, the end sample not repeated; zeros lie behind.

    A clip shorter than the margin is mirrored again and again, as NumPy's ``reflect`` does; one sample is repeated.

    Args:
        audio: (batch, samples).
        lengths: (batch,) samples of each clip that count, at least 1.
        margin: samples added at either end.

    Returns:
        (batch, samples + 2 * margin); clip i fills the first ``lengths[i] + 2 * margin``.

    Example:
        >>> mirrored(torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([3]), 2).tolist()
        [[3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.0]]
    """
    batch, samples = audio.shape
    lengths = lengths.to(audio.device)
    padded = audio.new_zeros(batch, samples + 2 * margin)
    padded[:, margin : margin + samples] = audio * frame_mask(lengths, samples)
    steps = torch.arange(margin, device=audio.device)[None, :]
    period = (2 * (lengths[:, None] - 1)).clamp_min(1)
    before = torch.remainder(steps - margin, period)
    behind = torch.remainder(lengths[:, None] + steps, period)
    for place, source in ((steps.expand(batch, -1), before), (margin + lengths[:, None] + steps, behind)):
        folded = torch.minimum(source, period - source).clamp_max(samples - 1)
        padded.scatter_(1, place, audio.gather(1, folded))
    return padded


def followed_by_silence(audio: torch.Tensor, lengths: torch.Tensor, shortest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengthen clips that are too short for a model.

    Args:
        audio: (batch, samples).
        lengths: (batch,) samples of each clip that count.
        shortest: samples that a clip must have.

    Returns:
        Audio (batch, at least ``shortest``), silent behind every clip, and lengths (batch,) on its device, at least
        ``shortest``.

    Example:
        >>> audio, lengths = followed_by_silence(torch.ones(1, 2), torch.tensor([1]), 3)
        >>> audio.tolist(), lengths.tolist()
        ([[1.0, 0.0, 0.0]], [3])
    """
    lengths = lengths.to(audio.device)
    audio = audio * frame_mask(lengths, audio.shape[1])
    return F.pad(audio, (0, max(0, shortest - audio.shape[1]))), lengths.clamp_min(shortest)


def _power(pieces: torch.Tensor, window: torch.Tensor, n_fft: int) -> torch.Tensor:
    spectrum: torch.Tensor = torch.fft.rfft(pieces * window, n_fft)
    return spectrum.real.square() + spectrum.imag.square()


class KaldiFbank(torch.nn.Module):
    """Log mel energies as Kaldi computes them, without dither and without energy.

    Args:
        bands: number of mel bands.
        rate_hz: sample rate in Hz.
        window_ms: length of a frame in milliseconds; the transform is the next power of two.
        hop_ms: distance of frames in milliseconds.
        low_hz: lower edge of the first band in Hz.
        gain: factor on the samples; 2 ** 15 gives Kaldi's range for audio in -1 to 1.

    Example:
        >>> frames, valid = KaldiFbank(bands=128)(torch.zeros(1, 16000), torch.tensor([16000]))
        >>> tuple(frames.shape), valid.tolist()
        ((1, 98, 128), [98])
    """

    window: torch.Tensor
    mel: torch.Tensor

    def __init__(
        self,
        bands: int,
        *,
        rate_hz: int = 16000,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        low_hz: float = 20.0,
        gain: float = 32768.0,
    ) -> None:
        super().__init__()
        self.width = round(window_ms * rate_hz / 1000)
        self.hop = round(hop_ms * rate_hz / 1000)
        self.n_fft = 1 << (self.width - 1).bit_length()
        self.gain = gain
        window = torch.hann_window(self.width, periodic=False, dtype=torch.float64).clamp_min(0.0) ** _POVEY_POWER
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("mel", mel_triangles(bands, self.n_fft, rate_hz, low_hz, rate_hz / 2), persistent=False)

    def shortest(self, frames: int) -> int:
        """Return the number of samples that hold ``frames`` frames."""
        return self.width + (frames - 1) * self.hop

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log mel energies.

        Args:
            audio: (batch, samples) float, at least one frame long.
            lengths: (batch,) samples of each clip that count, at least one frame.

        Returns:
            Frames (batch, frames, bands) float32, and valid frames (batch,), those that lie whole inside the clip.
        """
        lengths = lengths.to(audio.device)
        audio = audio * frame_mask(lengths, audio.shape[1]) * self.gain
        pieces = audio.unfold(1, self.width, self.hop)
        blocks = []
        for start in range(0, pieces.shape[1], _BLOCK_FRAMES):
            piece = pieces[:, start : start + _BLOCK_FRAMES]
            piece = piece - piece.mean(2, keepdim=True)
            # The first sample of a frame is its own predecessor.
            piece = piece - _PREEMPHASIS * F.pad(piece, (1, 0), mode="replicate")[..., :-1]
            energy = _power(piece, self.window, self.n_fft) @ self.mel
            blocks.append(energy.clamp_min(_KALDI_LOG_FLOOR).log())
        valid = torch.div(lengths - self.width, self.hop, rounding_mode="floor") + 1
        return torch.cat(blocks, dim=1), valid


class CentredMel(torch.nn.Module):
    """Mel band power in frames centred on multiples of the hop, as torchaudio, librosa and nnAudio compute it.

    Args:
        bands: number of mel bands.
        n_fft: length of window and transform in samples.
        hop: distance of frames in samples.
        low_hz: lower edge of the first band in Hz.
        high_hz: upper edge of the last band in Hz.
        scale: mel scale and area of the filters, as of ``hz_triangles``.
        rate_hz: sample rate in Hz.

    Example:
        >>> front = CentredMel(64, n_fft=1024, hop=160, low_hz=60.0, high_hz=7800.0, scale="htk")
        >>> frames, valid = front(torch.zeros(1, 16000), torch.tensor([16000]))
        >>> tuple(frames.shape), valid.tolist()
        ((1, 101, 64), [101])
    """

    window: torch.Tensor
    mel: torch.Tensor

    def __init__(
        self, bands: int, *, n_fft: int, hop: int, low_hz: float, high_hz: float, scale: Scale, rate_hz: int = 16000
    ) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop = hop
        window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64).float()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mel", hz_triangles(bands, n_fft, rate_hz, low_hz, high_hz, scale), persistent=False)

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute mel band power.

        Args:
            audio: (batch, samples) float.
            lengths: (batch,) samples of each clip that count, at least 1.

        Returns:
            Power (batch, frames, bands) float32, and valid frames (batch,): one, and one more for every whole hop.
        """
        lengths = lengths.to(audio.device)
        pieces = mirrored(audio, lengths, self.n_fft // 2).unfold(1, self.n_fft, self.hop)
        blocks = [
            _power(pieces[:, start : start + _BLOCK_FRAMES], self.window, self.n_fft) @ self.mel
            for start in range(0, pieces.shape[1], _BLOCK_FRAMES)
        ]
        return torch.cat(blocks, dim=1), torch.div(lengths, self.hop, rounding_mode="floor") + 1
