"""Download the shards of tasks: what each of them needs, what is there, what is missing, and then the missing files."""

from __future__ import annotations

import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from xares_store.catalog import load_tasks
from xares_store.errors import ConfigError, ShardError, XaresError
from xares_store.fetch.download import DiskError, discard_partial, download, kept_bytes, md5_of
from xares_store.fetch.http import CancelledError, Web
from xares_store.fetch.place import by_hand, choose, local_names, missing_names, safe_path
from xares_store.fetch.zenodo import RemoteFile, UnreachableError, base_url, list_record
from xares_store.task import Task

PARALLEL = 2  # connections at once: polite to a public archive
MAX_PARALLEL = 8
_JOIN_S = 2.0
_SPARE_BYTES = 64 << 20

Advance = Callable[[int, str], None]


@dataclass
class FileState:
    """One file of a task.

    Attributes:
        task: name of the task.
        remote: what the record says of it.
        path: where it belongs.
        state: ``"there"``, ``"missing"``, ``"partial"`` or ``"wrong"`` before a download; ``"downloaded"`` or
            ``"failed"`` after it.
        kept: bytes of an interrupted download that need not be downloaded again.
    """

    task: str
    remote: RemoteFile
    path: Path
    state: str
    kept: int = 0

    @property
    def to_download(self) -> int:
        """Bytes that have yet to come."""
        return self.remote.size - self.kept if self.state in ("missing", "partial") else 0


