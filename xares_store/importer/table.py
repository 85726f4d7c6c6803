"""What every source is read into: rows of values, each with one audio file, and where its bytes are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from xares_store.errors import AudioError, ConfigError

LISTED = 10  # of many problems so many are shown


class Blob(Protocol):
    """An encoded audio file, wherever it is.

    Attributes:
        nbytes: its size.
        stamp: changes when the source changed, without reading it.
    """

    @property
    def nbytes(self) -> int:
        """Size in bytes."""

    @property
    def stamp(self) -> str:
        """Text that changes with the content."""

    def read(self) -> bytes:
        """Return the whole file."""


@dataclass(frozen=True, slots=True)
class FileBlob:
    """A file on a disk."""

    path: Path
    nbytes: int
    mtime_ns: int

    @property
    def stamp(self) -> str:
        """Size and time of the last change."""
        return f"{self.nbytes}:{self.mtime_ns}"

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            AudioError: it cannot be read or is no longer as long as it was.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise AudioError(
                f"A file that was there can no longer be read: {error.strerror or error}.",
                where=self.path,
                hint="Put it back and run the same command again.",
            ) from error
        if len(data) != self.nbytes:
            raise AudioError(
                f"The file changed while it was imported: {self.nbytes:,} bytes at first, now {len(data):,}.",
                where=self.path,
                hint="Run the same command again when nothing writes there any more.",
            )
        return data


@dataclass(slots=True)
class Row:
    """One line of a source.

    Attributes:
        where: what messages call it, e.g. ``line 12``.
        values: by column.
        blob: the audio, when the source itself knows where it is.
    """

    where: str
    values: dict[str, Any]
    blob: Blob | None = None


@dataclass
class Table:
    """A source as rows.

    Attributes:
        source: the folder or file.
        origin: ``folder``, ``manifest`` or ``dataset``.
        columns: names of the columns, in their order.
        rows: the lines.
        class_names: labels in class order, of columns that declare them.
        notes: what a person should know.
    """

    source: Path
    origin: str
    columns: tuple[str, ...]
    rows: list[Row]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def printable(text: str) -> str:
    r"""Return text that UTF-8 can hold: bytes of a file name that are no text, and half characters, are written out.

    Example:
        >>> printable("caf\udce9.wav"), printable("\ud800")
        ('caf\\xe9.wav', '\\ud800')
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it; what is not finite becomes null, what has no JSON form its text.

    Example:
        >>> plain({"a": (1, float("nan"))})
        {'a': [1, None]}
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)


def some(items: Sequence[str], *, most: int = LISTED) -> str:
    """Return the first items and how many more there are.

    Example:
        >>> some(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def lines(items: Sequence[str], *, most: int = LISTED) -> str:
    """Return the first items, one a line, and how many more there are."""
    rest = [f"    and {len(items) - most} more"] if len(items) > most else []
    return "\n".join([*(f"    {item}" for item in items[:most]), *rest])


def refuse_empty(table: Table) -> None:
    """Refuse a source without audio.

    Raises:
        ConfigError: there are no rows.
    """
    if not table.rows:
        raise ConfigError("The source holds no audio file.", where=table.source, hint="Is this the right one?")
