"""Training the frame probe on a store larger than its memory: peak memory and speed, as ratios.

Run ``python -m tests.benchmarks.bench_frames [--memory MIB] [--times N]``. The store is N times the budget. The baseline
is the same training with everything in memory after the first epoch, so both give the same weights, which is checked.
Each run is a process of its own: memory of one must not colour the next. Runs alternate, so that other load on the
machine hits both; times are of the epochs after the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks.common import Row, show
from xares_store.clip import Clip
from xares_store.store import PartAddress, Source, Store

DIM, FRAMES, CLASSES, HOP_MS = 768, 250, 10, 40.0
PER_PART = 340  # clips of 10 s: about 125 MiB
ENCODER, TASK = "bench@00000000", "bench@00000000"


def make_store(path: Path, stored_bytes: int) -> None:
    """Write clips of 10 s until the store has so many bytes of float16 frames; which class sounds is in the frames."""
    store = Store.create(path)
    store.put_encoder(ENCODER, {"spec": "bench", "dim": DIM, "hop_ms": HOP_MS, "sample_rate_hz": 16000})
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((20_000, DIM), dtype=np.float32)
    left = stored_bytes // (FRAMES * DIM * 2)
    number = 0
    while left > 0:
        writer = store.part_writer(
            PartAddress(ENCODER, TASK, "train", f"shard{number:04d}"), dim=DIM, hop_ms=HOP_MS, sample_rate_hz=16000
        )
        count = min(PER_PART, left)
        for clip in range(count):
            start = int(rng.integers(0, len(noise) - FRAMES))
            frames = noise[start : start + FRAMES].copy()
            frames[:, :CLASSES] += 2 * roll_of(clip)
            name = f"{number}-{clip}"
            writer.add(Clip(name, name, 0, 0.0, 10.0, json.dumps(clip)), frames, frames.mean(axis=0))
        source = Source(f"shard{number:04d}", "0" * 64, 1)
        writer.commit(source, final=True, first_sample=0, n_samples=count, timing={}, versions={})
        left, number = left - count, number + 1


def roll_of(clip: int) -> np.ndarray:
    """Frame targets ``(frames, classes)`` of the n-th clip of a part."""
    return (np.random.default_rng(clip).random((FRAMES, CLASSES)) < 0.2).astype(np.uint8)


class MemoryPeak:
    """Largest resident memory of this process beyond what it had, in MiB."""

    def __init__(self) -> None:
        self.mebibytes = 0.0
        self._start = self._resident()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.mebibytes = max(self.mebibytes, (self._resident() - self._start) / (1 << 20))
            time.sleep(0.002)

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Hits:
    """Frame accuracy: a validation that costs little."""

    def __init__(self, rows: np.ndarray, models: int) -> None:
        self.rows, self.right = rows, np.zeros(models)

    def add(self, row: int, logits: np.ndarray) -> None:
        wanted = roll_of(int(self.rows[row]))[:, None] > 0
        self.right += ((logits > 0) == wanted).mean(axis=(0, 2))

    def values(self) -> list[float]:
        return list(self.right)


def train(path: Path, memory_mib: int, seeds: int, rates: int, epochs: int) -> dict[str, object]:
    """Train once in this process and report time, memory and weights."""
    from xares_store.device import set_threads
    from xares_store.probes.frame import FrameJob, FrameResult, FrameSettings, train_frames
    from xares_store.store.stream import FrameSource

    set_threads()
    parts = Store.open(path).parts()
    tables = [part.clips() for part in parts]
    place = np.repeat(np.arange(len(parts)), [len(table) for table in tables])
    offset, count = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("offset", "n_frames"))
    clip = np.concatenate([[int(text) for text in table["label"].to_pylist()] for table in tables])
    source = FrameSource(parts, place, offset, count)
    rolls = np.stack([roll_of(number) for number in range(PER_PART)])
    rows = np.random.default_rng(0).permutation(len(place)).astype(np.int64)
    valid, learn = np.sort(rows[: len(rows) // 10]), np.sort(rows[len(rows) // 10 :])
    settings = FrameSettings(epochs=epochs, batch_size=32, learning_rates=(1e-3, 3e-3, 1e-2, 3e-2)[:rates])

    def run(learn: np.ndarray, valid: np.ndarray, call: Callable[[int, int], None]) -> FrameResult:
        jobs = [FrameJob("all", learn, valid, seed) for seed in range(seeds)]
        return train_frames(
            source,
            lambda row: rolls[clip[row]],
            CLASSES,
            jobs,
            settings,
            valid_score=lambda models: Hits(clip, models),
            memory_bytes=memory_mib << 20,
            progress=call,
        )[0]

    run(learn[:2], valid[:1], lambda done, total: None)  # code that is loaded when it first runs, and its threads
    peak, ends = MemoryPeak(), []
    found = run(learn, valid, lambda done, total: ends.append(time.perf_counter()))
    return {
        "seconds": (ends[-1] - ends[0]) / (epochs - 1),
        "mebibytes": peak.mebibytes,
        "weights": found.state["fc.weight"].ravel()[:50].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, default=512, help="budget in MiB")
    parser.add_argument("--times", type=int, default=8, help="size of the store in budgets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("STORE", "MIB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        path, memory = options.child
        print(json.dumps(train(Path(path), int(memory), options.seeds, options.rates, options.epochs)))
        return
    with tempfile.TemporaryDirectory(prefix="xares-bench-") as folder:
        path = Path(folder) / "s"
        make_store(path, (options.memory * options.times) << 20)
        plain = [f"--{name}={getattr(options, name)}" for name in ("seeds", "rates", "epochs")]

        def measure(memory: int) -> dict[str, object]:
            command = [sys.executable, "-m", "tests.benchmarks.bench_frames", *plain, "--child", str(path), str(memory)]
            return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        slower, memory = [], []
        for _ in range(options.repeats):
            streamed, kept = measure(options.memory), measure(options.memory * options.times * 2)
            assert streamed["weights"] == kept["weights"]
            slower.append(streamed["seconds"] / kept["seconds"])
            memory.append(streamed["mebibytes"] / options.memory)
            print(
                f"{options.memory * options.times} MiB of frames: an epoch takes {streamed['seconds']:.2f} s in "
                f"{streamed['mebibytes']:.0f} MiB, {kept['seconds']:.2f} s in {kept['mebibytes']:.0f} MiB",
                flush=True,
            )
    what = f"store of {options.times} x {options.memory} MiB, {options.seeds} seeds x {options.rates} rates"
    show(
        [
            Row(f"time over time in memory, {what}", slower, 1 / 0.6),
            Row("peak memory over budget", memory, 1.0),
        ]
    )


if __name__ == "__main__":
    main()
