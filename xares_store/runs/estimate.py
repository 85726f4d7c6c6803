"""What an embed would cost: clips, hours and bytes, from audio headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xares_store.audio.headers import clip_lengths
from xares_store.audio.waveform import CropRule
from xares_store.device import resolve_device
from xares_store.encoders.encoder import load_encoder
from xares_store.runs.plan import select_tasks
from xares_store.runs.state import states_of
from xares_store.store.store import Store
from xares_store.task import Task

COLUMNS = ("task", "split", "shards", "stored", "clips", "unreadable", "hours", "store_mb")


def estimate(
    encoder: str,
    tasks: Sequence[str | Task] = (),
    *,
    store: str | Path,
    data: str | Path,
    device: str = "auto",
    encoder_args: Mapping[str, str] | None = None,
    dtype: str = "float16",
) -> list[tuple[object, ...]]:
    """Estimate what `embed` with the same arguments would add to the store; nothing is written.

    Args:
        encoder: an encoder spec; it is loaded to learn its dimension and hop, not run.
        tasks, store, data, device, encoder_args, dtype: as for `embed`.

    Returns:
        A row a task and split, as long as `COLUMNS`: shards in all, shards stored before, clips to embed, samples whose
        audio header cannot be read, hours to embed, and megabytes (10^6) of frames and pooled vectors to store.
    """
    selected, _ = select_tasks(tasks, Path(data))
    loaded = load_encoder(encoder, args=encoder_args, device=resolve_device(device))
    known = Store.open(store) if (Path(store) / "store.json").exists() else None
    width = 2 if dtype == "float16" else 4
    rows: list[tuple[object, ...]] = []
    for task, shards in selected:
        crop = CropRule(task.audio.crop_s, task.audio.tail, task.audio.min_tail_s)
        states = states_of(known, loaded.address, task.audio_address) if known else {}
        for split in dict.fromkeys(shard.split for shard in shards):
            mine = [shard for shard in shards if shard.split == split]
            todo = [shard for shard in mine if not ((state := states.get((split, shard.name))) and state.done)]
            clips, unreadable, seconds, frames = 0, 0, 0.0, 0
            for shard in todo:
                for lengths in clip_lengths(shard, crop):
                    unreadable += lengths is None
                    clips += len(lengths or ())
                    seconds += sum(lengths or ())
                    frames += sum(max(1, round(length * 1000 / loaded.hop_ms)) for length in lengths or ())
            size = frames * loaded.dim * width + clips * loaded.dim * 4
            rows.append(
                (task.name, split, len(mine), len(mine) - len(todo), clips, unreadable, seconds / 3600, size / 1e6)
            )
    return rows
