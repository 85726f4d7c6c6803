"""A small labelled set of synthetic sounds, so that everything can be tried without downloading anything.

Ten classes that overlap on purpose: tones that differ only in how pitch or level moves, sweeps up and down, noise that is
steady or comes in bursts, clicks, bells and vowels. Length, loudness, noise, sample rate, channels and file format vary
independently of the class, so that scores are neither chance nor perfect. Two clips share a recording (one source with the
same settings), and folds never divide a recording.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xares_store.errors import ConfigError
from xares_store.fingerprint import canonical_json

Audio = npt.NDArray[np.float64]
Source = Callable[[Audio, np.random.Generator], Audio]

FOLDS = 5
TAKES = 2  # clips of one recording
MIN_CLIPS = 20
RATES_HZ = (16_000, 22_050, 44_100)
FORMATS = (("wav", "WAV", "PCM_16"), ("flac", "FLAC", "PCM_16"), ("ogg", "OGG", "VORBIS"))

TASK = """\
format = 1
name = "demo"
title = "Synthetic sounds"
domain = "other"
description = "Ten classes of generated sounds with varied length, loudness, noise, sample rate and channels, in five folds."

[data]
folder = "demo"

[data.folds]
{folds}
[target]
kind = "single-label"
key = "label"
labels = {labels}
group_key = "recording"

[metric]
name = "accuracy"

