"""How close the decode pool comes to ideal: ``python tests/benchmarks/bench_decode.py [DIR] [--workers N] [--rounds N]``.

DIR holds tar shards (by default the real ESC-10 recordings, else generated ones). Ideal is the time of decoding and
resampling the same bytes in one process, divided by the workers. Shares of the same run are printed, best of the rounds.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil
import soundfile

from xares_store.audio.decode import DecodePool
from xares_store.audio.samples import FileRange, Sample, iter_samples
from xares_store.audio.waveform import CropRule
from xares_store.audio.worker import prepare

ESC10 = Path(__file__).resolve().parents[3] / "shared" / "data" / "esc10"
RATE_HZ = 16000


def generated(folder: Path) -> list[Path]:
    from tests.audio.material import encode, tar_bytes

    generator = np.random.default_rng(0)
    members = []
    for number in range(200):
        noise = generator.normal(0, 0.1, int(44100 * generator.uniform(2, 6))).cumsum() * 0.01
        data = encode(np.clip(noise, -1, 1), 44100, suffix="ogg")
        members += [(f"{number}.ogg", data), (f"{number}.json", b"{}")]
    (folder / "a.tar").write_bytes(tar_bytes(members))
    return [folder / "a.tar"]


def alone(shards: Sequence[Path]) -> tuple[float, float]:
    """Decode in this process, without the pool: wall and CPU seconds a clip."""
    data = [
        s.audio.read()
        for p in shards
        for s in iter_samples(p)
        if isinstance(s, Sample) and isinstance(s.audio, FileRange)
    ]
    start, start_cpu = time.perf_counter(), time.process_time()
    for encoded in data:
        prepare(encoded, RATE_HZ)
    return (time.perf_counter() - start) / len(data), (time.process_time() - start_cpu) / len(data)


def through(pool: DecodePool, shards: Sequence[Path], *, ahead: bool) -> float:
    """Seconds to take all clips from a pool; ``ahead`` begins all shards at once."""
    start = time.perf_counter()

    def results(path: Path):
        return pool.map(iter_samples(path), shard=path.name, rate_hz=RATE_HZ, crop=CropRule())

    for stream in [results(path) for path in shards] if ahead else map(results, shards):
        for _ in stream:
            pass
    return time.perf_counter() - start


def cpu_of(workers: Sequence[psutil.Process]) -> float:
    """CPU seconds used so far by this process and the workers."""
    times = [process.cpu_times() for process in [psutil.Process(), *workers]]
    return sum(each.user + each.system for each in times)


def overhead(workers: int) -> float:
    """Seconds per clip that costs nothing to decode, all processes together."""
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(16), RATE_HZ, format="WAV")
    samples = [Sample(str(number), "wav", stream.getvalue(), "{}") for number in range(4000)]
    with tempfile.TemporaryDirectory() as folder, DecodePool(workers) as pool:
        path = Path(folder) / "clip.wav"
        path.write_bytes(stream.getvalue())
        ranges = [Sample(s.key, "wav", FileRange(path, 0, path.stat().st_size), "{}") for s in samples]
        list(pool.map(ranges[:10], shard="s", rate_hz=RATE_HZ, crop=CropRule()))
        start = time.perf_counter()
        list(pool.map(ranges, shard="s", rate_hz=RATE_HZ, crop=CropRule()))
        return (time.perf_counter() - start) / len(ranges)


def start_up(workers: int) -> float:
    """Seconds from opening a pool to its first clip."""
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(16), RATE_HZ, format="WAV")
    start = time.perf_counter()
    with DecodePool(workers) as pool:
        next(pool.map([Sample("a", "wav", stream.getvalue(), "{}")], shard="s", rate_hz=RATE_HZ, crop=CropRule()))
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ESC10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = sorted(options.folder.glob("*.tar")) if options.folder.is_dir() else generated(Path(folder))

        def best(measure: Callable[[], float]) -> float:
            return min(measure() for _ in range(options.rounds))

        clips = sum(1 for path in shards for _ in iter_samples(path))
        single = single_cpu = ahead = one_by_one = pool_cpu = float("inf")
        with DecodePool(options.workers) as pool:
            through(pool, shards, ahead=True)
            workers = psutil.Process().children()
            for _ in range(options.rounds):  # in turn, so that a busy machine disturbs all alike
                wall, cpu = alone(shards)
                single, single_cpu = min(single, wall), min(single_cpu, cpu)
                one_by_one = min(one_by_one, through(pool, shards, ahead=False) / clips)
                before = cpu_of(workers)
                ahead = min(ahead, through(pool, shards, ahead=True) / clips)
                pool_cpu = min(pool_cpu, (cpu_of(workers) - before) / clips)
        ideal = single / options.workers
        print(f"{clips} clips, {len(shards)} shards, {options.workers} workers, {1000 * single:.2f} ms a clip alone")
        print(f"pool throughput over ideal, shards begun ahead   {ideal / ahead:.3f}   (target at least 0.9)")
        print(f"pool throughput over ideal, shard after shard    {ideal / one_by_one:.3f}")
        print(
            f"CPU of decoding alone over CPU of all processes  {single_cpu / pool_cpu:.3f}   (holds on a busy machine too)"
        )
        print(f"start to first clip                              {best(lambda: start_up(options.workers)):.3f} s")
        print(
            f"wall time of a clip that costs nothing           {1e6 * best(lambda: overhead(options.workers)):.0f} us"
        )


if __name__ == "__main__":
    main()
