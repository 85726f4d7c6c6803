"""The folder of an import: who works in it, what is written already, and whether it is finished.

While an import runs, ``.import`` inside the folder holds the plan's digest and, for every committed shard, what its files
hold. When it is done, ``import.json`` says what was made, and ``.import`` is gone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import filelock

from xares_store.errors import ConfigError, CorruptError, StoreError
from xares_store.fingerprint import canonical_json
from xares_store.importer.examine import Examined
from xares_store.store.files import TMP_PREFIX, atomic_write, read_small, seal, sync_file, sync_folder, unseal

WORK = ".import"
REPORT = "import.json"
_FACTS = "facts.json"
_PLAN = "plan.json"


class Working:
    """The folder of one import, claimed for this process.

    Args:
        folder: ``DATA/NAME``.
        task: ``DATA/NAME.toml``; a long vocabulary is beside it.
    """

    def __init__(self, folder: Path, task: Path) -> None:
        self.folder, self.task = folder, task
        self.vocabulary = task.with_name(f"{task.stem}-labels.txt")
        self.work = folder / WORK
        self._plan: dict[str, Any] = {}

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other imports out.

        Raises:
            ConfigError: another process imports into the folder, or it holds something else.
        """
        self._refuse_strange()
        lock = filelock.FileLock(self.work / "lock")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            (self.work / "lock").stat()  # what another process removed as it ended keeps nobody out
        except (filelock.Timeout, FileNotFoundError):
            lock.release()
            raise ConfigError(
                "Another process is importing into this folder.", where=self.folder, hint="Wait until it is done."
            ) from None
        try:
            for path in self.work.glob(f"{TMP_PREFIX}*"):
                path.unlink(missing_ok=True)
            yield
        finally:
            if not (self.work / _PLAN).exists():  # still claimed: nobody else's files are there
                shutil.rmtree(self.work, ignore_errors=True)
                self._remove_if_empty()
            lock.release()

    def _remove_if_empty(self) -> None:
        try:
            self.folder.rmdir()
        except OSError:
            return

    def _refuse_strange(self) -> None:
        """Refuse a folder or a task file that no import made."""
        ours = (self.work / _PLAN).is_file() or (self.folder / REPORT).is_file()
        if ours:
            return
        for path in (self.task, self.vocabulary):
            if path.exists():
                raise ConfigError(
                    "There is a file of this name that no import made.",
                    where=path,
                    hint="Choose another --name or --out, or remove it.",
                )
        if self.folder.exists() and (not self.folder.is_dir() or any(p.name != WORK for p in self.folder.iterdir())):
            raise ConfigError(
                "The folder for the shards holds files that no import made.",
                where=self.folder,
                hint="Choose another --name or --out, or remove them.",
            )

    def finished(self) -> dict[str, Any] | None:
        """Return what a finished import said, or None when there is none or a file of it is gone or damaged."""
        if not self.task.is_file():
            return None
        try:
            report = unseal(read_small(self.folder / REPORT), where=self.folder / REPORT)
            whole = all((self.folder / file).stat().st_size == size for file, size in report["files"].items())
        except (CorruptError, OSError, KeyError, AttributeError, TypeError):
            return None
        return report if whole else None

    def begin(self, digest: str, files: Sequence[str]) -> bool:
        """Go on with an import of the same digest, or begin anew.

        Returns:
            Whether something of another, unfinished import was thrown away.
        """
        try:
            found = unseal(read_small(self.work / _PLAN), where=self.work / _PLAN)
        except CorruptError:
            found = {}
        if found.get("digest") == digest:
            self._plan = found
            return False
        thrown = self.discard() and bool(found)
        self.work.mkdir(parents=True, exist_ok=True)
        self._write_plan({"digest": digest, "files": list(files), "joined": None})
        return thrown

    def discard(self) -> bool:
        """Remove the task file, then the shards that an import wrote; nothing else in the folder is touched."""
        files: set[str] = set()
        for path in (self.work / _PLAN, self.folder / REPORT):
            try:
                files |= set(unseal(read_small(path), where=path)["files"])
            except (CorruptError, KeyError, TypeError):
                continue
        there = [self.folder / file for file in files if file == Path(file).name and file.endswith(".tar")]
        there = [path for path in there if path.is_file()]
        # The lists of files go last: whatever moment this is cut at, what is left is known to be an import's.
        notes = [path for path in self.work.glob("*.json") if path.name != _PLAN]
        for path in (self.task, self.vocabulary, *there, *notes, self.folder / REPORT, self.work / _PLAN):
            path.unlink(missing_ok=True)
        return bool(there)

    @property
    def joined(self) -> list[list[str]] | None:
        """Keys of clips with the same audio that were brought into one split; None in the first round."""
        joined = self._plan.get("joined")
        return joined if isinstance(joined, list) else None

    def join(self, joined: list[list[str]], facts: dict[str, Examined], files: Sequence[str]) -> None:
        """Begin the second round: the shards change, what is known of the files stays."""
        atomic_write(self.work / _FACTS, seal({"clips": _pack(facts)}))
        both = list(dict.fromkeys([*self._plan["files"], *files]))
        self._write_plan({**self._plan, "joined": joined, "files": both})

    def known(self) -> dict[str, Examined]:
        """Return what the first round found out; empty in the first round."""
        if self.joined is None:
            return {}
        path = self.work / _FACTS
        return _unpack(unseal(read_small(path, limit=1 << 32), where=path)["clips"])

    def committed(self, file: str) -> dict[str, Examined] | None:
        """Return what the files of a committed shard hold, or None when it is not there."""
        try:
            found = unseal(read_small(self._facts(file)), where=file)
            if (self.folder / file).stat().st_size != found["tar_bytes"]:
                return None
        except (CorruptError, OSError):
            return None
        return _unpack(found["clips"])

    def commit(self, file: str, temporary: Path, clips: dict[str, Examined]) -> None:
        """Put a shard in its place: the file first, then the note that says so."""
        sync_file(temporary)
        size = temporary.stat().st_size
        temporary.replace(self.folder / file)
        sync_folder(self.folder)
        atomic_write(self._facts(file), seal({"tar_bytes": size, "clips": _pack(clips)}))

    def finish(self, report: dict[str, Any], keep: Sequence[str], labels: Sequence[str], task_text: str) -> None:
        """Write what was made, then the task file; remove shards that are no part of it, and the notes.

        Args:
            report: what was made.
            keep: the shards of the task.
            labels: class names for a file of their own; none when the task file holds them.
            task_text: the task file.
        """
        for file in set(self._plan["files"]) - set(keep):
            (self.folder / file).unlink(missing_ok=True)
        self._place(self.folder / REPORT, seal(report))
        if labels:
            self._place(self.vocabulary, ("\n".join(labels) + "\n").encode())
        self._place(self.task, task_text.encode())
        (self.work / _PLAN).unlink()

    def _place(self, path: Path, data: bytes) -> None:
        """Write a file that stays; what a cut leaves of it lies in the folder that is removed at the end."""
        temporary = self.work / path.name
        atomic_write(temporary, data)
        temporary.replace(path)
        sync_folder(path.parent)

    def _facts(self, file: str) -> Path:
        return self.work / f"{'first' if self.joined is None else 'second'}-{file}.json"

    def _write_plan(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        atomic_write(self.work / _PLAN, seal(plan))


def _pack(clips: Mapping[str, Examined]) -> str:
    """Return facts as one text: JSON inside JSON, because laying every value out on a line of its own takes longer."""
    return canonical_json([[key, *astuple(value)] for key, value in clips.items()])


def _unpack(text: str) -> dict[str, Examined]:
    return {key: Examined(*values) for key, *values in json.loads(text)}


def refuse_small_disk(folder: Path, needed: int) -> None:
    """Refuse to begin what will not fit.

    Raises:
        StoreError: less space than needed.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StoreError(
            f"The shards need about {needed / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are free. Nothing was written.",
            where=folder,
            hint="Free some space or choose another folder with --out.",
        )
