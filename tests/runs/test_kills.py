"""Promise 4: what is committed stays, whatever is killed and however many work at once. Real processes, real kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toy import ENCODER, Toy
from xares_store.runs.embed import embed
from xares_store.runs.evaluate import evaluate
from xares_store.store.store import Store

KILLS = 25
SLOW = ENCODER.replace(
    "    def forward(self, audio):", "    def forward(self, audio):\n        __import__('time').sleep(0.004)"
)

EMBED = """
import sys
from xares_store.runs import embed as phase_one
phase_one.MIN_WINDOW_S = 1.0
from xares_store.runs import shard_run
shard_run.PART_BYTES = 4000
print("go", flush=True)
phase_one.embed(sys.argv[1], [sys.argv[2]], store=sys.argv[3], data=sys.argv[4], workers=int(sys.argv[5]), batch_seconds=0.5)
print("done", flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def content(store: Path) -> dict[str, bytes]:
    """Frames, pooled vectors and clip rows of every part, byte for byte."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted((store / "embeddings").rglob("*"))
        if path.is_file() and (path.name == "clips.parquet" or "c" in path.parts) and ".tmp" not in str(path)
    }


@pytest.mark.slow
def test_embed_killed_at_random_moments_ends_byte_for_byte_as_uninterrupted(
    make_toy: Callable[..., Toy], tmp_path: Path
) -> None:
    toy = make_toy(folds=4, per_fold=24)
    encoder = tmp_path / "enc.py"
    encoder.write_text(SLOW)
    began = time.perf_counter()
    process = start(EMBED, encoder, toy.task, tmp_path / "whole", toy.root, 1)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    began = time.perf_counter()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    span = time.perf_counter() - began
    wanted = content(tmp_path / "whole")
    assert len(wanted) > 4 * 3

    rng = random.Random(7)
    kills, round_ = 0, 0
    while kills < KILLS:
        store = tmp_path / f"killed-{round_}"
        while True:
            process = start(EMBED, encoder, toy.task, store, toy.root, rng.choice([0, 1, 2]))
            assert process.stdout is not None
            assert process.stdout.readline() == "go\n"
            finish = kills >= KILLS  # the last round is left to end
            if not finish:
                time.sleep(rng.uniform(0, span * 0.8))
                os.kill(process.pid, signal.SIGKILL)
            out, errors = process.communicate(timeout=120)
            if "done" in out:
                break
            assert process.returncode == -signal.SIGKILL, errors
            kills += 1
        assert content(store) == wanted
        assert Store.open(store).clips().num_rows == toy.clips
        assert Store.open(store).verify() == []
        round_ += 1
    assert kills >= KILLS


@pytest.mark.slow
def test_two_embeds_at_once_share_the_work_and_agree(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    toy = make_toy(folds=6, per_fold=12)
    encoder = tmp_path / "enc.py"
    encoder.write_text(SLOW)
    both = [start(EMBED, encoder, toy.task, tmp_path / "s", toy.root, count) for count in (0, 2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    store = Store.open(tmp_path / "s")
    assert store.clips().num_rows == toy.clips
    assert store.verify() == []


EVALUATE = """
import sys
from xares_store.runs.evaluate import evaluate
report = evaluate(sys.argv[1], seeds=[int(sys.argv[2])], learning_rates=[float(sys.argv[3])])
assert not report.failed, report.failed
from xares_store.store.store import Store
assert Store.open(sys.argv[1]).sql("select count(*) as n from scores").to_pylist()[0]["n"] > 0
"""


@pytest.mark.slow
def test_eight_evaluations_at_once_lose_no_score(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    toy = make_toy()
    encoder = tmp_path / "enc.py"
    encoder.write_text(ENCODER)
    embed(str(encoder), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    # Four seeds at two rates; every process also wants the one k-NN run, which must come out once.
    processes = [start(EVALUATE, tmp_path / "s", seed, rate) for seed in range(4) for rate in (0.01, 0.1)]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    store = Store.open(tmp_path / "s")
    rows = store.sql("select probe, seed, settings from runs").to_pylist()
    assert sorted(row["probe"] for row in rows) == ["knn"] + ["mlp"] * 8
    assert len({(row["seed"], str(row["settings"])) for row in rows}) == 9
    assert store.sql("select count(*) as n from predictions").to_pylist() == [{"n": 9 * toy.clips}]
    assert store.verify() == []


def test_an_evaluation_killed_while_it_works_leaves_whole_runs_or_none(
    make_toy: Callable[..., Toy], tmp_path: Path
) -> None:
    toy = make_toy()
    encoder = tmp_path / "enc.py"
    encoder.write_text(ENCODER)
    embed(str(encoder), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    script = EVALUATE.replace("seeds=[int(sys.argv[2])]", "seeds=6, epochs=200").replace(
        "import sys\n", 'import sys\nprint("go", flush=True)\n', 1
    )
    rng = random.Random(3)
    for _ in range(4):
        process = start(script, tmp_path / "s", 0, 0.01)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(rng.uniform(0.5, 3))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert Store.open(tmp_path / "s").verify() == []
    report = evaluate(tmp_path / "s", seeds=6, epochs=200, learning_rates=[0.01])
    assert len(report.results) == 7
    assert Store.open(tmp_path / "s").sql("select count(*) as n from runs").to_pylist() == [{"n": 7}]


def test_ctrl_c_says_what_is_committed_and_how_to_go_on(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    toy = make_toy(folds=6, per_fold=24)
    encoder = tmp_path / "enc.py"
    encoder.write_text(SLOW.replace("0.004", "0.05"))
    command = [
        sys.executable, "-m", "xares_store", "embed", "--encoder", encoder, "--task", toy.task, "--data", toy.root,
        "--store", tmp_path / "s", "--workers", "1", "--batch-seconds", "0.5",
    ]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "s").glob("embeddings/*/*/*/*/part.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Interrupted" in errors
    assert "same command again" in errors
    assert "Traceback" not in errors
    done = Store.open(tmp_path / "s").clips().num_rows
    assert 0 < done < toy.clips
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert Store.open(tmp_path / "s").clips().num_rows == toy.clips
