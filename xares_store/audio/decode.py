"""Decoding in parallel: worker processes turn samples into clips at the encoder's rate, in order and ahead of need."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO

import numpy as np

from xares_store.audio.samples import FileRange, Sample
from xares_store.audio.waveform import CropRule, DecodeError, Signal, crop_bounds
from xares_store.audio.worker import (
    READY,
    REPLY,
    SHARD_PROBLEM,
    TASK,
    anonymous_file,
    prepare,
    read_all,
    receive,
    send,
    write_all,
)
from xares_store.clip import Clip, Failure
from xares_store.errors import ConfigError, ShardError, XaresError

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from xares_store.audio.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
# One thread each: the workers themselves are the parallelism, and thread pools cost start-up time and memory.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_QUEUE = 160  # tasks sent to one worker ahead; more do not fit into a socket's buffer
_ATTEMPTS = 2
_STARTS = 3
_EXPANSION = 12.0  # decoded over encoded bytes, until there is a measured value
_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class Decoded:
    """A clip and its audio.

    Attributes:
        clip: what the store keeps about it.
        audio: float32 ``(samples,)``, one channel at the wanted rate.
    """

    clip: Clip
    audio: Signal


@dataclass(eq=False, slots=True)
class _Ticket:
    """One sample on its way."""

    number: int
    item: Sample | Failure
    rate_hz: int
    owner: weakref.ref[_Stream]
    cost: int = 0  # bytes of decoded audio, estimated until known
    attempts: int = 0
    result: Signal | Failure | ShardError | None = None

    def finish(self, result: Signal | Failure | ShardError) -> None:
        self.result = result
        stream = self.owner()
        if stream is not None:
            size = result.nbytes if isinstance(result, np.ndarray) else 0
            stream.waiting_bytes += size - self.cost
            self.cost = size


@dataclass(eq=False, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    sock: socket.socket
    queue: deque[_Ticket] = field(default_factory=deque)  # in the order the worker takes them
    queued_bytes: int = 0
    ready: bool = False


class DecodePool:
    """Decodes samples in worker processes; results come in order.

    A worker that dies (a decoder crash, ``kill``) is replaced and its sample tried once more; a sample that ends a second
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
        self._workers: list[_Worker] = []
        self._streams: list[weakref.ref[_Stream]] = []
        self._unsent: deque[_Ticket] = deque()
        self._numbers = 0
        self._encoded_bytes, self._decoded_bytes = 0, 0
        self._selector: selectors.BaseSelector | None = None
        self._log: IO[bytes] | None = None
        self._cpu_ns = 0
        self._failed_starts = 0

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds spent reading, decoding and resampling, summed over workers, without their start."""
        return self._cpu_ns / 1e9

    def __enter__(self) -> DecodePool:
        if self._selector is None:
            self._selector = selectors.DefaultSelector()
            self._log = tempfile.TemporaryFile()  # decoders print; shown only when a worker dies
            for _ in range(self._count):
                self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what is still being decoded is given up. Safe to call twice."""
        for worker in self._workers:
            worker.sock.close()
        end = time.monotonic() + _STOP_S
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()
        self._unsent.clear()
        if self._selector is not None:
            self._selector.close()
            self._selector = None
        if self._log is not None:
            self._log.close()
            self._log = None

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
        if self._selector is None:
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
        if self._selector is not None and self._count:
            self._collect(0.0)
            self._fill()

    # --- for streams ---------------------------------------------------------------------------------------------

    def _decode_here(self, ticket: _Ticket, sample: Sample) -> None:
        start_ns = time.thread_time_ns()
        try:
            data = sample.audio.read() if isinstance(sample.audio, FileRange) else sample.audio
            ticket.finish(prepare(data, ticket.rate_hz))
        except DecodeError as error:
            ticket.finish(self._failure(ticket, error.kind, error.message))
        self._cpu_ns += time.thread_time_ns() - start_ns

    def _wait_for(self, ticket: _Ticket) -> None:
        """Return once a ticket has its result."""
        if self._selector is None:
            raise ConfigError("The pool was closed before all results were taken.")
        while ticket.result is None:
            self._collect(None)
            self._fill()

    # --- workers -------------------------------------------------------------------------------------------------

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps([str(entry) for entry in sys.path])]
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,  # Ctrl-C in a terminal goes to the owner alone
            )
        ours.setblocking(False)
        worker = _Worker(process, ours)
        self._workers.append(worker)
        assert self._selector is not None
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _fill(self) -> None:
        """Send work out while there is room ahead."""
        while self._unsent and self._dispatch(self._unsent[0]):
            self._unsent.popleft()
        streams = [stream for ref in self._streams if (stream := ref()) is not None and not stream.finished]
        if len(streams) < len(self._streams):
            self._streams = [weakref.ref(stream) for stream in streams]
        for stream in streams:
            while not self._unsent and self._room(streams) and (ticket := stream.draw()) is not None:
                self._submit(ticket)

    def _room(self, streams: list[_Stream]) -> bool:
        return (
            sum(len(stream.tickets) for stream in streams) < self._lookahead
            and sum(stream.waiting_bytes for stream in streams) < self._lookahead_bytes
        )

    def _submit(self, ticket: _Ticket) -> None:
        """Send a ticket out, or keep it for later when all queues are full."""
        if ticket.result is None and not self._dispatch(ticket):
            self._unsent.append(ticket)

    def _estimate(self, sample: Sample) -> int:
        ratio = self._decoded_bytes / self._encoded_bytes if self._encoded_bytes else _EXPANSION
        return int(sample.nbytes * ratio)

    def _dispatch(self, ticket: _Ticket) -> bool:
        worker = min(self._workers, key=lambda each: (len(each.queue) >= _QUEUE, each.queued_bytes))
        return len(worker.queue) < _QUEUE and self._send(worker, ticket)

    def _send(self, worker: _Worker, ticket: _Ticket) -> bool:
        assert isinstance(ticket.item, Sample)
        audio = ticket.item.audio
        source = None
        try:
            if isinstance(audio, FileRange):
                path = os.fsencode(audio.path)
                head = TASK.pack(ticket.number, ticket.rate_hz, audio.offset, audio.size, len(path)) + path
            else:
                source = anonymous_file()
                write_all(source, memoryview(audio))
                head = TASK.pack(ticket.number, ticket.rate_hz, 0, len(audio), 0)
            send(worker.sock, head, source)
        except BlockingIOError:
            return False
        except ConnectionError:
            pass  # the worker is gone: the ticket joins its queue, and moves on when the loss is noticed
        finally:
            if source is not None:
                os.close(source)
        worker.queue.append(ticket)
        worker.queued_bytes += ticket.item.nbytes
        return True

    def _collect(self, timeout: float | None) -> None:
        """Take in results; with ``timeout=None`` wait for at least one."""
        assert self._selector is not None
        for key, _ in self._selector.select(timeout):
            worker: _Worker = key.data
            while True:
                try:
                    message = receive(worker.sock, REPLY)
                except BlockingIOError:
                    break
                if message is None:
                    self._replace(worker)
                    break
                self._accept(worker, *message)

    def _accept(self, worker: _Worker, reply: tuple[int, ...], problem: bytes, descriptor: int | None) -> None:
        number, samples, cpu_ns, _ = reply
        if number == READY:
            worker.ready = True
            self._failed_starts = 0
            return
        ticket = worker.queue.popleft()
        assert ticket.number == number
        assert isinstance(ticket.item, Sample)
        worker.queued_bytes -= ticket.item.nbytes
        self._cpu_ns += cpu_ns
        if not problem:
            if descriptor is None:
                raise XaresError(
                    "Too many files are open to receive decoded audio.", hint="Raise the limit with: ulimit -n 4096"
                )
            try:
                # Copied, because a mapping keeps its descriptor open and a process may not have many of them.
                audio: Signal = np.empty(samples, dtype=np.float32)
                read_all(descriptor, audio.data.cast("B"))
            finally:
                os.close(descriptor)
            self._encoded_bytes += ticket.item.nbytes
            self._decoded_bytes += audio.nbytes
            ticket.finish(audio)
            return
        kind, reason = json.loads(problem)
        if kind == SHARD_PROBLEM:
            where = ticket.item.audio.path if isinstance(ticket.item.audio, FileRange) else None
            ticket.finish(ShardError(reason, where=where))
        else:
            ticket.finish(self._failure(ticket, kind, reason))

    def _replace(self, worker: _Worker) -> None:
        """Put a new process in the place of one that died; the sample it was at is tried once more."""
        assert self._selector is not None
        self._selector.unregister(worker.sock)
        worker.sock.close()
        self._workers.remove(worker)
        try:
            code = worker.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        self._failed_starts += not worker.ready
        if self._failed_starts >= _STARTS:
            raise XaresError(
                f"A decode worker ended with code {code} while starting. {self._last_words()}",
                hint="Check that the interpreter can import numpy, soundfile and soxr, or use --workers 0.",
            )
        left = worker.queue
        if left and worker.ready:
            suspect = left[0]
            suspect.attempts += 1
            if suspect.attempts >= _ATTEMPTS:
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                left.popleft()
                suspect.finish(self._failure(suspect, "worker", f"Two decode workers died at this sample ({how})."))
        fresh = self._start()
        while left and self._send(fresh, left[0]):
            left.popleft()
        self._unsent.extendleft(reversed(left))

    def _last_words(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-2000:].strip()

    @staticmethod
    def _failure(ticket: _Ticket, kind: str, reason: str) -> Failure:
        stream = ticket.owner()
        return Failure(ticket.item.key, stream.shard if stream is not None else "", kind, reason)


