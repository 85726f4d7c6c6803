"""Read the mean vectors and clip rows of one encoder and one task from its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xares_store.errors import CorruptError, StoreError, did_you_mean
from xares_store.store.checked import check_parts
from xares_store.store.layout import EMBEDDINGS, PartAddress
from xares_store.store.opened import Part
from xares_store.store.tree import named

if TYPE_CHECKING:
    from xares_store.store.store import Store


def read_pooled(
    store: Store, encoder: str, task: str, where: str | None, split: str | None
) -> tuple[NDArray[np.float32], pa.Table]:
    """Read and check; see :meth:`Store.pooled`."""
    table, rows, parts = _clips(store, encoder, task, where, split)
    features = np.concatenate([part.pooled() for part in parts])
    return (features if rows is None else features[rows]), table


def read_clips(store: Store, encoder: str, task: str, where: str | None) -> pa.Table:
    """Read and check; see :meth:`Store.clip_table`."""
    return _clips(store, encoder, task, where, None)[0]


def _clips(
    store: Store, encoder: str, task: str, where: str | None, split: str | None
) -> tuple[pa.Table, NDArray[np.int64] | None, list[Part]]:
    """Return the clip rows that match, their places among all of them (None for all), and the parts."""
    parts = one_of(store, encoder, task, split)
    check_parts(store.path, parts)
    table = pa.concat_tables([clip_rows(part) for part in parts])
    if where is None:
        return table, None, parts
    from xares_store.store.query import select_rows

    rows = select_rows(table, where)
    return table.take(rows), rows, parts


def one_of(store: Store, encoder: str, task: str, split: str | None = None) -> list[Part]:
    """Return the parts of one encoder and one task's audio.

    Raises:
        StoreError: nothing matches, or several encoders or tasks do.
    """
    parts = store.parts(encoder, task, split)
    if not parts:
        addresses = {name for part in store.parts() for name in (part.address.encoder, part.address.task)}
        known = sorted(addresses | {name.rpartition("@")[0] for name in addresses})
        wanted = encoder if not any(True for _ in named(store.path / EMBEDDINGS, encoder)) else task
        raise StoreError(
            f"There are no embeddings of encoder {encoder} for task {task}" + (f", split {split}." if split else "."),
            where=store.path,
            hint=did_you_mean(wanted, known) or "`xares store ls` lists what is there; `xares embed` adds more.",
        )
    for what, found in (
        ("encoders", {part.address.encoder for part in parts}),
        ("tasks", {part.address.task for part in parts}),
    ):
        if len(found) > 1:
            raise StoreError(
                f"Expected one of the {what}, found {len(found)}: {', '.join(sorted(found))}.",
                where=store.path,
                hint="Give the full name with the part after @.",
            )
    if len(dims := {part.manifest.dim for part in parts}) > 1:
        raise CorruptError(f"Expected one dimension for {encoder}, found {sorted(dims)}.", where=store.path)
    return parts


def clip_rows(part: Part) -> pa.Table:
    """Return a part's clip rows with its address in front: the columns of the view ``clips``."""
    table = part.clips()
    address, count = part.address, len(table)
    front = {name: _repeat(getattr(address, name), count) for name in ("encoder", "task", "split", "shard")}
    sequence = np.full(count, address.sequence, np.int32)
    front["sequence"] = pa.Array.from_buffers(pa.int32(), count, [None, pa.py_buffer(sequence)])
    return pa.table([*front.values(), *table.columns], names=[*front, *table.column_names])


def _repeat(text: str, count: int) -> pa.Array:
    """Repeat a text; made from buffers because converting Python values makes pyarrow import pandas where there is one."""
    data = text.encode()
    if count * len(data) >= 1 << 31:  # the offsets of a text column have 32 bits
        raise CorruptError(f"Expected at most a few million clips in a part, found {count:,}.", where=text)
    offsets = np.arange(count + 1, dtype=np.int32) * np.int32(len(data))
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data * count)])


def read_frames(store: Store, clip_id: str, encoder: str | None, task: str | None, split: str | None) -> NDArray[Any]:
    """Find and read one clip; see :meth:`Store.frames`."""
    found = store.sql(
        """
        SELECT encoder, task, split, shard, sequence, "offset", n_frames FROM clips
        WHERE clip_id = $clip AND ($split IS NULL OR split = $split)
          AND ($encoder IS NULL OR encoder = $encoder OR regexp_replace(encoder, '@[^@]*$', '') = $encoder)
          AND ($task IS NULL OR task = $task OR regexp_replace(task, '@[^@]*$', '') = $task)
        """,
        {"clip": clip_id, "encoder": encoder, "task": task, "split": split},
    ).to_pylist()
    if len(found) != 1:
        places = "; ".join(f"{row['encoder']} {row['task']} {row['split']}" for row in found[:5])
        raise StoreError(
            f"Expected one clip, found {len(found)}" + (f": {places}." if found else "."),
            where=clip_id,
            hint="Give encoder=, task= and split=." if found else '`xares sql "select clip_id from clips"` lists them.',
        )
    row = found[0]
    part = store.part(PartAddress(*(row[name] for name in ("encoder", "task", "split", "shard", "sequence"))))
    return part.frames(slice(row["offset"], row["offset"] + row["n_frames"]))
