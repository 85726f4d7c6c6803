"""A folder of class folders, with splits or folds above them or not."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from xares_store.audio.samples import AUDIO_SUFFIXES
from xares_store.audio.shards import natural_key
from xares_store.errors import ConfigError
from xares_store.importer.names import fold_name, split_name
from xares_store.importer.options import Options
from xares_store.importer.table import FileBlob, Row, Table, lines, printable, refuse_empty, some

# Audio that libsndfile does not read: a named failure, not a file that is passed over.
FOREIGN_SUFFIXES = frozenset({"m4a", "mp4", "aac", "wma", "amr", "webm", "sox", "sph", "ape", "mka"})


def read_folder(source: Path, options: Options) -> Table:
    """Read a folder whose audio files lie in class folders.

    Links to files and folders are followed; a link to a folder that contains it is an error. Hidden files and folders
    (a leading dot) are passed over, and so is what has no suffix of an audio file, which is counted.

    Args:
        source: ``class/**/file`` or, where the upper folders are called like splits or folds, ``split/class/**/file``.
        options: ``split_folders`` says which of the two, instead of the names.

    Returns:
        Rows with ``path``, ``label`` and, if there is an upper level, ``split`` or ``fold``, in natural order of paths.

    Raises:
        ConfigError: a file outside of class folders, upper folders of mixed meaning, a loop of links, or no audio.
    """
    files: list[tuple[str, FileBlob]] = []
    others: Counter[str] = Counter()
    tops: set[str] = set()
    _walk(source, "", (os.path.realpath(source),), files, others, tops)
    files.sort(key=lambda item: natural_key(item[0]))
    used = {path.split("/", 1)[0] for path, _ in files if "/" in path}
    level = _upper_level(source, sorted(used, key=natural_key), files, options)
    depth = 1 if level is None else 2
    loose = [path for path, _ in files if path.count("/") < depth]
    if loose:
        wanted = "class/file" if level is None else f"{level}/class/file"
        raise ConfigError(
            f"Wanted every audio file in a class folder ({wanted}), found {len(loose)} that are not:\n{lines(loose)}",
            where=source,
            hint="Move them, or name the files and labels in a manifest (CSV, TSV, JSONL or Parquet).",
        )
    rows = []
    for path, blob in files:
        parts = path.split("/")
        values = {"path": path, "label": parts[depth - 1]}
        if level is not None:
            values[level] = parts[0]
        rows.append(Row(path, values, blob))
    table = Table(source, "folder", ("path", "label", *((level,) if level else ())), rows)
    empty = sorted(tops - used, key=natural_key)
    if empty:
        table.notes.append(f"{len(empty)} folders hold no audio and make no class: {some(empty)}")
    if others:
        what = ", ".join(f"{count} .{suffix}" if suffix else f"{count} without suffix" for suffix, count in others.most_common(5))  # fmt: skip
        table.notes.append(f"{others.total()} files are no audio and were passed over ({what})")
    refuse_empty(table)
    return table


def _walk(
    folder: Path,
    prefix: str,
    above: tuple[str, ...],
    files: list[tuple[str, FileBlob]],
    others: Counter[str],
    tops: set[str],
) -> None:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ConfigError(f"The folder cannot be read: {error.strerror or error}.", where=folder) from error
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        path = prefix + printable(entry.name)
        if entry.is_dir():
            if not prefix:
                tops.add(path)
            real = os.path.realpath(entry.path)
            if real in above:
                raise ConfigError(
                    f"The link leads back to a folder that contains it, {real}.", where=entry.path, hint="Remove it."
                )
            _walk(Path(entry.path), path + "/", (*above, real), files, others, tops)
            continue
        suffix = Path(entry.name).suffix[1:].lower()
        if suffix not in AUDIO_SUFFIXES and suffix not in FOREIGN_SUFFIXES:
            others[suffix] += 1
        elif not entry.is_file():
            raise ConfigError(
                "The link leads nowhere." if entry.is_symlink() else "Not a regular file.",
                where=entry.path,
                hint="Repair or remove it.",
            )
        else:
            stat = entry.stat()
            files.append((path, FileBlob(Path(entry.path), stat.st_size, stat.st_mtime_ns)))


def _upper_level(source: Path, names: list[str], files: list[tuple[str, FileBlob]], options: Options) -> str | None:
    """Return ``split`` or ``fold`` when the upper folders are such, else None."""
    splits = [name for name in names if split_name(name, options.split_as) is not None]
    folds = [name for name in names if fold_name(name) is not None]
    deep = all(path.count("/") >= 2 for path, _ in files)
    if options.split_folders is False or not names:
        return None
    if len(splits) == len(names) and (deep or options.split_folders):
        return "split"
    if len(folds) == len(names) and (deep or options.split_folders):
        return "fold"
    known = splits or folds
    if options.split_folders or (deep and "train" in {split_name(name, options.split_as) for name in names}):
        strange = [name for name in names if name not in known]
        raise ConfigError(
            f"Wanted upper folders that are splits (train, valid, test) or folds (fold1, fold2, ...), "
            f"found {some(known) or 'none'} and {some(strange)}.",
            where=source,
            hint="Say what they are with --split-as NAME=test, or --no-split-folders if all are classes.",
        )
    return None
