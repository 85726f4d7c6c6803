"""Options of the probe: how long a training takes, what is out of bounds, and what would change nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.runs.llm.material import Llm, make
from xares_store.catalog import load_recipe, load_task, suites
from xares_store.errors import ConfigError, ProbeError, TaskNotFoundError
from xares_store.recipe import Recipe
from xares_store.runs.evaluate import evaluate
from xares_store.runs.llm.options import LlmOptions, wanted_recipe
from xares_store.runs.llm.prepare import Prepared, mixture_of, planned_steps, steps_of
from xares_store.runs.request import Request, make_request
from xares_store.runs.result import EvaluateReport


def prepared(recipe: Recipe, names: list[str]) -> Prepared:
    tasks = tuple(load_task(name) for name in names)
    title, shares = mixture_of(recipe, tasks)
    wanted = cast(Any, SimpleNamespace(recipe=recipe, changes={}, definition=""))
    return Prepared("e", tasks, wanted, cast(Any, None), cast(Any, None), None, shares, title, ("",) * len(tasks))


def request(**given: Any) -> Request:
    own = {name: given.pop(name, None) for name in ("learning_rates", "epochs", "batch_size")}
    return make_request(
        ["llm"], 1, own["learning_rates"], own["epochs"], own["batch_size"], None, None, None, "strict", "cpu",
        llm=LlmOptions(**given),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (suites()["task1"], 100_000),
        (suites()["task1"][:3], 100_000),
        (["llm-clotho", "llm-esc-50"], 100_000),  # a part of all, of neither task1 nor task2
        (["llm-gtzan"], 2_000),
        (["llm-asvspoof2015"], 10_000),  # has no number of its own
        (["llm-gtzan", "librispeech"], 10_000),  # in no mixture
        (suites()["challenge"], 100_000),
    ],
    ids=lambda value: f"{len(value)} from {value[0]}" if isinstance(value, list) else None,
)
def test_steps_are_those_of_the_mixture_or_the_task(names: list[str], steps: int) -> None:
    one = prepared(load_recipe("xares-llm"), names)
    assert steps_of(one, 7, None) == planned_steps(one.recipe, one.tasks) == steps
    assert steps_of(one, 7, 5) == 5
    assert steps_of(one, 7, 200_000) == 200_000


def test_a_part_is_of_the_smallest_mixture_that_has_it() -> None:
    recipe = load_recipe("xares-llm")
    raw = recipe.model_dump(mode="json", exclude_none=True)
    raw["mixtures"] = {
        "large": {"steps": 9, "probability": {"llm-esc-50": 1.0, "llm-gtzan": 1.0, "llm-clotho": 1.0}},
        "small": {"steps": 3, "probability": {"llm-esc-50": 1.0, "llm-gtzan": 3.0}},
    }
    one = prepared(Recipe.model_validate(raw), ["llm-esc-50", "llm-gtzan"])
    assert (one.mixture, one.shares, steps_of(one, 1, None)) == ("small", (0.25, 0.75), 3)


def test_epochs_are_counted_and_cut_by_max_steps() -> None:
    one = prepared(load_recipe("xares-asr"), ["librispeech"])
    assert one.recipe.training.epochs == 10
    assert planned_steps(one.recipe, one.tasks) is None
    assert steps_of(one, 7, None) == 70
    assert steps_of(one, 7, 69) == 69
    assert steps_of(one, 7, 71) == 70


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--stride", {"stride": 100}),
        ("--epochs", {"epochs": 1_000_000}),
        ("--batch-size", {"batch_size": 1_000_000_000}),
        ("--lr", {"learning_rates": [101.0]}),
        ("--max-steps", {"max_steps": 100_000_001}),
        ("--max-steps", {"max_steps": 0}),
        ("--frame-budget", {"frame_budget": 1 << 40}),
        ("--recipe", {"recipe": ""}),
        ("--decoder", {"decoder": " "}),
        ("--sentence-encoder", {"sentence_encoder": ""}),
        ("--fluency-model", {"fluency_model": ""}),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_names_its_option(option: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as found:
        wanted_recipe([load_task("llm-gtzan")], request(**given))
    assert found.value.where == option
    assert len(str(found.value).splitlines()[0]) < 150


def test_the_bounds_themselves_are_allowed() -> None:
    asked = request(stride=64, epochs=10_000, batch_size=100_000, learning_rates=[100.0], max_steps=100_000_000)
    found = wanted_recipe([load_task("llm-gtzan")], asked).recipe
    assert (found.projector.stride, found.training.epochs, found.optimiser.learning_rate) == (64, 10_000, 100.0)


def test_a_missing_recipe_file_speaks_of_recipes() -> None:
    with pytest.raises(TaskNotFoundError, match="no such file") as found:
        wanted_recipe([load_task("llm-gtzan")], request(recipe="nowhere.toml"))
    assert "xares recipes ls" in str(found.value)
    assert "tasks ls" not in str(found.value)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return make(tmp_path_factory.mktemp("llm"))


@pytest.mark.parametrize(
    ("option", "given", "words"),
    [
        ("--score-labels", {"score_labels": True}, "labels"),
        ("--sentence-encoder", {"sentence_encoder": "org/name"}, "fense"),
        ("--fluency-model", {"fluency_model": "none"}, "fense"),
    ],
    ids=str,
)
def test_options_that_no_task_makes_use_of_are_refused(
    llm: Llm, option: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        evaluate(llm.store, tasks=[str(llm.spelling)], probes=["llm"], llm=LlmOptions(recipe=str(llm.alone), **given))
    assert found.value.where == option


def test_labels_are_scored_where_one_task_of_several_has_them(llm: Llm, tmp_path: Path) -> None:
    options = LlmOptions(recipe=str(llm.joint), max_steps=1, score_labels=True)
    report = evaluate(llm.fresh(tmp_path / "s"), tasks=llm.tasks, probes=["llm"], llm=options)
    assert {result.task: "score_labels" in result.settings for result in report.results} == {
        "naming": True,
        "spelling": False,
    }


def test_what_failed_is_named_and_what_was_done_is_not(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xares_store.runs.llm import evaluate as module

    def fail(store: Any, encoder: str, tasks: Any, asked: Any, report: EvaluateReport, **_: Any) -> None:
        report.results += stored.results
        raise ProbeError("no more")

    store = llm.fresh(tmp_path / "s")
    stored = evaluate(store, tasks=[str(llm.naming)], probes=["llm"], llm=LlmOptions(str(llm.joint), max_steps=1))
    monkeypatch.setattr(module, "evaluate_llm", fail)
    report = evaluate(store, tasks=llm.tasks, probes=["llm"], llm=LlmOptions(recipe=str(llm.joint), max_steps=1))
    assert [task for _, task, _ in report.failed] == ["spelling"]
    assert "no more" in report.failed[0][2]
