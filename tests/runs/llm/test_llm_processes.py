"""Several processes train and write together, with the command that one process takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runs.llm.material import Llm, make, write_recipe
from xares_store.errors import ConfigError
from xares_store.runs.evaluate import evaluate
from xares_store.runs.llm.options import LlmOptions
from xares_store.store.run import read_predictions, read_tensors


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return make(tmp_path_factory.mktemp("llm"))


@pytest.mark.slow
def test_two_processes_give_what_one_gives(llm: Llm, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llm.decoder, name="pair", joint=True, steps=6)  # with LoRA and its dropout
    whole, store = llm.fresh(tmp_path / "whole"), llm.fresh(tmp_path / "s")
    options = LlmOptions(recipe=str(recipe), score_labels=True)
    alone = evaluate(whole, tasks=llm.tasks, probes=["llm"], llm=options, device="cpu")
    tasks = [part for task in llm.tasks for part in ("--task", task)]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "xares_store", "evaluate", "--probe", "llm", "--recipe", str(recipe), "--score-labels", *tasks,
            "--store", str(store.path), "--device", "cpu", "--json",
        ],
        check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)  # one of them prints
    assert {row["task"] for row in rows} == {"spelling", "naming"}
    assert sorted(store.runs()) == sorted(result.run_id for result in alone.results)
    for result in alone.results:
        one, other = (read_tensors(s.path, result.run_id) for s in (whole, store))
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], rtol=1e-3, atol=1e-5)
        mine, theirs = (read_predictions(s.path, result.run_id) for s in (whole, store))
        assert mine.column("clip_id") == theirs.column("clip_id")
        assert mine.column("prediction") == theirs.column("prediction")
    assert not (store.path / "training").exists()


def test_other_probes_are_trained_by_one_process(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes"):
        evaluate(llm.store, tasks=llm.tasks, probes=["mlp"])
