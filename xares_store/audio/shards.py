"""Audio shards: finding the tar files that a task's patterns name.

``samples`` reads what is inside of them.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xares_store.audio.samples import FileRange, Sample, iter_samples
from xares_store.errors import ShardError, did_you_mean
from xares_store.patterns import SHARD_SUFFIXES, expand, shard_name

if TYPE_CHECKING:
    from xares_store.task import Task

__all__ = ["FileRange", "Sample", "Shard", "find_shards", "iter_samples", "natural_key"]

_LISTED = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a task.

    Attributes:
        name: path below the data folder without ``.tar``, percent-encoded into one safe folder name.
        split: the store split it belongs to: ``train``, ``valid``, ``test``, ``fold-<name>`` or ``all``.
        path: where the file is.
    """

    name: str
    split: str
    path: Path


def find_shards(task: Task, data_root: Path) -> dict[str, list[Shard]]:
    """Find the shards of every split of a task.

    They are looked for in ``data_root/<folder of the task>`` and then in ``data_root`` itself.

    Args:
        task: names the folder and, per split, patterns with braces (``train-{000..009}.tar``) and globs (``*.tar.gz``).
        data_root: folder that holds the data of all tasks.

    Returns:
        Shards by split, in natural order of their names (``part-2`` before ``part-10``).

    Raises:
        ShardError: a pattern or a member of a brace range has no file, or one file belongs to two splits.
    """
    patterns = task.split_patterns()
    folders = list(dict.fromkeys((data_root / (task.data.folder or task.name), data_root)))
    for folder in folders:
        found = {split: {p: _matches(folder, p) for p in group} for split, group in patterns.items()}
        if any(hits for group in found.values() for names in group.values() for hits in names.values()):
            break
    else:
        raise _nothing_found(task.name, folders, patterns)
    shards: dict[str, list[Shard]] = {}
    owners: dict[Path, Shard] = {}
    names: dict[str, Shard] = {}
    for split, group in found.items():
        files: set[str] = set()
        for pattern, expanded in group.items():
            _refuse_missing(split, pattern, expanded, folder)
            files.update(*expanded.values())
        shards[split] = [Shard(shard_name(file), split, folder / file) for file in sorted(files, key=natural_key)]
        for shard in shards[split]:
            other = owners.setdefault(shard.path.resolve(), shard)
            if other.split != split:
                raise ShardError(
                    f'One file belongs to two splits, "{other.split}" and "{split}".',
                    where=shard.path,
                    hint="Change the patterns in the task file so that every shard belongs to one split.",
                )
            other = names.setdefault(shard.name, shard)
            if other is not shard:
                raise ShardError(
                    f'Two files would be stored under one name, "{shard.name}": {other.path} and {shard.path}.',
                    where=folder,
                    hint="Keep one of the two, or tell them apart in the task file's patterns.",
                )
    return shards


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts ``part-2`` before ``part-10``.

    Example:
        >>> sorted(["a10", "a2", "b1"], key=natural_key)
        ['a2', 'a10', 'b1']
    """
    pieces = re.split(r"([0-9]+)", name)  # every other piece is a number
    return [(0, int(piece), "") if at % 2 else (1, 0, piece) for at, piece in enumerate(pieces) if piece], name


def _matches(folder: Path, pattern: str) -> dict[str, list[str]]:
    """Return, for every name a pattern's braces stand for, the files below a folder that it matches."""
    hits: dict[str, list[str]] = {}
    for name in expand(pattern):
        # Unlike Path.glob, this leaves out hidden files, such as the "._*.tar" that some systems put beside a copy.
        found = glob.glob(name, root_dir=folder, recursive=True) if glob.has_magic(name) else [name]  # noqa: PTH207
        hits[name] = [Path(file).as_posix() for file in found if (folder / file).is_file()]
    return hits


def _refuse_missing(split: str, pattern: str, expanded: Mapping[str, list[str]], folder: Path) -> None:
    absent = [name for name, hits in expanded.items() if not hits]
    if absent:
        raise ShardError(
            f'Split "{split}" wants {pattern}; no file for {_some(absent)}. {_contents(folder)}',
            where=folder,
            hint="Complete the download, or change the patterns in the task file. "
            + did_you_mean(absent[0], _tars(folder)),
        )


def _nothing_found(task: str, folders: Sequence[Path], patterns: Mapping[str, Sequence[str]]) -> ShardError:
    wanted = _some([pattern for group in patterns.values() for pattern in group])
    return ShardError(
        f'No audio shard of the task "{task}" was found. Wanted: {wanted}. ' + " ".join(map(_contents, folders)),
        where=" and ".join(map(str, folders)),
        hint="Name the folder that holds the data with --data DIR or XARES_DATA_HOME=DIR.",
    )


def _contents(folder: Path) -> str:
    if not folder.exists():
        return f"The folder {folder} does not exist."
    if not folder.is_dir():
        return f"{folder} is not a folder."
    names = sorted((entry.name + "/" * entry.is_dir() for entry in folder.iterdir()), key=natural_key)
    return f"In {folder}: {_some(names) if names else 'nothing'}."


def _tars(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.lower().endswith(SHARD_SUFFIXES)]


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
