"""Find out what tasks need, what of it is there, and from where the rest can be downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from xares_store.catalog import load_tasks, suites, task_names
from xares_store.errors import ConfigError, ShardError, XaresError
from xares_store.fetch.access import authorize, hub_is_off
from xares_store.fetch.api import UnreachableError
from xares_store.fetch.download import kept_bytes
from xares_store.fetch.http import Web
from xares_store.fetch.hub import Listing, hub_url, list_dataset
from xares_store.fetch.pins import Pin, read_pins
from xares_store.fetch.place import by_hand, choose, local_names, missing_names, safe_path, without_folders
from xares_store.fetch.remote import RemoteFile, checksum_of, spoken
from xares_store.fetch.report import FetchReport, FileState
from xares_store.fetch.zenodo import list_record, zenodo_url
from xares_store.task import Task

_LISTED = 8


def plan(
    tasks: Iterable[str | os.PathLike[str] | Task],
    *,
    data: str | Path,
    mirror: str | None = None,
    hf_mirror: str | None = None,
    verify: bool = False,
    replace: bool = False,
    offline: bool = False,
) -> FetchReport:
    """Find out what has to be downloaded; arguments as for ``fetch_task``. Writes nothing.

    Raises:
        TaskNotFoundError: there is no such task.
        ConfigError: an argument, ``HF_ENDPOINT`` or the token of the hub cannot be used.
    """
    specs = list(tasks)
    wanted = load_tasks(specs)
    if not wanted:
        raise ConfigError("No task was named.", where="TASK", hint="`xares tasks ls` lists the tasks that ship.")
    sources = _Sources(zenodo_url(mirror), hub_url(hf_mirror), offline=offline, replace=replace)
    report, named = FetchReport(endpoint=sources.hub), _named_alone(specs)
    for task in wanted:
        folder = Path(data) / task.folder
        try:
            found = sources.files(task, folder)
            _with_list(report, task, folder, found, verify=verify or found.mixed, replace=replace)
        except _NoListError as error:
            for cause in error.causes:
                report.unanswered.setdefault(cause, []).append(task.name)
            _without_list(report, task, folder, str(error), skip=task.private and task.name not in named)
        except ConfigError:
            raise
        except XaresError as error:
            report.problems.append((task.name, str(error)))
    return report


def _named_alone(specs: Sequence[str | os.PathLike[str] | Task]) -> set[str]:
    """Return the tasks that were asked for by themselves; those of a suite may be skipped."""
    groups = set(suites()) - set(task_names())
    return {task.name for task in load_tasks(s for s in specs if isinstance(s, Task) or os.fspath(s) not in groups)}


class _NoListError(Exception):
    """Nobody can be asked for the files of a task; the message says why.

    Attributes:
        causes: the servers that did not answer, and why.
    """

    def __init__(self, message: str, causes: Sequence[str] = ()) -> None:
        self.causes = causes
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class _Found:
    """The files that somebody publishes.

    Attributes:
        files: all of them.
        holder: who publishes them, as the beginning of a sentence.
        pins: commit by source, to be remembered; empty for a record, which never changes.
    """

    files: list[RemoteFile]
    holder: str
    pins: dict[str, Pin] = field(default_factory=dict)

    @property
    def mixed(self) -> bool:
        """Whether files of another commit may be there, so that equal sizes prove nothing."""
        return any(pin.mixed for pin in self.pins.values())


class _Sources:
    """Lists of files, each asked for once, from whoever has them and answers."""

    def __init__(self, zenodo: str, hub: str, *, offline: bool, replace: bool) -> None:
        self.hub = hub
        self._zenodo, self._replace = zenodo, replace
        self._web = Web()
        self._authorized = False
        self._records: dict[str, list[RemoteFile]] = {}
        self._datasets: dict[tuple[str, str | None, str | None], Listing] = {}
        # Why a source cannot be asked: by choice, or because it did not answer, which one attempt finds out for all.
        self._silent: dict[str, str] = dict.fromkeys(("zenodo", "hub"), "this is offline mode") if offline else {}
        if hub_is_off():
            self._silent.setdefault("hub", "HF_HUB_OFFLINE is set")
        self._unreachable: dict[str, UnreachableError] = {}

    def files(self, task: Task, folder: Path) -> _Found:
        """Return the files of a task's record or else of its data set.

        Raises:
            _NoListError: there is no source, or none can be reached.
            ShardError: the sources answer, and none of them has the files.
            ConfigError: the token of the hub cannot be used.
        """
        known: list[tuple[str, str, Callable[[], _Found]]] = []
        if task.data.zenodo:
            known.append(("zenodo", f"Zenodo record {task.data.zenodo}", partial(self._record, task.data.zenodo)))
        if task.data.hf:
            known.append(("hub", f"the data set {task.data.hf}", partial(self._dataset, task, task.data.hf, folder)))
        reasons, causes, errors = list[str](), list[str](), list[ShardError]()
        for name, what, ask in known:
            if name in self._silent:
                reasons.append(self._silent[name])
                continue
            try:
                if name not in self._unreachable:
                    return ask()
            except UnreachableError as error:
                self._unreachable[name] = error
            except ShardError as error:
                errors.append(error)
                continue
            away = self._unreachable[name]
            causes.append(away.cause)
            reasons.append(f"the list of files of {what} did not arrive, {away.server} gives no answer")
        if errors:
            raise errors[0] if len(errors) == 1 else ShardError("\n".join(map(str, errors)))
        if not known:
            reasons = [
                "the task is private" if task.private else "the task names neither a Zenodo record nor a data set"
            ]
        raise _NoListError("; ".join(dict.fromkeys(reasons)), causes)

    def _record(self, record: str) -> _Found:
        if record not in self._records:
            self._records[record] = list_record(self._web, record, mirror=self._zenodo)
        return _Found(self._records[record], f"Zenodo record {record}")

    def _dataset(self, task: Task, source: str, folder: Path) -> _Found:
        if not self._authorized:
            authorize(self._web, self.hub)
            self._authorized = True
        begun = read_pins(folder).get(source)
        key = (source, task.data.hf_folder, None if self._replace or begun is None else begun.commit)
        if key not in self._datasets:
            self._datasets[key] = list_dataset(
                self._web, source, folder=task.data.hf_folder, base=self.hub, commit=key[2]
            )
        listing = self._datasets[key]
        mixed = begun is not None and (begun.mixed or begun.commit != listing.commit)
        pins = {source: Pin(listing.commit, mixed)}
        return _Found(without_folders(task, listing.files), f"The data set {source}", pins)


def _with_list(report: FetchReport, task: Task, folder: Path, found: _Found, *, verify: bool, replace: bool) -> None:
    files, chosen = found.files, choose(task, found.files)
    absent = [name for name in missing_names(task, [file.name for file in chosen]) if not local_names(folder, name)]
    if absent:
        listed = ", ".join(sorted(file.name for file in files)[:_LISTED]) or "nothing"
        raise ShardError(
            f"{found.holder} has no file for {', '.join(absent[:_LISTED])}; it holds {listed}"
            + (f" and {len(files) - _LISTED} more." if len(files) > _LISTED else "."),
            where=f"the shard patterns of {task.name}",
            hint=f"Correct the patterns in the task file, or put the missing files into {folder}.",
        )
    known = {file.path: file for file in report.files}
    paths = [safe_path(folder, remote.name) for remote in chosen]  # all of them, before one is taken
    if found.pins:
        report.pins.setdefault(folder, {}).update(found.pins)
    for remote, path in zip(chosen, paths, strict=True):
        if path in known:  # tasks may share a folder
            known[path].also.append(task.name)
        else:
            report.files.append(_look(report, FileState(task.name, remote, path, "missing"), verify, replace))


def _look(report: FetchReport, file: FileState, verify: bool, replace: bool) -> FileState:
    """Compare a file that may be there with what the server says."""
    if not file.path.exists():
        file.kept = kept_bytes(file.path, file.remote)
        file.state = "partial" if file.kept else "missing"
        return file
    size = file.path.stat().st_size if file.path.is_file() else -1
    found = "" if size == file.remote.size else f"wanted {file.remote.size:,} bytes, found {size:,}"
    if size < 0:
        found, replace = "wanted a file, found something else", False
    elif not found and verify and (found_sum := checksum_of(file.path, file.remote.checksum)) != file.remote.checksum:
        found = f"wanted {spoken(file.remote.checksum)}, found {spoken(found_sum)}"
    if not found:
        file.state = "there"
    elif not replace:
        file.state = "wrong"
        hint = "--replace downloads it again; until the new file is complete the old one stays."
        error = ShardError(f"A file is there that is not the published one: {found}.", where=file.path, hint=hint)
        report.problems.append((file.task, str(error)))
    else:
        file.kept = kept_bytes(file.path, file.remote)
        file.state = "partial" if file.kept else "missing"
    return file


def _without_list(report: FetchReport, task: Task, folder: Path, reason: str, *, skip: bool) -> None:
    absent = [name for name in missing_names(task, ()) if not local_names(folder, name)]
    if absent:
        (report.skipped if skip else report.problems).append((task.name, by_hand(task, folder, absent, reason)))
    else:
        report.complete.append(task.name)
