"""Decoding in parallel: worker processes turn samples into clips at the encoder's rate, in order and ahead of need."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

from xares_store.audio.processes import Account, Job, Problem, Processes
from xares_store.audio.samples import FileRange, Sample
from xares_store.audio.waveform import CropRule, DecodeError, Signal, crop_bounds
from xares_store.audio.worker import SHARD_PROBLEM, prepare
from xares_store.clip import Clip, Failure
from xares_store.errors import ConfigError, ShardError

_EXPANSION = 12.0  # decoded over encoded bytes, until there is a measured value


@dataclass(frozen=True, slots=True)
class Decoded:
    """A clip and its audio.

    Attributes:
        clip: what the store keeps about it.
        audio: float32 ``(samples,)``, one channel at the wanted rate.
    """

    clip: Clip
    audio: Signal


class DecodePool:
    """Decodes samples in worker processes; results come in order.

    A worker that dies (a decoder crash, ``kill``) is replaced and its sample tried again; a sample that ends a third
    worker becomes a `Failure` of kind ``worker``. Workers ignore Ctrl-C and end with their owner, however it ends.
    A pool belongs to one thread at a time.

    Args:
        workers: number of processes; 0 decodes in the calling thread.
        lookahead_bytes: most decoded audio that waits to be taken.
        lookahead: most samples that are decoded or waiting ahead of the consumer.

    Example:
        >>> from xares_store.audio.shards import iter_samples
        >>> with DecodePool(2) as pool:  # doctest: +SKIP
        ...     for result in pool.map(iter_samples(path), shard="a", rate_hz=16000, crop=CropRule()):
        ...         print(result)
    """

    def __init__(self, workers: int, *, lookahead_bytes: int = 256 << 20, lookahead: int = 512) -> None:
        if workers < 0 or lookahead < 1 or lookahead_bytes < 1:
            raise ConfigError(f"A pool needs workers >= 0 and a lookahead >= 1, found {workers=}, {lookahead=}.")
        self._count, self._lookahead, self._lookahead_bytes = workers, lookahead, lookahead_bytes
        self._open = False
        self._processes: Processes | None = None
        self._streams: list[weakref.ref[_Stream]] = []
        self._cpu_ns = 0  # of the calling thread and of workers that are closed

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds spent reading, decoding and resampling, summed over workers, without their start."""
        running_ns = self._processes.cpu_ns if self._processes else 0
        return (self._cpu_ns + running_ns) / 1e9

    def __enter__(self) -> DecodePool:
        if not self._open and self._count:
            self._processes = Processes(self._count)
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what is still being decoded is given up. Safe to call twice."""
        self._open = False
        if self._processes is not None:
            self._cpu_ns += self._processes.cpu_ns
            self._processes.close()
            self._processes = None

    def map(
        self, samples: Iterable[Sample | Failure], *, shard: str, rate_hz: int, crop: CropRule
    ) -> Iterator[list[Decoded] | Failure]:
        """Decode, resample and crop samples.

        Work begins at once, up to the lookahead. Several maps may run at the same time; the older one is served first,
        so the next shard can begin while the last clips of this one are taken.

        Args:
            samples: what `iter_samples` yields; failures pass through in their place.
            shard: name of the shard, for failures.
            rate_hz: wanted sampling rate in Hz.
            crop: how recordings are cut; at least one clip comes of each.

        Returns:
            In the order of ``samples``: the clips of a recording, or the `Failure` that it became (kinds of
            `DecodeError`, or ``worker``).

        Raises:
            ShardError: from the iterator, in its place, when reading the shard fails.
            ConfigError: the pool is not open, or the rate is not positive.
        """
        if not self._open:
            raise ConfigError("The pool is not open.", hint="Use it in a with statement.")
        if rate_hz < 1:
            raise ConfigError(f"The sampling rate is a positive number of Hz, found {rate_hz}.")
        stream = _Stream(self, iter(samples), shard, rate_hz, crop)
        if self._count:
            self._streams.append(weakref.ref(stream))
            self.pump()
        return stream

    def pump(self) -> None:
        """Take in what is finished and hand out new work, without waiting.

        Taking results does this too. Call it between long steps that take no results to keep the workers busy.
        """
        if self._processes is not None:
            self._processes.collect(wait=False)
            self._read_ahead(self._processes)

    def _read_ahead(self, processes: Processes) -> None:
        """Draw samples while there is room, for the oldest stream first."""
        streams = [stream for ref in self._streams if (stream := ref()) is not None and not stream.finished]
        if len(streams) < len(self._streams):
            self._streams = [weakref.ref(stream) for stream in streams]
        count = sum(len(stream.queue) for stream in streams)
        for stream in streams:
            while count < self._lookahead and not processes.full and self._has_memory(streams) and stream.draw():
                count += 1

    def _has_memory(self, streams: list[_Stream]) -> bool:
        return sum(stream.account.waiting_bytes for stream in streams) < self._lookahead_bytes

    def _expected_bytes(self, sample: Sample) -> int:
        seen = self._processes
        ratio = seen.decoded_bytes / seen.encoded_bytes if seen and seen.encoded_bytes else _EXPANSION
        return int(sample.nbytes * ratio)

    def _begin(self, job: Job) -> None:
        if self._processes is not None:
            self._processes.submit(job)

    def _result(self, job: Job) -> Signal | Problem:
        """Return a job's result, as soon as there is one."""
        if not self._open:
            raise ConfigError("The pool was closed before all results were taken.")
        while job.result is None and self._processes is not None:
            self._processes.collect(wait=True)
            self._read_ahead(self._processes)
        return self._work_on(job) if job.result is None else job.result

    def _work_on(self, job: Job) -> Signal | Problem:
        """Decode in the calling thread."""
        start_ns = time.thread_time_ns()
        audio = job.sample.audio
        try:
            return prepare(audio.read() if isinstance(audio, FileRange) else audio, job.rate_hz)
        except DecodeError as error:
            return Problem(error.kind, error.message)
        finally:
            self._cpu_ns += time.thread_time_ns() - start_ns


