"""How ``tests/stores/v1`` was made. Never run it again for format 1: the archive must stay as old stores are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from xares_store.clip import Clip, Failure
from xares_store.store import PartAddress, Source, Store

ENCODER = "logmel@1a2b3c4d"
TASK = "esc10@9f8e7d6c"


def values(fold: int, row: int) -> np.ndarray:
    """Frames anybody can compute again: noise exact in float16 for fold 1; for fold 2 large, regular and float32."""
    if fold == 1:
        place = np.arange(4 * (3 + row), dtype=np.int64).reshape(-1, 4)
        return ((place * 7919 + row * 104_729) ** 2 % 2039).astype(np.float32) - 1000
    return (np.arange(100 + row)[:, None] * np.array([1e5, 5e4, -25e3, 0])).astype(np.float32)


def main(folder: Path) -> None:
    """Write the store."""
    store = Store.create(folder)
    store.put_encoder(ENCODER, {"spec": "logmel", "dim": 4, "hop_ms": 10.0, "sample_rate_hz": 16000})
    store.put_task("esc10@00000000", 'format = 1\nname = "esc10"\n')
    for fold in (1, 2):
        address = PartAddress(ENCODER, TASK, f"fold-{fold}", f"clips-{fold}")
        writer = store.part_writer(address, dim=4, hop_ms=10.0, sample_rate_hz=16000)
        for row in range(3):
            name, frames = f"{fold}-{row}", values(fold, row)
            label = f'{{"label": {row}, "name": "ü"}}'
            writer.add(Clip(name, name, 0, 0.0, len(frames) / 100, label), frames, frames.mean(axis=0))
        writer.fail(Failure(f"{fold}-x", f"clips-{fold}", "empty", "There is no audio."))
        source = Source(f"clips-{fold}", "0" * 64, 1000)
        writer.commit(
            source, final=True, first_sample=0, n_samples=4, timing={"encode_s": 0.1}, versions={"xares-store": "0.1.0"}
        )
    run = {
        "encoder": ENCODER,
        "task": "esc10",
        "task_address": "esc10@00000000",
        "audio_address": TASK,
        "probe": "mlp",
        "probe_version": 1,
        "protocol": "strict",
        "seed": 42,
        "settings": {"epochs": 10},
        "where": None,
        "parts_digest": "0" * 64,
        "started": "2026-11-21T00:00:00+00:00",
        "seconds": 0.5,
        "device": "cpu",
        "versions": {},
        "n_test": 2,
        "n_dropped": 2,
        "weight": 2,
        "main_metric": "accuracy",
        "scores": [{"metric": "accuracy", "value": 0.5, "fold": None, "low": 0.0, "high": 1.0, "n": 2}],
    }
    predictions = pa.table(
        {
            "fold": ["1", "2"],
            "split": ["fold-1", "fold-2"],
            "clip_id": ["1-0", "2-0"],
            "key": ["1-0", "2-0"],
            "target": ["dog", "cat"],
            "prediction": ["dog", "dog"],
            "correct": [True, False],
            "probability": pa.array([0.75, 0.5], pa.float32()),
            "target_probability": pa.array([0.75, 0.25], pa.float32()),
        }
    )
    store.write_run(
        "esc10-mlp-strict-s42-0", run, predictions, {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
