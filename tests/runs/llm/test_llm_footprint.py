"""Memory is estimated before a training starts, and the frame budget follows from what is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.llm.material import Llm, make
from xares_store.runs.evaluate import evaluate
from xares_store.runs.llm import footprint
from xares_store.runs.llm.options import LlmOptions


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return make(tmp_path_factory.mktemp("llm"), budget=8192)


def test_budget_is_halved_until_it_fits(llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = llm.fresh(tmp_path / "plenty")
    report = evaluate(plenty, tasks=[llm.tasks[0]], probes=["llm"], llm=LlmOptions(recipe=str(llm.joint), max_steps=2))
    run = plenty.read_run(report.results[0].run_id)
    memory = run.details["memory"]
    assert memory["ram_bytes"] == pytest.approx(sum(memory["parts"][name] for name in ("program", "frames")), rel=0.2)
    assert (memory["gpu_bytes"], run.details["recipe"]["training"]["frame_budget"]) == (0, 8192)
    monkeypatch.setattr(footprint, "available_bytes", lambda device: memory["ram_bytes"])
    tight = llm.fresh(tmp_path / "tight")
    lowered = evaluate(tight, tasks=[llm.tasks[0]], probes=["llm"], llm=LlmOptions(recipe=str(llm.joint), max_steps=2))
    assert lowered.results[0].run_id == report.results[0].run_id  # memory decides no identity
    assert any("was lowered from 8192 to" in note for note in lowered.notes)
    told = llm.fresh(tmp_path / "told")
    options = LlmOptions(recipe=str(llm.joint), max_steps=2, frame_budget=8192)
    monkeypatch.setattr(footprint, "available_bytes", lambda device: 1)
    kept = evaluate(told, tasks=[llm.tasks[0]], probes=["llm"], llm=options)
    assert any("are free; a smaller --frame-budget" in note for note in kept.notes)
