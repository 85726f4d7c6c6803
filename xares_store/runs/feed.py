"""Decoded clips of many shards as one bounded stream, prepared while the encoder works."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from xares_store.audio.decode import Decoded, DecodePool
from xares_store.audio.shards import Sample, Shard, iter_samples
from xares_store.audio.waveform import CropRule
from xares_store.clip import Failure
from xares_store.errors import ClashError, ShardError, XaresError
from xares_store.fingerprint import sha256_file
from xares_store.runs.state import ShardState


@dataclass(frozen=True)
class Started:
    """A shard is about to be embedded, from sample ``state.first_sample`` on.

    The digest of its content is computed while the first clips are being decoded.
    """

    shard: Shard
    state: ShardState
    digest: Future[str]


@dataclass(frozen=True)
class Item:
    """One sample: its crops, or why it has none, and the size of its audio file in the shard."""

    content: list[Decoded] | Failure
    bytes: int


@dataclass(frozen=True)
class Ended:
    """All samples of the shard have been handed over."""

    shard: Shard


@dataclass(frozen=True)
class Reused:
    """The shard was embedded before and its audio has not changed; so many samples of it had failed."""

    shard: Shard
    failures: int


@dataclass(frozen=True)
class Broken:
    """The shard cannot be used; nothing of it may be committed from here on."""

    shard: Shard
    error: XaresError


Clips: TypeAlias = Iterator[Item]
Event: TypeAlias = Started | Item | Ended | Reused | Broken


class Feed:
    """Iterate over events of many shards while a thread reads, hashes and hands samples to the decoding processes.

    At most ``max_bytes`` of decoded audio wait to be consumed, however fast decoding is.

    Args:
        shards: in the order to embed them.
        state_of: how far a shard has come, asked when its turn comes.
        pool: the decoding processes.
        rate_hz: sampling rate of the encoder.
        crop: how recordings become clips.
        max_bytes: bound on waiting audio.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        state_of: Callable[[Shard], ShardState],
        pool: DecodePool,
        *,
        rate_hz: int,
        crop: CropRule,
        max_bytes: int,
    ) -> None:
        self._shards = shards
        self._state_of = state_of
        self._pool = pool
        self._rate_hz = rate_hz
        self._crop = crop
        self._max_bytes = max_bytes
        self._events: deque[tuple[int, Event | BaseException | None]] = deque()
        self._waiting = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._resting = False
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="xares-hash")
        self._thread = threading.Thread(target=self._run, name="xares-feed", daemon=True)

    def __iter__(self) -> Iterator[Event]:
        self._thread.start()
        while True:
            with self._changed:
                while not self._events:
                    self._changed.wait()
                size, event = self._events.popleft()
                self._waiting -= size
                self._changed.notify_all()
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event

    def stop(self) -> None:
        """Let the thread end soon; events not yet taken are dropped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._hashing.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Take nothing from the pool inside this block, so that the decoding processes soon stand still.

        For encoders on the CPU: threads that compute in step lose far more to a busy core than the core has to give.
        """
        with self._changed:
            self._resting = True
        try:
            yield
        finally:
            with self._changed:
                self._resting = False
                self._changed.notify_all()

    def _put(self, event: Event | BaseException | None, size: int = 0) -> bool:
        with self._changed:
            while (self._resting or self._waiting > self._max_bytes) and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return False
            self._events.append((size, event))
            self._waiting += size
            self._changed.notify_all()
            return True

    def _run(self) -> None:
        try:
            # One shard ahead: its first clips are being decoded while the last ones of the current shard are taken.
            ahead: deque[tuple[Started | Reused | Broken, Clips | None]] = deque()
            for shard in self._shards:
                ahead.append(self._prepare(shard))
                if len(ahead) > 1 and not self._hand_over(*ahead.popleft()):
                    return
            while ahead:
                if not self._hand_over(*ahead.popleft()):
                    return
            self._put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._put(error)

    def _prepare(self, shard: Shard) -> tuple[Started | Reused | Broken, Clips | None]:
        """Check a shard's identity and begin to decode it."""
        try:
            state = self._state_of(shard)
            digest = self._hashing.submit(sha256_file, shard.path)
            if state.sha256 is not None and digest.result() != state.sha256:
                raise ClashError(
                    f"The audio shard has changed since it was embedded (sha256 {state.sha256[:12]} then, {digest.result()[:12]} now).",
                    where=shard.path,
                    hint="Restore the old shard, or remove what was made of it and embed again: "
                    f"xares store rm --shard {shard.split}/{shard.name} --task TASK --encoder ENCODER",
                )
            if state.done:
                return Reused(shard, state.failures), None
            sizes: deque[int] = deque()
            samples = _sized(islice(iter_samples(shard.path, shard=shard.name), state.first_sample, None), sizes)
            stream = self._pool.map(samples, shard=shard.name, rate_hz=self._rate_hz, crop=self._crop)
            return Started(shard, state, digest), (Item(content, sizes.popleft()) for content in stream)
        except (XaresError, OSError) as error:
            return Broken(shard, _as_shard_error(error, shard)), None

    def _hand_over(self, event: Started | Reused | Broken, stream: Clips | None) -> bool:
        """Pass a prepared shard on, sample by sample; return whether to go on."""
        if not self._put(event):
            return False
        if stream is None:
            return True
        try:
            for item in stream:
                size = 0 if isinstance(item.content, Failure) else sum(clip.audio.nbytes for clip in item.content)
                if not self._put(item, size):
                    return False
        except (XaresError, OSError) as error:
            return self._put(Broken(event.shard, _as_shard_error(error, event.shard)))
        return self._put(Ended(event.shard))


def _sized(samples: Iterable[Sample | Failure], sizes: deque[int]) -> Iterator[Sample | Failure]:
    """Pass samples on and note the bytes of each one's audio file, for progress."""
    for sample in samples:
        audio = sample.audio if isinstance(sample, Sample) else b""
        sizes.append(len(audio) if isinstance(audio, bytes) else audio.size)
        yield sample


def _as_shard_error(error: XaresError | OSError, shard: Shard) -> XaresError:
    if isinstance(error, XaresError):
        return error
    return ShardError(f"The shard cannot be read: {error.strerror or error}.", where=shard.path, hint="Check the file.")
