"""Download one file so that a cut, a crash or a wrong byte never shows under its name.

Bytes go to a hidden file beside the final one, and what the server said about them (ETag, date) to a small JSON file, so
that the next attempt, in this process or a later one, goes on behind them. The name appears when size and checksum are
right.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path

from xares_store.errors import ShardError
from xares_store.fetch.access import refusal
from xares_store.fetch.http import RefusedError, RetryError, Web
from xares_store.fetch.remote import RemoteFile, checksum_of, spoken

ATTEMPTS = 8  # in a row without a new byte
RESTARTS = 8  # from the first byte, because the server cannot go on or has other bytes now
CONNECTIONS = 1000  # for one file, however little each of them brings
_BLOCK_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class DiskError(Exception):
    """The disk refused bytes; no other file would fare better."""


class ForbiddenError(ShardError):
    """A data set may not be read; no other file of it would fare better."""


class _WrongError(Exception):
    """The server sends something else than what was published."""


def partial_path(path: Path) -> Path:
    """Return the hidden file beside ``path`` that holds its bytes until they are complete.

    Example:
        >>> partial_path(Path("data/esc50/a.tar")).name
        '.a.tar.part'
    """
    return path.with_name(f".{path.name}.part")


def kept_bytes(path: Path, file: RemoteFile) -> int:
    """Return how many bytes of an interrupted download can be gone on from."""
    try:
        size = partial_path(path).stat().st_size
    except OSError:
        return 0
    return size if size <= file.size and (size == file.size or _recall(path, file) is not None) else 0


def discard_partial(path: Path) -> None:
    """Remove what an interrupted download left."""
    _note_path(path).unlink(missing_ok=True)
    partial_path(path).unlink(missing_ok=True)


def download(web: Web, file: RemoteFile, path: Path, advance: Callable[[int], None]) -> None:
    """Download one file to ``path``, going on where an earlier attempt stopped.

    Args:
        web: opens the connections.
        file: what to download; the bytes must have its size and checksum.
        path: where it appears, complete or not at all. A file that is there is replaced in one step.
        advance: called with the number of new bytes, negative when bytes are thrown away.

    Raises:
        ShardError: it cannot be downloaded; what arrived is kept for the next attempt unless its checksum
            is wrong.
        ForbiddenError: the data set may not be read.
        DiskError: the disk refused bytes; what was written is kept.
        CancelledError: the download was interrupted; what arrived is kept.
    """
    for last in (False, True):  # wrong bytes are thrown away and fetched once more
        try:
            _Transfer(web, file, path, advance).run()
            with _disk(path):
                found = checksum_of(partial_path(path), file.checksum, web.check)
            if found != file.checksum:
                raise _WrongError(f"wanted {spoken(file.checksum)}, found {spoken(found)}")
            with _disk(path):
                _publish(path)
            return
        except _WrongError as error:
            advance(-_size(partial_path(path)))
            with _disk(path):
                discard_partial(path)
            if last:
                raise ShardError(
                    f"The bytes of {file.name} are not the published ones, twice in a row: {error}. They were removed.",
                    where=file.url,
                    hint=f"Try again later or from another server ({'--hf-mirror' if file.page else '--mirror'} URL).",
                ) from error
        except RefusedError as error:
            by_hand = f"Download it by other means and put it at {path}."
            if not file.page:
                raise ShardError(f"{file.name} cannot be downloaded: {error}.", where=file.url, hint=by_hand) from error
            fact, hint = refusal(error, file.page)
            kind = ForbiddenError if error.status in (401, 403) else ShardError
            raise kind(f"{file.name}: {fact} ({error}).", where=file.url, hint=f"{hint} Or: {by_hand}") from error


class _Transfer:
    """Attempts, one after the other, until the partial file has all its bytes."""

    def __init__(self, web: Web, file: RemoteFile, path: Path, advance: Callable[[int], None]) -> None:
        self.web, self.file, self.path, self.advance = web, file, path, advance
        self.partial = partial_path(path)
        self.restarts = 0

    def run(self) -> None:
        """Make attempts, fewer the less they bring."""
        file, failures = self.file, 0
        if kept_bytes(self.path, file) == 0:  # of another version, or of unknown origin
            with _disk(self.path):
                discard_partial(self.path)
        for _ in range(CONNECTIONS):
            before = _size(self.partial)
            if before == file.size and self.partial.is_file():
                return
            self.web.check()
            try:
                self._attempt(before)
            except RetryError as error:
                reached = _size(self.partial)
                failures = 0 if reached > before else failures + 1
                if failures >= ATTEMPTS or self.restarts > RESTARTS:
                    what = f"{failures} attempts in a row brought nothing new"
                    if failures < ATTEMPTS:
                        what = f"the server made the download start over {self.restarts} times"
                    raise ShardError(
                        f"{file.name} did not arrive: {what} ({error}). {reached:,} of {file.size:,} bytes are kept.",
                        where=file.url,
                        hint="Run the same command again later; it goes on where it stopped.",
                    ) from error
                self.web.back_off(failures, error.after_s)
        raise ShardError(
            f"{file.name} did not arrive over {CONNECTIONS} connections; "
            f"{_size(self.partial):,} of {file.size:,} bytes are kept.",
            where=file.url,
            hint="Run the same command again on a better connection; it goes on where it stopped.",
        )

    def _attempt(self, offset: int) -> None:
        """Ask once for the bytes after ``offset`` and keep those that come.

        Raises:
            RetryError: fewer came than are missing.
            _WrongError: the server has another file there.
        """
        note = _recall(self.path, self.file) or {}
        headers: dict[str, str] = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator := _validator(note):
                headers["If-Range"] = validator
        with self.web.get(self.file.url, headers) as response:
            if response.status == 416 or (
                response.status == 206 and not _continues(response, offset, note, self.file.size)
            ):
                self._start_over(offset)
                raise RetryError(f"the server could not go on at byte {offset:,}")
            if response.status == 200:
                _refuse_length(response, self.file)
                if offset:
                    self._start_over(offset)
                offset = 0
                with _disk(self.path):
                    _begin(self.path, self.file, response.headers)
            while offset < self.file.size:
                self.web.check()
                block = response.read1(min(_BLOCK_BYTES, self.file.size - offset))
                if not block:
                    raise RetryError(f"the connection was cut after {offset:,} of {self.file.size:,} bytes")
                with _disk(self.path):
                    _append(self.partial, block)
                offset += len(block)
                self.advance(len(block))

    def _start_over(self, offset: int) -> None:
        self.restarts += 1
        self.advance(-offset)
        with _disk(self.path):
            discard_partial(self.path)


def _continues(response: HTTPResponse, offset: int, note: dict[str, str], size: int) -> bool:
    """Tell whether a partial answer is of the same file and begins where the kept bytes end."""
    if not offset:
        return False
    found = _CONTENT_RANGE.fullmatch((response.headers.get("Content-Range") or "").strip())
    if found is None or int(found[1]) != offset or found[3] not in ("*", str(size)):
        return False
    etag = response.headers.get("ETag")  # a server that does not know If-Range sends a part of whatever it has now
    return etag is None or "etag" not in note or etag == note["etag"]


def _refuse_length(response: HTTPResponse, file: RemoteFile) -> None:
    length = response.headers.get("Content-Length")
    if length is not None and length.strip() != str(file.size):
        raise _WrongError(f"wanted {file.size:,} bytes, the server offers {length}")


def _begin(path: Path, file: RemoteFile, headers: HTTPMessage) -> None:
    """Empty the partial file and remember what the server says about the bytes that follow."""
    note = {"checksum": file.checksum, "size": str(file.size)}
    for key, header in (("etag", "ETag"), ("last_modified", "Last-Modified")):
        value = headers.get(header)
        if value is not None and value.isprintable() and value.isascii():
            note[key] = value
    partial_path(path).write_bytes(b"")
    _note_path(path).write_text(json.dumps(note))


def _append(partial: Path, block: bytes) -> None:
    with partial.open("ab", buffering=0) as stream:
        view = memoryview(block)
        while view:
            view = view[stream.write(view) or 0 :]


def _recall(path: Path, file: RemoteFile) -> dict[str, str] | None:
    """Read the note beside a partial file; None when it is of other bytes or cannot be read."""
    try:
        note = json.loads(_note_path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(note, dict) or not all(isinstance(value, str) for value in note.values()):
        return None
    return note if (note.get("checksum"), note.get("size")) == (file.checksum, str(file.size)) else None


def _validator(note: dict[str, str]) -> str | None:
    """Return what If-Range may hold: a strong ETag, or else the date."""
    etag = note.get("etag", "")
    value = etag if etag and not etag.startswith("W/") else note.get("last_modified")
    return value if value and value.isprintable() and value.isascii() else None


def _publish(path: Path) -> None:
    partial = partial_path(path)
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    _note_path(path).unlink(missing_ok=True)
    partial.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no folder fsync
                raise
        finally:
            os.close(folder)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Tell the disk's failures from those of the connection."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{error.strerror or error} (writing {path})") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _note_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part.json")
