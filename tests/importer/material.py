"""Short files to import: each with audio of its own, in whatever format is asked for."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 8000


def sound(number: int, *, seconds: float = 0.25) -> np.ndarray:
    """Noise that no other number makes."""
    return (np.random.default_rng(number).integers(-9000, 9000, int(seconds * RATE_HZ)) / 32768).astype(np.float32)


def write_sound(path: Path, number: int, *, seconds: float = 0.25) -> Path:
    """Write a file; the suffix says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(number, seconds=seconds), RATE_HZ, subtype="PCM_16")
    return path


def write_files(root: Path, paths: Iterable[str], *, first: int = 0) -> Path:
    """Write one file after the other, each with other audio."""
    for number, path in enumerate(paths, start=first):
        write_sound(root / path, number)
    return root


def class_folder(root: Path, *, classes: Sequence[str] = ("cat", "dog", "owl"), each: int = 6) -> Path:
    """A folder of class folders, wav and flac in turn."""
    return write_files(root, [f"{c}/{c}{n}.{'wav' if n % 2 else 'flac'}" for c in classes for n in range(each)])


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], *, delimiter: str = ",") -> Path:
    """Write a manifest."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def content(out: Path, *, report: bool = True) -> dict[str, bytes]:
    """All files of a data root, byte for byte; without the report, which knows the times of the source's files."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and (report or path.name != "import.json")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def members(out: Path, name: str) -> dict[str, dict[str, bytes]]:
    """Contents of the tar files of an imported task, by shard."""
    shards = {}
    for path in sorted((out / name).glob("*.tar")):
        with tarfile.open(path) as tar:
            shards[path.name] = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    return shards