@dataclass
class FetchReport:
    """What was found and done.

    Attributes:
        files: every file of every task whose record could be read.
        complete: tasks without a list of files (no record, or offline) whose shards are all there.
        problems: task and message, for everything that is not in order.
    """

    files: list[FileState] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all shards of all tasks are there, or, before a download, whether nothing stands in its way."""
        return not self.problems

    @property
    def to_download(self) -> int:
        """Bytes that have yet to come."""
        return sum(file.to_download for file in self.files)


def fetch_task(
    *tasks: str | os.PathLike[str] | Task,
    data: str | Path,
    mirror: str | None = None,
    parallel: int = PARALLEL,
    verify: bool = False,
    replace: bool = False,
    offline: bool = False,
    dry_run: bool = False,
) -> FetchReport:
    """Download the audio shards of tasks from Zenodo into a data root.

    Only what is missing is downloaded, an interrupted download goes on where it stopped, and a file appears under its
    name when its size and its published MD5 are right.

    Args:
        tasks: names of tasks or suites, task files, or tasks.
        data: the data root; shards go to the task's folder below it.
        mirror: address that stands for ``https://zenodo.org``.
        parallel: connections at once, 1 to 8.
        verify: check the MD5 of files that are there already, not only their size.
        replace: download files again that are there with a wrong size (or MD5, with ``verify``).
        offline: make no connection; the report says which files belong where.
        dry_run: read the records and report what would be downloaded; write nothing.

    Returns:
        What was found and done. A task that could not be completed is named in ``problems``; the others are complete.

    Raises:
        TaskNotFoundError: there is no such task.
        ConfigError: an argument cannot be used.
        ShardError: the disk has too little space; nothing was downloaded.

    Example:
        >>> report = fetch_task("esc50", data="xares_data")  # doctest: +SKIP
        >>> [file.path.name for file in report.files]  # doctest: +SKIP
        ['wds-audio-fold-1-000000.tar', ...]
    """
    report = plan(tasks, data=data, mirror=mirror, verify=verify, replace=replace, offline=offline)
    if not dry_run:
        run(report, parallel=parallel)
    return report


def plan(
    tasks: Iterable[str | os.PathLike[str] | Task],
    *,
    data: str | Path,
    mirror: str | None = None,
    verify: bool = False,
    replace: bool = False,
    offline: bool = False,
) -> FetchReport:
    """Find out what has to be downloaded; arguments as for :func:`fetch_task`. Writes nothing."""
    base_url(mirror)
    wanted = load_tasks(tasks)
    if not wanted:
        raise ConfigError("No task was named.", where="TASK", hint="`xares tasks ls` lists the tasks that ship.")
    report, web, records = FetchReport(), Web(), dict[str, list[RemoteFile]]()
    reason = "this is offline mode" if offline else ""  # why nothing can be asked for
    for task in wanted:
        folder = Path(data) / task.folder
        record = task.data.zenodo
        if record is None or reason:
            _without_list(report, task, folder, reason if record else "the task names no Zenodo record")
            continue
        try:
            if record not in records:
                records[record] = list_record(web, record, mirror=mirror)
            _with_list(report, task, folder, records[record], verify=verify, replace=replace)
        except UnreachableError as error:
            reason = error.message.rstrip(".")
            _without_list(report, task, folder, reason)
        except XaresError as error:
            report.problems.append((task.name, str(error)))
    return report


def run(report: FetchReport, *, parallel: int = PARALLEL, advance: Advance = lambda amount, note: None) -> None:
    """Download what a plan found missing, and bring its report up to date.

    Args:
        report: from :func:`plan`.
        parallel: connections at once.
        advance: called with bytes (negative when bytes are thrown away) and the name of their file, from any thread.

    Raises:
        ConfigError: ``parallel`` cannot be used.
        ShardError: too little disk space, the folder cannot be written, or another fetch is writing to it.
    """
    if not 1 <= parallel <= MAX_PARALLEL:
        raise ConfigError(
            f"Wanted 1 to {MAX_PARALLEL} connections, found {parallel}.", where="--parallel", hint="2 is polite."
        )
    for file in report.files:
        if file.state == "there":
            discard_partial(file.path)
    todo = [file for file in report.files if file.state in ("missing", "partial")]
    if not todo:
        return
    with ExitStack() as stack:
        for folder in sorted({file.path.parent for file in todo}):
            _lock(stack, folder)
        for file in todo:  # again, now that nobody else writes
            file.kept = kept_bytes(file.path, file.remote)
        _refuse_small_disk(todo)
        _download_all(report, todo, parallel, advance)


def _with_list(
    report: FetchReport, task: Task, folder: Path, files: Sequence[RemoteFile], *, verify: bool, replace: bool
) -> None:
    chosen = choose(task, files)
    absent = [name for name in missing_names(task, [file.name for file in chosen]) if not local_names(folder, name)]
    if absent:
        listed = ", ".join(sorted(file.name for file in files)[:8]) or "nothing"
        raise ShardError(
            f"Zenodo record {task.data.zenodo} has no file for {', '.join(absent[:8])}; it holds {listed}"
            + (f" and {len(files) - 8} more." if len(files) > 8 else "."),
            where=f"the shard patterns of {task.name}",
            hint=f"Correct the patterns in the task file, or put the missing files into {folder}.",
        )
    known = {file.path for file in report.files}
    paths = [safe_path(folder, remote.name) for remote in chosen]  # all of them, before one is taken
    for remote, path in zip(chosen, paths, strict=True):
        if path not in known:  # tasks may share a folder
            report.files.append(_look(report, FileState(task.name, remote, path, "missing"), verify, replace))


def _look(report: FetchReport, file: FileState, verify: bool, replace: bool) -> FileState:
    """Compare a file that may be there with what the record says."""
    if not file.path.exists():
        file.kept = kept_bytes(file.path, file.remote)
        file.state = "partial" if file.kept else "missing"
        return file
    size = file.path.stat().st_size if file.path.is_file() else -1
    found = "" if size == file.remote.size else f"wanted {file.remote.size:,} bytes, found {size:,}"
    if size < 0:
        found, replace = "wanted a file, found something else", False
    elif not found and verify and (md5 := md5_of(file.path)) != file.remote.md5:
        found = f"wanted MD5 {file.remote.md5}, found {md5}"
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


def _without_list(report: FetchReport, task: Task, folder: Path, reason: str) -> None:
    absent = [name for name in missing_names(task, ()) if not local_names(folder, name)]
    if absent:
        report.problems.append((task.name, by_hand(task, folder, absent, reason)))
    else:
        report.complete.append(task.name)


def _lock(stack: ExitStack, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(folder / ".fetch.lock", timeout=0))
    except Timeout:
        raise ShardError(
            "Another `xares fetch` is downloading into this folder.", where=folder, hint="Wait until it is done."
        ) from None
    except OSError as error:
        raise ShardError(
            f"The folder cannot be written: {error.strerror or error}.",
            where=folder,
            hint="Make it writable, or name another data root with --data DIR.",
        ) from error


def _refuse_small_disk(todo: Sequence[FileState]) -> None:
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for file in todo:
        device = file.path.parent.stat().st_dev
        needed[device] = needed.get(device, 0) + file.to_download
        places[device] = file.path.parent
    for device, size in needed.items():
        free = shutil.disk_usage(places[device]).free
        if size and size + _SPARE_BYTES > free:
            raise ShardError(
                f"{size / 1e6:,.0f} MB are to be downloaded, and {free / 1e6:,.0f} MB are free. Nothing was downloaded.",
                where=places[device],
                hint="Free some space, name another data root with --data DIR, or fetch fewer tasks.",
            )


def _download_all(report: FetchReport, todo: Sequence[FileState], parallel: int, advance: Advance) -> None:
    cancel = threading.Event()
    web = Web(cancel)
    waiting: queue.SimpleQueue[FileState] = queue.SimpleQueue()
    failures: dict[int, str] = {}
    for file in todo:
        waiting.put(file)

    def work() -> None:
        while not cancel.is_set():
            try:
                file = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                download(web, file.remote, file.path, partial(_named, advance, file.path.name))
                file.state = "downloaded"
            except CancelledError:
                return
            except DiskError as error:
                failures[id(file)] = (
                    f"{error}. What was downloaded is kept.\n  next:  Free some space or make the folder writable, and run it again."
                )
                cancel.set()
            except XaresError as error:
                failures[id(file)] = str(error)
            except BaseException as error:  # a thread must not die in silence
                failures[id(file)] = f"{type(error).__name__}: {error}"

    # Daemons: an interrupted program must not wait for a server that has stopped sending.
    threads = [threading.Thread(target=work, name=f"fetch-{n}", daemon=True) for n in range(min(parallel, len(todo)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        cancel.set()
        for thread in threads:
            thread.join(_JOIN_S)
        raise
    for file in todo:
        if file.state != "downloaded":
            file.state = "failed"
            report.problems.append(
                (file.task, failures.get(id(file), f"{file.remote.name} was given up because of another file."))
            )
        file.kept = 0


def _named(advance: Advance, name: str, amount: int) -> None:
    advance(amount, name)
