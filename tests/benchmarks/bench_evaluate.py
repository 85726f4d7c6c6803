"""Phase two from store to scores against the plain in-memory loop, and how fast the light commands answer."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.bench_probes import make_data, make_jobs, plain_loop
from tests.benchmarks.common import Row, show
from xares_store.clip import Clip
from xares_store.device import set_threads
from xares_store.probes.mlp import MlpSettings
from xares_store.runs.evaluate import evaluate
from xares_store.runs.state import expect_shards
from xares_store.store.part import PartAddress, Source
from xares_store.store.store import Store
from xares_store.task import Task

TASK = """
format = 1
name = "bench"
title = "Benchmark"
domain = "environment"
[data]
folds = { 0 = ["f0.tar"], 1 = ["f1.tar"], 2 = ["f2.tar"], 3 = ["f3.tar"], 4 = ["f4.tar"] }
[target]
kind = "single-label"
key = "label"
encoding = "index"
labels = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
[metric]
name = "accuracy"
"""
ENCODER = "bench@00000000"


def make_store(path: Path, clips: int, dim: int, frames: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """Write a store of five folds whose pooled vectors are known."""
    task = Task.from_text(TASK, where="bench.toml", base=None)
    values, target = make_data(clips, dim, 10)
    store = Store.open(path, create=True)
    store.put_encoder(ENCODER, {"name": "bench"})
    store.put_task(task.address, task.to_toml())
    for fold in range(5):
        address = PartAddress(ENCODER, task.audio_address, f"fold-{fold}", f"f{fold}")
        writer = store.part_writer(address, dim=dim, hop_ms=20.0, sample_rate_hz=16000)
        rows = np.flatnonzero(np.arange(clips) % 5 == fold)
        for row in rows:
            clip = Clip(f"c{row:06d}", f"c{row:06d}", 0, 0.0, frames * 0.02, json.dumps({"label": int(target[row])}))
            writer.add(clip, np.broadcast_to(values[row], (frames, dim)).astype(np.float32), values[row])
        writer.commit(
            Source(f"f{fold}", f"{fold:064x}", 1),
            final=True,
            first_sample=0,
            n_samples=len(rows),
            timing={},
            versions={},
        )
    expect_shards(store, ENCODER, task.audio_address, [(f"fold-{fold}", f"f{fold}") for fold in range(5)])
    return task, values, target


def whole_process(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> list[Row]:
    set_threads()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "s"
        _, values, target = make_store(path, 400, 512, 250)
        x, y = torch.from_numpy(values), torch.from_numpy(target)
        options = MlpSettings()
        evaluate(path, probes=["mlp"], seeds=[1000])  # modules are imported and pages are in memory
        ratios = []
        for seed in range(7):
            began = time.perf_counter()
            for job in make_jobs(400, 5, 1):
                plain_loop(x, y, 10, job, 1e-3, options)
            plain = time.perf_counter() - began
            began = time.perf_counter()
            report = evaluate(path, probes=["mlp"], seeds=[seed])
            assert not report.results[0].reused
            ratios.append((time.perf_counter() - began) / plain)
        rows.append(Row("MLP, 5 folds x 1 seed, store to scores over the plain in-memory loop", ratios, 2.0))

        ratios = []
        for seed in range(100, 105):
            bare = whole_process("-c", "import torch")
            command = f"from xares_store.runs.evaluate import evaluate; evaluate({str(path)!r}, probes=['mlp'], seeds=[{seed}])"
            ratios.append(whole_process("-c", command) / bare)
        rows.append(Row("the same as a whole process over `import torch`", ratios, 2.5))

        big = Path(name) / "big"
        make_store(big, 100_000, 8, 2)
        query = "select task, count(*) from clips group by all"
        sql = ("-m", "xares_store", "sql", "--store", str(big), query)
        whole_process(*sql)  # the first query builds the index
        light = {
            "xares --help, seconds": (("-m", "xares_store", "--help"), 0.6),
            "xares tasks ls, seconds": (("-m", "xares_store", "tasks", "ls"), 0.6),
            "xares sql on 100,000 clips, seconds": (sql, 1.0),
        }
        for what, (command, target_s) in light.items():
            rows.append(Row(what, [whole_process(*command) for _ in range(5)], target_s))
    return rows


if __name__ == "__main__":
    show(main())
