"""Tasks of every kind: which probe answers to a name, what is stored of each clip, and whether encoders can be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.published import FACTS, make_shards
from xares_store.catalog import load_task
from xares_store.cli import cli
from xares_store.errors import ConfigError, ProbeError
from xares_store.runs.aggregates import suite_report
from xares_store.runs.compare import compare
from xares_store.runs.embed import embed
from xares_store.runs.evaluate import evaluate
from xares_store.runs.frame_scores import EVENT_RULES
from xares_store.runs.request import make_request, settings_for
from xares_store.store.store import Store

TASKS = ("clotho", "desed", "fsd50k", "speechocean762", "esc50")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one task of each kind, embedded by two encoders and evaluated."""
    root = tmp_path_factory.mktemp("kinds")
    for name in TASKS:
        make_shards(FACTS[name], root / "data" / name, clips=24)
    for encoder in ("logmel", "modspec"):
        embed(encoder, TASKS, store=root / "s", data=root / "data", device="cpu", workers=0)
    evaluate(root / "s", seeds=2, epochs=3, learning_rates=[1e-2], device="cpu")
    return root / "s"


def predictions(path: Path, task: str) -> tuple[list[dict[str, object]], dict[str, float]]:
    store = Store.open(path)
    (run, *_) = store.sql(
        "select run_id from runs where task = $t and encoder like 'logmel%' order by seed", {"t": task}
    )["run_id"].to_pylist()
    scores = {score.metric: score.value for score in store.read_run(run).scores if score.fold is None}
    return store.predictions(run).to_pylist(), scores


def test_the_mlp_of_a_task_is_the_trained_probe_of_its_kind(path: Path) -> None:
    report = evaluate(path, tasks=TASKS, probes=["mlp"], seeds=2, epochs=3, learning_rates=[1e-2])
    assert all(result.reused for result in report.results)
    assert {result.task: result.probe for result in report.results} == {
        "clotho": "retrieval", "desed": "frame", "fsd50k": "mlp", "speechocean762": "mlp", "esc50": "mlp",
    }  # fmt: skip
    assert report.notes == []


def test_a_probe_that_does_not_fit_is_named_and_refused_when_it_was_the_only_wish(path: Path) -> None:
    report = evaluate(path, tasks=["desed", "esc50"], probes=["knn"])
    assert {result.task for result in report.results} == {"esc50"}
    (note,) = report.notes
    assert note == 'Task "desed" is not evaluated: what fits events labels: frame.'
    with pytest.raises(ProbeError, match="what fits events labels: frame"):
        evaluate(path, tasks=["desed"], probes=["knn"])
    with pytest.raises(ConfigError, match="belongs to the probe"):
        evaluate(path, tasks=["esc50"], probes=["knn"], text_encoder="some/model")


def test_an_option_that_no_task_uses_is_a_slip(path: Path) -> None:
    for option in ("text_encoder", "tokenizer"):
        with pytest.raises(ConfigError, match="belongs to tasks of captions"):
            evaluate(path, tasks=["esc50"], **{option: "words"})  # type: ignore[arg-type]


def test_active_frames_weigh_what_the_task_file_says(path: Path, tmp_path: Path) -> None:
    """MAESTRO's 10 reaches the probe; DESED has none, which is 1."""
    path = Path(shutil.copytree(path, tmp_path / "s"))
    request = make_request([], 1, None, None, None, None, None, None, "strict", "cpu")
    assert settings_for(load_task("maestro"), "frame", request)["positive_weight"] == 10.0
    assert settings_for(load_task("desed"), "frame", request)["positive_weight"] == 1.0
    text = load_task("desed").to_toml().replace("[probe.frame]", "[probe.frame]\npositive_weight = 50.0")
    heavy = tmp_path / "heavy" / "desed.toml"
    heavy.parent.mkdir(exist_ok=True)
    heavy.write_text(text)
    found = {}
    for spec in ("desed", str(heavy)):
        (result,) = evaluate(path, tasks=[spec], encoders=["logmel"], seeds=1, epochs=40, learning_rates=[1e-2]).results
        rows = Store.open(path).predictions(result.run_id)["counts"].to_pylist()
        found[spec] = np.sum([np.reshape(row, (3, -1))[:2].sum() for row in rows])
    assert found[str(heavy)] > found["desed"], "more frames are predicted active when missing one costs more"


def test_events_are_matched_within_the_published_collars() -> None:
    assert EVENT_RULES["event_f1"].onset_collar_s == 0.2
    assert EVENT_RULES["onset_f1"].onset_collar_s == 0.05


def test_another_tokenizer_is_a_line_of_its_own(path: Path, tmp_path: Path) -> None:
    from tests.text_models import save_tokenizer

    path = Path(shutil.copytree(path, tmp_path / "s"))
    folder = save_tokenizer(tmp_path / "tokenizer")
    evaluate(
        path, tasks=["clotho"], encoders=["logmel"], seeds=1, epochs=3, learning_rates=[1e-2], tokenizer=str(folder)
    )
    lines = suite_report(path, "clotho", encoders=["logmel"]).lines
    labels = [line.label for line in lines]
    assert len(labels) == 2
    assert [("text" in label) for label in labels] == [False, True]