class _Stream:
    """The results of one map, in order."""

    def __init__(
        self, pool: DecodePool, samples: Iterator[Sample | Failure], shard: str, rate_hz: int, crop: CropRule
    ) -> None:
        self._pool, self._samples, self._shard, self._rate_hz, self._crop = pool, samples, shard, rate_hz, crop
        self._error: Exception | None = None
        self._exhausted = False
        self.queue: deque[Job | Failure] = deque()
        self.account = Account()

    @property
    def finished(self) -> bool:
        """Whether all results were taken."""
        return self._exhausted and not self.queue

    def draw(self) -> bool:
        """Take one sample from the source and begin to work on it; False at the end of the source."""
        if self._exhausted:
            return False
        try:
            item = next(self._samples, None)
        except Exception as error:  # raised again when all results before it are taken
            item, self._error = None, error
        if item is None:
            self._exhausted = True
            return False
        if isinstance(item, Failure):
            self.queue.append(item)
            return True
        job = Job(item, self._rate_hz, self.account, cost=0)
        job.charge(self._pool._expected_bytes(item))
        self.queue.append(job)
        self._pool._begin(job)
        return True

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> list[Decoded] | Failure:
        self._pool.pump()
        # One at least, however much the other streams have read ahead.
        if not self.queue and not self.draw():
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration
        job = self.queue[0]
        if isinstance(job, Failure):
            self.queue.popleft()
            return job
        result = self._pool._result(job)
        self.queue.popleft()
        job.charge(0)
        if not isinstance(result, Problem):
            return self._cut(job.sample, result)
        if result.kind == SHARD_PROBLEM:
            where = job.sample.audio.path if isinstance(job.sample.audio, FileRange) else None
            raise ShardError(result.reason, where=where)
        return Failure(job.sample.key, self._shard, result.kind, result.reason)

    def _cut(self, sample: Sample, audio: Signal) -> list[Decoded]:
        rate_hz, rule = self._rate_hz, self._crop
        bounds = crop_bounds(len(audio), rate_hz, crop_s=rule.crop_s, tail=rule.tail, min_tail_s=rule.min_tail_s)
        return [
            Decoded(
                Clip(
                    clip_id=sample.key if rule.crop_s is None else f"{sample.key}#{index:04d}",
                    key=sample.key,
                    crop=index,
                    start_s=start / rate_hz,
                    duration_s=(end - start) / rate_hz,
                    label=sample.label,
                ),
                audio[start:end],
            )
            for index, (start, end) in enumerate(bounds)
        ]
