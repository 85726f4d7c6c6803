"""Walk the folders of a store without reading what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from xares_store.store.files import TMP_PREFIX
from xares_store.store.layout import EMBEDDINGS, PART_MANIFEST, safe_segment


def folders(folder: Path) -> list[Path]:
    """Return the sub-folders, sorted by name; hidden and temporary ones are left out, a missing folder has none."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names)]


def files(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix, sorted by name; hidden and temporary ones are left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffix) and not path.name.startswith("."))


def named(folder: Path, wanted: str | None) -> list[Path]:
    """Return the sub-folders whose name is ``wanted``, or ``wanted@...`` when it has no fingerprint; all for None."""
    if wanted is None:
        return folders(folder)
    name = safe_segment(wanted)
    return [path for path in folders(folder) if path.name == name or path.name.rpartition("@")[0] == name]


def part_folders(
    embeddings: Path, encoder: str | None = None, task: str | None = None, split: str | None = None
) -> list[Path]:
    """Return the folders of committed parts below ``embeddings``, sorted by encoder, task, split, shard, sequence."""
    found: list[Path] = []
    for encoder_path in named(embeddings, encoder):
        for task_path in named(encoder_path, task):
            for split_path in folders(task_path):
                if split is None or split_path.name == safe_segment(split):
                    shards = [path for path in folders(split_path) if (path / PART_MANIFEST).exists()]
                    found += sorted(shards, key=_shard_order)
    return found


def _shard_order(path: Path) -> tuple[str, int]:
    shard, _, sequence = path.name.partition("~")
    return shard, int(sequence) if sequence.isdecimal() else 0


def visible(folder: Path) -> bool:
    """Tell whether a folder holds anything but temporary files."""
    return any(not path.name.startswith(TMP_PREFIX) for path in folder.iterdir())


def temporary(root: Path) -> Iterator[Path]:
    """Yield temporary files and folders of a store, those of running processes too."""
    for place, inner, names in os.walk(root):
        yield from (Path(place) / name for name in [*inner, *names] if name.startswith(TMP_PREFIX))
        is_part = Path(place).parent.parent.parent.parent == root / EMBEDDINGS  # parts and runs hold no temporary files
        inner[:] = [] if is_part else [name for name in inner if not name.startswith(TMP_PREFIX)]
