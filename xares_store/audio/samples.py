"""What is inside an audio shard: samples of one audio file and one JSON file each.

A shard is a WebDataset tar: ``<key>.wav`` (or another audio suffix) and ``<key>.json`` for every key. Plain tar files are
indexed first, so that damage shows before any work is done and worker processes read the audio themselves. Compressed
ones are streamed.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from xares_store.clip import Failure
from xares_store.errors import ShardError

AUDIO_SUFFIXES = frozenset({"wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "au", "caf", "w64"})
# Audio that libsndfile does not read. Named so that such a sample is a failure and not an unknown file beside it.
_FOREIGN_SUFFIXES = frozenset({"m4a", "mp4", "aac", "wma", "amr", "webm", "sox", "sph", "ape", "mka"})

_GZIP_MAGIC = b"\x1f\x8b"
_READ_BYTES = 1 << 20
_MAX_JSON_BYTES = 16 << 20
_MAX_AUDIO_BYTES = 4 << 30
# A compressed shard cannot be read twice cheaply, so audio waits in memory for its JSON. This is how much may wait.
_MAX_WAITING_BYTES = 1 << 30
_END_BYTES = 2 * tarfile.BLOCKSIZE
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset keeps such names for notes about the shard
_AGAIN = "Download or write the shard again."


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes ``offset .. offset + size`` of the file ``path``."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            ShardError: the file is gone or has become shorter.
        """
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(self.offset)
                data = stream.read(self.size)
        except OSError as error:
            raise ShardError(f"The shard can no longer be read: {error.strerror}.", where=self.path) from error
        if len(data) < self.size:
            raise ShardError(
                f"The shard has become shorter: {self.size} bytes wanted at byte {self.offset}, {len(data)} there.",
                where=self.path,
            )
        return data


@dataclass(frozen=True, slots=True)
class Sample:
    """One recording and its label.

    Attributes:
        key: path inside the tar without the last suffix.
        ext: suffix of the audio file, lower case, without the dot.
        audio: the encoded audio, or where a worker finds it.
        label: the JSON object or list beside it, verbatim.
    """

    key: str
    ext: str
    audio: bytes | FileRange
    label: str

    @property
    def nbytes(self) -> int:
        """Size of the encoded audio in bytes."""
        return self.audio.size if isinstance(self.audio, FileRange) else len(self.audio)


def iter_samples(path: Path, *, shard: str | None = None) -> Iterator[Sample | Failure]:
    """Read the samples of one shard.

    Samples come in the order in which their second file appears; what lacks a file comes last. The same bytes always give
    the same sequence, and a ``.tar.gz`` the same as its ``.tar``.

    Args:
        path: a tar file, plain or compressed with gzip (recognised by its content).
        shard: name of the shard for failures; by default the file's name.

    Yields:
        A `Sample` for each key with audio and JSON (`FileRange` audio from plain tar files, else bytes), and a `Failure`
        of kind ``no-json``, ``bad-json`` or ``no-audio`` for each other key.

    Raises:
        ShardError: the file is not a tar, is cut short or corrupt, or holds a key twice. From a plain tar file before the
            first sample; from a compressed one when reading arrives there.
    """
    shard = path.name if shard is None else shard
    try:
        with path.open("rb") as file:
            if file.read(2) == _GZIP_MAGIC:
                yield from _unpacked(path, shard, file)
                return
            file.seek(0)
            samples = list(_Pairing(path, shard, file, in_memory=False).run())
    except OSError as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"The shard cannot be read: {error.strerror or error}.", where=path, hint=_AGAIN) from error
    yield from samples


def _unpacked(path: Path, shard: str, file: IO[bytes]) -> Iterator[Sample | Failure]:
    file.seek(0)
    with gzip.GzipFile(fileobj=file) as stream:
        try:
            yield from _Pairing(path, shard, cast(IO[bytes], stream), in_memory=True).run()
        except EOFError as error:
            raise _cut_short(path, file, "in compressed data") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            message = f"The compressed shard is corrupt before byte {file.tell()}: {error}."
            raise ShardError(message, where=path, hint=_AGAIN) from error


