"""What a store holds, how large it is, and how to remove some of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xares_store.errors import StoreError
from xares_store.store.files import disk_errors, is_leftover, temporary_name
from xares_store.store.layout import (
    EMBEDDINGS,
    ENCODERS,
    FORMAT_VERSION,
    INDEX,
    RUN_MANIFEST,
    RUNS,
    TRAINING,
    RunManifest,
    load_manifest,
    safe_segment,
)
from xares_store.store.tree import folders, named, temporary

if TYPE_CHECKING:
    from xares_store.store.store import Store


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - thousands of files
            except FileNotFoundError:
                continue  # a writer has just renamed it
    return total


def info(store: Store) -> dict[str, Any]:
    """Count what a store holds.

    Returns:
        path, id, format, encoders, tasks (audio addresses), parts, clips, failures, frames, audio_s, runs, bytes,
        leftovers (temporary files of processes that are gone).
    """
    parts = store.parts()
    counts = [part.manifest.counts for part in parts]
    return {
        "path": str(store.path),
        "id": store.id,
        "format": FORMAT_VERSION,
        "encoders": len({part.address.encoder for part in parts}),
        "tasks": len({part.address.task for part in parts}),
        "parts": len(parts),
        "clips": sum(count.clips for count in counts),
        "failures": sum(count.failures for count in counts),
        "frames": sum(count.frames for count in counts),
        "audio_s": round(sum(part.manifest.counts.frames * part.manifest.hop_ms for part in parts) / 1000, 1),
        "runs": len(store.runs()),
        "bytes": size_of(store.path),
        "leftovers": sum(is_leftover(path) for path in temporary(store.path)),
    }


def du(store: Store) -> list[dict[str, Any]]:
    """Say what takes how much space.

    Returns:
        A row for each encoder and task with parts, clips, frames, bytes and ratio (bytes over the bytes of the same
        frames as float32), then rows for the runs, the index and everything else.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for part in store.parts():
        manifest = part.manifest
        key = (manifest.encoder, manifest.task)
        row = rows.setdefault(
            key,
            {
                "what": "embeddings",
                "encoder": key[0],
                "task": key[1],
                "parts": 0,
                "clips": 0,
                "frames": 0,
                "float32": 0,
            },
        )
        row["parts"] += 1
        row["clips"] += manifest.counts.clips
        row["frames"] += manifest.counts.frames
        row["float32"] += manifest.counts.frames * manifest.dim * 4
    found = []
    for (encoder, task), row in rows.items():
        size = size_of(store.path / EMBEDDINGS / safe_segment(encoder) / safe_segment(task))
        full = row.pop("float32")
        found.append({**row, "bytes": size, "ratio": size / full if full else None})
    plain = {"encoder": None, "task": None, "parts": None, "clips": None, "frames": None, "ratio": None}
    sizes = {
        name: size_of(store.path / path) for name, path in (("runs", RUNS), ("index", INDEX), ("training", TRAINING))
    }
    other = size_of(store.path) - sum(sizes.values()) - sum(row["bytes"] for row in found)
    rest = [{**plain, "what": what, "bytes": size} for what, size in (*sizes.items(), ("other", other))]
    return [*found, *rest]


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed, or would be.

    Attributes:
        parts: folders of parts, relative to the store.
        runs: ids of runs.
        dependent: ids of runs that were made from the parts and stay.
        bytes: space set free.
    """

    parts: list[str]
    runs: list[str]
    dependent: list[str]
    bytes: int


def rm(
    store: Store,
    *,
    encoder: str | None = None,
    task: str | None = None,
    shard: str | None = None,
    runs: Literal["keep", "with", "only"] = "keep",
    run_ids: Sequence[str] = (),
    dry_run: bool = False,
) -> Removal:
    """Remove embeddings, runs or both.

    Args:
        store: the store.
        encoder: address, or name for every fingerprint.
        task: audio address or name.
        shard: ``split/name`` of one shard, whose embeddings alone are removed.
        runs: ``keep`` removes the embeddings and keeps the scores made from them; ``with`` removes both; ``only`` removes
            the scores.
        run_ids: these runs, besides.
        dry_run: only say what would go.

    Raises:
        StoreError: nothing was named, an id is unknown, or the folder cannot be written.
    """
    if encoder is None and task is None and shard is None and not run_ids:
        raise StoreError(
            "Expected an encoder, a task or a run to remove.", where=store.path, hint="`xares store ls` lists them."
        )
    for run_id in run_ids:
        if not store.has_run(run_id):
            raise StoreError("There is no such run.", where=run_id, hint="`xares store ls runs` lists them.")
    places = _places(store, encoder, task, shard) if runs != "only" else []
    parts = [path for place in places for split in folders(place) for path in folders(split)]
    if shard is not None:
        # The shard's further parts (name~1, name~2) belong to it.
        parts = [path for path in parts if f"{path.parent.name}/{path.name.partition('~')[0]}" == shard]
        places = [place for place in places if any(place in path.parents for path in parts)]
    matching = _runs_of(store, encoder, task) if shard is None or parts else []
    chosen = sorted({*run_ids, *(matching if runs != "keep" else ())})
    doomed = [*(places if shard is None else parts), *(store.path / RUNS / run_id for run_id in chosen)]
    dependent = [] if runs == "only" else [run_id for run_id in matching if run_id not in chosen]
    removal = Removal(
        [path.relative_to(store.path).as_posix() for path in parts],
        chosen,
        dependent,
        sum(size_of(path) for path in doomed),
    )
    if not dry_run:
        with disk_errors(store.path, "removing from the store"):
            for path in doomed:
                _remove(path)
            _remove_unused_records(store, {place.parent.name for place in places})
    return removal


def _places(store: Store, encoder: str | None, task: str | None, shard: str | None) -> list[Path]:
    if encoder is None and task is None and shard is None:
        return []
    return [place for folder in named(store.path / EMBEDDINGS, encoder) for place in named(folder, task)]


def _runs_of(store: Store, encoder: str | None, task: str | None) -> list[str]:
    if encoder is None and task is None:
        return []
    found = []
    for run_id in store.runs():
        run = load_manifest(store.path / RUNS / run_id / RUN_MANIFEST, RunManifest)
        fits_encoder = encoder in (None, run.encoder, run.encoder.rpartition("@")[0])
        audio = run.audio_address
        if fits_encoder and task in (None, audio, audio.rpartition("@")[0], run.task, run.task_address):
            found.append(run_id)
    return found


def _remove(path: Path) -> None:
    """Rename first: a part or run is either whole or gone, even when this process is killed."""
    if path.exists():
        doomed = path.rename(path.with_name(temporary_name()))
        shutil.rmtree(doomed)


def _remove_unused_records(store: Store, encoders: set[str]) -> None:
    used = {
        safe_segment(load_manifest(store.path / RUNS / run / RUN_MANIFEST, RunManifest).encoder) for run in store.runs()
    }
    for name in encoders:
        folder = store.path / EMBEDDINGS / name
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            if name not in used:
                (store.path / ENCODERS / f"{name}.json").unlink(missing_ok=True)


def sweep(root: Path) -> int:
    """Remove temporary files and folders of processes that are gone; return how many."""
    count = 0
    for path in temporary(root):
        if is_leftover(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            count += not path.exists()
    return count
