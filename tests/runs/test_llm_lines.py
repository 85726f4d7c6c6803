"""Scores of language models in a suite: what was trained alike stands in one line, whatever the task, seed or folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.store.conftest import predictions, run_record
from xares_store.catalog import data_dir, load_recipe, load_task, load_tasks, suites
from xares_store.metrics.aggregate import weighted_average
from xares_store.runs.aggregates import suite_report
from xares_store.runs.llm.options import CAPTION_METRICS, LlmOptions, wanted_recipe
from xares_store.runs.llm.prepare import Prepared, mixture_of
from xares_store.runs.mteb import write_mteb
from xares_store.runs.published import published_lines, published_scores
from xares_store.runs.request import make_request, probes_for, settings_for
from xares_store.runs.suite import Line
from xares_store.store.store import Store

ENCODER = "dasheng@00000000"
Put = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "s")


def files(spec: str, content: str) -> Any:
    return SimpleNamespace(spec=spec, identity=lambda: {"model": "llama", "sha256": content})


@pytest.fixture
def put(store: Store) -> Put:
    """Write runs of tasks that one command trained together, with the settings that such a command records."""
    count = 0

    def write(
        names: Sequence[str],
        value: float | Mapping[str, float],
        *,
        seed: int = 42,
        decoder: str | None = None,
        content: str = "published",
        captions: str = "published",
        protocol: str = "strict",
        n_test: int = 100,
        of: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        nonlocal count
        tasks = load_tasks(names)
        llm = LlmOptions(recipe=options.pop("recipe", None), decoder=decoder, stride=options.pop("stride", None))
        request = make_request(
            ["llm"], 1, options.pop("learning_rates", None), options.pop("epochs", None), None, None, None, None,
            protocol, "cpu", llm=llm,
        )  # fmt: skip
        wanted = wanted_recipe(tasks, request)
        mixture, shares = mixture_of(wanted.recipe, tasks)
        needed = any(CAPTION_METRICS & set(task.metric.names) for task in tasks)
        judges = SimpleNamespace(identity=lambda: {"sentences": captions}) if needed else None
        prepared = Prepared(
            ENCODER, tuple(tasks), wanted, files(decoder or wanted.recipe.decoder, content), cast(Any, None),
            cast(Any, judges), shares, mixture, ("0" * 64,) * len(tasks),
        )  # fmt: skip
        for task in tasks:
            if of is not None and task.name not in of:
                continue
            count += 1
            score = value if isinstance(value, float) else value[task.name]
            metric = task.metric.name
            record = run_record(
                **{
                    "main_metric": metric, "seed": seed, "encoder": ENCODER, "task": task.name,
                    "task_address": task.address, "probe": "llm", "probe_version": "1", "protocol": protocol,
                    "n_test": n_test, "audio_address": task.audio_address,
                    "settings": prepared.settings(task, request), "details": {"metric_version": "1"},
                    "started": f"2026-01-01T00:{count:02d}:00+00:00",
                    "scores": [{"metric": metric, "value": score, "fold": None, "low": 0.0, "high": 1.0, "n": n_test}],
                    **options,
                }
            )  # fmt: skip
            assert store.write_run(f"llm-{count}", record, predictions(), None)

    return write


@pytest.fixture
def put_trained(store: Store) -> Callable[..., dict[str, float]]:
    """Write a run of every other task of X-ARES with its trained probe."""

    def write(**options: Any) -> dict[str, float]:
        values: dict[str, float] = {}
        for index, task in enumerate(load_tasks(["xares"])):
            if task.name == "librispeech":
                continue
            request = make_request(["mlp"], 1, None, None, None, None, None, None, "strict", "cpu")
            (probe,) = probes_for(task, request)
            values[task.name] = index / 27
            metric = task.metric.name
            score = {"metric": metric, "value": index / 27, "fold": None, "low": 0.0, "high": 1.0, "n": 100}
            record = run_record(
                main_metric=metric, seed=42, encoder=ENCODER, task=task.name, task_address=task.address, probe=probe,
                probe_version="1", protocol="strict", n_test=100, audio_address=task.audio_address,
                settings=settings_for(task, probe, request) | options.get(task.name, {}),
                details={"metric_version": "1"}, scores=[score],
            )  # fmt: skip
            assert store.write_run(f"trained-{task.name}", record, predictions(), None)
        return values

    return write


def overall(line: Line, weights: str = "test-size") -> float | None:
    (found,) = [one for one in line.averages if (one.scope, one.weights) == ("all", weights)]
    return found.value


def by_label(store: Store, suite: str, **options: Any) -> dict[str, list[str]]:
    return {line.label: [score.task for score in line.scores] for line in suite_report(store, suite, **options).lines}


def test_speech_recognition_enters_the_trained_average_of_x_ares(
    store: Store, put: Put, put_trained: Callable[..., dict[str, float]]
) -> None:
    values = put_trained() | {"librispeech": 0.9}
    put(["librispeech"], 0.9)
    report = suite_report(store, "xares", probes=["mlp"])
    (line,) = report.lines
    assert (line.probe, line.label, len(line.scores)) == ("mlp", "", 27)
    assert not any(one.partial for one in line.averages)
    weights = [load_task(name).published.weight for name in values]
    assert overall(line, "published") == pytest.approx(weighted_average(list(values.values()), weights))
    (alone,) = suite_report(store, "xares", probes=["llm"]).lines
    assert (alone.probe, [score.task for score in alone.scores]) == ("mlp", ["librispeech"])
    assert [line.probe for line in suite_report(store, "librispeech").lines] == ["llm"]


def test_another_decoder_is_a_change_of_the_whole_line(
    store: Store, put: Put, put_trained: Callable[..., dict[str, float]]
) -> None:
    """What no other probe knows leaves their scores as they are."""
    put_trained()
    put(["librispeech"], 0.5, decoder="/models/tiny", stride=4)
    assert {label: len(names) for label, names in by_label(store, "xares").items()} == {
        "decoder: /models/tiny, stride: 4": 27
    }
    put(["librispeech"], 0.9)
    assert {label: len(names) for label, names in by_label(store, "xares").items()} == {
        "": 27,
        "decoder: /models/tiny, stride: 4": 27,
    }


def test_a_change_that_other_probes_know_too_is_not_taken_for_granted(
    store: Store, put: Put, put_trained: Callable[..., dict[str, float]]
) -> None:
    put_trained(esc50={"epochs": 4})
    put(["librispeech"], 0.5)
    found = by_label(store, "xares")
    assert found["epochs: 4"] == ["esc50"]
    assert "librispeech" in found[""]
    put(["librispeech"], 0.7, epochs=4, learning_rates=[0.01])
    assert by_label(store, "xares")["epochs: 4, learning_rates: [0.01]"] == ["librispeech"]


def test_a_joint_training_is_a_line_whatever_the_seed(store: Store, put: Put) -> None:
    values = {name: index / 20 for index, name in enumerate(suites()["task1"])}
    put(["task1"], values, seed=42)
    put(["task1"], {name: value + 0.1 for name, value in values.items()}, seed=43)
    put(["task1"], 0.0, seed=43, of=["llm-esc-50"], started="2025-01-01T00:00:00+00:00")  # with older files of others
    (line,) = suite_report(store, "task1").lines
    assert (line.probe, line.label) == ("llm", "mixture: task1")
    assert [score.task for score in line.scores] == suites()["task1"]
    assert {score.n_seeds for score in line.scores} == {2}
    assert overall(line, "published") == pytest.approx(sum(values.values()) / 15 + 0.05)
    assert not any(one.partial for one in line.averages)


def test_trainings_on_other_tasks_are_never_mixed(store: Store, put: Put) -> None:
    put(["task2"], 0.1)
    put(["all"], 0.2, of=suites()["task2"])
    for name in ("llm-clotho", "llm-mecat"):  # alone, each with steps of its own
        put([name], 0.3)
    put(["llm-clotho", "llm-mecat"], 0.4)
    put(["llm-clotho", "llm-songdescriber"], 0.5)
    put(["llm-clotho", "llm-esc-50"], 0.6)
    lines = suite_report(store, "task2").lines
    assert {overall(line): len(line.scores) for line in lines} == {0.1: 5, 0.2: 5, 0.3: 2, 0.4: 2, 0.5: 2, 0.6: 1}
    labels = {overall(line): line.label for line in lines}
    assert (labels[0.1], labels[0.2], labels[0.3]) == ("mixture: task2", "mixture: all", "")
    assert labels[0.4].startswith("mixture: 2 of task2 (")
    assert labels[0.5].startswith("mixture: 2 of task2 (")
    assert labels[0.4] != labels[0.5]
    assert len(set(labels.values())) == 6


def test_protocols_stay_apart(store: Store, put: Put) -> None:
    put(["llm-clotho"], 0.1)
    put(["llm-clotho"], 0.2, protocol="published")
    assert {line.protocol: overall(line) for line in suite_report(store, "task2").lines} == {
        "strict": 0.1,
        "published": 0.2,
    }


def test_other_files_under_the_same_name_are_a_line_of_their_own(store: Store, put: Put) -> None:
    put(["llm-esc-50"], 0.1, content="old weights")
    put(["llm-esc-50", "llm-gtzan"], 0.2)
    put(["llm-esc-50"], 0.3)
    put(["llm-gtzan"], 0.4)
    found = {line.label: overall(line) for line in suite_report(store, "task1").lines}
    (old,) = [label for label, value in found.items() if value == 0.1]
    assert old.startswith("decoder: HuggingFaceTB/SmolLM2-135M@")
    assert found[""] == pytest.approx(0.35)


def test_models_that_judge_captions_matter_to_captions_alone(store: Store, put: Put) -> None:
    put(["task2"], 0.1, captions="a stand-in")
    put(["task2"], 0.2)
    found = {line.label: line for line in suite_report(store, "task2").lines}
    assert len(found) == 2
    assert overall(found["mixture: task2"]) == 0.2
    (other,) = [line for label, line in found.items() if "captions: published@" in label]
    counted = {score.task: score.score for score in other.scores}
    assert set(counted) == set(suites()["task2"]), "transcripts need no such model and belong to both lines"
    assert {name: value for name, value in counted.items() if value == 0.1} == dict.fromkeys(
        ["llm-clotho", "llm-mecat", "llm-songdescriber"], 0.1
    )


def test_stand_ins_are_named_even_where_nothing_else_was_scored(store: Store, put: Put) -> None:
    for name, metric in (("llm-clotho", "fense"), ("llm-mecat", "date")):
        called = f"{metric}[MiniLM,no-checker]"
        score = {"metric": called, "value": 0.5, "fold": None, "low": 0.0, "high": 1.0, "n": 100}
        put([name], 0.5, captions="a stand-in", main_metric=called, scores=[score])
    put(["llm-librispeech"], 0.25)
    (line,) = suite_report(store, "task2").lines
    assert line.label == "captions: MiniLM,no-checker"
    assert [score.metric for score in line.scores] == ["fense[MiniLM,no-checker]", "iwer", "date[MiniLM,no-checker]"]


def test_a_recipe_of_ones_own_is_named_with_its_content(store: Store, put: Put, tmp_path: Path) -> None:
    put(["llm-clotho"], 0.1)
    text = (data_dir("tasks") / "recipes" / "xares-llm.toml").read_text(encoding="utf-8")
    for name, alpha in (("xares-llm", 16), ("mine", 32)):
        path = tmp_path / f"{name}.toml"
        path.write_text(text.replace("alpha = 32", f"alpha = {alpha}").replace('"xares-llm"', f'"{name}"'), "utf-8")
        put(["llm-clotho"], alpha / 100, recipe=str(path))
    put(["llm-clotho"], 0.5, recipe="xares-asr")
    labels = {overall(line): line.label for line in suite_report(store, "task2").lines}
    assert labels[0.1] == ""
    assert labels[0.16] == f"recipe: xares-llm@{load_recipe(tmp_path / 'xares-llm.toml').fingerprint[:8]}"
    assert "recipe: mine@" in labels[0.32]
    assert labels[0.5] == "recipe: xares-asr"


def test_result_files_of_a_joint_training(store: Store, put: Put, tmp_path: Path) -> None:
    put(["task2"], 0.5)
    (first, *_) = write_mteb(suite_report(store, "task2"), tmp_path / "r")
    assert (
        first.relative_to(tmp_path / "r").as_posix() == "llm-strict-mixture_task2/dasheng/00000000/llm-aishell-1.json"
    )
    assert json.loads(first.read_text())["scores"]["test"][0]["icer"] == 0.5


# The published tables.


@pytest.mark.parametrize(
    ("suite", "encoder", "mean", "printed"),
    [
        ("task1", "Dasheng-Base", 0.6141, 0.614),
        ("task1", "Whisper-Base", 0.6515, 0.652),
        ("task2", "Dasheng-Base", 0.2676, 0.27),
        ("task2", "Whisper-Base", 0.4352, 0.40),  # printed is the mean of an earlier table
    ],
)
def test_the_published_overall_is_the_plain_mean(suite: str, encoder: str, mean: float, printed: float) -> None:
    (line,) = [line for line in published_lines(load_tasks([suite])) if line.encoder == encoder]
    assert (line.probe, line.label, line.protocol) == ("llm", f"mixture: {suite}", None)
    assert [score.task for score in line.scores] == suites()[suite]
    assert overall(line, "published") == pytest.approx(mean, abs=5.1e-5)
    ((name, value, footnote),) = line.printed
    assert (name, value) == ("Overall", printed)
    assert f"mean of the printed rows: {mean:.4f}" in footnote
    assert (abs(value - mean) < 0.005) == (printed != 0.40), "one of the four is not reproduced"
    assert ("earlier table" in footnote) == (printed == 0.40)


def test_the_two_published_tracks_are_never_averaged_together() -> None:
    lines = published_lines(load_tasks(["all"]), probes=["llm"])
    assert [(line.encoder, line.label, line.averages[0].n_tasks) for line in lines] == [
        ("Dasheng-Base", "mixture: task1", 15),
        ("Whisper-Base", "mixture: task1", 15),
        ("Dasheng-Base", "mixture: task2", 5),
        ("Whisper-Base", "mixture: task2", 5),
    ]
    assert all(line.averages[0].partial for line in lines)
    rows = [row for row in published_scores() if row.benchmark == "XARES-LLM"]
    assert len(rows) == 44
    assert sum(len(line.scores) for line in lines) == 40, "and the four averages"
    assert published_lines(load_tasks(["all"]), probes=["mlp", "knn"]) == []
    assert {line.probe for line in published_lines(load_tasks(["xares"]))} == {"mlp", "knn"}


def test_published_lines_stand_beside_ours(store: Store, put: Put) -> None:
    put(["task2"], 0.5)
    report = suite_report(store, "task2", published=True)
    assert [(line.source.partition(" (")[0], line.label) for line in report.lines] == [
        ("store", "mixture: task2"),
        ("XARES-LLM README", "mixture: task2"),
        ("XARES-LLM README", "mixture: task2"),
    ]
    (whisper,) = [note for note in report.notes if note.startswith("Whisper-Base llm (mixture: task2)")]
    assert "0.400 Overall (mean of the printed rows: 0.4352 (0.40 is the mean of an earlier table))" in whisper
