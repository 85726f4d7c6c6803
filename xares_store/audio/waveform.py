"""One recording: from encoded bytes to a mono signal at the encoder's rate, and where its crops begin and end."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from xares_store.audio.wav import missing_bytes
from xares_store.errors import AudioError, ConfigError

# A header may promise any number of samples. Beyond this, memory is only reserved for what is really there.
_TRUSTED_SAMPLES = 1 << 26
_MAX_SAMPLES = 1 << 31
_NO_LENGTH = 1 << 62
_BLOCK_SAMPLES = 1 << 20
# Formats whose header states the exact length, so that fewer decoded samples mean a file cut short.
_EXACT_LENGTH = frozenset({"FLAC", "OGG"})

Signal = npt.NDArray[np.float32]


class DecodeError(AudioError):
    """One recording cannot be used.

    Attributes:
        kind: the word failures are counted by: ``undecodable``, ``empty``, ``not-finite`` or ``too-long``.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class CropRule:
    """How recordings are cut into clips.

    Attributes:
        crop_s: length of a crop in seconds; None keeps recordings whole.
        tail: what happens to audio after the last whole crop: ``drop`` (the historical rule) leaves it out, ``keep``
            makes it a crop of its own, or joins it to the crop before when it is shorter than ``min_tail_s``.
        min_tail_s: shortest tail, in seconds, that becomes a crop of its own.

    Example:
        >>> CropRule(crop_s=10.0, tail="drop").tail
        'drop'
    """

    crop_s: float | None = None
    tail: Literal["drop", "keep"] = "keep"
    min_tail_s: float = 0.5


def decode(data: bytes | bytearray | BinaryIO) -> tuple[Signal, int]:
    """Decode audio to one channel at its own rate.

    Args:
        data: an encoded file (wav, flac, ogg, mp3, opus and what else libsndfile reads), as bytes or a seekable stream.

    Returns:
        ``(audio, rate_hz)``: float32 ``(samples,)``, the mean over channels, nominally in -1..1, and the rate in Hz.

    Raises:
        DecodeError: not decodable, cut short, empty, too long, or holding NaN or infinite samples.

    Example:
        >>> stream = io.BytesIO()
        >>> soundfile.write(stream, np.zeros((80, 2)), 8000, format="WAV")
        >>> audio, rate_hz = decode(stream.getvalue())
        >>> audio.shape, rate_hz
        ((80,), 8000)
    """
    stream = io.BytesIO(data) if isinstance(data, bytes | bytearray) else data
    if isinstance(data, bytes | bytearray) and (missing := missing_bytes(data)):
        raise DecodeError(
            f"The file is cut short: {missing} of the bytes of samples that it announces are missing.",
            kind="undecodable",
        )
    try:
        with soundfile.SoundFile(stream) as file:
            rate_hz = int(file.samplerate)
            channels = _read_all(file)
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError, OSError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"The audio cannot be decoded: {_reason(error)}", kind="undecodable") from error
    if not len(channels):
        raise DecodeError("The audio holds no samples.", kind="empty")
    audio: Signal
    if channels.shape[1] == 1:
        audio = channels[:, 0]
    else:
        with np.errstate(invalid="ignore", over="ignore"):  # bad samples are reported below
            audio = channels.mean(axis=1, dtype=np.float32)
    finite = np.isfinite(audio)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise DecodeError(f"Sample {bad} of {len(audio)} is NaN or infinite.", kind="not-finite")
    return audio, rate_hz


