"""Which files a task wants, and where they belong."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from xares_store.errors import ShardError
from xares_store.fetch.zenodo import ZENODO, RemoteFile
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
    names = wanted_names(task)
    literals = {name for name in names if not glob.has_magic(name)}
    globs = [name for name in names if glob.has_magic(name)]
    chosen = [file for file in files if file.name in literals or any(is_named(name, file.name) for name in globs)]
    return sorted(chosen, key=lambda file: file.name)


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
    lines += [f"    {name}" for name in absent[:_LISTED]]
    if len(absent) > _LISTED:
        lines.append(f"    and {len(absent) - _LISTED} more, up to {absent[-1]}")
    if task.data.zenodo:
        lines.append(f"  from:  {ZENODO}/records/{task.data.zenodo}")
    elif task.private:
        lines.append("  from:  the owner of the data; this task is private")
    else:
        lines.append("  from:  wherever the data set is published; the task file does not say")
    lines.append("  next:  the same command with --offline says what is still missing then.")
    return "\n".join(lines)
