"""The whole suite in phase two: 22 tasks, 600,000 training and 250,000 test clips, MLP with 5 seeds x 4 rates, and k-NN.

The store is generated: every clip has one frame, so that what is measured is reading pooled vectors, training, voting,
bootstrap and writing predictions. Tasks have the numbers of classes of the X-ARES tasks with labels of whole clips (200 of
them tags, any number a clip, without k-NN) and equal shares of the clips, a tenth of the training clips being the
validation split. Shares are equal because they decide what is measured: with its real 138,000 clips, VoxCeleb1 with 1,251
classes would take four fifths of the time, almost all of it in matrix products.

    python -m tests.benchmarks.bench_suite --scale 0.05     # a twentieth of the clips; prints a projection

A scaled run projects as if every part grew with the clips. k-NN grows with their square, but for what it takes to begin,
so the projection gives both ends.
"""

from __future__ import annotations

import argparse
import atexit
import json
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from xares_store.cli.common import emit
from xares_store.clip import Clip
from xares_store.runs.evaluate import evaluate
from xares_store.runs.state import expect_shards
from xares_store.store.part import PartAddress, Source
from xares_store.store.store import Store
from xares_store.task import Task

CLASSES = (2, 6, 248, 11, 2, 8, 30, 6, 1251, 33, 50, 10, 302, 8, 10, 11, 2, 200, 2, 2, 28, 41)
TAGS = 200  # classes of the task with any number of labels a clip
TRAIN, TEST, DIM = 600_000, 250_000, 768
ENCODER = "bench@00000000"
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
CLIPS_A_PART = 5_000
MINUTES, GIGABYTES = 10, 4

TEXT = """
format = 1
name = "suite{number:02d}"
title = "Suite {number}"
domain = "environment"
[data]
splits = {{ train = ["train-*.tar"], valid = ["valid-*.tar"], test = ["test-*.tar"] }}
[target]
key = "label"
labels = [{labels}]
{kind}
"""
ONE = """
kind = "single-label"
encoding = "index"
[metric]
name = "accuracy"
"""
SEVERAL = """
kind = "multi-label"
[metric]
name = "map"
also = ["map_present", "macro_f1", "micro_f1", "auroc", "d_prime"]
"""


def make_task(number: int, classes: int) -> Task:
    """Define one task of the suite."""
    labels = ", ".join(f'"class {index}"' for index in range(classes))
    kind = SEVERAL if classes == TAGS else ONE
    return Task.from_text(TEXT.format(number=number, labels=labels, kind=kind), where="bench", base=None)


def make_store(path: Path, scale: float) -> list[Task]:
    """Write 22 tasks of embeddings whose classes can be learnt."""
    store = Store.open(path, create=True)
    store.put_encoder(ENCODER, {"name": "bench"})
    tasks = [make_task(number, classes) for number, classes in enumerate(CLASSES)]
    share = {
        "train": round(0.9 * TRAIN * scale / len(tasks)),
        "valid": round(0.1 * TRAIN * scale / len(tasks)),
        "test": round(TEST * scale / len(tasks)),
    }
    for number, task in enumerate(tasks):
        rng = np.random.default_rng(number)
        centres = rng.standard_normal((len(task.labels), DIM)).astype(np.float32)
        shards = []
        for split, clips in share.items():
            for first in range(0, clips, CLIPS_A_PART):
                count = min(CLIPS_A_PART, clips - first)
                shard = f"{split}-{first // CLIPS_A_PART}"
                shards.append((split, shard))
                target = rng.integers(0, len(centres), count)
                second = rng.integers(0, len(centres), count)
                values = centres[target] + 4 * rng.standard_normal((count, DIM)).astype(np.float32)
                if len(centres) == TAGS:
                    values += centres[second]
                address = PartAddress(ENCODER, task.audio_address, split, shard)
                writer = store.part_writer(address, dim=DIM, hop_ms=1000.0, sample_rate_hz=16000)
                for row in range(count):
                    key = f"{split}{first + row:07d}"
                    label = json.dumps({"label": label_of(task, int(target[row]), int(second[row]))})
                    writer.add(Clip(key, key, 0, 0.0, 1.0, label), values[row : row + 1], values[row])
                writer.commit(
                    Source(shard, f"{number:08x}{hash((split, first)) & 0xFFFFFFFF:08x}".ljust(64, "0"), 1),
                    final=True,
                    first_sample=0,
                    n_samples=count,
                    timing={},
                    versions={},
                )
        store.put_task(task.address, task.to_toml())
        expect_shards(store, ENCODER, task.audio_address, shards)
    return tasks


def label_of(task: Task, first: int, second: int) -> int | list[str]:
    """Return what the JSON beside a clip says: a class, or the two tags that were mixed into it."""
    return [task.labels[first], task.labels[second]] if len(task.labels) == TAGS else first


