"""Real processes: killed while committing, racing for one part, writing runs side by side."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.store.conftest import ENCODER, TASK, address, make_frames, put_part, put_run
from xares_store.store import Part, Store
from xares_store.store.files import TMP_PREFIX

ROOT = Path(__file__).parents[2]

COMMITTER = """
import sys
import zarr  # imported late otherwise, and every kill would meet the import
from tests.store.conftest import address, make_frames, put_part
from xares_store.store import Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
for number in range(40):
    where = address(shard=f"clips-{number}")
    if not store.has_part(where):
        put_part(store, where, dim=64, frames=make_frames([400, 700, 300], 64, seed=number))
        print(number, flush=True)
"""

RACER = """
import sys
from tests.store.conftest import address, make_frames, put_part
from xares_store.store import Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
part = put_part(store, dim=32, frames=make_frames([500, 200], 32))
print(part.manifest.digest, flush=True)
"""

RUNNER = """
import sys
from tests.store.conftest import put_run
from xares_store.store import Store
store = Store.open(sys.argv[1])
for seed in range(6):
    assert put_run(store, f"run-{sys.argv[2]}-{seed}", seed=seed, settings={"writer": sys.argv[2]})
    put_run(store, f"shared-{seed}", seed=seed)
    rows = store.sql("select count(*) as n from scores where fold is null").to_pylist()
    assert rows[0]["n"] >= seed + 1, rows
"""


def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def _content(part: Part) -> dict[str, bytes]:
    names = [path for path in part.path.rglob("*") if path.is_file() and path.name != "part.json"]
    return {path.relative_to(part.path).as_posix(): path.read_bytes() for path in names}


@pytest.mark.slow
def test_kill_9_while_committing(tmp_path: Path) -> None:
    """Killed at random moments and started again: what is acknowledged stays, and the end is as without a kill."""
    wanted = Store.create(tmp_path / "wanted")
    for number in range(40):
        put_part(wanted, address(shard=f"clips-{number}"), dim=64, frames=make_frames([400, 700, 300], 64, seed=number))
    store = Store.create(tmp_path / "killed")
    rng = random.Random(7)
    kills, caught, acknowledged = 0, 0, set()
    for trial in range(60):
        with _start(COMMITTER, store.path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if trial < 25:
                time.sleep(rng.uniform(0.0, 0.06))
                process.send_signal(signal.SIGKILL)
                kills += 1
            acknowledged |= {line.strip() for line in process.stdout if line.endswith("\n")}
        committed = {part.address.shard for part in Store.open(store.path).parts()}
        assert {f"clips-{number}" for number in acknowledged} <= committed
        assert store.verify() == []
        caught += bool(list(store.path.rglob(f"{TMP_PREFIX}*")))  # the kill met a commit half way
        store.sweep()
        if len(committed) == 40:
            break
    assert kills >= 10
    assert caught >= 3
    found = Store.open(store.path).parts()
    assert [part.address for part in found] == [part.address for part in wanted.parts()]
    for one, other in zip(found, wanted.parts(), strict=True):
        assert _content(one) == _content(other)
        assert one.manifest.digest == other.manifest.digest
    assert not list(store.path.rglob(f"{TMP_PREFIX}*"))


def test_two_writers_of_one_part(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    racers = [_start(RACER, store.path) for _ in range(4)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0, 0]
    part = Store.open(store.path).parts()[0]
    assert answers == [part.manifest.digest] * 4  # all got the one part that won
    assert len(store.parts()) == 1
    assert store.verify() == []
    assert not list(store.path.rglob(f"{TMP_PREFIX}*"))


@pytest.mark.slow
def test_eight_writers_of_runs_and_readers_of_the_index(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    put_part(store)
    writers = [_start(RUNNER, store.path, number) for number in range(8)]
    for writer in writers:
        writer.communicate(timeout=120)
    assert [writer.returncode for writer in writers] == [0] * 8
    assert len(store.runs()) == 8 * 6 + 6
    rows = store.sql("select count(*) as n, count(distinct run_id) as runs from scores").to_pylist()
    assert rows == [{"n": 2 * 54, "runs": 54}]
    assert store.sql("select count(*) as n from predictions").to_pylist() == [{"n": 4 * 54}]
    assert store.verify() == []
    assert not list(store.path.glob(f"{TMP_PREFIX}*"))


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    part = put_part(store)
    with _start("import os; from xares_store.store.files import temporary_name; print(temporary_name())") as process:
        name = process.communicate()[0].strip()
    dead = part.path.with_name(name)
    (dead / "frames").mkdir(parents=True)
    (store.path / "runs").mkdir()
    (store.path / "runs" / name).mkdir()
    (store.path / name).write_bytes(b"x")
    from xares_store.store.files import temporary_name

    alive = part.path.with_name(temporary_name())
    alive.mkdir()
    old = part.path.with_name(f"{TMP_PREFIX}ffffffff-1-0123456789ab")  # of another machine
    old.mkdir()
    assert store.info()["leftovers"] == 3
    assert store.sweep() == 3
    assert alive.exists()
    assert old.exists()
    os.utime(old, (0, 0))
    assert store.sweep() == 1
    assert store.verify() == []
    np.testing.assert_array_equal(store.pooled(ENCODER, TASK)[0], part.pooled())
    assert put_run(store)
