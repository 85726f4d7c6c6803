"""What a fetch finds and does, file by file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from xares_store.fetch.pins import Pin
from xares_store.fetch.remote import RemoteFile


@dataclass
class FileState:
    """One file of a task.

    Attributes:
        task: name of the task.
        remote: what the server says of it.
        path: where it belongs.
        state: ``"there"``, ``"missing"``, ``"partial"`` or ``"wrong"`` before a download; ``"downloaded"`` or
            ``"failed"`` after it.
        kept: bytes of an interrupted download that need not be downloaded again.
        also: names of other tasks that read the same file.
    """

    task: str
    remote: RemoteFile
    path: Path
    state: str
    kept: int = 0
    also: list[str] = field(default_factory=list)

    @property
    def to_download(self) -> int:
        """Bytes that have yet to come."""
        return self.remote.size - self.kept if self.state in ("missing", "partial") else 0

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks that read the file."""
        return [self.task, *self.also]


@dataclass
class FetchReport:
    """What was found and done.

    Attributes:
        files: every file of every task whose list of files could be read, once.
        complete: tasks without a list of files (no source, or offline) whose shards are all there.
        skipped: task and message, for private tasks of a suite whose shards are not there.
        problems: task and message, for everything that is not in order.
        unanswered: tasks whose lists of files nobody could be asked for, by why; each is in ``problems``, ``skipped``
            or ``complete`` too.
        pins: commits of data sets on the hub by folder and source, to be remembered there when a download begins.
        endpoint: address that stands for the Hugging Face hub.
    """

    files: list[FileState] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unanswered: dict[str, list[str]] = field(default_factory=dict)
    pins: dict[Path, dict[str, Pin]] = field(default_factory=dict)
    endpoint: str | None = None

    @property
    def ok(self) -> bool:
        """Whether all shards of all tasks are there, or, before a download, whether nothing stands in its way.

        A private task that came with a suite and was skipped does not count.
        """
        return not self.problems

    @property
    def to_download(self) -> int:
        """Bytes that have yet to come."""
        return sum(file.to_download for file in self.files)