class Clock:
    """Adds up the time spent in functions, without what they spend in other timed ones.

    Probes train side by side, one thread each, so the seconds inside training are those of all threads together.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._thread = threading.local()
        self._lock = threading.Lock()

    def wrap(self, module: Any, name: str, phase: str) -> None:
        """Replace a function by one that is timed."""
        function: Callable[..., Any] = getattr(module, name)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not hasattr(self._thread, "open"):
                self._thread.open = []
            inside: list[float] = self._thread.open
            inside.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                with self._lock:
                    self.seconds[phase] += took - inside.pop()
                if inside:
                    inside[-1] += took

        setattr(module, name, timed)


def instrument(clock: Clock) -> None:
    """Time the phases of an evaluation."""
    from xares_store.probes import clips, mlp, stack
    from xares_store.runs import clip_scores, outcomes, score
    from xares_store.runs import evaluate as whole

    clock.wrap(whole, "load_features", "read, targets, splits")
    clock.wrap(whole, "parts_digest", "read, targets, splits")
    clock.wrap(stack.Stack, "step", "train: forward, backward")
    clock.wrap(stack, "_adam", "train: Adam")
    clock.wrap(mlp, "_train_slice", "train: batches and the rest")
    clock.wrap(outcomes, "knn_predict", "k-NN")
    clock.wrap(clips.Clips, "scores", "validate")
    clock.wrap(clips.Clips, "outputs", "predict")
    clock.wrap(score, "bootstrap_interval", "bootstrap")
    clock.wrap(outcomes, "score_run", "score, prediction tables")
    clock.wrap(outcomes, "score_multilabel", "score, prediction tables")
    clock.wrap(clip_scores, "bootstrap_map", "bootstrap")
    clock.wrap(clip_scores, "bootstrap_counts", "bootstrap")
    clock.wrap(Store, "write_run", "write runs")


def main() -> int:
    """Print where the time goes; return 1 when a target is missed at full size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, nargs="*", default=None, help="numbers of tasks; all when left out")
    parser.add_argument("--store", type=Path, default=None, help="keep the store here, or use the one that is there")
    options = parser.parse_args()
    folder = options.store
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="xares-suite-")) / "s"
        atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)  # gigabytes at full size
    if folder.exists():
        tasks = [make_task(number, classes) for number, classes in enumerate(CLASSES)]
    else:
        tasks = make_store(folder, options.scale)
    if options.tasks is not None:
        tasks = [tasks[number] for number in options.tasks]
    clock, rows = Clock(), []
    instrument(clock)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = time.perf_counter()
    for task in tasks:
        for probe in ("mlp",) if len(task.labels) == TAGS else ("mlp", "knn"):
            began, phases = time.perf_counter(), dict(clock.seconds)
            rates = RATES if probe == "mlp" else None
            report = evaluate(folder, tasks=[task], probes=[probe], seeds=options.seeds, learning_rates=rates)
            spent = {name: value - phases.get(name, 0.0) for name, value in clock.seconds.items()}
            took = time.perf_counter() - began
            main = float(np.mean([result.value for result in report.results]))
            rows.append((task.name, len(task.labels), probe, took, main, spent))
            print(f"{task.name} {len(task.labels)} classes {probe}: {took:.1f} s, {main:.3f}", file=sys.stderr)
    seconds = time.perf_counter() - whole
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    names = sorted({name for *_, spent in rows for name in spent})
    phases_of = {name: sum(spent.get(name, 0.0) for *_, spent in rows) for name in names}
    emit(
        ("phase", "seconds of all threads", "share"),
        [
            (name, value, value / sum(phases_of.values()))
            for name, value in sorted(phases_of.items(), key=lambda one: -one[1])
        ],
    )
    emit(
        ("task", "classes", "probe", "seconds", "main metric"),
        [row[:5] for row in sorted(rows, key=lambda row: -row[3])[:12]],
    )
    neighbours = phases_of.get("k-NN", 0.0)
    projected = [(seconds - neighbours) / options.scale + neighbours / options.scale**power for power in (1, 2)]
    emit(
        ("what", "measured", "target"),
        [
            ("minutes" + ("" if options.scale == 1 else f" at scale {options.scale}"), seconds / 60, MINUTES),
            ("minutes projected to full size, from", projected[0] / 60, MINUTES),
            ("minutes projected to full size, to", projected[1] / 60, MINUTES),
            ("peak memory, GB", peak, GIGABYTES),
            ("peak before, GB", before * 1024 / 1e9, None),
        ],
    )
    return int(options.scale == 1 and (seconds > 60 * MINUTES or peak > GIGABYTES))


if __name__ == "__main__":
    sys.exit(main())
