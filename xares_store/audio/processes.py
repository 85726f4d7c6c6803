"""The worker processes of a decode pool: started, given jobs, listened to, and replaced when they die."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from xares_store.audio.samples import FileRange, Sample
from xares_store.audio.waveform import Signal
from xares_store.audio.worker import (
    READY,
    REPLY,
    TASK,
    anonymous_file,
    read_all,
    receive,
    send,
    write_all,
)
from xares_store.errors import XaresError

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from xares_store.audio.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
# One thread each: the workers themselves are the parallelism, and thread pools cost start-up time and memory.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_QUEUE = 160  # jobs sent to one worker ahead; not many more fit into a socket's buffer
_ATTEMPTS = 3
_STARTS = 3
_KILLED_STARTS = 20  # somebody may end processes without looking whether they have begun
_STOP_S = 2.0
_RETRY_S = 0.02
_NO_ROOM = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no audio: the kind of a failure (or ``SHARD_PROBLEM``) and a sentence."""

    kind: str
    reason: str


@dataclass(slots=True)
class Account:
    """Bytes of decoded audio that wait to be taken, estimated as long as they are not known."""

    waiting_bytes: int = 0


@dataclass(eq=False, slots=True)
class Job:
    """One sample on its way through a worker."""

    sample: Sample
    rate_hz: int
    account: Account
    cost: int  # bytes entered in the account for it
    result: Signal | Problem | None = None
    number: int = 0
    attempts: int = 0

    def finish(self, result: Signal | Problem) -> None:
        """Keep the result and correct the account."""
        self.result = result
        self.charge(result.nbytes if isinstance(result, np.ndarray) else 0)

    def charge(self, cost: int) -> None:
        """Enter what the job really costs."""
        self.account.waiting_bytes += cost - self.cost
        self.cost = cost


@dataclass(eq=False, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    sock: socket.socket
    queue: deque[Job] = field(default_factory=deque)  # in the order the worker takes them
    queued_bytes: int = 0
    ready: bool = False


class Processes:
    """A fixed number of worker processes.

    Args:
        workers: how many, at least 1.
    """

    def __init__(self, workers: int) -> None:
        self.cpu_ns = 0
        self.encoded_bytes = self.decoded_bytes = 0
        self._numbers = count(1)
        self._unsent: deque[Job] = deque()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # decoders print; shown only when no worker can start
        for _ in range(workers):
            self._start()

    def close(self) -> None:
        """End the processes; what they are at is given up."""
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
        self._selector.close()
        self._log.close()

    @property
    def full(self) -> bool:
        """Whether jobs wait because all queues are full."""
        return bool(self._unsent)

    def submit(self, job: Job) -> None:
        """Give a job to the worker with the least to do, or keep it until one has room."""
        job.number = next(self._numbers)
        self._unsent.append(job)
        self._send_out()

    def collect(self, *, wait: bool) -> None:
        """Take in results and hand out jobs that waited; with ``wait`` stay until something happens.

        Raises:
            XaresError: workers die while starting, or no more files can be opened.
        """
        timeout = (_RETRY_S if self._unsent else None) if wait else 0.0
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
        self._send_out()

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [
                str(theirs.fileno()),
                str(os.getpid()),
                json.dumps([str(Path(entry).absolute()) for entry in sys.path]),
            ]
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
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _send_out(self) -> None:
        while self._unsent:
            worker = min(self._workers, key=lambda each: (len(each.queue) >= _QUEUE, each.queued_bytes))
            if len(worker.queue) >= _QUEUE or not self._send(worker, self._unsent[0]):
                return
            self._unsent.popleft()

    def _send(self, worker: _Worker, job: Job) -> bool:
        audio = job.sample.audio
        source = None
        try:
            if isinstance(audio, FileRange):
                path = os.fsencode(audio.path.absolute())  # the owner may change its folder
                head = TASK.pack(job.number, job.rate_hz, audio.offset, audio.size, len(path)) + path
            else:
                source = anonymous_file()
                write_all(source, memoryview(audio))
                head = TASK.pack(job.number, job.rate_hz, 0, len(audio), 0)
            send(worker.sock, head, source)
        except ConnectionError:
            pass  # the worker is gone: the job joins its queue, and moves on when the loss is noticed
        except OSError as error:
            if error.errno in _NO_ROOM:
                return False
            raise XaresError(
                f"A job cannot be given to a decode worker: {error.strerror}.",
                hint="Raise the limit of open files with: ulimit -n 4096",
            ) from error
        finally:
            if source is not None:
                os.close(source)
        worker.queue.append(job)
        worker.queued_bytes += job.sample.nbytes
        return True

    def _accept(self, worker: _Worker, reply: tuple[int, ...], problem: bytes, descriptor: int | None) -> None:
        number, samples, cpu_ns, _ = reply
        if number == READY:
            worker.ready = True
            self._failed_starts = 0
            return
        job = worker.queue.popleft()
        assert job.number == number
        worker.queued_bytes -= job.sample.nbytes
        self.cpu_ns += cpu_ns
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
            self.encoded_bytes += job.sample.nbytes
            self.decoded_bytes += audio.nbytes
            job.finish(audio)
            return
        job.finish(Problem(*json.loads(problem)))

    def _replace(self, worker: _Worker) -> None:
        """Put a new process in the place of one that died; the sample it was at is tried again."""
        self._selector.unregister(worker.sock)
        worker.sock.close()
        self._workers.remove(worker)
        try:
            code = worker.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        self._failed_starts += not worker.ready
        if self._failed_starts >= (_STARTS if code >= 0 else _KILLED_STARTS):
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
                suspect.finish(Problem("worker", f"{_ATTEMPTS} decode workers died at this sample ({how})."))
        fresh = self._start()
        # The suspect is first at a fresh worker, so that it is known which sample ends that one.
        while left and self._send(fresh, left[0]):
            left.popleft()
        self._unsent.extendleft(reversed(left))

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-2000:].strip()