def _read_all(file: soundfile.SoundFile) -> Signal:
    """Return all samples ``(samples, channels)`` without trusting the length in the header."""
    promised = int(file.frames)
    if promised >= _NO_LENGTH:  # libsndfile opens such streams and then cannot move in them
        raise DecodeError("The header does not say how long the audio is.", kind="undecodable")
    if 0 <= promised * file.channels <= _TRUSTED_SAMPLES:
        found: Signal = file.read(dtype="float32", always_2d=True)
    else:
        blocks: list[Signal] = []
        samples = 0
        while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            blocks.append(block)
            samples += block.size
            if samples > _MAX_SAMPLES:
                raise DecodeError(f"The audio holds more than {_MAX_SAMPLES:,} samples.", kind="too-long")
        found = np.concatenate(blocks) if blocks else np.empty((0, file.channels), dtype=np.float32)
    if file.format in _EXACT_LENGTH and len(found) < promised:
        raise DecodeError(
            f"The audio is cut short: {promised} samples promised, {len(found)} decoded.", kind="undecodable"
        )
    return found


def _reason(error: Exception) -> str:
    # The plain text of a LibsndfileError begins with the address of the stream, which differs from run to run.
    code = getattr(error, "code", None)
    text = str(error) if code is None else error.error_string or f"libsndfile error {code}"  # type: ignore[attr-defined]
    text = text or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def resample(audio: Signal, from_hz: int, to_hz: int) -> Signal:
    """Change the sampling rate (soxr, high quality).

    Args:
        audio: float32 ``(samples,)``.
        from_hz: rate of ``audio`` in Hz.
        to_hz: wanted rate in Hz; an equal rate returns ``audio`` itself, untouched.

    Returns:
        float32 ``(about samples * to_hz / from_hz,)``.

    Raises:
        DecodeError: so few samples that none is left at the wanted rate.

    Example:
        >>> resample(np.zeros(441, dtype=np.float32), 44100, 16000).shape
        (160,)
    """
    if from_hz == to_hz:
        return audio
    changed: Signal = soxr.resample(audio, from_hz, to_hz, quality="HQ")
    if not len(changed):
        raise DecodeError(
            f"No sample is left of {len(audio)} at {from_hz} Hz after resampling to {to_hz} Hz.", kind="empty"
        )
    return changed


def crop_bounds(
    n_samples: int, rate_hz: int, *, crop_s: float | None, tail: str, min_tail_s: float
) -> list[tuple[int, int]]:
    """Return where the crops of a recording begin and end.

    A recording shorter than ``crop_s`` is one crop: kept whole, never padded.

    Args:
        n_samples: length of the recording at ``rate_hz``, at least 1.
        rate_hz: the rate the crops are cut at, in Hz.
        crop_s: length of a crop in seconds (``int(crop_s * rate_hz)`` samples), or None for the whole recording.
        tail: ``drop`` or ``keep``; see `CropRule`.
        min_tail_s: shortest tail in seconds that is a crop of its own under ``keep``.

    Returns:
        ``(start, end)`` in samples, consecutive, without overlap or gap, at least one.

    Raises:
        ConfigError: a crop shorter than one sample, or a tail rule of another name.

    Example:
        >>> crop_bounds(25, 1, crop_s=10, tail="drop", min_tail_s=0.5)
        [(0, 10), (10, 20)]
        >>> crop_bounds(25, 1, crop_s=10, tail="keep", min_tail_s=5)
        [(0, 10), (10, 20), (20, 25)]
        >>> crop_bounds(25, 1, crop_s=10, tail="keep", min_tail_s=6)
        [(0, 10), (10, 25)]
    """
    if tail not in ("drop", "keep"):
        raise ConfigError(f'The tail rule is "drop" or "keep", found {tail!r}.')
    if crop_s is None:
        return [(0, n_samples)]
    size = int(crop_s * rate_hz)
    if size < 1:
        raise ConfigError(f"A crop of {crop_s} s holds no sample at {rate_hz} Hz.", hint="Use a longer crop_s.")
    if n_samples <= size:
        return [(0, n_samples)]
    bounds = [(start, start + size) for start in range(0, n_samples - size + 1, size)]
    rest = n_samples - bounds[-1][1]
    if tail == "keep" and rest:
        if rest >= min_tail_s * rate_hz:
            bounds.append((bounds[-1][1], n_samples))
        else:
            bounds[-1] = (bounds[-1][0], n_samples)
    return bounds
