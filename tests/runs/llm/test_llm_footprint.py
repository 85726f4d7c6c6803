"""Memory is estimated before a training starts, and the frame budget follows from what is free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs.llm.material import Llm, make
from xares_store.catalog import load_task
from xares_store.probes.llm.decoder import load_tokenizer
from xares_store.probes.llm.memory import MemoryEstimate
from xares_store.recipe import Recipe
from xares_store.runs.evaluate import evaluate
from xares_store.runs.features import load_features
from xares_store.runs.llm import evaluate as evaluations
from xares_store.runs.llm import footprint
from xares_store.runs.llm.material import Material, make_material
from xares_store.runs.llm.options import LlmOptions
from xares_store.runs.llm.prepare import Prepared, prepare
from xares_store.runs.request import make_request

BUDGET = 8192


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return make(tmp_path_factory.mktemp("llm"), budget=BUDGET)


def _options(llm: Llm, **options: Any) -> LlmOptions:
    return LlmOptions(recipe=str(llm.joint), max_steps=2, **options)


@pytest.fixture(scope="module")
def training(llm: Llm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, list[Material]]:
    store = llm.fresh(tmp_path_factory.mktemp("prepared") / "s")
    (encoder,) = store.encoders()
    task = load_task(llm.tasks[0])
    request = make_request(
        ["llm"], None, None, None, None, None, None, None, "strict", "cpu", None, None, 1 << 20, _options(llm)
    )
    ((one,), _) = prepare(store, encoder, [task], request)
    features = load_features(store, encoder, task, protocol="strict", where=None, pooled=False)
    return one, [make_material(task, features, features.folds[0], one.recipe, load_tokenizer(one.decoder))]


def _footprint(
    training: tuple[Prepared, list[Material]],
    monkeypatch: pytest.MonkeyPatch,
    free: Callable[[str], int],
    *,
    device: str = "cuda",
    given: bool = False,
) -> footprint.Footprint:
    monkeypatch.setattr(footprint, "available_bytes", free)
    return footprint.footprint(*training, device=device, memory_bytes=1 << 20, given=given)


def test_budget_is_halved_until_it_fits(llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = llm.fresh(tmp_path / "plenty")
    report = evaluate(plenty, tasks=[llm.tasks[0]], probes=["llm"], llm=_options(llm))
    run = plenty.read_run(report.results[0].run_id)
    memory = run.details["memory"]
    assert memory["ram_bytes"] == pytest.approx(sum(memory["parts"][name] for name in ("program", "frames")), rel=0.2)
    assert (memory["gpu_bytes"], run.details["recipe"]["training"]["frame_budget"]) == (0, BUDGET)
    monkeypatch.setattr(footprint, "available_bytes", lambda device: memory["ram_bytes"])
    tight = llm.fresh(tmp_path / "tight")
    lowered = evaluate(tight, tasks=[llm.tasks[0]], probes=["llm"], llm=_options(llm))
    assert lowered.results[0].run_id == report.results[0].run_id  # memory decides no identity
    (note,) = [note for note in lowered.notes if f"was lowered from {BUDGET} to" in note]
    used = tight.read_run(lowered.results[0].run_id).details["recipe"]["training"]["frame_budget"]
    assert used < BUDGET
    assert f"to {used}:" in note
    told = llm.fresh(tmp_path / "told")
    monkeypatch.setattr(footprint, "available_bytes", lambda device: 1)
    kept = evaluate(told, tasks=[llm.tasks[0]], probes=["llm"], llm=_options(llm, frame_budget=BUDGET))
    assert any("are free; a smaller --frame-budget takes less" in note for note in kept.notes)


def test_what_is_lacking_is_said_before_the_training(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []
    teach = evaluations.teach

    def taught(*args: Any, **kwargs: Any) -> Any:
        heard.append(capsys.readouterr().err)
        return teach(*args, **kwargs)

    monkeypatch.setattr(evaluations, "teach", taught)
    free = iter(range(1, 1000))
    monkeypatch.setattr(footprint, "available_bytes", lambda device: next(free) * 10**8)  # never twice the same
    store = llm.fresh(tmp_path / "s")
    report = evaluate(store, tasks=llm.tasks, probes=["llm"], seeds=2, llm=_options(llm), quiet=False)
    assert len(heard) == 2
    assert "GB of RAM" in heard[0]
    assert "warning:" in heard[0]
    assert "are free" in heard[0]
    assert "are free" not in heard[1]  # the next seed needs as much
    assert len([note for note in report.notes if "may take" in note]) == 1


def test_ram_counts_beside_a_gpu(training: tuple[Prepared, list[Material]], monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = _footprint(training, monkeypatch, lambda device: 1 << 40)
    assert (plenty.notes, plenty.recipe.training.frame_budget) == ([], BUDGET)
    little = _footprint(training, monkeypatch, lambda device: 1 << (40 if device == "cuda" else 20))
    assert little.recipe.training.frame_budget == BUDGET  # no budget takes less RAM
    (note,) = little.notes
    assert "0.0 GB are free" in note
    assert "would not help" in note


@pytest.mark.parametrize(
    ("free", "chosen", "advice"),
    [
        (10, 8192, None),
        (8, 4096, None),  # 0.9 of it are 7.2
        (6, 2048, None),
        (5, 2048, None),  # too little for the margin, and no budget takes less
        (4, 2048, "would not help"),
    ],
)
def test_halving_stops_where_it_helps_no_more(
    training: tuple[Prepared, list[Material]],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    chosen: int,
    advice: str | None,
) -> None:
    def estimate(self: Any, prepared: Prepared, recipe: Recipe, **_: Any) -> MemoryEstimate:
        return MemoryEstimate({8192: 9, 4096: 7}.get(recipe.training.frame_budget, 5) * 10**9, 10**9, {})

    monkeypatch.setattr(footprint._Sizes, "estimate", estimate)
    found = _footprint(training, monkeypatch, lambda device: free * 10**9)
    assert found.recipe.training.frame_budget == chosen
    assert [advice in note for note in found.notes if "may take" in note] == ([True] if advice else [])
    kept = _footprint(training, monkeypatch, lambda device: free * 10**9, given=True)
    assert kept.recipe.training.frame_budget == BUDGET
    assert [note for note in kept.notes if "takes less" in note] or free >= 9
