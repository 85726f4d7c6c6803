"""Which files a task wants, and where they belong."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from xares_store.errors import ShardError
from xares_store.fetch.hub import dataset_page
from xares_store.fetch.remote import RemoteFile
from xares_store.fetch.zenodo import ZENODO
from xares_store.patterns import expand, path_problem
from xares_store.task import Task

_LISTED = 50


def wanted_names(task: Task) -> list[str]:
    """Return every name and glob that the task's patterns stand for, in the order of the splits."""
    names = (name for group in task.split_patterns().values() for pattern in group for name in expand(pattern))
    return list(dict.fromkeys(PurePosixPath(name).as_posix() for name in names))


def is_named(name: str, file: str) -> bool:
    """Tell whether a name or glob of a task means a file.

    Example:
        >>> is_named("fold-1-*.tar", "fold-1-000.tar"), is_named("*.tar", ".hidden.tar"), is_named("a.tar", "a.tar.gz")
        (True, False, False)
    """
    if not glob.has_magic(name):
        return name == file
    if any(part.startswith(".") for part in file.split("/")):  # as finding shards leaves hidden files out
        return False
    return _matches(name.split("/"), file.split("/"))


def _matches(wanted: Sequence[str], found: Sequence[str]) -> bool:
    """Compare folder by folder, as finding files on a disk does; ``**`` stands for any number of folders."""
    if not wanted or not found:
        return not found and all(part == "**" for part in wanted)
    if wanted[0] == "**":
        return _matches(wanted[1:], found) or _matches(wanted, found[1:])
    return fnmatch.fnmatchcase(found[0], wanted[0]) and _matches(wanted[1:], found[1:])


def choose(task: Task, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return the files of a record that the task's patterns name, sorted."""
    wanted = _Wanted(wanted_names(task))
    return sorted((file for file in files if wanted.means(file.name)), key=lambda file: file.name)


class _Wanted:
    """Many names and globs at once; names are looked up, since a data set may hold 100,000 files."""

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._literals = {name for name in names if not glob.has_magic(name)}
        self._globs = [name for name in names if glob.has_magic(name)]

    def means(self, file: str) -> bool:
        return file in self._literals or any(is_named(name, file) for name in self._globs)


def without_folders(task: Task, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Let a pattern that names no file by its path name files by the last part of their paths.

    Data sets on the hub often keep their shards in folders of which a task's patterns know nothing. Such a file is
    then called, and stored, by the last part of its path.

    Args:
        task: the task.
        files: called by their paths.

    Returns:
        The same files, some of them renamed.

    Raises:
        ShardError: two different files would get the same name.

    Example:
        >>> from xares_store.catalog import load_task
        >>> file = RemoteFile("audio/wds-audio-fold-1-000000.tar", 1, "md5:" + "0" * 32, "https://example.org")
        >>> [file.name for file in without_folders(load_task("esc50"), [file])]
        ['wds-audio-fold-1-000000.tar']
    """
    named = {file.name for file in choose(task, files)}
    lacking = _Wanted(name for name in missing_names(task, sorted(named)) if "/" not in name)
    found: dict[str, RemoteFile] = {}
    others = []
    for file in files:
        parts = file.name.split("/")
        if file.name in named or any(part.startswith(".") for part in parts) or not lacking.means(parts[-1]):
            others.append(file)
            continue
        other = found.setdefault(parts[-1], file)
        if other.checksum != file.checksum or parts[-1] in named:
            raise ShardError(
                f"The data set holds two different files called {parts[-1]}: {other.name} and {file.name}.",
                where=f"the shard patterns of {task.name}",
                hint="Say with data.hf_folder which folder is meant, or write the folder into the patterns.",
            )
    return [*others, *(replace(file, name=name) for name, file in found.items())]


def missing_names(task: Task, files: Sequence[str]) -> list[str]:
    """Return the names and globs of a task that none of the files answers to."""
    there = set(files)
    return [
        name
        for name in wanted_names(task)
        if name not in there and not (glob.has_magic(name) and any(is_named(name, file) for file in files))
    ]


def local_names(folder: Path, name: str) -> list[str]:
    """Return the files below a folder that a name or glob means."""
    if glob.has_magic(name):
        return [file for file in glob.glob(name, root_dir=folder, recursive=True) if (folder / file).is_file()]  # noqa: PTH207
    return [name] if (folder / name).is_file() else []


def safe_path(folder: Path, name: str) -> Path:
    """Return where a file of a record belongs.

    Raises:
        ShardError: the name leads out of the folder.
    """
    problem = path_problem(name)
    if problem is None and any(part in ("", ".") or part != part.strip() for part in name.split("/")):
        problem = "is not a plain file name"
    path = folder / name
    if problem is None and not path.resolve().parent.is_relative_to(folder.resolve()):
        problem = "leads out of the folder"
    if problem is not None:
        raise ShardError(
            f"The record names the file {name!r}, which {problem}. Nothing of this task was downloaded.",
            where=folder,
            hint="Do not trust this record; tell its authors.",
        )
    return path


def by_hand(task: Task, folder: Path, absent: Sequence[str], reason: str) -> str:
    """Say which files a person has to put where.

    Args:
        task: the task.
        folder: its folder below the data root.
        absent: names and globs without a file.
        reason: why they are not downloaded.
    """
    lines = [f"Nothing was downloaded: {reason}. Put these files into {folder}:"]
    named = list(absent) if len(absent) <= _LISTED else _as_ranges(task, absent)
    lines += [f"    {name}" for name in named[:_LISTED]]
    if len(named) > _LISTED:
        lines.append(f"    and {len(named) - _LISTED} more, up to {named[-1]}")
    origins = sources(task)
    if not origins and task.private:
        origins = ["the owner of the data; this task is private"]
    lines.append(
        "  from:  " + " or ".join(origins or ["wherever the data set is published; the task file does not say"])
    )
    lines.append("  next:  the same command with --offline says what is still missing then.")
    return "\n".join(lines)


def _as_ranges(task: Task, absent: Sequence[str]) -> list[str]:
    """Write names as their pattern where every name that its braces stand for is among them."""
    lacking, named, said = set(absent), list[str](), set[str]()
    for pattern in (pattern for group in task.split_patterns().values() for pattern in group):
        names = {PurePosixPath(name).as_posix() for name in expand(pattern)}
        if len(names) > 1 and names <= lacking:
            named.append(f"{pattern} ({len(names)} files)")
            said |= names
    return [*named, *(name for name in absent if name not in said)]


def sources(task: Task) -> list[str]:
    """Return the web pages from which the shards of a task can be downloaded."""
    pages = [f"{ZENODO}/records/{task.data.zenodo}"] if task.data.zenodo else []
    return [*pages, dataset_page(task.data.hf, task.data.hf_folder)] if task.data.hf else pages
