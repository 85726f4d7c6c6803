"""Lengths of clips from audio headers alone: what estimates and warm-ups need, without decoding."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice

import soundfile

from xares_store.audio.samples import Sample, iter_samples
from xares_store.audio.shards import Shard
from xares_store.audio.waveform import CropRule, crop_bounds
from xares_store.errors import XaresError


def clip_lengths(shard: Shard, crop: CropRule, *, limit: int | None = None) -> Iterator[list[float] | None]:
    """Yield the lengths of each sample's clips in seconds; None for a sample without readable audio.

    Args:
        shard: the audio shard.
        crop: how recordings become clips.
        limit: look at so many samples only.

    Raises:
        ShardError: the shard cannot be read.
    """
    for sample in islice(iter_samples(shard.path, shard=shard.name), limit):
        if not isinstance(sample, Sample):
            yield None
            continue
        try:
            content = sample.audio if isinstance(sample.audio, bytes) else sample.audio.read()
            info = soundfile.info(io.BytesIO(content))
        except (soundfile.SoundFileError, XaresError):
            yield None
            continue
        rate = info.samplerate
        bounds = crop_bounds(info.frames, rate, crop_s=crop.crop_s, tail=crop.tail, min_tail_s=crop.min_tail_s)
        yield [(stop - start) / rate for start, stop in bounds]
