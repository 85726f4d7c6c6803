"""Evaluations with the LLM-projector probe, from a store to scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.probes.llm.models import save_tiny
from tests.runs.llm.material import Llm, make, write_recipe
from xares_store.catalog import load_recipe, load_task
from xares_store.cli import cli
from xares_store.errors import ConfigError, CorruptError, LabelError, ProbeError, ProtocolError, StoreError, XaresError
from xares_store.metrics.text import iwer
from xares_store.runs.evaluate import evaluate
from xares_store.runs.llm.options import LlmOptions
from xares_store.runs.llm.prepare import mixture_of
from xares_store.runs.llm.transcribe import transcribe
from xares_store.store.run import read_predictions, read_tensors
from xares_store.store.store import Store


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return make(tmp_path_factory.mktemp("llm"))


def _alone(llm: Llm, **options: Any) -> LlmOptions:
    return LlmOptions(recipe=str(llm.alone), **options)


def _joint(llm: Llm, **options: Any) -> LlmOptions:
    return LlmOptions(recipe=str(llm.joint), **options)


def test_transcripts_are_written_scored_and_queried(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    report = evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm))
    (result,) = report.results
    assert (result.task, result.probe, result.metric, result.seed, result.n_test) == ("spelling", "llm", "iwer", 42, 8)
    rows = store.sql("select * from predictions where probe = 'llm' order by clip_id").to_pylist()
    texts = [row["target"] for row in rows], [row["prediction"] for row in rows]
    assert result.value == pytest.approx(iwer(*texts))
    for row in rows:
        assert row["reference_units"] == len(row["target"].split())
        hits = row["reference_units"] - row["substitutions"] - row["deletions"]
        assert hits + row["substitutions"] + row["insertions"] == len(row["prediction"].split())
    metrics = {row["metric"] for row in store.sql("select metric from scores").to_pylist()}
    assert metrics == {"iwer"}
    manifest = store.read_run(result.run_id)
    (fold,) = manifest.details["folds"]
    assert fold["train_clips"] == 24
    assert fold["steps"] == 12
    assert [epoch["epoch"] for epoch in fold["history"]] == [1, 2]
    assert fold["epoch"] in (1, 2)
    assert manifest.details["separator"] == "<|vision_end|>"
    assert not (store.path / "training").exists()
    again = evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm))
    assert [one.reused for one in again.results] == [True]
    assert again.results[0].value == result.value


def test_one_model_learns_several_tasks_and_each_is_scored(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    report = evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm))
    assert {result.task: result.metric for result in report.results} == {
        "spelling": "iwer",
        "naming": "string_accuracy",
    }
    weights = [read_tensors(store.path, result.run_id) for result in report.results]
    assert set(weights[0]) == set(weights[1])
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])
    files = [store.path / "runs" / result.run_id / "probe.safetensors" for result in report.results]
    assert files[0].samefile(files[1])  # one model, one file
    assert {result.settings["training"] for result in report.results} == {report.results[0].settings["training"]}
    assert report.results[0].settings["shares"] == {"spelling": 0.5, "naming": 0.5}
    naming = next(result for result in report.results if result.task == "naming")
    rows = read_predictions(store.path, naming.run_id).to_pylist()
    assert {row["target"] for row in rows} == {"a | A", "b | B", "c | C"}
    assert naming.value == np.mean([row["correct"] for row in rows])
    single = evaluate(store, tasks=[str(llm.naming)], probes=["llm"], llm=_joint(llm))
    assert single.results[0].reused is False  # learnt alone it is another model
    assert single.results[0].settings["mixture"] == "naming"


def test_a_recipe_that_is_not_joint_trains_a_model_for_each_task(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    report = evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_alone(llm, max_steps=2))
    assert len({result.settings["training"] for result in report.results}) == 2


def test_labels_are_scored_by_likelihood_without_another_training(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    first = evaluate(store, tasks=[str(llm.naming)], probes=["llm"], llm=_joint(llm))
    began = {path: path.stat().st_mtime_ns for path in store.path.rglob("probe.safetensors")}
    second = evaluate(store, tasks=[str(llm.naming)], probes=["llm"], llm=_joint(llm, score_labels=True))
    assert second.results[0].run_id != first.results[0].run_id
    assert second.results[0].settings["training"] == first.results[0].settings["training"]
    assert not (store.path / "training").exists()
    assert all(path.stat().st_mtime_ns == then for path, then in began.items())
    scores = {
        row["metric"]: row["value"]
        for row in store.sql(
            "select metric, value from scores where run_id = $run and fold is null", {"run": second.results[0].run_id}
        ).to_pylist()
    }
    assert set(scores) == {"string_accuracy", "likelihood_accuracy"}
    assert scores["string_accuracy"] == first.results[0].value
    run = store.read_run(second.results[0].run_id)
    rows = read_predictions(store.path, run.run_id).to_pylist()
    best = [run.details["text"]["likelihood"]["labels"][int(np.argmax(row["scores"]))] for row in rows]
    right = [name in row["target"].split(" | ") for name, row in zip(best, rows, strict=True)]
    assert scores["likelihood_accuracy"] == np.mean(right)
    # The same texts come of stored weights as of those just trained.
    before = read_predictions(store.path, first.results[0].run_id)
    assert before.column("prediction").to_pylist() == [row["prediction"] for row in rows]


def test_seeds_are_counted_and_differ(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    report = evaluate(store, tasks=[str(llm.naming)], probes=["llm"], seeds=2, llm=_joint(llm, max_steps=3))
    assert [result.seed for result in report.results] == [42, 43]
    (line,) = store.sql("select n_seeds from leaderboard where probe = 'llm'").to_pylist()
    assert line["n_seeds"] == 2
    one, other = (read_tensors(store.path, result.run_id) for result in report.results)
    assert any((one[name] != other[name]).any() for name in one)


def test_order_of_tasks_changes_nothing_and_memory_neither(llm: Llm, tmp_path: Path) -> None:
    found = []
    for number, (tasks, memory, budget) in enumerate(((llm.tasks, 1 << 30, None), (llm.tasks[::-1], 1 << 20, 16))):
        store = llm.fresh(tmp_path / str(number))
        report = evaluate(
            store, tasks=tasks, probes=["llm"], llm=_joint(llm, max_steps=4, frame_budget=budget), memory_bytes=memory
        )
        found.append({result.task: result.run_id for result in report.results})
        found.append(read_tensors(store.path, report.results[0].run_id))
    assert found[0] == found[2]
    for name, value in found[1].items():
        np.testing.assert_allclose(value, found[3][name], rtol=1e-3, atol=1e-5)


def test_the_published_protocol_lays_out_and_scores_otherwise(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    strict = evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm))
    published = evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm), protocol="published")
    assert published.results[0].protocol == "published"
    one, other = (read_tensors(store.path, report.results[0].run_id) for report in (strict, published))
    assert any((one[name] != other[name]).any() for name in one if not name.endswith("tokens"))


def test_a_training_without_its_separator(llm: Llm, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llm.decoder, name="other", joint=False, steps=2)
    recipe.write_text(recipe.read_text().replace("<|vision_end|>", "<|nowhere|>"))
    store = llm.fresh(tmp_path / "s")
    options = LlmOptions(recipe=str(recipe))
    report = evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=options)
    assert store.read_run(report.results[0].run_id).details["separator"] == "<|endoftext|>"
    with pytest.raises(ProbeError, match="nowhere"):
        evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=options, protocol="published")


def test_time_budget_pauses_and_nothing_is_scored_before_the_last_step(llm: Llm, tmp_path: Path) -> None:
    whole, store = llm.fresh(tmp_path / "whole"), llm.fresh(tmp_path / "s")
    evaluate(whole, tasks=llm.tasks, probes=["llm"], llm=_joint(llm))
    paused = evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm, time_budget_s=1e-9))
    assert (paused.results, len(paused.paused)) == ([], 1)
    assert "1 of 12 steps" in paused.paused[0]
    assert store.runs() == []
    done = evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm))
    assert sorted(store.runs()) == sorted(whole.runs())
    for result in done.results:
        one, other = (read_tensors(s.path, result.run_id) for s in (store, whole))
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
        assert read_predictions(store.path, result.run_id) == read_predictions(whole.path, result.run_id)


def test_a_killed_training_goes_on_to_the_same_scores(llm: Llm, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llm.decoder, name="slow", joint=True, steps=60, checkpoint_s=0.01)
    whole, store = llm.fresh(tmp_path / "whole"), llm.fresh(tmp_path / "s")
    tasks = [part for task in llm.tasks for part in ("--task", task)]
    evaluate(whole, tasks=llm.tasks, probes=["llm"], llm=LlmOptions(recipe=str(recipe)))
    command = [
        sys.executable, "-m", "xares_store", "evaluate", "--probe", "llm", "--recipe", str(recipe), *tasks,
        "--store", str(store.path),
    ]  # fmt: skip
    killed = 0
    for steps in (1, 20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and _steps(store) < steps:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        assert not store.runs()
    assert killed == 2
    subprocess.run(command, check=True, capture_output=True)
    assert sorted(store.runs()) == sorted(whole.runs())
    for run_id in whole.runs():
        one, other = (read_tensors(s.path, run_id) for s in (store, whole))
        assert len(one["fold-test.history.loss"]) == 60
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
        assert [s.value for s in store.read_run(run_id).scores] == [s.value for s in whole.read_run(run_id).scores]


def _steps(store: Store) -> int:
    """Steps that the checkpoint of the only training has; 0 before there is one."""
    for path in (store.path / "training").rglob("checkpoint.safetensors"):
        try:
            with path.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size))["__metadata__"]
        except (OSError, ValueError, KeyError):
            continue
        for value in header.values():
            record = json.loads(value) if value.startswith("{") else {}
            if "step" in record:
                return int(record["step"])
    return 0


def test_writing_divides_a_batch_that_does_not_fit(llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from xares_store.probes.llm.model import AudioLm

    whole, store = llm.fresh(tmp_path / "whole"), llm.fresh(tmp_path / "s")
    options = _joint(llm, max_steps=2, frame_budget=4096)
    expected = evaluate(whole, tasks=[llm.tasks[0]], probes=["llm"], llm=options).results[0]
    write = AudioLm.write

    def small(self: AudioLm, examples: Any, **generation: Any) -> Any:
        if len(examples) > 2:
            raise torch.OutOfMemoryError("too large")
        return write(self, examples, **generation)

    monkeypatch.setattr(AudioLm, "write", small)
    found = evaluate(store, tasks=[llm.tasks[0]], probes=["llm"], llm=options).results[0]
    one, other = (read_predictions(s.path, expected.run_id) for s in (whole, store))
    assert found.run_id == expected.run_id
    assert one.column("prediction") == other.column("prediction")


def test_two_commands_do_not_train_the_same_at_once(llm: Llm, tmp_path: Path) -> None:
    from filelock import FileLock

    store = llm.fresh(tmp_path / "s")
    evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm, time_budget_s=1e-9))
    (folder,) = (store.path / "training").iterdir()
    with FileLock(folder / "lock"), pytest.raises(StoreError, match="Another process"):
        evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm))
    assert len(evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm)).results) == 2


def test_a_damaged_checkpoint_is_refused(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm, time_budget_s=1e-9))
    (checkpoint,) = (store.path / "training").rglob("checkpoint.safetensors")
    data = bytearray(checkpoint.read_bytes())
    data[-9] ^= 1
    checkpoint.write_bytes(data)
    with pytest.raises(CorruptError, match=r"checkpoint\.safetensors"):
        evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm))
    assert store.runs() == []


def test_a_checkpoint_is_no_finished_training(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm, time_budget_s=1e-9))
    (checkpoint,) = (store.path / "training").rglob("checkpoint.safetensors")
    checkpoint.rename(checkpoint.with_name("finished.safetensors"))
    with pytest.raises(CorruptError, match="1 of 12 steps"):
        evaluate(store, tasks=llm.tasks, probes=["llm"], llm=_joint(llm))
    assert store.runs() == []


def test_transcribe_writes_what_the_run_wrote(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    report = evaluate(store, tasks=[str(llm.spelling)], probes=["llm"], llm=_alone(llm))
    run_id = report.results[0].run_id
    rows = {row["clip_id"]: row for row in read_predictions(store.path, run_id).to_pylist()}
    names = list(rows)[:3]
    found = transcribe(store, run_id, names)
    assert [(one.clip_id, one.text, one.reference) for one in found] == [
        (name, rows[name]["prediction"], rows[name]["target"]) for name in names
    ]
    trained = transcribe(store, run_id, ["train/train0001"])
    assert (trained[0].split, trained[0].clip_id) == ("train", "train0001")
    other = transcribe(store, run_id, ["test0"], task="naming")
    assert other[0].reference == "a | A"
    with pytest.raises(ConfigError, match="No clip"):
        transcribe(store, run_id, ["nowhere"])
    with pytest.raises(StoreError, match="no such run"):
        transcribe(store, "nothing", names)
    with pytest.raises(ProbeError, match="not the one"):
        transcribe(store, run_id, names, decoder=str(save_tiny(tmp_path / "d", words=tuple("abcdef"), seed=5)))
    shutil.move(llm.decoder, tmp_path / "moved")
    try:
        with pytest.raises(ProbeError, match="--decoder"):
            transcribe(store, run_id, names)
        moved = transcribe(store, run_id, names, decoder=str(tmp_path / "moved"))
        assert [one.text for one in moved] == [one.text for one in found]
    finally:
        shutil.move(tmp_path / "moved", llm.decoder)


def test_command_line(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    where = ["--store", str(store.path)]
    runner = CliRunner()
    arguments = ["evaluate", "--probe", "llm", "--recipe", str(llm.joint), "--task", llm.tasks[0], *where]
    paused = runner.invoke(cli, [*arguments, "--time-budget", "0.000001s"], standalone_mode=False)
    assert paused.return_value == 75
    assert "the same command" in paused.stderr
    done = runner.invoke(cli, [*arguments, "--json"], standalone_mode=False)
    assert (done.exception, done.return_value) == (None, 0)
    (row,) = json.loads(done.stdout)
    assert (row["task"], row["probe"], row["metric"], row["seeds"]) == ("spelling", "llm", "iwer", 1)
    (run,) = store.runs()
    heard = runner.invoke(cli, ["transcribe", "--run", run, "test0000", *where, "--json"], standalone_mode=False)
    (clip,) = json.loads(heard.stdout)
    assert (clip["clip"], clip["split"]) == ("test0000", "test")
    found = runner.invoke(
        cli,
        ["sql", "select sum(substitutions + deletions + insertions)::int as errors from predictions", *where, "--json"],
        standalone_mode=False,
    )
    assert json.loads(found.stdout)[0]["errors"] > 0


def test_what_cannot_be_evaluated_is_said(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    task = str(llm.spelling)
    with pytest.raises(ProbeError, match="--probe llm"):
        evaluate(store, tasks=[task])
    with pytest.raises(ConfigError, match="--recipe"):
        evaluate(store, tasks=[task], llm=_alone(llm))
    with pytest.raises(ConfigError, match="one learning rate"):
        evaluate(store, tasks=[task], probes=["llm"], learning_rates=[1e-3, 1e-2], llm=_alone(llm))
    with pytest.raises(XaresError, match="no recipe"):
        evaluate(store, tasks=[task], probes=["llm"], llm=LlmOptions(recipe="xares-asrr"))
    with pytest.raises(ProbeError, match="--decoder"):
        evaluate(store, tasks=[task], probes=["llm"], llm=_alone(llm, decoder=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="--stride"):
        evaluate(store, tasks=[task], probes=["llm"], llm=_alone(llm, stride=0))
    with pytest.raises(ConfigError, match="--precision"):
        evaluate(store, tasks=[task], probes=["llm"], device="cpu", llm=_alone(llm, precision="fp16"))
    with pytest.raises(ProtocolError, match=r"No training text|empty|no clip"):
        evaluate(store, tasks=[task], probes=["llm"], llm=_alone(llm), where="split != 'train'")
    silent = tmp_path / "spelling.toml"
    silent.write_text(llm.spelling.read_text().replace('prompt = "spell"', ""))
    with pytest.raises(ConfigError, match="asks a question"):
        evaluate(store, tasks=[str(silent)], probes=["llm"], llm=_joint(llm))
    other = tmp_path / "naming.toml"
    other.write_text(llm.naming.read_text().replace('keys = ["letter"]', 'keys = ["word"]'))
    with pytest.raises(LabelError, match="word"):
        evaluate(store, tasks=[str(other)], probes=["llm"], llm=_joint(llm))
    assert store.runs() == []


def test_shares_of_a_mixture() -> None:
    recipe = load_recipe("xares-llm")
    from xares_store.catalog import suites

    for suite in ("task1", "task2", "all"):
        name, shares = mixture_of(recipe, [load_task(task) for task in suites()[suite]])
        assert name == suite
        assert sum(shares) == pytest.approx(1.0)
        expected = recipe.mixtures[suite].shares()
        assert dict(zip(suites()[suite], shares, strict=True)) == pytest.approx(expected)
    name, shares = mixture_of(recipe, [load_task("llm-clotho"), load_task("librispeech")])
    assert shares == (0.5, 0.5)
    assert name.startswith("2 tasks ")
    assert name != mixture_of(recipe, [load_task("llm-mecat"), load_task("librispeech")])[0]
