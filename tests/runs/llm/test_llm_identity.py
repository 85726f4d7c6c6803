"""What a training and its runs are called: everything that changes a result, and nothing of how it was spelled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.probes.llm.models import save_tiny
from tests.runs.llm.material import LETTERS, Llm, make
from tests.text_models import save_text_model
from xares_store.catalog import load_task
from xares_store.runs.evaluate import evaluate
from xares_store.runs.llm.options import LlmOptions
from xares_store.runs.llm.prepare import Prepared, prepare
from xares_store.runs.llm.transcribe import transcribe
from xares_store.runs.request import Request, make_request
from xares_store.store.run import read_predictions
from xares_store.store.store import Store


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return make(tmp_path_factory.mktemp("llm"))


def test_spellings_of_a_decoder_are_one_run_and_one_line(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = llm.fresh(tmp_path / "s")
    monkeypatch.chdir(llm.root)
    spellings = ["decoder", "./decoder", "decoder/", str(llm.decoder), f"../{llm.root.name}/decoder"]
    found = []
    for spelling in spellings:
        options = LlmOptions(recipe=str(llm.joint), decoder=spelling, max_steps=1)
        found += evaluate(store, tasks=[str(llm.naming)], probes=["llm"], llm=options).results
    assert len({result.run_id for result in found}) == 1
    assert [result.reused for result in found] == [False, True, True, True, True]
    assert found[0].settings["decoder"] == "decoder"
    again = LlmOptions(recipe=str(llm.joint), decoder=str(llm.decoder), max_steps=1)
    evaluate(store, tasks=[str(llm.naming)], probes=["llm"], seeds=[43], llm=again)
    (line,) = store.sql("select n_seeds from leaderboard where probe = 'llm'").to_pylist()
    assert line["n_seeds"] == 2
    runs = [store.read_run(run) for run in store.runs()]
    assert {run.seed: run.details["decoder"] for run in runs} == {42: "decoder", 43: str(llm.decoder)}
    first = found[0].run_id
    row = read_predictions(store.path, first).to_pylist()[0]
    (heard,) = transcribe(store, first, [f"test/{row['clip_id']}"])
    assert heard.text == row["prediction"]  # the decoder is where the record says


def test_a_decoder_in_the_cache_of_the_hub_has_its_name_there(llm: Llm, tmp_path: Path) -> None:
    from xares_store.runs.llm.prepare import decoder_name

    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    assert decoder_name(str(snapshot)) == decoder_name("org/tiny") == decoder_name("org/tiny@0123abcd") == "org/tiny"
    assert decoder_name(str(llm.decoder)) == "decoder"


class Names:
    """Names of the training and the run of one command."""

    def __init__(self, llm: Llm, folder: Path) -> None:
        self.llm, self.folder, self.captions = llm, folder, folder / "fense" / "naming.toml"
        self.captions.parent.mkdir()
        text = llm.naming.read_text().replace('name = "string_accuracy"', 'name = "fense"')
        self.captions.write_text(text)
        self.sentences = save_text_model(folder / "sentences")
        self.base: dict[str, Any] = {"tasks": [llm.naming], "recipe": str(llm.joint)}

    def prepared(self, **changes: Any) -> tuple[Prepared, Request]:
        given = {**self.base, **changes}
        tasks = [load_task(task) for task in given.pop("tasks")]
        request = make_request(
            ["llm"], 1, given.pop("lr", None), given.pop("epochs", None), given.pop("batch_size", None), None, None,
            given.pop("where", None), given.pop("protocol", "strict"), given.pop("device", "cpu"),
            memory_bytes=given.pop("memory_bytes", 1 << 30), llm=LlmOptions(**given),
        )  # fmt: skip
        (prepared,), _ = prepare(Store.open(self.llm.store), _encoder(self.llm), tasks, request)
        return prepared, request

    def of(self, **changes: Any) -> tuple[str, str]:
        prepared, request = self.prepared(**changes)
        number = [task.name for task in prepared.tasks].index("naming")
        return prepared.training_id(request), prepared.run_id(number, request, 42)


def _encoder(llm: Llm) -> str:
    (encoder,) = Store.open(llm.store).encoders()
    return str(encoder)


@pytest.fixture(scope="module")
def names(llm: Llm, tmp_path_factory: pytest.TempPathFactory) -> Names:
    return Names(llm, tmp_path_factory.mktemp("names"))


TRAINED: dict[str, Callable[[Names], dict[str, Any]]] = {
    "precision": lambda names: {"precision": "bf16"},
    "stride": lambda names: {"stride": 8},
    "stride_mode": lambda names: {"stride_mode": "mean"},
    "lr": lambda names: {"lr": [0.02]},
    "batch_size": lambda names: {"batch_size": 2},
    "epochs": lambda names: {"epochs": 2},
    "max_steps": lambda names: {"max_steps": 5},
    "where": lambda names: {"where": "duration_s < 3"},
    "protocol": lambda names: {"protocol": "published"},
    "recipe": lambda names: {"recipe": str(names.llm.alone)},
    "tasks": lambda names: {"tasks": [names.llm.naming, names.llm.spelling]},
    "task definition": lambda names: {"tasks": [_edited(names)]},
    "decoder content": lambda names: {"decoder": str(save_tiny(names.folder / "other", words=tuple(LETTERS), seed=1))},
}
NOTHING: dict[str, Callable[[Names], dict[str, Any]]] = {
    "frame_budget": lambda names: {"frame_budget": 64},
    "memory_bytes": lambda names: {"memory_bytes": 1 << 20},
    "time budget": lambda names: {"time_budget_s": 5.0},
    "device": lambda names: {"device": "auto"},
    "spelling": lambda names: {"decoder": os.path.relpath(names.llm.decoder)},
    "copy": lambda names: {"decoder": shutil.copytree(names.llm.decoder, names.folder / "copy").as_posix()},
    "what the recipe says": lambda names: {"stride": 16, "stride_mode": "stack", "lr": [0.01], "batch_size": 4},
    "as many steps": lambda names: {"max_steps": 12},
}


def _edited(names: Names) -> Path:
    path = names.folder / "naming.toml"
    path.write_text(names.llm.naming.read_text().replace("hello world", "good day"))
    return path


@pytest.mark.parametrize("what", TRAINED)
def test_what_changes_the_weights_changes_both_names(names: Names, what: str) -> None:
    before, after = names.of(), names.of(**TRAINED[what](names))
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("what", NOTHING)
def test_what_changes_no_result_changes_no_name(names: Names, what: str) -> None:
    assert names.of() == names.of(**NOTHING[what](names))


def test_what_is_only_asked_of_a_model_keeps_the_training(names: Names) -> None:
    before, after = names.of(), names.of(score_labels=True)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_embeddings_and_seed_are_in_the_names(names: Names) -> None:
    prepared, request = names.prepared()
    other = replace(prepared, digests=("f" * 64,))
    assert prepared.training_id(request) != other.training_id(request)
    assert prepared.run_id(0, request, 42) != other.run_id(0, request, 42)
    assert prepared.run_id(0, request, 42) != prepared.run_id(0, request, 43)


def test_models_of_the_metrics_are_in_the_name_of_runs_that_use_them(names: Names) -> None:
    own = {"tasks": [names.captions], "sentence_encoder": str(names.sentences), "fluency_model": "none"}
    copy = shutil.copytree(names.sentences, names.folder / "elsewhere")
    other = save_text_model(names.folder / "third", seed=5)
    before = names.of(**own)
    assert names.of(**{**own, "sentence_encoder": str(copy)}) == before
    after = names.of(**{**own, "sentence_encoder": str(other)})
    assert after[0] == before[0]
    assert after[1] != before[1]