def _members(stream: IO[bytes], path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar; at each of them the stream stands where its data begins.

    ``tarfile`` takes a damaged or missing header for the end of the archive. Here only the two blocks of zeros at the end
    are an end, and nothing may follow them.
    """
    tape = _Tape(stream)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], tape), mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or the list of all members grows with the shard
                if member.issparse():
                    raise ShardError(
                        f'"{member.name}" is stored as a sparse file, which cannot be read.',
                        where=path,
                        hint="Write the shard without --sparse.",
                    )
                yield member
            end = tar.offset
        zeros, block = 0, tape.last if tape.last_at == end else b""
        while block := block or stream.read(_READ_BYTES):
            first = len(block) - len(block.lstrip(b"\0"))
            if first < len(block):
                at = end + zeros + first
                what = "a damaged header" if zeros + first < _END_BYTES else "data after the end of the archive"
                raise ShardError(f"The shard is corrupt: {what} at byte {at}.", where=path, hint=_AGAIN)
            zeros += len(block)
            block = b""
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if tape.last_at == 0 and len(tape.last) <= tarfile.BLOCKSIZE:
            found = "The file is empty" if not tape.last else "The file is not a tar archive"
            raise ShardError(f"{found} ({error}).", where=path, hint=_AGAIN) from error
        raise _cut_short(path, stream, str(error)) from error
    if zeros < _END_BYTES:
        raise _cut_short(path, stream, "without the two blocks of zeros that end an archive")


def _cut_short(path: Path, stream: IO[bytes], what: str) -> ShardError:
    at = stream.tell() if isinstance(stream, gzip.GzipFile) else path.stat().st_size
    return ShardError(f"The shard is cut short at byte {at} ({what}).", where=path, hint=_AGAIN)


class _Tape:
    """A stream that remembers what was read last, because a compressed one cannot go back cheaply."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell
        self.last, self.last_at = b"", 0

    def read(self, size: int = -1) -> bytes:
        self.last_at = self._stream.tell()
        self.last = self._stream.read(size)
        return self.last


@dataclass(slots=True)
class _Entry:
    """What is known of one key so far."""

    ext: str = ""
    audio: bytes | FileRange | None = None
    label: str | None = None
    problem: str | None = None  # what is wrong with the JSON
    note: str = ""  # a file of this key that cannot be used


class _Pairing:
    """Brings audio and JSON of a key together."""

    def __init__(self, path: Path, shard: str, stream: IO[bytes], *, in_memory: bool) -> None:
        self._path, self._shard, self._stream, self._in_memory = path, shard, stream, in_memory
        self._waiting: dict[str, _Entry] = {}
        self._waiting_bytes = 0
        self._done: dict[str, str] = {}  # key -> audio suffix

    def run(self) -> Iterator[Sample | Failure]:
        for member in _members(self._stream, self._path):
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            while name.startswith("./"):  # as `tar -C folder .` writes names
                name = name[2:]
            if member.isdir() or _META.match(name):
                continue
            key, dot, ext = name.rpartition(".")
            ext = ext.lower()
            if not dot or "/" in ext or not key or key.endswith("/"):
                continue
            if ext in _FOREIGN_SUFFIXES or (not member.isreg() and (ext == "json" or ext in AUDIO_SUFFIXES)):
                kind = "in a format that libsndfile cannot read" if member.isreg() else "a link or device, not a file"
                self._waiting.setdefault(key, _Entry()).note = f' "{name}" is {kind}.'
            elif ext == "json" or ext in AUDIO_SUFFIXES:
                found = self._add(key, ext, name, member)
                if found is not None:
                    yield found
        for key, entry in self._waiting.items():
            if key not in self._done:
                yield self._incomplete(key, entry)

    def _add(self, key: str, ext: str, name: str, member: tarfile.TarInfo) -> Sample | Failure | None:
        """Take in one file and return what became complete by it."""
        entry = self._waiting.setdefault(key, _Entry())
        if ext == "json":
            if key in self._done or entry.label is not None or entry.problem is not None:
                raise self._twice(key, f'"{name}" appears twice')
            entry.label, entry.problem = self._read_json(member)
        else:
            other = self._done.get(key, entry.ext)
            if other:
                how = f'"{name}" appears twice' if other == ext else f"it has two audio files, .{other} and .{ext}"
                raise self._twice(key, how)
            entry.ext = ext
            entry.audio = self._read_audio(name, member)
        if entry.audio is None or (entry.label is None and entry.problem is None):
            return None
        self._done[key] = entry.ext
        del self._waiting[key]
        if isinstance(entry.audio, bytes):
            self._waiting_bytes -= len(entry.audio)
        if entry.label is None:
            return Failure(key, self._shard, "bad-json", f'"{key}.json" {entry.problem}.')
        return Sample(key, entry.ext, entry.audio, entry.label)

    def _read_audio(self, name: str, member: tarfile.TarInfo) -> bytes | FileRange:
        if not self._in_memory:
            return FileRange(self._path, member.offset_data, member.size)
        if member.size > _MAX_AUDIO_BYTES:
            raise ShardError(
                f'"{name}" holds {member.size:,} bytes; at most {_MAX_AUDIO_BYTES:,} are read from a compressed shard.',
                where=self._path,
                hint="Unpack the shard with gunzip.",
            )
        self._waiting_bytes += member.size
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            raise ShardError(
                f"In {self._waiting_bytes:,} bytes of audio there is no JSON file of the same key.",
                where=self._path,
                hint="Write audio and JSON of a key next to each other, or unpack the shard with gunzip.",
            )
        return self._read(member)

    def _read_json(self, member: tarfile.TarInfo) -> tuple[str | None, str | None]:
        """Return the text, or what is wrong with it."""
        if member.size > _MAX_JSON_BYTES:
            return None, f"holds {member.size:,} bytes (at most {_MAX_JSON_BYTES:,})"
        try:
            text = self._read(member).decode("utf-8")
        except UnicodeDecodeError as error:
            return None, f"is not UTF-8 text (byte {error.start})"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return None, f"is not valid JSON ({error})"
        if not isinstance(value, dict | list):
            return None, f"holds a JSON {type(value).__name__}, not an object or a list"
        return text, None

    def _read(self, member: tarfile.TarInfo) -> bytes:
        self._stream.seek(member.offset_data)
        blocks, missing = [], member.size
        while missing and (block := self._stream.read(min(missing, _READ_BYTES))):
            blocks.append(block)
            missing -= len(block)
        if missing:
            raise _cut_short(self._path, self._stream, f'inside "{member.name}"')
        return b"".join(blocks)

    def _incomplete(self, key: str, entry: _Entry) -> Failure:
        if entry.audio is None:
            reason = f'There is no audio for the key "{key}".{entry.note}'
            return Failure(key, self._shard, "no-audio", reason)
        reason = f'There is no "{key}.json" beside "{key}.{entry.ext}".{entry.note}'
        return Failure(key, self._shard, "no-json", reason)

    def _twice(self, key: str, how: str) -> ShardError:
        return ShardError(
            f'The key "{key}" is not unique: {how}.', where=self._path, hint="Give every recording a key of its own."
        )