class _Stream:
    """The results of one map, in order."""

    def __init__(
        self, pool: DecodePool, samples: Iterator[Sample | Failure], shard: str, rate_hz: int, crop: CropRule
    ) -> None:
        self._pool, self._samples, self.shard, self._rate_hz, self._crop = pool, samples, shard, rate_hz, crop
        self._error: Exception | None = None
        self.tickets: deque[_Ticket] = deque()
        self.waiting_bytes = 0
        self.exhausted = False

    def __iter__(self) -> _Stream:
        return self

    def draw(self) -> _Ticket | None:
        """Take one sample from the source into the queue; None at its end."""
        if self.exhausted:
            return None
        try:
            item = next(self._samples, None)
        except Exception as error:  # raised again when all results before it are taken
            item, self._error = None, error
        if item is None:
            self.exhausted = True
            return None
        self._pool._numbers += 1
        ticket = _Ticket(self._pool._numbers, item, self._rate_hz, weakref.ref(self))
        self.tickets.append(ticket)
        if isinstance(item, Failure):
            ticket.finish(item)
        else:
            ticket.cost = self._pool._estimate(item)
            self.waiting_bytes += ticket.cost
        return ticket

    @property
    def finished(self) -> bool:
        """Whether all results were taken."""
        return self.exhausted and not self.tickets

    def __next__(self) -> list[Decoded] | Failure:
        if self._pool._count:
            self._pool.pump()
        if not self.tickets:
            ticket = self.draw()  # at least one, however full the lookahead is with other streams
            if ticket is None:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                raise StopIteration
            if self._pool._count:
                self._pool._submit(ticket)
        ticket = self.tickets[0]
        if ticket.result is None:
            if self._pool._count:
                self._pool._wait_for(ticket)
            else:
                assert isinstance(ticket.item, Sample)
                self._pool._decode_here(ticket, ticket.item)
        self.tickets.popleft()
        self.waiting_bytes -= ticket.cost
        result = ticket.result
        if isinstance(result, ShardError):
            raise result
        if isinstance(result, Failure):
            return result
        assert result is not None
        assert isinstance(ticket.item, Sample)
        return self._cut(ticket.item, result)

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
