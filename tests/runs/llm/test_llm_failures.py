"""One model that cannot be trained stops no other, and what is known early is said early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs.llm.material import Llm, make_anew, write_recipe
from tests.spoken import speak
from tests.text_models import save_text_model
from tests.toy import wav, write_tar
from xares_store.catalog import load_task
from xares_store.errors import LabelError, ProbeError, XaresError
from xares_store.probes.captions import CaptionModels
from xares_store.runs.embed import embed
from xares_store.runs.evaluate import evaluate
from xares_store.runs.llm.evaluate import evaluate_llm
from xares_store.runs.llm.options import LlmOptions
from xares_store.runs.request import make_request
from xares_store.runs.result import EvaluateReport
from xares_store.store.store import Store

FOLDED = """\
format = 1
name = "folded"
title = "One spoken letter, in folds"
domain = "speech"
[data]
folds = { one = ["one-*.tar"], two = ["two-*.tar"], three = ["three-*.tar"] }
[target]
kind = "text"
keys = ["letter"]
prompt = "spell"
[metric]
name = "string_accuracy"
"""


def write_folded(root: Path) -> Path:
    """Write a task of spoken letters in three folds and return its file."""
    rng = np.random.default_rng(11)
    for fold in ("one", "two", "three"):
        members: list[tuple[str, bytes]] = []
        for index in range(6):
            letter = "abc"[index % 3]
            members.append((f"{fold}{index}.wav", wav(speak(letter, rng))))
            members.append((f"{fold}{index}.json", json.dumps({"letter": letter}).encode()))
        write_tar(root / "folded" / f"{fold}-000000.tar", members)
    path = root / "folded.toml"
    path.write_text(FOLDED)
    return path


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    found = make_anew(tmp_path_factory.mktemp("llm"))
    data = found.root / "data"
    embed("logmel", [str(write_folded(data))], store=found.store, data=data)
    return found


def _folded(llm: Llm) -> str:
    return str(llm.root / "data" / "folded.toml")


def _alone(llm: Llm, **options: Any) -> LlmOptions:
    return LlmOptions(recipe=str(llm.alone), max_steps=2, **options)


def _joint(llm: Llm, **options: Any) -> LlmOptions:
    return LlmOptions(recipe=str(llm.joint), max_steps=2, **options)


def _unanswerable(llm: Llm, folder: Path) -> str:
    """The second task with a key that no label has."""
    path = folder / "naming.toml"
    path.write_text(llm.naming.read_text().replace('keys = ["letter"]', 'keys = ["word"]'))
    return str(path)


def test_a_training_that_fails_stops_no_other(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    tasks = [_unanswerable(llm, tmp_path), str(llm.spelling)]
    report = evaluate(store, tasks=tasks, probes=["llm"], seeds=2, llm=_alone(llm))
    assert [(one.task, one.seed) for one in report.results] == [("spelling", 42), ("spelling", 43)]
    ((encoder, names, message),) = report.failed  # both seeds fail alike
    assert (encoder, names) == (report.results[0].encoder, "naming")
    assert "word" in message
    assert not (store.path / "training").exists()
    again = evaluate(store, tasks=tasks, probes=["llm"], seeds=2, llm=_alone(llm))
    assert ([one.reused for one in again.results], len(again.failed)) == ([True, True], 1)


def test_a_task_that_lacks_something_stops_no_other(llm: Llm, tmp_path: Path) -> None:
    silent = tmp_path / "spelling.toml"
    silent.write_text(llm.spelling.read_text().replace('prompt = "spell"', ""))
    recipe = tmp_path / "asking.toml"
    recipe.write_text(llm.joint.read_text().replace("joint = true", "joint = false").replace('"joint"', '"asking"'))
    store = llm.fresh(tmp_path / "s")
    options = LlmOptions(recipe=str(recipe), max_steps=2)
    report = evaluate(store, tasks=[str(silent), str(llm.naming)], probes=["llm"], llm=options)
    assert [one.task for one in report.results] == ["naming"]
    assert [(names, "asks a question" in message) for _, names, message in report.failed] == [("spelling", True)]


def test_the_only_training_raises_its_own_error(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    task = _unanswerable(llm, tmp_path)
    report = EvaluateReport()
    request = make_request(
        ["llm"], None, None, None, None, None, None, None, "strict", "cpu", None, None, 1 << 30, _alone(llm)
    )
    with pytest.raises(LabelError, match="word"):
        evaluate_llm(store, _encoder(store), [load_task(task)], request, report, deadline=None, quiet=True)
    assert report.failed == []
    with pytest.raises(XaresError, match="word"):
        evaluate(store, tasks=[task], probes=["llm"], llm=_alone(llm))


def _encoder(store: Store) -> str:
    (found,) = store.encoders()
    return found


def test_a_pause_ends_the_command_though_others_are_left(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    report = evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_alone(llm, time_budget_s=1e-9))
    assert (report.results, report.failed, len(report.paused)) == ([], [], 1)


def test_a_training_that_fails_before_its_first_checkpoint_leaves_nothing(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xares_store.runs.llm import training

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ProbeError("no decoder today")

    store = llm.fresh(tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_decoder", fails)
        with pytest.raises(ProbeError, match="today"):
            evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm))
        assert not (store.path / "training").exists()
    evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm, time_budget_s=1e-9))
    assert list((store.path / "training").rglob("checkpoint.safetensors"))  # what can go on stays
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_decoder", fails)
        with pytest.raises(ProbeError, match="today"):
            evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm))
    assert list((store.path / "training").rglob("checkpoint.safetensors"))
    evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm))
    assert not (store.path / "training").exists()


def test_a_task_in_folds_is_trained_beside_a_joint_training(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    report = evaluate(store, tasks=[*llm.tasks, _folded(llm)], probes=["llm"], llm=_joint(llm))
    training = {one.task: one.settings["training"] for one in report.results}
    assert training["spelling"] == training["naming"] != training["folded"]
    assert [note for note in report.notes if "folded" in note and "was trained alone" in note]
    assert not [note for note in report.notes if "spelling" in note and "alone" in note]
    single = evaluate(store, tasks=[_folded(llm)], probes=["llm"], llm=_joint(llm))
    assert [one.reused for one in single.results] == [True]
    assert not [note for note in single.notes if "alone" in note]


def test_models_of_the_metrics_are_loaded_before_training(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xares_store.runs.llm import evaluate as evaluations

    encoder = save_text_model(tmp_path / "sentences")
    captioned = tmp_path / "naming.toml"
    captioned.write_text(llm.naming.read_text().replace('"string_accuracy"', '"fense"').replace("closed = true\n", ""))
    store = llm.fresh(tmp_path / "s")

    def taught(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("training began")

    def broken(self: CaptionModels) -> Any:
        raise ProbeError("no such weights")

    options = _joint(llm, sentence_encoder=str(encoder), fluency_model="none")
    monkeypatch.setattr(evaluations, "teach", taught)
    for name in ("encoder", "checker"):
        with monkeypatch.context() as patch:
            patch.setattr(CaptionModels, name, property(broken))
            with pytest.raises(ProbeError, match="no such weights"):
                evaluate(store, tasks=[str(captioned)], probes=["llm"], llm=options)


def test_stored_weights_keep_how_they_came_about(llm: Llm, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llm.decoder, name="chosen", joint=False, epochs=2, lora=False)
    store = llm.fresh(tmp_path / "s")
    before: dict[str, Any] = {}
    for score_labels in (False, True):
        options = LlmOptions(recipe=str(recipe), score_labels=score_labels)
        report = evaluate(store, tasks=[str(llm.naming)], probes=["llm"], llm=options)
        (run,) = (store.read_run(one.run_id) for one in report.results)
        (fold,) = run.details["folds"]
        assert [one["epoch"] for one in fold["history"]] == [1, 2]
        assert fold["epoch"] in (1, 2)
        assert {name: fold[name] for name in before} == before
        before = {name: fold[name] for name in ("history", "epoch", "loss", "steps", "tokens")}
    assert len(store.runs()) == 2


def test_notes_name_their_seed_or_come_once(llm: Llm, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llm.decoder, name="other", joint=False, steps=2)
    text = recipe.read_text().replace("<|vision_end|>", "<|nowhere|>")
    recipe.write_text(text.replace("max_new_tokens = 8", "max_new_tokens = 1"))
    store = llm.fresh(tmp_path / "s")
    options = LlmOptions(recipe=str(recipe))
    report = evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], seeds=2, llm=options)
    (note,) = [note for note in report.notes if "<|nowhere|>" in note]
    assert "<|endoftext|>" in note
    endless = [note for note in report.notes if "without an end" in note]
    assert ["seed 42" in note for note in endless] == [True, False]
    assert ["seed 43" in note for note in endless] == [False, True]
    assert len(set(report.notes)) == len(report.notes)
