"""Import against decoding: ``python -m tests.benchmarks.bench_import [--files N] [--rounds N] [--seconds S]``.

Generated short wav and flac files are decoded once, one after the other in one thread and in as many threads as the
import uses, and imported. The ratios are of wall time in the same round; of CPU time too, which holds on a busy machine.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import soundfile

from tests.benchmarks.common import Row, show
from xares_store import import_audio
from xares_store.audio.waveform import decode
from xares_store.device import usable_cores

RATE_HZ = 16000
CLASSES = 10
BLOCK = 16


def generate(folder: Path, *, files: int, seconds: float) -> list[Path]:
    """Write noise with a slope like that of recordings, wav and flac in turn, of varied length."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(files):
        noise = rng.standard_normal(int(RATE_HZ * seconds * rng.uniform(0.5, 1.5)))
        audio = np.convolve(noise, np.exp(-np.arange(64) / 8), mode="same") * 0.02
        path = folder / f"class{number % CLASSES}" / f"{number:05d}.{'wav' if number % 2 else 'flac'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, audio, RATE_HZ, subtype="PCM_16")
        paths.append(path)
    return paths


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def decode_all(paths: list[Path], threads: int) -> None:
    blocks = [paths[at : at + BLOCK] for at in range(0, len(paths), BLOCK)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda block: [len(decode(path.read_bytes())[0]) for path in block], blocks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    threads = usable_cores()
    rows: dict[str, list[float]] = {"wall": [], "threads": [], "cpu": [], "again": []}
    with tempfile.TemporaryDirectory(prefix="xares-bench-") as folder:
        paths = generate(Path(folder) / "source", files=options.files, seconds=options.seconds)
        out = Path(folder) / "out"
        decode_all(paths, 1)  # every round meets the files in the page cache
        for _ in range(options.rounds):
            shutil.rmtree(out, ignore_errors=True)
            single = timed(lambda: [len(decode(path.read_bytes())[0]) for path in paths])
            several = timed(lambda: decode_all(paths, threads))
            made = timed(lambda: import_audio(Path(folder) / "source", name="bench", out=out))
            again = timed(lambda: import_audio(Path(folder) / "source", name="bench", out=out))
            rows["wall"].append(made[0] / single[0])
            rows["threads"].append(made[0] / several[0])
            rows["cpu"].append(made[1] / single[1])
            rows["again"].append(again[0] / made[0])
            print(
                f"{options.files} files: decoding {single[0]:.2f} s, in {threads} threads {several[0]:.2f} s, "
                f"import {made[0]:.2f} s (CPU {made[1]:.2f} s), once more {again[0]:.2f} s"
            )
    show(
        [
            Row("import / decoding once", rows["wall"], 1.0),
            Row("import / decoding once in as many threads", rows["threads"], 1.5),
            Row("CPU of import / CPU of decoding once", rows["cpu"], 1.5),
            Row("finished import again / import", rows["again"], 0.5),
        ]
    )


if __name__ == "__main__":
    main()
