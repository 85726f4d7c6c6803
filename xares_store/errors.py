"""The exceptions of xares-store.

::

    XaresError
    ├── ConfigError    (ValueError)       an option or environment variable that cannot be used
    ├── TaskError      (ValueError)       a task file that does not validate
    │   └── TaskNotFoundError (LookupError)
    ├── LabelError     (ValueError)       a clip's label does not fit the task
    ├── ProtocolError  (ValueError)       splits or folds cannot be made as the protocol demands
    ├── AudioError     (ValueError)       one clip cannot be decoded
    ├── ShardError     (OSError)          a whole shard cannot be read
    ├── EncoderError   (RuntimeError)     an encoder cannot be loaded or breaks its contract
    ├── MetricError    (ValueError)       a metric is undefined for its input
    ├── ProbeError     (RuntimeError)     a probe cannot be trained or applied
    └── StoreError     (OSError)          a store cannot be read or written
        ├── StoreFormatError              written by a newer version, or not a store at all
        ├── CorruptError                  a checksum, size or count is wrong
        ├── ClashError                    the same identity with different content
        └── QueryError                    a SQL query that fails

Every message says what was wanted, what was found, where, and what to do next. Children also inherit the built-in
exception a caller would catch, so ``except ValueError`` works as expected. The command line turns any of them into one
message and a non-zero exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class XaresError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: what was wanted and what was found, as one or more sentences.
        where: file, key, shard or clip the message is about.
        hint: what to do next.

    Example:
        >>> str(XaresError("Expected 2 columns, found 3.", where="a.csv", hint="Remove one."))
        'Expected 2 columns, found 3.\\n  where: a.csv\\n  next:  Remove one.'
    """

    exit_code = 1

    def __init__(self, message: str, *, where: object = None, hint: str | None = None) -> None:
        self.message = message
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text += f"\n  where: {self.where}"
        if self.hint:
            text += f"\n  next:  {self.hint}"
        return text


class ConfigError(XaresError, ValueError):
    """An option or environment variable that cannot be used."""


class TaskError(XaresError, ValueError):
    """A task file that does not validate."""


class TaskNotFoundError(TaskError, LookupError):
    """No task of that name or path."""


class LabelError(XaresError, ValueError):
    """A clip's label does not fit the task."""


class ProtocolError(XaresError, ValueError):
    """Splits or folds cannot be made as the protocol demands."""


class AudioError(XaresError, ValueError):
    """One clip cannot be decoded."""


class ShardError(XaresError, OSError):
    """A whole shard cannot be read."""


class EncoderError(XaresError, RuntimeError):
    """An encoder cannot be loaded or breaks its contract."""


class MetricError(XaresError, ValueError):
    """A metric is undefined for its input."""


class ProbeError(XaresError, RuntimeError):
    """A probe cannot be trained or applied."""


class StoreError(XaresError, OSError):
    """A store cannot be read or written."""


class StoreFormatError(StoreError):
    """Written by a newer version, or not a store at all."""


class CorruptError(StoreError):
    """A checksum, size or count is wrong."""


class ClashError(StoreError):
    """The same identity with different content."""


class QueryError(StoreError):
    """A SQL query that fails."""


def did_you_mean(wanted: str, known: Iterable[str], *, listing: str = "") -> str:
    """Suggest the nearest known name.

    Args:
        wanted: what the user wrote.
        known: the names that exist.
        listing: what to say instead when nothing is near, e.g. ``"`xares tasks ls` lists them."``.

    Returns:
        A sentence, possibly empty.

    Example:
        >>> did_you_mean("esc5O", ["esc50", "gtzan"])
        'Did you mean "esc50"?'
    """
    near = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.6)
    if not near:
        return listing
    return "Did you mean " + " or ".join(f'"{name}"' for name in near) + "?"