def test_tags_are_stored_as_text_and_as_scores(path: Path) -> None:
    rows, scores = predictions(path, "fsd50k")
    labels = load_task("fsd50k").labels
    for row in rows:
        assert isinstance(row["target"], str)
        assert isinstance(row["scores"], list)
        assert set(row["target"].split(";")) <= set(labels)
        assert len(row["scores"]) == 200
        assert row["value"] is None
    hot = np.array([[label in str(row["target"]).split(";") for label in labels] for row in rows])
    from xares_store.metrics.classification import mean_average_precision

    stored = np.array([row["scores"] for row in rows])
    assert mean_average_precision(hot, stored) == pytest.approx(scores["map"], abs=1e-6)


def test_numbers_are_stored_with_their_squared_error(path: Path) -> None:
    rows, scores = predictions(path, "speechocean762")
    errors = [(float(str(row["prediction"])) - float(str(row["target"]))) ** 2 for row in rows]
    np.testing.assert_allclose([row["value"] for row in rows], errors, rtol=1e-3, atol=1e-4)
    assert np.mean([row["value"] for row in rows]) == pytest.approx(scores["mse"])
    assert scores["mae"] ** 2 <= scores["mse"]


def test_events_are_stored_as_lists_with_their_counts(path: Path) -> None:
    rows, scores = predictions(path, "desed")
    labels = load_task("desed").labels
    total = np.sum([np.reshape(row["counts"], (3, len(labels))) for row in rows], axis=0)
    hits, alarms, misses = total
    f1 = np.divide(
        2 * hits, 2 * hits + alarms + misses, out=np.zeros(len(labels)), where=(2 * hits + alarms + misses) > 0
    )
    assert f1.mean() == pytest.approx(scores["segment_f1_macro"])
    for row in rows:
        (event,) = json.loads(str(row["target"]))
        assert set(event) == {"onset", "offset", "label"}
        assert event["label"] in labels


def test_captions_are_stored_with_the_share_of_each_clip(path: Path) -> None:
    rows, scores = predictions(path, "clotho")
    assert np.mean([row["value"] for row in rows]) == pytest.approx(scores["recall_at_1"])
    assert scores["recall_at_1"] == pytest.approx((scores["a2t_recall_at_1"] + scores["t2a_recall_at_1"]) / 2)
    assert scores["recall_at_1"] <= scores["recall_at_5"] <= scores["recall_at_10"] <= 1
    assert all(len(str(row["target"]).split(" | ")) == 5 for row in rows)


def test_every_kind_can_be_compared(path: Path) -> None:
    rows = compare(path, "logmel", "modspec")
    assert {row.task for row in rows} == set(TASKS)
    board = {
        (row["encoder"].partition("@")[0], row["task"], row["probe"]): row["score"]
        for row in Store.open(path).sql("from leaderboard").to_pylist()
    }
    for row in rows:
        assert row.a == pytest.approx(board["logmel", row.task, row.probe])
        assert row.b == pytest.approx(board["modspec", row.task, row.probe])
        assert row.difference == pytest.approx(row.a - row.b)
        assert row.p is not None
        assert row.p_holm is not None
        assert 0 < row.p <= row.p_holm <= 1
        assert row.n > 0
        assert (row.low is None) == (row.task in ("desed", "fsd50k"))  # no mean over clips: the test swaps predictions
    assert {row.n for row in compare(path, "logmel", "modspec", tasks=["desed"])} == {24}


def test_a_comparison_of_one_encoder_with_a_copy_finds_nothing(path: Path, tmp_path: Path) -> None:
    """Scores swapped clip by clip between equal predictions never differ."""
    from xares_store.runs.paired import paired_runs

    store = Store.open(path)
    for name, metric in (("desed", "segment_f1_macro"), ("fsd50k", "map")):
        runs = store.sql("select run_id from runs where task = $t and encoder like 'logmel%'", {"t": name})[
            "run_id"
        ].to_pylist()
        n, test = paired_runs(store, load_task(name), metric, runs, runs)
        assert n == 24
        assert test is not None
        assert (test.difference, test.p_value) == (0.0, 1.0)


def test_labels_that_hold_the_divider_of_stored_labels_cannot_be_swapped(path: Path) -> None:
    from xares_store.runs.paired import paired_runs

    store, task = Store.open(path), load_task("fsd50k")
    runs = store.sql("select run_id from runs where task = 'fsd50k' order by run_id")["run_id"].to_pylist()[:1]
    target = task.target.model_copy(update={"labels": ("one; two", *task.labels[1:])})
    n, test = paired_runs(store, task.model_copy(update={"target": target}), "map", runs, runs)
    assert (n, test) == (24, None)


def test_the_command_line_shows_scores_without_an_interval(path: Path) -> None:
    found = CliRunner().invoke(cli, ["leaderboard", "--store", str(path), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert {row["task"] for row in rows} == set(TASKS)
    found = CliRunner().invoke(cli, ["compare", "logmel", "modspec", "--store", str(path)], catch_exceptions=False)
    assert found.exit_code == 0
    assert "desed" in found.stdout
    again = CliRunner().invoke(cli, ["evaluate", "--store", str(path), "--suite", "desed", "--seeds", "2", "--epochs", "3", "--lr", "0.01", "--json"], catch_exceptions=False)  # fmt: skip
    assert again.exit_code == 0, again.output
    assert {row["new"] for row in json.loads(again.stdout)} == {0}
