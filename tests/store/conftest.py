"""Small stores to test with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from xares_store.clip import Clip, Failure
from xares_store.store import Part, PartAddress, Source, Store

ENCODER = "logmel@1a2b3c4d"
TASK = "esc10@9f8e7d6c"


def make_frames(lengths: list[int], dim: int, seed: int = 0, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal((length, dim))).astype(np.float32) for length in lengths]


def address(split: str = "fold-1", shard: str = "clips-0", sequence: int = 0, **changes: str) -> PartAddress:
    return PartAddress(changes.get("encoder", ENCODER), changes.get("task", TASK), split, shard, sequence)


def put_part(
    store: Store,
    where: PartAddress | None = None,
    *,
    lengths: list[int] | None = None,
    dim: int = 5,
    seed: int = 0,
    frames: list[np.ndarray] | None = None,
    failures: int = 1,
    dtype: Any = "float16",
    prefix: str | None = None,
    labels: list[str] | None = None,
) -> Part:
    """Commit a small part: clips named after their shard, labels by row, one failure."""
    where = where or address()
    frames = make_frames(lengths or [3, 1, 4], dim, seed) if frames is None else frames
    prefix = f"{where.shard}-{where.sequence}" if prefix is None else prefix
    writer = store.part_writer(where, dim=dim, hop_ms=10.0, sample_rate_hz=16000, dtype=dtype)
    for row, values in enumerate(frames):
        clip = Clip(
            f"{prefix}-{row}",
            f"{prefix}-{row}",
            0,
            0.0,
            len(values) / 100,
            labels[row] if labels else f'{{"label": {row}, "category": "c{row % 2}"}}',
        )
        writer.add(clip, values, values.mean(axis=0))
    for number in range(failures):
        writer.fail(Failure(f"{prefix}-bad{number}", where.shard, "empty", "There is no audio."))
    source = Source(where.shard, "0" * 64, 1000)
    total = len(frames) + failures
    store.put_encoder(where.encoder, {"spec": "logmel", "dim": dim, "hop_ms": 10.0, "sample_rate_hz": 16000})
    return writer.commit(
        source, final=True, first_sample=0, n_samples=total, timing={"encode_s": 1.0}, versions={"x": "1"}
    )


def run_record(seed: int | None = 42, **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "encoder": ENCODER,
        "task": "esc10",
        "task_address": "esc10@00000000",
        "audio_address": TASK,
        "probe": "mlp",
        "probe_version": 1,
        "protocol": "strict",
        "seed": seed,
        "settings": {"learning_rates": [0.001], "epochs": 10},
        "where": None,
        "parts_digest": "0" * 64,
        "started": "2026-11-21T00:00:00+00:00",
        "seconds": 0.5,
        "device": "cpu",
        "versions": {"xares-store": "0.1.0"},
        "n_test": 4,
        "n_dropped": 1,
        "weight": 4,
        "main_metric": "accuracy",
        "scores": [
            {"metric": "accuracy", "value": 0.5, "fold": None, "low": 0.4, "high": 0.6, "n": 4},
            {"metric": "accuracy", "value": 0.5, "fold": "1", "low": 0.4, "high": 0.6, "n": 4},
        ],
    }
    return {**record, **changes}


def predictions(count: int = 4) -> pa.Table:
    return pa.table(
        {
            "fold": ["1"] * count,
            "split": ["fold-1"] * count,
            "clip_id": [f"clips-0-0-{row}" for row in range(count)],
            "key": [f"clips-0-0-{row}" for row in range(count)],
            "target": ["dog"] * count,
            "prediction": ["dog" if row % 2 else "cat" for row in range(count)],
            "correct": [bool(row % 2) for row in range(count)],
            "probability": np.full(count, 0.75, np.float32),
            "target_probability": np.full(count, 0.5, np.float32),
        }
    )


def put_run(store: Store, run_id: str = "run-1", **changes: Any) -> bool:
    return store.write_run(run_id, run_record(**changes), predictions(), {"fc.weight": np.ones((2, 3), np.float32)})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "my.store")


@pytest.fixture
def full(store: Store) -> Store:
    """A store with three parts, a task definition and two runs."""
    for fold in (1, 2, 3):
        put_part(store, address(f"fold-{fold}", f"clips-{fold}"), seed=fold)
    store.put_task("esc10@00000000", 'name = "esc10"\n')
    put_run(store, "run-42", seed=42)
    put_run(store, "run-43", seed=43)
    return store


Flip = Callable[[Path, int], None]


def flip_byte(path: Path, position: int) -> None:
    """Change one byte of a file, keeping its size."""
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 0x21
    path.write_bytes(data)
