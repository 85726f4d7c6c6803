"""Several real processes train one model: they agree with one process, one of them writes, and none waits for ever."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.probes.llm.toy import batches, differences, run
from xares_store.probes.llm.ranks import local_device
from xares_store.probes.llm.trainer import Trained

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import json, os, sys
from pathlib import Path
import numpy as np
from tests.probes.llm.toy import Toy, batch, run, score
from xares_store.errors import XaresError
from xares_store.probes.llm import trainer
from xares_store.probes.llm.checkpoint import TrainingFolder

rank, folder, options = int(os.environ["RANK"]), Path(sys.argv[1]), json.loads(sys.argv[2])
written, seen = [], []
write = TrainingFolder._write
TrainingFolder._write = lambda self, path, snapshot: (written.append(path.name), write(self, path, snapshot))
nan, stop, away = options.pop("nan", None), options.pop("stop", None), options.pop("away", False)

def batches(first, last):
    for step in range(first, last):
        if step == stop and rank == 0:  # only the first process's clock counts
            trainer.time = Late
        examples = batch(step)
        if step == nan:
            examples[0].frames[:] = np.nan
        yield examples

class Late:
    monotonic = staticmethod(lambda: 2e18)

model = Toy(dropout=options.pop("dropout", 0.0), room=options.pop("room", float("inf")))
if away and rank:
    folder = folder / "away"
found = {"written": written}
try:
    done = run(folder, model, batches=batches, validate=score(model) if options.pop("validate", False) else None, deadline=1e18,
               progress=lambda at: seen.append(at.step), **options)
    found["digest"] = float(sum(value.astype(np.float64).sum() for value in done.state.values()))
    found["losses"] = done.losses.tolist()
    found["notes"] = done.notes
except XaresError as error:
    found["error"] = type(error).__name__ + ": " + str(error)
found |= {"seen": len(seen), "calls": len(model.seen), "least": min(map(len, model.seen), default=0)}
Path(sys.argv[3], f"{rank}.json").write_text(json.dumps(found))
"""


def launch(folder: Path, *, torchrun: bool = False, size: int = 2, **options: Any) -> list[dict[str, Any]]:
    """Run the script in several processes and return what each found."""
    answers = folder.parent / f"answers-{len(list(folder.parent.iterdir()))}"
    answers.mkdir()
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    arguments = [str(script), str(folder), json.dumps(options), str(answers)]
    if torchrun:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "--master-port", port]
        commands, environments = [[*launcher, *arguments]], [env]
    else:
        commands = [[sys.executable, *arguments]] * size
        environments = [{**env, "WORLD_SIZE": str(size), "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)  # what waits for ever fails here
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return [json.loads((answers / f"{rank}.json").read_text()) for rank in range(size)]


def close(one: Trained, other: Trained) -> bool:
    same = np.allclose(one.losses, other.losses, atol=1e-4) and one.tokens.tolist() == other.tokens.tolist()
    return same and all(np.allclose(one.state[name], other.state[name], atol=1e-4) for name in one.state)


def least(steps: int) -> int:
    return min(len(examples) for examples in batches(0, steps))


@pytest.mark.slow
def test_two_processes_agree_with_one_and_one_of_them_writes(tmp_path: Path) -> None:
    # Batches of 1 to 6 clips and a small budget: shares of different sizes, and now and then none.
    assert least(30) == 1
    first, second = launch(tmp_path / "two", torchrun=True, steps=30, frame_budget=13)
    assert first["written"] == ["finished.safetensors"]
    assert second["written"] == []
    assert (first["seen"], second["seen"]) == (30, 0)
    assert first["calls"] > second["calls"] > 30
    assert first["losses"] == second["losses"]
    assert first["digest"] == second["digest"]
    assert close(run(tmp_path / "one", steps=30, frame_budget=13), run(tmp_path / "two", batches=None, steps=30))


@pytest.mark.slow
def test_two_processes_pause_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"dropout": 0.3, "steps": 20, "validate": True}
    whole, _ = launch(tmp_path / "whole", **options)
    assert whole["written"] == ["checkpoint.safetensors"] * 4 + ["finished.safetensors"]
    paused = launch(tmp_path / "parts", stop=10, **options)
    assert [each["error"].partition(":")[0] for each in paused] == ["Paused", "Paused"]
    assert "after 11 of 20 steps" in paused[1]["error"]
    apart = launch(tmp_path / "parts", away=True, **options)
    assert all("found different checkpoints" in each["error"] for each in apart)
    first, second = launch(tmp_path / "parts", **options)
    assert first["seen"] == 9
    assert first["losses"] == second["losses"] == whole["losses"]
    assert differences(run(tmp_path / "whole", batches=None), run(tmp_path / "parts", batches=None)) == []


@pytest.mark.slow
def test_what_happens_to_one_process_is_told_to_the_other(tmp_path: Path) -> None:
    # The largest clip goes to the first process, so that the clip without numbers is not always in the same one's share.
    for found in launch(tmp_path / "nan", nan=7):
        assert found["error"].startswith("ProbeError: The loss of step 8 is not finite")
        assert "train/7-0" in found["error"]
    # Memory that only one of them lacks: the other goes on with its own budget.
    first, second = launch(tmp_path / "small", steps=20, frame_budget=1000, room=24)
    assert first["notes"]
    assert second["digest"] == first["digest"]
    assert close(run(tmp_path / "one", steps=20), run(tmp_path / "small", batches=None))


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert [local_device(name) for name in ("cuda", "cuda:1", "cpu", "mps")] == ["cuda:3", "cuda:1", "cpu", "mps"]