[probe.mlp]
epochs = 20
learning_rates = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
"""


def generate(folder: Path, *, clips: int = 480, seed: int = 0) -> Path:
    """Write the audio shards and the task file.

    Args:
        folder: made when missing; gets ``demo.toml`` and ``demo/demo-fold-<n>-000000.tar``. It is the data root to embed
            from.
        clips: number of clips, at least 20; a multiple of 100 gives every class as many clips in every fold.
        seed: another seed gives other sounds; the same seed gives the same bytes.

    Returns:
        Path of the task file.

    Raises:
        ConfigError: too few clips, or the folder cannot be written.

    Example:
        >>> generate(Path("xares_data"))  # doctest: +SKIP
        PosixPath('xares_data/demo.toml')
    """
    if clips < MIN_CLIPS:
        raise ConfigError(f"Wanted at least {MIN_CLIPS} clips, found {clips}.", hint="Raise --clips.")
    from webdataset import TarWriter

    folder = Path(folder)
    names = tuple(SOURCES)
    task = folder / "demo.toml"
    try:
        (folder / "demo").mkdir(parents=True, exist_ok=True)
        for fold in range(1, FOLDS + 1):
            final = folder / "demo" / f"demo-fold-{fold}-000000.tar"
            partial = final.with_suffix(".tar.tmp")
            with TarWriter(str(partial), encoder=False, mtime=0, user="demo", group="demo") as shard:
                for number in range(clips):
                    recording = number // TAKES
                    label = recording % len(names)
                    if (label + recording // len(names)) % FOLDS + 1 == fold:
                        shard.write(_sample(names[label], recording, number, seed))
            partial.replace(final)
        lines = "".join(f'{fold} = ["demo-fold-{fold}-*.tar"]\n' for fold in range(1, FOLDS + 1))
        task.write_text(TASK.format(folds=lines, labels=json.dumps(list(names))), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The demo data cannot be written: {error.strerror or error}.", where=folder, hint="Choose another folder."
        ) from None
    return task


def _sample(name: str, recording: int, number: int, seed: int) -> dict[str, Any]:
    """Make one clip: audio file bytes and JSON."""
    import soundfile

    source = np.random.default_rng([seed, recording])  # same for all takes of a recording
    take = np.random.default_rng([seed, recording, number + 1])
    rate_hz = int(take.choice(RATES_HZ))
    duration_s = float(np.exp(take.uniform(np.log(0.4), np.log(4.0))))
    snr_db = float(take.uniform(3.0, 27.0))
    level_db = float(take.uniform(-38.0, -6.0))
    extension, container, subtype = FORMATS[int(take.integers(len(FORMATS)))]
    channels = 1 + int(take.random() < 0.3)

    time_s = np.arange(int(duration_s * rate_hz)) / rate_hz
    clean = _unit(SOURCES[name](time_s, source))
    noise = _unit(_coloured(len(time_s), rate_hz, slope=float(take.uniform(0.0, 2.0)), rng=take))
    mixed = clean + noise * 10 ** (-snr_db / 20)
    mixed = _low_pass(mixed, rate_hz, float(take.uniform(3500.0, 8000.0)))
    mixed *= 10 ** (level_db / 20) / max(float(np.abs(mixed).max()), 1e-9)
    audio = mixed[:, None] if channels == 1 else mixed[:, None] * take.uniform(0.5, 1.0, size=(1, 2))

    stream = io.BytesIO()
    soundfile.write(stream, audio, rate_hz, format=container, subtype=subtype)
    content = _fixed_serial(stream.getvalue(), number) if container == "OGG" else stream.getvalue()
    facts = {
        "label": name,
        "recording": f"r{recording:05d}",
        "snr_db": round(snr_db, 1),
        "level_db": round(level_db, 1),
        "channels": channels,
        "format": extension,
    }
    return {"__key__": f"{recording:05d}-{number % TAKES}", extension: content, "json": canonical_json(facts).encode()}


def _fixed_serial(ogg: bytes, serial: int) -> bytes:
    """Return the same Ogg file with another stream number: the encoder draws one at random, but bytes should not differ.

    The checksum of every page covers that number, so it is made anew (CRC-32, polynomial 0x04C11DB7, not reflected).
    """
    out = bytearray(ogg)
    position = 0
    while position < len(out):
        segments = out[position + 26]
        end = position + 27 + segments + sum(out[position + 27 : position + 27 + segments])
        out[position + 14 : position + 18] = serial.to_bytes(4, "little")
        out[position + 22 : position + 26] = bytes(4)
        out[position + 22 : position + 26] = _ogg_crc(out[position:end]).to_bytes(4, "little")
        position = end
    return bytes(out)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_CRC = _crc_table()


def _ogg_crc(page: bytes | bytearray) -> int:
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ _CRC[(value >> 24) ^ byte]
    return value


def _unit(audio: Audio) -> Audio:
    """Scale to a root mean square of 1."""
    return audio / max(float(np.sqrt(np.mean(audio**2))), 1e-9)


def _shape(audio: Audio, gain: Callable[[Audio], Audio], rate_hz: float) -> Audio:
    """Filter by a gain over frequency."""
    size = 1 << int(np.ceil(np.log2(max(len(audio), 2))))  # transforms of other lengths can be far slower
    spectrum = np.fft.rfft(audio, size) * gain(np.fft.rfftfreq(size, 1 / rate_hz).astype(np.float64))
    return np.asarray(np.fft.irfft(spectrum, size)[: len(audio)], dtype=np.float64)


def _coloured(n_samples: int, rate_hz: float, *, slope: float, rng: np.random.Generator) -> Audio:
    """Noise whose power falls with frequency to the power of ``slope``: 0 white, 1 pink, 2 brown."""
    return _shape(rng.standard_normal(n_samples), lambda f: np.maximum(f, 50.0) ** (-slope / 2), rate_hz)


def _low_pass(audio: Audio, rate_hz: float, cut_hz: float) -> Audio:
    return _shape(audio, lambda f: 1 / (1 + (f / cut_hz) ** 8), rate_hz)


def _band(audio: Audio, rate_hz: float, centre_hz: float, rng: np.random.Generator) -> Audio:
    """Keep a band of random width around a frequency."""
    width = rng.uniform(0.15, 0.5)
    return _shape(audio, lambda f: np.exp(-0.5 * (np.log(np.maximum(f, 1.0) / centre_hz) / width) ** 2), rate_hz)


def _sum(parts: list[Audio]) -> Audio:
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def _rate(time_s: Audio) -> float:
    return 1.0 / float(time_s[1] - time_s[0])


def _between(low_hz: float, high_hz: float, rng: np.random.Generator) -> float:
    """Draw a frequency, evenly over octaves."""
    return float(np.exp(rng.uniform(np.log(low_hz), np.log(high_hz))))


def _harmonics(phase: Audio, rng: np.random.Generator) -> Audio:
    """Sum partials with a random spectral slope."""
    slope = rng.uniform(0.8, 2.0)
    return _sum([np.sin(n * phase + rng.uniform(0, 2 * np.pi)) * n**-slope for n in range(1, 9)])


def _steady_tone(t: Audio, rng: np.random.Generator) -> Audio:
    return _harmonics(2 * np.pi * _between(180.0, 450.0, rng) * t, rng)


def _vibrato_tone(t: Audio, rng: np.random.Generator) -> Audio:
    pitch, speed, depth = _between(350.0, 900.0, rng), rng.uniform(4.0, 8.0), rng.uniform(0.02, 0.08)
    return _harmonics(2 * np.pi * pitch * t + pitch * depth / speed * np.sin(2 * np.pi * speed * t), rng)


def _tremolo_tone(t: Audio, rng: np.random.Generator) -> Audio:
    tone = _harmonics(2 * np.pi * _between(110.0, 260.0, rng) * t, rng)
    return tone * (1 + rng.uniform(0.6, 1.0) * np.sin(2 * np.pi * rng.uniform(3.0, 10.0) * t + rng.uniform(0, 6)))


def _sweep(t: Audio, rng: np.random.Generator, low_hz: float, *, up: bool) -> Audio:
    octaves, period_s = rng.uniform(0.7, 2.0), rng.uniform(0.25, 0.8)
    within = (t / period_s + rng.uniform()) % 1.0
    frequency = low_hz * 2 ** (octaves * (within if up else 1 - within))
    return _harmonics(2 * np.pi * np.cumsum(frequency) / _rate(t), rng) * np.sin(np.pi * within) ** 0.5


def _rising_sweep(t: Audio, rng: np.random.Generator) -> Audio:
    return _sweep(t, rng, _between(150.0, 400.0, rng), up=True)


def _falling_sweep(t: Audio, rng: np.random.Generator) -> Audio:
    return _sweep(t, rng, _between(300.0, 800.0, rng), up=False)


def _noise_band(t: Audio, rng: np.random.Generator) -> Audio:
    return _band(rng.standard_normal(len(t)), _rate(t), _between(300.0, 1200.0, rng), rng)


def _noise_bursts(t: Audio, rng: np.random.Generator) -> Audio:
    period_s, share = rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.5)
    within = (t / period_s + rng.uniform()) % 1.0
    noise = _band(rng.standard_normal(len(t)), _rate(t), _between(700.0, 2500.0, rng), rng)
    return noise * np.exp(-6 * within / share)


def _clicks(t: Audio, rng: np.random.Generator) -> Audio:
    every = int(_rate(t) * rng.uniform(0.04, 0.25))
    train = np.zeros(len(t))
    train[int(rng.uniform() * every) :: every] = 1.0
    return _band(train, _rate(t), _between(1200.0, 3500.0, rng), rng)


def _bell(t: Audio, rng: np.random.Generator) -> Audio:
    pitch, period_s, decay_s = _between(400.0, 900.0, rng), rng.uniform(0.3, 1.0), rng.uniform(0.1, 0.4)
    since_s = (t + rng.uniform() * period_s) % period_s
    ratios = (1.0, 2.76, 5.4, 8.93)  # of a bar that is struck
    decays = [np.exp(-since_s * ratio**0.5 / decay_s) / ratio**0.7 for ratio in ratios]
    return _sum([np.sin(2 * np.pi * pitch * ratio * t) * decay for ratio, decay in zip(ratios, decays, strict=True)])


def _vowel(t: Audio, rng: np.random.Generator) -> Audio:
    drift = 1 + 0.03 * np.sin(2 * np.pi * rng.uniform(0.5, 2.0) * t)
    phase = 2 * np.pi * np.cumsum(rng.uniform(90.0, 280.0) * drift) / _rate(t)
    at_hz = np.array([rng.uniform(280, 800), rng.uniform(850, 2300), rng.uniform(2400, 3200)])
    width_hz = np.array([90.0, 120.0, 180.0])

    def formants(f: Audio) -> Audio:
        resonances = 1 / (1 + ((f[:, None] - at_hz) / width_hz) ** 2)
        return np.asarray(resonances.sum(axis=1) + 0.01, dtype=np.float64)

    return _shape(_sum([np.sin(n * phase) / n for n in range(1, 25)]), formants, _rate(t))


SOURCES: dict[str, Source] = {
    "steady_tone": _steady_tone,
    "vibrato_tone": _vibrato_tone,
    "tremolo_tone": _tremolo_tone,
    "rising_sweep": _rising_sweep,
    "falling_sweep": _falling_sweep,
    "noise_band": _noise_band,
    "noise_bursts": _noise_bursts,
    "clicks": _clicks,
    "bell": _bell,
    "vowel": _vowel,
}
"""What makes the sound of each class, from time in seconds, shape ``(samples,)``, and a random generator."""
