"""The process that decodes: reads tasks from a socket, answers with audio in anonymous shared memory.

It imports numpy, soundfile and soxr only, and is started with a fresh interpreter, so that it costs little and never runs
the caller's own program again. Messages are a fixed header and a short payload; audio travels as a file descriptor of
memory that the kernel frees with its last user, whoever dies first.
"""

from __future__ import annotations

import array
import errno
import json
import os
import select
import signal
import socket
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

from xares_store.audio.samples import FileRange
from xares_store.audio.waveform import DecodeError, Signal, decode, resample
from xares_store.errors import ShardError

# id, rate in Hz, offset, size, length of the payload. The payload is a path; without one the audio is in a descriptor.
TASK = struct.Struct("<qqqqI")
# id, samples, CPU time in ns, length of the payload. The payload is a problem as JSON; without one the audio follows.
REPLY = struct.Struct("<qqqI")
READY = -1
SHARD_PROBLEM = "shard"

_LOOK_UP_S = 2.0
_MAX_REASON = 2000


def prepare(data: bytes | bytearray, rate_hz: int) -> Signal:
    """Decode one recording and bring it to a rate: float32 ``(samples,)``, one channel.

    Raises:
        DecodeError: see `decode` and `resample`.
    """
    audio, from_hz = decode(data)
    try:
        return resample(audio, from_hz, rate_hz)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"The audio cannot be resampled from {from_hz} Hz: {error}", kind="undecodable") from error


def anonymous_file() -> int:
    """Return the descriptor of an empty file in memory (on disk where the system has no such thing) without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("xares-audio")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all bytes; one system call writes at most 2 GiB."""
    while data:
        data = data[os.write(descriptor, data) :]


def read_all(descriptor: int, target: memoryview) -> None:
    """Fill ``target`` with the file's first bytes; one system call reads at most 2 GiB."""
    offset = 0
    while offset < len(target) and (count := os.preadv(descriptor, [target[offset:]], offset)):
        offset += count


def send(sock: socket.socket, message: bytes, descriptor: int | None = None) -> None:
    """Send one message, with a file descriptor if given."""
    if descriptor is None:
        sock.sendall(message)
    else:
        rights = array.array("i", [descriptor])
        sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def receive(sock: socket.socket, header: struct.Struct) -> tuple[tuple[int, ...], bytes, int | None] | None:
    """Receive one message: header fields, payload and file descriptor. None when the other side is gone.

    Raises:
        BlockingIOError: nothing to receive now (only from a socket that does not block).
    """
    try:
        head, descriptors, _flags, _address = socket.recv_fds(sock, header.size, 1)
        fields = header.unpack(head + _rest(sock, header.size - len(head))) if head else None
        payload = _rest(sock, fields[-1]) if fields else b""
    except (ConnectionError, EOFError):
        return None
    if fields is None:
        return None
    return fields, payload, descriptors[0] if descriptors else None


def _rest(sock: socket.socket, size: int) -> bytes:
    """Receive exactly ``size`` bytes of a message that has begun to arrive."""
    data = b""
    while len(data) < size:
        try:
            block = sock.recv(size - len(data))
        except BlockingIOError:
            select.select([sock], [], [])
            continue
        if not block:
            raise EOFError
        data += block
    return data


def main(descriptor: int, parent: int) -> None:
    """Serve until the socket closes or the parent is gone.

    Args:
        descriptor: the worker's end of a connected Unix socket.
        parent: process id of the pool's owner.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pool's owner decides when to stop
    with socket.socket(fileno=descriptor) as sock:
        try:
            send(sock, REPLY.pack(READY, 0, 0, 0))
            while os.getppid() == parent:
                # The owner's end stays open when a forked child holds it, so the owner itself is looked up as well.
                if not select.select([sock], [], [], _LOOK_UP_S)[0]:
                    continue
                message = receive(sock, TASK)
                if message is None:
                    return
                _serve(sock, *message)
        except ConnectionError:
            return


def _serve(sock: socket.socket, task: tuple[int, ...], path: bytes, source: int | None) -> None:
    number, rate_hz, offset, size, _ = task
    start_ns = time.process_time_ns()
    problem, samples, target = b"", 0, None
    try:
        try:
            audio = np.ascontiguousarray(prepare(_load(path, source, offset, size), rate_hz))
            samples = len(audio)
            target = anonymous_file()
            write_all(target, audio.data.cast("B"))
        except DecodeError as error:
            problem = _problem(error.kind, error.message)
        except ShardError as error:
            problem = _problem(SHARD_PROBLEM, error.message)
        except MemoryError:
            problem = _problem("too-long", "There is not enough memory to decode the audio.")
        except Exception as error:  # whatever it is, it belongs to this sample and must not end the others
            problem = _problem("worker", f"Decoding failed: {type(error).__name__}: {error}")
        cpu_ns = time.process_time_ns() - start_ns
        reply = REPLY.pack(number, samples, cpu_ns, len(problem)) + problem
        _answer(sock, reply, None if problem else target)
    finally:
        for used in (source, target):
            if used is not None:
                os.close(used)


def _load(path: bytes, source: int | None, offset: int, size: int) -> bytes | bytearray:
    if source is None:
        return FileRange(Path(os.fsdecode(path)), offset, size).read()
    data = bytearray(size)
    read_all(source, memoryview(data))
    return data


def _problem(kind: str, reason: str) -> bytes:
    return json.dumps([kind, reason[:_MAX_REASON]]).encode()


def _answer(sock: socket.socket, reply: bytes, descriptor: int | None) -> None:
    while True:
        try:
            return send(sock, reply, descriptor)
        except OSError as error:
            # The system limits how many descriptors are on their way; the owner takes some out when it next looks.
            if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS):
                raise
            time.sleep(0.005)
