"""Reading every file once: its bytes for the shard, and what decoding them says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from xares_store.audio.samples import AUDIO_SUFFIXES
from xares_store.audio.waveform import DecodeError, Signal, decode
from xares_store.importer.plan import PlannedClip

# A hand-over between threads costs about as much as a short clip, so several are handed over at once.
_BATCH_CLIPS = 16
_BATCH_BYTES = 4 << 20
_AHEAD = 3  # batches for every thread that are under way or waiting to be written


@dataclass(frozen=True, slots=True)
class Examined:
    """What is known of a file's content.

    Attributes:
        nbytes: its length.
        content: hash of the bytes.
        waveform: hash of the decoded samples, equal for the same audio in wav and flac or with other tags; None when
            they cannot be decoded.
        seconds: length of the audio.
        kind, reason: why it cannot be decoded; None when it can.
    """

    nbytes: int
    content: str
    waveform: str | None
    seconds: float
    kind: str | None = None
    reason: str | None = None


def hash_bytes(data: bytes | Signal) -> str:
    """Return a checksum: CRC-32C and the sum of 64-bit words, fast enough not to slow decoding down.

    They tell any two files or waveforms apart that were not made to be confused.

    Args:
        data: bytes, or an array without gaps that nobody may write to (which spares a copy).

    Example:
        >>> hash_bytes(b"")
        '000000000000000000000000'
    """
    buffer: Any = data  # that an array is one is not said in the types of this Python
    count = memoryview(buffer).nbytes // 8  # a rest of up to 7 bytes is in the CRC
    total = int(np.frombuffer(buffer, dtype="<u8", count=count).sum(dtype=np.uint64)) if count else 0
    return f"{google_crc32c.value(buffer):08x}{total:016x}"


def examine(data: bytes, ext: str, content: str) -> Examined:
    """Decode a file and hash what came out.

    Args:
        data: the whole file.
        ext: its suffix, for the message when the format is one that cannot be read.
        content: hash of ``data``.
    """
    if ext not in AUDIO_SUFFIXES:
        reason = f"The format .{ext} cannot be read; convert the file to flac or wav, for example with ffmpeg."
        return Examined(len(data), content, None, 0.0, "undecodable", reason)
    try:
        audio, rate_hz = decode(data)
    except DecodeError as error:
        return Examined(len(data), content, None, 0.0, error.kind, error.message)
    audio = np.ascontiguousarray(audio)
    audio.flags.writeable = False
    waveform = f"{rate_hz}:{len(audio)}:{hash_bytes(audio)}"
    return Examined(len(data), content, waveform, len(audio) / rate_hz)


class Reader:
    """Reads and examines clips in threads; decoding leaves the interpreter free for the others.

    A file whose bytes were met before is not decoded again.

    Args:
        workers: threads.
        known: what is known already, by key; such clips are read and compared, not decoded.
    """

    def __init__(self, workers: int, known: dict[str, Examined] | None = None) -> None:
        self._workers = workers
        self._known = known or {}
        self._by_content: dict[tuple[int, str, str], Examined] = {}

    def run(self, clips: Sequence[PlannedClip]) -> Iterator[tuple[PlannedClip, bytes, Examined]]:
        """Yield every clip with its bytes and what they hold, in order.

        Raises:
            AudioError: a file changed or vanished since the plan was made.
        """
        batches = iter(_batches(clips))
        under_way: deque[Future[list[tuple[PlannedClip, bytes, Examined]]]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="import")
        try:
            for batch in batches:
                under_way.append(pool.submit(self._read, batch))
                if len(under_way) >= _AHEAD * self._workers:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, batch: Sequence[PlannedClip]) -> list[tuple[PlannedClip, bytes, Examined]]:
        found = []
        for clip in batch:
            data = clip.record.blob.read()
            found.append((clip, data, self._examined(clip, data)))
        return found

    def _examined(self, clip: PlannedClip, data: bytes) -> Examined:
        before = self._known.get(clip.key)
        content = hash_bytes(data)
        if before is not None and (before.nbytes, before.content) == (len(data), content):
            return before
        same = (len(data), content, clip.ext)
        result = self._by_content.get(same)
        if result is None:
            result = self._by_content[same] = examine(data, clip.ext, content)
        return result


def _batches(clips: Sequence[PlannedClip]) -> Iterator[list[PlannedClip]]:
    batch: list[PlannedClip] = []
    size = 0
    for clip in clips:
        nbytes = clip.record.blob.nbytes
        if batch and (len(batch) >= _BATCH_CLIPS or size + nbytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(clip)
        size += nbytes
    if batch:
        yield batch
