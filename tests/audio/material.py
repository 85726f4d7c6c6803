"""Small generated recordings and shards for the audio tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence

import numpy as np
import soundfile

Member = tuple[str, bytes]


def encoded(
    samples: int = 1600, rate_hz: int = 16000, *, suffix: str = "wav", seed: int = 0, channels: int = 1
) -> bytes:
    generator = np.random.default_rng(seed)
    audio = generator.uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)
    return encode(audio, rate_hz, suffix=suffix)


def encode(audio: np.ndarray, rate_hz: int, *, suffix: str = "wav", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    if suffix == "opus":
        suffix, subtype = "ogg", "OPUS"
    soundfile.write(stream, audio, rate_hz, format=suffix.upper(), subtype=subtype)
    return stream.getvalue()


def tar_bytes(members: Iterable[Member | tarfile.TarInfo], *, format: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()


def label(number: int = 0) -> bytes:
    return json.dumps({"label": number}).encode()


def pairs(keys: Sequence[str], *, samples: int = 1600, rate_hz: int = 16000) -> list[Member]:
    """Audio of slightly different lengths and JSON for every key."""
    members: list[Member] = []
    for seed, key in enumerate(keys):
        members += [(f"{key}.wav", encoded(samples + 10 * seed, rate_hz, seed=seed)), (f"{key}.json", label(seed))]
    return members
