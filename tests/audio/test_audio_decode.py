from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.audio.material import Member, encode, encoded, label, pairs, tar_bytes
from xares_store.audio import worker
from xares_store.audio.decode import Decoded, DecodePool
from xares_store.audio.samples import FileRange, Sample, iter_samples
from xares_store.audio.waveform import CropRule, decode, resample
from xares_store.clip import Failure
from xares_store.errors import ConfigError, ShardError, XaresError

ROOT = Path(__file__).parents[2]
WHOLE = CropRule()


def shard(folder: Path, members: Iterable[Member], name: str = "a.tar") -> Path:
    path = folder / name
    path.write_bytes(tar_bytes(members))
    return path


def run(workers: int, samples: Iterable[Sample | Failure], *, rate_hz: int = 16000, crop: CropRule = WHOLE) -> list:
    with DecodePool(workers) as pool:
        return list(pool.map(samples, shard="s", rate_hz=rate_hz, crop=crop))


def worker_processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # gone since, or a zombie that nobody has waited for yet
            if any("audio.worker" in part for part in child.cmdline()):
                found.append(child)
    return found


def gone(pids: Iterable[int], *, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.02)
    return False


def content(results: Iterable[list[Decoded] | Failure]) -> list[object]:
    return [
        result if isinstance(result, Failure) else [(decoded.clip, decoded.audio.tobytes()) for decoded in result]
        for result in results
    ]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_clips_come_in_order_with_their_audio(tmp_path: Path, workers: int) -> None:
    keys = [f"k{number}" for number in range(40)]
    path = shard(tmp_path, pairs(keys, rate_hz=22050))
    results = run(workers, iter_samples(path))
    for sample, result in zip(iter_samples(path), results, strict=True):
        assert isinstance(sample, Sample)
        assert isinstance(sample.audio, FileRange)
        ((clip, audio),) = [(decoded.clip, decoded.audio) for decoded in result]
        native, rate_hz = decode(sample.audio.read())
        np.testing.assert_array_equal(audio, resample(native, rate_hz, 16000))
        assert audio.dtype == np.float32
        assert audio.flags.writeable
        assert (clip.clip_id, clip.key, clip.crop, clip.start_s) == (sample.key, sample.key, 0, 0.0)
        assert clip.duration_s == len(audio) / 16000
        assert clip.label == sample.label
    assert [result[0].clip.key for result in results] == keys


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    members = pairs([f"k{number}" for number in range(30)], samples=8000, rate_hz=44100)
    members.insert(10, ("bad.wav", b"this is text"))
    members.insert(11, ("bad.json", label()))
    path = shard(tmp_path, members)
    wanted = content(run(0, iter_samples(path)))
    assert content(run(1, iter_samples(path))) == content(run(2, iter_samples(path))) == wanted
    # Audio in memory, as from a compressed shard, takes another way to the worker.
    loaded = [
        Sample(s.key, s.ext, s.audio.read(), s.label) if isinstance(s, Sample) and isinstance(s.audio, FileRange) else s
        for s in iter_samples(path)
    ]
    assert content(run(2, loaded)) == content(run(0, loaded)) == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_stay_in_their_place(workers: int, tmp_path: Path) -> None:
    nan = np.zeros(100, dtype=np.float32)
    nan[7] = np.nan
    before = Failure("x", "s", "no-json", "...")
    samples: list[Sample | Failure] = [
        Sample("good", "wav", encoded(), "{}"),
        before,
        Sample("text", "wav", b"I am a text file", "{}"),
        Sample("nothing", "wav", b"", "{}"),
        Sample("empty", "wav", encode(np.zeros((0, 1)), 8000), "{}"),
        Sample("nan", "wav", encode(nan, 8000, subtype="FLOAT"), "{}"),
        Sample("short", "wav", encode(np.zeros(1), 44100), "{}"),
        Sample("good too", "wav", encoded(), "{}"),
    ]
    results = run(workers, samples)
    assert isinstance(results[0], list)
    assert isinstance(results[-1], list)
    assert results[1] is before
    failures = [result for result in results[2:-1] if isinstance(result, Failure)]
    assert [(failure.key, failure.kind) for failure in failures] == [
        ("text", "undecodable"), ("nothing", "undecodable"), ("empty", "empty"), ("nan", "not-finite"), ("short", "empty"),
    ]  # fmt: skip
    assert all(failure.shard == "s" and failure.reason.endswith(".") for failure in failures)


