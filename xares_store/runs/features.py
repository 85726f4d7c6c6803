"""What a clip-level evaluation works on: pooled vectors, targets, recordings and folds, read from the store alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from xares_store.catalog import load_task, suites
from xares_store.errors import ConfigError, CorruptError, ProtocolError, StoreError, TaskError, did_you_mean
from xares_store.protocol import Fold, make_folds
from xares_store.runs.state import missing_shards, parts_of
from xares_store.store.opened import Part
from xares_store.store.store import Store
from xares_store.targets import groups, read_target, strata
from xares_store.task import Task


@dataclass(frozen=True)
class Features:
    """One encoder's view of one task.

    Attributes:
        values: pooled vectors, float32 (clips, dim).
        target: what :mod:`xares_store.targets` makes of the labels: class index int64 (clips,), multi-hot uint8
            (clips, classes), number float32 (clips,), or a list with the events or the captions of each clip.
        recording: index of the recording each clip was cut from, int64 (clips,); the clip itself without crops.
        split, clip_id, key: text columns of the clip table, as long as ``values``.
        folds: train, validation and test clips under the protocol.
        cropped: whether any recording has more than one clip.
        dropped: samples to test that have no embedding: the recorded failures.
        start_s, duration_s: where the clip starts in its recording, and its length, float64 (clips,).
        parts: where the frames are; ``part_of`` (clips,) is an index into it, ``offset`` and ``n_frames`` (clips,) the
            clip's frames in that part.
    """

    values: np.ndarray
    target: Any
    recording: np.ndarray
    split: np.ndarray
    clip_id: np.ndarray
    key: np.ndarray
    folds: list[Fold]
    cropped: bool
    dropped: int
    start_s: np.ndarray
    duration_s: np.ndarray
    parts: tuple[Part, ...]
    part_of: np.ndarray
    offset: np.ndarray
    n_frames: np.ndarray


def choose_encoders(store: Store, wanted: Sequence[str]) -> list[str]:
    """Return the addresses of encoders in a store by address or by name; all of them when none is named.

    Raises:
        ConfigError: no such encoder, or a name that several encoders share.
    """
    known = sorted(store.encoders())
    if not wanted:
        return known
    chosen: list[str] = []
    for name in wanted:
        matches = [address for address in known if address == name or address.rpartition("@")[0] == name]
        if not matches:
            near = did_you_mean(
                name, [*known, *(a.rpartition("@")[0] for a in known)], listing="It has: " + ", ".join(known)
            )
            raise ConfigError(f'The store has no encoder "{name}".', where=store.path, hint=near)
        chosen += [match for match in matches if match not in chosen]
    return chosen


def parts_digest(store: Store, encoder: str, task: Task) -> str:
    """Return the digest of all parts a task is made of, after checking that none is missing.

    Raises:
        StoreError: the encoder has no embeddings for the task, or not all of them.
    """
    address = task.audio_address
    parts = parts_of(store, encoder, task)
    if not parts:
        stored = sorted({f"{p.address.split}/{p.address.shard}" for p in store.parts(encoder=encoder, task=address)})
        if stored:
            raise StoreError(
                f'"{encoder}" has no embeddings of the shards that task "{task.name}" names; stored under {address}: '
                f"{_some(stored)}.",
                where=store.path,
                hint="Correct the patterns in the task file, or run `xares embed` for the task.",
            )
        others = sorted(
            {
                p.address.task
                for p in store.parts(encoder=encoder)
                if p.address.task.rpartition("@")[0] == task.audio_address.rpartition("@")[0]
            }
        )
        hint = f"Embed it: xares embed --encoder {encoder.rpartition('@')[0]} --task {task.name}"
        if others:
            hint += f". (The store has {', '.join(others)}, made with another crop rule.)"
        raise StoreError(
            f'"{encoder}" has no embeddings of task "{task.name}" ({address}).', where=store.path, hint=hint
        )
    lacking = missing_shards(store, encoder, task)
    if lacking:
        raise StoreError(
            f'The embedding of task "{task.name}" by "{encoder}" is not finished; missing: {_some(lacking)}. A score over half of a task would be wrong.',
            where=store.path,
            hint="Run the `xares embed` command again: it does only what is missing. A shard that exists no more has to be left "
            "out of the task file's patterns.",
        )
    present = {part.address.split for part in parts}
    absent = [split for split in task.split_patterns() if split not in present]
    if absent:
        raise StoreError(
            f'Task "{task.name}" needs the splits {", ".join(task.split_patterns())}; not embedded: {", ".join(absent)}.',
            where=store.path,
            hint="Run `xares embed` for the task with all its shards in place.",
        )
    return hashlib.sha256("\n".join(sorted(part.manifest.digest for part in parts)).encode()).hexdigest()


def load_features(
    store: Store, encoder: str, task: Task, *, protocol: str, where: str | None, pooled: bool = True
) -> Features:
    """Read pooled vectors and make targets and folds.

    Args:
        store, encoder, task: what to read; addresses.
        protocol: how clips are divided into folds.
        where: SQL predicate over the clips.
        pooled: read the vectors; without them, for a probe that works on frames, ``values`` is ``(clips, 0)``.

    Raises:
        CorruptError: a part is damaged, or a clip stands in it twice.
        LabelError: a clip's label does not fit the task.
        ProtocolError: the protocol's splits cannot be made from the clips.
    """
    if pooled:
        values, clips = store.pooled(encoder, task.audio_address, where=where)
    else:
        clips = store.clip_table(encoder, task.audio_address, where=where)
        values = np.zeros((len(clips), 0), np.float32)
    parts = parts_of(store, encoder, task)
    wanted = {(part.address.split, part.address.shard) for part in parts}
    split = np.asarray(clips.column("split").to_pylist(), dtype=object)
    homes = zip(split, clips.column("shard").to_pylist(), strict=True)
    keep = np.fromiter((home in wanted for home in homes), dtype=bool, count=len(split))
    if not keep.any():
        raise ConfigError(
            f'No clip of task "{task.name}" is left to evaluate.',
            where=f"--where {where}" if where else store.path,
            hint='See what there is: xares sql "select split, count(*) from clips group by all".',
        )
    if not keep.all():
        rows = np.flatnonzero(keep)
        values, clips, split = values[rows], clips.take(rows), split[rows]
    clip_id = clips.column("clip_id").to_pylist()
    key = clips.column("key").to_pylist()
    shards = clips.column("shard").to_pylist()
    _refuse_duplicates(split, clip_id, shards, encoder, task)
    labels = clips.column("label").to_pylist()
    places = [f"{s}/{h}/{c}" for s, h, c in zip(split, shards, clip_id, strict=True)]  # where, for messages
    target = read_target(task, labels, places)
    names = [f"{s}/{k}" for s, k in zip(split, key, strict=True)]
    _, recording = np.unique(np.asarray(names), return_inverse=True)
    group = groups(task, labels, names)
    folds = make_folds(task, protocol, split=list(split), target=strata(task, target), group=group)
    if protocol == "strict":
        _refuse_shared_audio(parts, task)
    # Without fixed splits every clip is tested once, so every sample that failed is one that is not.
    tested = {"test"} if task.data.splits is not None else set(task.split_patterns())
    dropped = sum(part.manifest.counts.failures for part in parts if part.address.split in tested)
    return Features(
        values=values,
        target=target,
        recording=recording.astype(np.int64),
        split=split,
        clip_id=np.asarray(clip_id, dtype=object),
        key=np.asarray(key, dtype=object),
        folds=folds,
        cropped=len(np.unique(recording)) < len(recording),
        dropped=dropped,
        start_s=clips.column("start_s").to_numpy(),
        duration_s=clips.column("duration_s").to_numpy(),
        parts=tuple(parts),
        part_of=_part_of(parts, clips),
        offset=clips.column("offset").to_numpy(),
        n_frames=clips.column("n_frames").to_numpy(),
    )


def _part_of(parts: Sequence[Part], clips: pa.Table) -> np.ndarray:
    """Return the position in ``parts`` of the part that holds each clip; rows of one part stand together."""
    number = {(part.address.split, part.address.shard, part.address.sequence): i for i, part in enumerate(parts)}
    homes = zip(*(clips.column(name).to_pylist() for name in ("split", "shard", "sequence")), strict=True)
    return np.fromiter((number[home] for home in homes), dtype=np.int64, count=len(clips))


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _refuse_shared_audio(parts: Sequence[Part], task: Task) -> None:
    """Two splits must not be made of one and the same file, whatever its names."""
    homes: dict[str, str] = {}
    for part in parts:
        place = f"{part.address.split}/{part.address.shard}"
        other = homes.setdefault(part.manifest.source.sha256, place)
        if other.partition("/")[0] != part.address.split:
            raise ProtocolError(
                f'The shards {other} and {place} of task "{task.name}" are the same file: training and test clips would be '
                "the same.",
                where=part.path,
                hint="Correct the shards or the patterns of the task file.",
            )


def _refuse_duplicates(split: np.ndarray, clip_id: list[str], shard: list[str], encoder: str, task: Task) -> None:
    seen: dict[tuple[str, str], str] = {}
    for place in zip(split, clip_id, shard, strict=True):
        if place[:2] in seen:
            raise CorruptError(
                f'Clip "{place[1]}" stands twice in split "{place[0]}": in shards {seen[place[:2]]} and {place[2]}. Keys must be unique.',
                where=f"{encoder}/{task.audio_address}",
                hint="Give the samples unique keys, or remove one shard's part with `xares store rm`.",
            )
        seen[place[:2]] = place[2]


def known_tasks(store: Store, wanted: Sequence[str]) -> list[str]:
    """Return the names of tasks that a store has a definition of.

    Args:
        store: the store.
        wanted: names of tasks or suites, or paths of task files; of a suite, the tasks that are there.

    Raises:
        TaskError: it has none; the message suggests near names.
    """
    known = sorted({address.rpartition("@")[0] for address in store.tasks()})
    found: list[str] = []
    for name in wanted:
        members = [load_task(name).name] if name.endswith(".toml") else suites().get(name, [name])
        present = [member for member in members if member in known]
        if not present:
            raise TaskError(
                f'The store has no task "{name}".',
                where=store.path,
                hint=did_you_mean(name, known, listing="It has: " + (", ".join(known) or "none")),
            )
        found += present
    return list(dict.fromkeys(found))


def task_named(store: Store, name: str) -> Task:
    """Return a task from the definitions a store carries, by name or by ``name@fingerprint``.

    Raises:
        TaskError: no such task in the store, or several definitions of one name.
    """
    known = store.tasks()
    matches = [a for a in known if a == name] or [a for a in known if a.rpartition("@")[0] == name]
    if not matches:
        raise TaskError(
            f'No task "{name}": not a file, not a shipped task, and not in the store.',
            where=store.path,
            hint=did_you_mean(name, known, listing="In the store: " + ", ".join(sorted(known))),
        )
    if len(matches) > 1:
        raise TaskError(
            f'The store has {len(matches)} definitions of task "{name}": {", ".join(sorted(matches))}.',
            where=store.path,
            hint="Name one of them, or give the path of a task file.",
        )
    return Task.from_text(known[matches[0]], where=f"{store.path}/tasks/{matches[0]}.toml", base=None)
