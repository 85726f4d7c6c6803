"""Check everything a store holds against its manifests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xares_store.errors import StoreError
from xares_store.fingerprint import sha256_file
from xares_store.store.files import TMP_PREFIX, damage, read_small, unseal
from xares_store.store.layout import (
    EMBEDDINGS,
    ENCODERS,
    PART_MANIFEST,
    RUN_MANIFEST,
    RUNS,
    TASKS,
    FileEntry,
    RunManifest,
    load_manifest,
    part_digest,
    safe_segment,
)
from xares_store.store.opened import Part
from xares_store.store.tree import files, folders

if TYPE_CHECKING:
    from xares_store.store.store import Store


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a store.

    Attributes:
        path: file or folder, relative to the store.
        what: one or two sentences.
    """

    path: str
    what: str


def verify(store: Store, *, deep: bool = True) -> list[Problem]:
    """Check every file of every part and run.

    Args:
        store: the store.
        deep: compare SHA-256 of every file and all row counts; False compares sizes only.

    Returns:
        Problems by path; empty for an intact store. Temporary folders of running writers are no problem.
    """
    root = store.path
    problems: list[Problem] = []

    def attempt(path: Path, check: Callable[[], object]) -> None:
        try:
            check()
        except StoreError as error:
            place = Path(error.where) if error.where else path
            problems.append(Problem(_relative(root, place if place.is_relative_to(root) else path), error.message))

    for path in files(root / ENCODERS, ".json"):
        attempt(path, lambda path=path: unseal(read_small(path), where=path))  # type: ignore[misc]
    for path in files(root / TASKS, ".toml"):
        attempt(path, lambda path=path: store.task_text(path.name.removesuffix(".toml")))  # type: ignore[misc]
    places = list(_part_places(root, problems))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(lambda place: list(_check_part(store, place, deep=deep)), places):
            problems += found
        for found in pool.map(lambda place: list(_check_run(root, place, deep=deep)), folders(root / RUNS)):
            problems += found
    if deep:
        problems += _duplicates(store, places, {problem.path for problem in problems})
    return sorted(set(problems), key=lambda problem: (problem.path, problem.what))


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _part_places(root: Path, problems: list[Problem]) -> Iterator[Path]:
    """Yield the folders where parts belong; small files beside them must at least be JSON."""
    for encoder in folders(root / EMBEDDINGS):
        for task in folders(encoder):
            for path in files(task, ".json"):
                try:
                    json.loads(read_small(path))
                except (ValueError, RecursionError, StoreError):
                    problems.append(Problem(_relative(root, path), "Expected JSON, found something else."))
            for split in folders(task):
                yield from folders(split)


def _check_part(store: Store, folder: Path, *, deep: bool) -> Iterator[Problem]:
    root = store.path
    if not (folder / PART_MANIFEST).exists():
        yield Problem(
            _relative(root, folder), f"A part without {PART_MANIFEST}: an incomplete copy. It does not count."
        )
        return
    try:
        part = Part.load(root, folder)
    except StoreError as error:
        yield Problem(_relative(root, folder / PART_MANIFEST), error.message)
        return
    manifest = part.manifest
    broken = [*_check_files(root, folder, manifest.files, PART_MANIFEST, deep=deep)]
    yield from broken
    record = root / ENCODERS / f"{safe_segment(manifest.encoder)}.json"
    if not record.exists():
        yield Problem(_relative(root, record), f"The record of encoder {manifest.encoder} is missing.")
    if not deep:
        return
    if part_digest(manifest.model_dump(mode="json")) != manifest.digest:
        yield Problem(_relative(root, folder / PART_MANIFEST), "The digest does not match the content it lists.")
    counts = manifest.counts
    if counts.failures != len(manifest.failures):
        yield Problem(_relative(root, folder / PART_MANIFEST), "The count of failures is wrong.")
    if broken:
        return
    try:
        part.meta("frames")
        part.meta("pooled")
        clips = part.clips()
    except StoreError as error:
        yield Problem(_relative(root, Path(error.where or folder)), error.message)
        return
    lengths = clips["n_frames"].to_numpy()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    if int(starts[-1]) != counts.frames or not np.array_equal(clips["offset"].to_numpy(), starts[:-1]):
        yield Problem(
            _relative(root, folder / "clips.parquet"), "The clips' frames do not add up to the part's frames."
        )


def _check_files(
    root: Path, folder: Path, entries: dict[str, FileEntry], manifest: str, *, deep: bool
) -> Iterator[Problem]:
    for name, entry in entries.items():
        path = folder / name
        what = damage(path, size=entry.bytes, crc32c=entry.crc32c, deep=deep)
        if what is None and deep and sha256_file(path) != entry.sha256:
            what = "The bytes do not match their SHA-256."
        if what:
            yield Problem(_relative(root, path), what)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in entries and name != manifest and not path.name.startswith(TMP_PREFIX):
            yield Problem(_relative(root, path), "The manifest does not list this file.")


def _check_run(root: Path, folder: Path, *, deep: bool) -> Iterator[Problem]:
    if not (folder / RUN_MANIFEST).exists():
        yield Problem(_relative(root, folder), f"A run without {RUN_MANIFEST}: an incomplete copy. It does not count.")
        return
    try:
        manifest = load_manifest(folder / RUN_MANIFEST, RunManifest)
    except StoreError as error:
        yield Problem(_relative(root, folder / RUN_MANIFEST), error.message)
        return
    if manifest.run_id != folder.name:
        yield Problem(_relative(root, folder / RUN_MANIFEST), f"The manifest belongs to run {manifest.run_id}.")
    yield from _check_files(root, folder, manifest.files, RUN_MANIFEST, deep=deep)


def _duplicates(store: Store, places: Iterable[Path], broken: set[str]) -> Iterator[Problem]:
    """Clip ids are unique in a split; two shards that hold the same clip would count it twice."""
    seen: dict[tuple[str, str, str], dict[str, str]] = {}
    for folder in places:
        name = _relative(store.path, folder)
        if not (folder / PART_MANIFEST).exists() or any(path.startswith(name + "/") for path in broken):
            continue
        part = Part.load(store.path, folder)
        where = seen.setdefault((part.address.encoder, part.address.task, part.address.split), {})
        for clip in part.clips()["clip_id"].to_pylist():
            other = where.setdefault(clip, name)
            if other != name:
                yield Problem(f"{name}/clips.parquet", f"Clip {clip} is also in {other}.")
                break
