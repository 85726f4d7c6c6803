"""Bytes that survive: atomic and synced writes, JSON that carries its own checksum, disk errors as sentences."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c

from xares_store.errors import CorruptError, StoreError

TMP_PREFIX = ".tmp-"
MAX_JSON_BYTES = 64 << 20
_STALE_S = 24 * 3600.0
_SEAL = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n\Z')
_SEAL_BYTES = len(b',\n "checksum": "' + b"0" * 64 + b'"\n}\n')

_SENTENCES = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EFBIG: "The file would be larger than this system allows",
    errno.EROFS: "The file system is read-only",
    errno.EACCES: "There is no permission to write",
    errno.EPERM: "There is no permission to write",
}


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn operating-system errors while writing below ``path`` into a :class:`StoreError` that a person can act on.

    Args:
        path: the file or folder being written.
        doing: what was being done, e.g. ``"writing part x"``.

    Raises:
        StoreError: names what failed, the free space, and that committed parts and runs are untouched.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        sentence = _SENTENCES.get(error.errno or 0, error.strerror or str(error))
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        free = _free(path) if full else None
        space = "" if free is None else f" {free / 1e6:,.0f} MB are free there."
        what = "Free some space" if full else "Make the folder writable"
        raise StoreError(
            f"{sentence} ({doing}).{space} Nothing that was committed before is touched.",
            where=path,
            hint=f"{what} or choose another one with --store, then run the same command again.",
        ) from error


def _free(path: Path) -> int | None:
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the platform can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open folders; its renames are journalled
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no folder fsync
            raise
    finally:
        os.close(handle)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a whole file so that readers see the old bytes or the new ones, never a part of them.

    The bytes are written under a temporary name, flushed to the disk, renamed, and the folder entry is flushed too.
    """
    temporary = path.with_name(temporary_name())
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """Write a whole file unless there is one already; of several writers at once exactly one wins.

    Returns:
        Whether this call wrote it.
    """
    temporary = path.with_name(temporary_name())
    try:
        atomic_write(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: the first to look is the first to write
            if path.exists():
                return False
            temporary.replace(path)
        sync_folder(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _owner() -> str:
    """Eight hex digits for this machine and process namespace; with the pid it tells whose a temporary folder is."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def temporary_name() -> str:
    """Return a fresh name that readers ignore and :func:`is_leftover` can judge."""
    return f"{TMP_PREFIX}{_owner()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def is_leftover(path: Path) -> bool:
    """Tell whether a temporary file or folder was left behind by a process that is gone.

    Files of another machine count as left behind after a day without change.
    """
    name = path.name
    if not name.startswith(TMP_PREFIX):
        return False
    fields = name[len(TMP_PREFIX) :].split("-")
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        return False
    if len(fields) == 3 and fields[0] == _owner() and fields[1].isdigit():
        try:
            os.kill(int(fields[1]), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
    return age_s > _STALE_S


def seal(record: dict[str, Any]) -> bytes:
    """Serialise a JSON object with a last key ``checksum``: the SHA-256 of all bytes before it.

    Any changed byte is found by :func:`unseal`, white space included.

    Example:
        >>> unseal(seal({"a": 1}), where="x.json")
        {'a': 1}
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    body = text.encode("utf-8")[: -len(b"\n}")]
    digest = hashlib.sha256(body).hexdigest()
    return body + f',\n "checksum": "{digest}"\n}}\n'.encode()


def unseal(data: bytes, *, where: object) -> dict[str, Any]:
    """Check and parse what :func:`seal` wrote.

    Raises:
        CorruptError: the bytes do not match their checksum, or are not a JSON object.
    """
    match = _SEAL.search(data[-_SEAL_BYTES:])
    if match is None or hashlib.sha256(data[:-_SEAL_BYTES]).hexdigest().encode() != match.group(1):
        raise CorruptError("The file does not match its own checksum: it is damaged or was edited.", where=where)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:  # a seal can be put on anything
        raise CorruptError(f"Expected JSON, found something else ({error}).", where=where) from error
    if not isinstance(record, dict):
        raise CorruptError("Expected a JSON object.", where=where)
    record.pop("checksum")
    return record


def read_small(path: Path, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a whole small file, refusing one that is larger than ``limit`` bytes before reading it.

    Raises:
        CorruptError: missing, unreadable or too large.
    """
    try:
        _refuse_special(path)
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > limit:
                raise CorruptError(f"Expected at most {limit:,} bytes, found {size:,}.", where=path)
            return stream.read(limit + 1)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise CorruptError(f"The file cannot be read ({error.strerror or error}).", where=path) from error


def crc32c_file(path: Path) -> int:
    """Return the CRC-32C of a file's bytes, read in blocks (about 10 GB/s from memory)."""
    crc = 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(1 << 20):
            crc = google_crc32c.extend(crc, block)
    return crc


def _refuse_special(path: Path) -> None:
    """Refuse pipes and devices: opening one of a stranger's store could wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def damage(path: Path, *, size: int, crc32c: int, deep: bool = True) -> str | None:
    """Say what is wrong with a file, or return None: its size first, then (unless not ``deep``) its CRC-32C."""
    try:
        _refuse_special(path)
        found = path.stat().st_size
        if found != size:
            return f"Expected {size:,} bytes, found {found:,}."
        if deep and crc32c_file(path) != crc32c:
            return "The bytes do not match their checksum."
    except FileNotFoundError:
        return "The file is missing."
    except OSError as error:
        return f"The file cannot be read ({error.strerror or error})."
    return None