@pytest.mark.parametrize("workers", [0, 1])
def test_crops_are_numbered(workers: int) -> None:
    sample = Sample("k", "wav", encoded(2500, 1000), '{"a": 1}')
    (crops,) = run(workers, [sample], rate_hz=1000, crop=CropRule(crop_s=1.0, tail="keep", min_tail_s=0.5))
    assert [(d.clip.clip_id, d.clip.crop, d.clip.start_s, d.clip.duration_s) for d in crops] == [
        ("k#0000", 0, 0.0, 1.0), ("k#0001", 1, 1.0, 1.0), ("k#0002", 2, 2.0, 0.5),
    ]  # fmt: skip
    (crops,) = run(workers, [sample], rate_hz=1000, crop=CropRule(crop_s=1.0, tail="drop"))
    assert [d.clip.clip_id for d in crops] == ["k#0000", "k#0001"]
    (crops,) = run(workers, [sample], rate_hz=1000, crop=CropRule(crop_s=5.0))
    assert [(d.clip.clip_id, len(d.audio)) for d in crops] == [("k#0000", 2500)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_breaks_gives_what_came_before_it(workers: int) -> None:
    def breaking() -> Iterator[Sample]:
        yield Sample("a", "wav", encoded(), "{}")
        yield Sample("b", "wav", encoded(), "{}")
        raise ShardError("broken")

    with DecodePool(workers) as pool:
        results = pool.map(breaking(), shard="s", rate_hz=16000, crop=WHOLE)
        assert [next(results)[0].clip.key for _ in range(2)] == ["a", "b"]
        with pytest.raises(ShardError, match="broken"):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_is_a_shard_error(tmp_path: Path, workers: int) -> None:
    path = shard(tmp_path, pairs(["a"]))
    samples = list(iter_samples(path))
    path.unlink()
    with pytest.raises(ShardError, match="no longer") as raised:
        run(workers, samples)
    assert raised.value.where == str(path)


def test_two_shards_may_be_under_way_at_once(tmp_path: Path) -> None:
    paths = [shard(tmp_path, pairs([f"{name}{n}" for n in range(20)]), f"{name}.tar") for name in "abc"]
    with DecodePool(2, lookahead=5) as pool:
        maps = [pool.map(iter_samples(path), shard=path.stem, rate_hz=8000, crop=WHOLE) for path in paths]
        # the newest first: it must not wait for room that the older ones hold
        keys = [[result[0].clip.key for result in results] for results in reversed(maps)]
    assert keys == [[f"{name}{n}" for n in range(20)] for name in "cba"]


def test_an_abandoned_shard_holds_nothing_up(tmp_path: Path) -> None:
    path = shard(tmp_path, pairs([f"k{n}" for n in range(50)]))
    with DecodePool(2, lookahead=10) as pool:
        for _ in range(20):
            results = pool.map(iter_samples(path), shard="s", rate_hz=16000, crop=WHOLE)
            next(results)
            del results
        assert len(list(pool.map(iter_samples(path), shard="s", rate_hz=16000, crop=WHOLE))) == 50


def test_reading_ahead_is_bounded_in_count_and_bytes() -> None:
    drawn = 0

    def endless() -> Iterator[Sample]:
        nonlocal drawn
        while True:
            drawn += 1
            yield Sample(str(drawn), "wav", data, "{}")

    data = encoded(16000)
    for options, limit in (({"lookahead": 7}, 9), ({"lookahead_bytes": 640_000}, 40)):
        drawn = 0
        with DecodePool(2, **options) as pool:
            results = pool.map(endless(), shard="s", rate_hz=16000, crop=WHOLE)
            for taken in range(1, 30):
                next(results)
                pool.pump()
                assert drawn <= taken + limit
            assert drawn > 32


def test_small_tasks_beyond_the_socket_buffers_do_not_block() -> None:
    data = encoded(200)
    samples = [Sample(str(number), "wav", data, "{}") for number in range(3000)]
    with DecodePool(2, lookahead=3000) as pool:
        results = pool.map(samples, shard="s", rate_hz=16000, crop=WHOLE)
        assert [result[0].clip.key for result in results] == [sample.key for sample in samples]


def test_decoding_time_is_counted() -> None:
    samples = [Sample(str(number), "flac", encoded(100_000, suffix="flac"), "{}") for number in range(20)]
    seconds = []
    for workers in (0, 2):
        with DecodePool(workers) as pool:
            list(pool.map(samples, shard="s", rate_hz=8000, crop=WHOLE))
            seconds.append(pool.cpu_seconds)
    assert min(seconds) > 0.1 * max(seconds) > 0  # the workers are counted, and in the same unit


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    path = shard(tmp_path, pairs([f"k{n}" for n in range(120)], samples=40_000, rate_hz=44100))
    wanted = content(run(0, iter_samples(path)))
    found: list[list[Decoded] | Failure] = []
    with DecodePool(2, lookahead=30) as pool:
        for index, result in enumerate(pool.map(iter_samples(path), shard="s", rate_hz=16000, crop=WHOLE)):
            found.append(result)
            if index % 20 == 10:
                alive = worker_processes()
                if alive:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        alive[index % len(alive)].send_signal(signal.SIGKILL)
        # One that was killed when there was nothing left for it to do is only replaced when it is needed again.
        assert len(worker_processes()) <= 2
    assert content(found) == wanted


def test_idle_workers_that_were_killed_are_replaced() -> None:
    with DecodePool(2) as pool:
        for _ in range(2):
            (result,) = pool.map([Sample("a", "wav", encoded(), "{}")], shard="s", rate_hz=16000, crop=WHOLE)
            assert isinstance(result, list)
            for process in worker_processes():
                process.kill()
                process.wait(5)
        (result,) = pool.map([Sample("a", "wav", encoded(), "{}")], shard="s", rate_hz=16000, crop=WHOLE)
        assert isinstance(result, list)


CRASHING_SOXR = """
import os, signal
def resample(audio, from_hz, to_hz, quality):
    if from_hz == 11025:
        os.kill(os.getpid(), signal.SIGSEGV)
    return audio[::2].copy()
"""


def test_a_sample_that_kills_its_worker_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soxr.py").write_text(CRASHING_SOXR)
    monkeypatch.syspath_prepend(tmp_path)  # workers take over the search path
    samples = [Sample(str(n), "wav", encoded(1000, 11025 if n in (3, 4, 30) else 32000), "{}") for n in range(40)]
    results = run(2, samples)
    assert len(results) == 40
    failures = [result for result in results if isinstance(result, Failure)]
    assert [(failure.key, failure.kind) for failure in failures] == [("3", "worker"), ("4", "worker"), ("30", "worker")]
    assert failures[0].reason == "3 decode workers died at this sample (signal 11)."


def test_workers_that_cannot_start_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soxr.py").write_text("raise ImportError('no soxr on this machine')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(XaresError, match="no soxr on this machine") as raised:
        run(2, [Sample("a", "wav", encoded(), "{}")])
    assert "--workers 0" in str(raised.value)
    assert worker_processes() == []


def test_closing_ends_the_workers_even_at_work() -> None:
    data = encoded(500_000, 44100)
    with DecodePool(2) as pool:
        results = pool.map([Sample(str(n), "wav", data, "{}") for n in range(50)], shard="s", rate_hz=16000, crop=WHOLE)
        next(results)
        pids = [process.pid for process in worker_processes()]
    assert len(pids) == 2
    assert worker_processes() == []
    assert gone(pids)
    with pytest.raises(ConfigError, match="closed"):
        list(results)
    pool.close()


def test_results_outlive_the_pool_and_leave_no_files_open() -> None:
    gc.collect()
    before = psutil.Process().num_fds()
    results = run(2, [Sample(str(n), "wav", encoded(seed=n), "{}") for n in range(20)])
    assert psutil.Process().num_fds() == before
    native = decode(encoded(seed=5))[0]
    np.testing.assert_array_equal(results[5][0].audio, native)


def test_a_system_without_room_for_descriptors_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio in memory travels as a descriptor, and a user may only have so many of them on their way."""
    refusals = 0

    def reluctant(*arguments: object) -> None:
        nonlocal refusals
        refusals += 1
        if refusals % 3:
            raise OSError(errno.ETOOMANYREFS, "Too many references")
        worker.send(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("xares_store.audio.processes.send", reluctant)
    results = run(2, [Sample(str(n), "wav", encoded(seed=n), "{}") for n in range(20)])
    assert [result[0].clip.key for result in results] == [str(n) for n in range(20)]
    assert refusals >= 60


def test_no_more_files_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("xares_store.audio.processes.anonymous_file", refuse)
    with pytest.raises(XaresError, match="Too many open files") as raised:
        run(1, [Sample("a", "wav", encoded(), "{}")])
    assert "ulimit -n" in str(raised.value)
    assert worker_processes() == []


def test_the_owner_may_change_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path, pairs(["a", "b"]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with DecodePool(1) as pool:
        next(pool.map(iter_samples(Path("a.tar")), shard="s", rate_hz=16000, crop=WHOLE))
        samples = list(iter_samples(Path("a.tar").absolute()))
        monkeypatch.chdir("elsewhere")
        assert len(list(pool.map(samples, shard="s", rate_hz=16000, crop=WHOLE))) == 2


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="workers"):
        DecodePool(-1)
    with pytest.raises(ConfigError, match="with statement"):
        DecodePool(0).map([], shard="s", rate_hz=16000, crop=WHOLE)
    with DecodePool(0) as pool, pytest.raises(ConfigError, match="rate"):
        pool.map([], shard="s", rate_hz=0, crop=WHOLE)


SCRIPT = """
import json, sys, time
from pathlib import Path
from xares_store.audio import worker
from xares_store.audio.decode import DecodePool
from xares_store.audio.samples import iter_samples
from xares_store.audio.waveform import CropRule
import psutil

print("started", flush=True)
with DecodePool(2) as pool:
    results = pool.map(iter_samples(Path(sys.argv[1])), shard="s", rate_hz=16000, crop=CropRule())
    next(results)
    print(json.dumps([child.pid for child in psutil.Process().children()]), flush=True)
    MORE
"""


def start_script(path: Path, more: str) -> tuple[subprocess.Popen[str], list[int]]:
    code = textwrap.dedent(SCRIPT).replace("MORE", more)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process, json.loads(process.stdout.readline())


@pytest.fixture
def long_shard(tmp_path: Path) -> Path:
    return shard(tmp_path, pairs([f"k{n}" for n in range(200)], samples=60_000, rate_hz=44100))


@pytest.mark.parametrize("more", ["time.sleep(60)", "[None for _ in range(999) for _ in results]; time.sleep(60)"])
def test_no_worker_outlives_a_killed_owner(long_shard: Path, more: str) -> None:
    process, workers = start_script(long_shard, more)
    with process:
        assert len(workers) == 2
        process.kill()
        assert gone(workers)


def test_a_forked_child_of_the_owner_does_not_keep_workers_alive(long_shard: Path) -> None:
    more = "import os\n    if os.fork() == 0:\n        time.sleep(20)\n    time.sleep(60)"
    process, workers = start_script(long_shard, more)
    with process:
        process.kill()
        assert gone(workers, within_s=10)
        os.killpg(process.pid, signal.SIGKILL)  # the forked child


def test_ctrl_c_reaches_the_owner_alone(long_shard: Path) -> None:
    more = """
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print(len(list(results)), flush=True)
    """
    process, workers = start_script(long_shard, textwrap.dedent(more).strip().replace("\n", "\n    "))
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        for pid in workers:  # also when the signal does reach them
            os.kill(pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "199\n"
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    assert gone(workers)


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path, long_shard: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("MORE", "print(len(list(results)))"))
    done = subprocess.run(
        [sys.executable, str(script), str(long_shard)], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.count("started") == 1
    assert done.stdout.endswith("199\n")
    assert done.stderr == ""


def test_workers_import_little() -> None:
    code = "import sys, xares_store.audio.worker; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert {"numpy", "soundfile", "soxr"} <= loaded
    assert not loaded & {"torch", "pydantic", "webdataset", "duckdb", "zarr", "pyarrow", "sklearn", "multiprocessing"}


def test_the_real_recordings(esc10_dir: Path) -> None:
    path = sorted(esc10_dir.glob("*.tar"))[0]
    assert content(run(2, iter_samples(path))) == content(run(0, iter_samples(path)))
