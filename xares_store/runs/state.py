"""How far the embedding of a task has come: committed parts against the shards that belong to the task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xares_store.errors import ClashError, CorruptError, StoreError
from xares_store.patterns import names_shard
from xares_store.store.files import read_small
from xares_store.store.layout import PartAddress, atomic_write

if TYPE_CHECKING:
    from xares_store.store.part import Part
    from xares_store.store.store import Store
    from xares_store.task import Task

EXPECTED = "expected.json"


@dataclass(frozen=True)
class ShardState:
    """How far one shard has come.

    Attributes:
        done: the last part of the shard is committed.
        sequence: number of committed parts, which is the sequence number of the next one.
        first_sample: index of the first sample of the shard that no committed part covers.
        sha256: digest of the shard's content when it was embedded; None when nothing is committed.
        dtype: dtypes of the committed parts.
        failures: samples recorded as failed in them.
    """

    done: bool
    sequence: int
    first_sample: int
    sha256: str | None
    dtype: frozenset[str]
    failures: int


def shard_state(parts: Sequence[Part]) -> ShardState:
    """Say how far a shard has come from its committed parts (in any order)."""
    ordered = sorted(parts, key=lambda part: part.address.sequence)
    sequence, first, done, sha256 = 0, 0, False, None
    for part in ordered:
        manifest = part.manifest
        if part.address.sequence != sequence or manifest.first_sample != first:
            break  # a gap: the parts behind it are met again when the gap has been filled
        sequence, first, done = sequence + 1, first + manifest.counts.samples, manifest.final
        if sha256 is not None and sha256 != manifest.source.sha256:
            raise ClashError(
                "The parts of one shard were made from different versions of the audio.",
                where=part.path,
                hint="Remove them with `xares store rm` and embed the shard again.",
            )
        sha256 = manifest.source.sha256
    dtypes = frozenset(part.manifest.dtype for part in ordered)
    return ShardState(done, sequence, first, sha256, dtypes, sum(part.manifest.counts.failures for part in ordered))


def state_now(store: Store, encoder: str, audio_address: str, split: str, shard: str) -> ShardState:
    """Return the state of one shard as it is on disk at this moment: another process may be embedding too."""
    parts: list[Part] = []
    while store.has_part(address := PartAddress(encoder, audio_address, split, shard, len(parts))):
        parts.append(store.part(address))
    return shard_state(parts)


def states_of(store: Store, encoder: str, audio_address: str) -> dict[tuple[str, str], ShardState]:
    """Return the state of every shard of a task that has at least one committed part, by (split, shard)."""
    grouped: dict[tuple[str, str], list[Part]] = {}
    for part in store.parts(encoder=encoder, task=audio_address):
        grouped.setdefault((part.address.split, part.address.shard), []).append(part)
    return {key: shard_state(parts) for key, parts in grouped.items()}


def _task_folder(store: Store, encoder: str, audio_address: str) -> Path:
    return Path(store.path) / "embeddings" / encoder / audio_address


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a small JSON object beside the parts; None when there is none."""
    if not path.exists():
        return None
    try:
        value = json.loads(read_small(path))
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"Expected a JSON object, found something else: {error}.", where=path, hint="Remove the file."
        ) from error
    return value if isinstance(value, dict) else None


def _expected(path: Path) -> dict[str, list[str]]:
    """Read which shards belong to a task, by split: anything may stand in a stranger's store."""
    value = read_json(path) or {}
    for names in value.values():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CorruptError(
                "Expected lists of shard names by split, found something else.",
                where=path,
                hint="Remove the file; `xares embed` writes it again.",
            )
    return value


def expect_shards(store: Store, encoder: str, audio_address: str, shards: Iterable[tuple[str, str]]) -> None:
    """Record which shards (split, name) belong to the task, so that phase two can tell a whole task from half of one."""
    path = _task_folder(store, encoder, audio_address) / EXPECTED
    known = _expected(path)
    merged = {split: set(names) for split, names in known.items()}
    for split, name in shards:
        merged.setdefault(split, set()).add(name)
    wanted = {split: sorted(names) for split, names in sorted(merged.items())}
    if wanted != known:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, (json.dumps(wanted, indent=1) + "\n").encode())


def parts_of(store: Store, encoder: str, task: Task) -> list[Part]:
    """Return the parts a task is made of: those whose shard its patterns name, in their split.

    A store may hold further parts under the same address, from an earlier definition that divided the shards otherwise;
    a clip in train then and in test now must not count in both.
    """
    patterns = task.split_patterns()
    return [
        part
        for part in store.parts(encoder=encoder, task=task.audio_address)
        if names_shard(patterns.get(part.address.split, ()), part.address.shard)
    ]


def missing_shards(store: Store, encoder: str, task: Task) -> list[str]:
    """Return ``split/shard`` of every shard of the task that embedding has not finished, in order."""
    expected = _expected(_task_folder(store, encoder, task.audio_address) / EXPECTED)
    states = states_of(store, encoder, task.audio_address)
    known = {(split, name) for split, names in expected.items() for name in names} | set(states)
    patterns = task.split_patterns()
    return [
        f"{split}/{name}"
        for split, name in sorted(known)
        if names_shard(patterns.get(split, ()), name) and not ((state := states.get((split, name))) and state.done)
    ]


def batch_plan_path(store: Store, encoder: str, audio_address: str, device: str) -> Path:
    """Return where the batch budget for a device kind is kept: resuming must form the same batches."""
    return _task_folder(store, encoder, audio_address) / f"batches-{device.partition(':')[0]}.json"
