"""A suite's averages: what is averaged was made alike, what is missing is named, published numbers stay apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.store.conftest import predictions, run_record
from xares_store.catalog import load_task, load_tasks
from xares_store.errors import ConfigError, TaskError
from xares_store.kinds import PROBES_OF_KIND
from xares_store.metrics import registry
from xares_store.metrics.aggregate import weighted_average
from xares_store.runs.aggregates import suite_report
from xares_store.runs.leaderboard import leaderboard_rows
from xares_store.runs.mteb import write_mteb
from xares_store.runs.published import published_lines, published_scores
from xares_store.runs.request import make_request, probes_for, settings_for
from xares_store.runs.suite import Line, scored_with
from xares_store.store.store import Store
from xares_store.task import Task

GOLDEN = Path(__file__).parents[1] / "golden"
ENCODER = "dasheng@00000000"
Put = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "s")


@pytest.fixture
def put(store: Store) -> Put:
    """Write a run of a shipped task, with the task's own settings but for ``change``."""
    count = 0

    def write(
        task: str | Task,
        value: float,
        *,
        probe: str = "knn",
        protocol: str = "strict",
        n_test: int = 100,
        change: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        nonlocal count
        count += 1
        task = task if isinstance(task, Task) else load_task(task)
        request = make_request([probe], 1, None, None, None, None, None, None, protocol, "cpu")
        probe = (*probes_for(task, request), probe)[0]  # of a kind without this probe: the table's name will do
        settings = settings_for(task, probe, request) if PROBES_OF_KIND[task.target.kind] else {}
        metric = task.metric.name
        record = run_record(
            **{
                "main_metric": metric, "seed": None, "encoder": ENCODER, "task": task.name, "task_address": task.address, "probe": probe,
                "probe_version": "1", "protocol": protocol, "n_test": n_test, "audio_address": task.audio_address,
                "settings": {**settings, **(change or {})}, "details": {"metric_version": "1"},
                "scores": [{"metric": metric, "value": value, "fold": None, "low": 0.0, "high": 1.0, "n": n_test}],
                **fields,
            }
        )  # fmt: skip
        assert store.write_run(f"run-{count}", record, predictions(), None)

    return write


def average(line: Line, scope: str = "all", weights: str = "test-size") -> float | None:
    (found,) = [one for one in line.averages if (one.scope, one.weights) == (scope, weights)]
    return found.value


def test_averages_are_weighted_by_counted_items_and_beside_it_by_the_published_constants(
    store: Store, put: Put
) -> None:
    tasks = scored_with(load_tasks(["xares"]), "knn")
    values = {task.name: (index / 20, 10 * (index + 1)) for index, task in enumerate(tasks)}
    assert len(values) == 20
    for name, (value, n_test) in values.items():
        put(name, value, n_test=n_test)
    (line,) = suite_report(store, "xares").lines
    assert [score.task for score in line.scores] == list(values)
    assert average(line) == pytest.approx(weighted_average(*zip(*values.values(), strict=True)))
    published = [load_task(name).published.weight for name in values]
    assert average(line, weights="published") == pytest.approx(
        weighted_average([value for value, _ in values.values()], published)
    )
    music = [one for name, one in values.items() if load_task(name).domain == "music"]
    assert len(music) == 3
    assert average(line, "music") == pytest.approx(weighted_average(*zip(*music, strict=True)))
    assert {one.scope for one in line.averages} == {"all", "speech", "environment", "music"}
    assert not any(one.partial for one in line.averages)
    assert suite_report(store, "xares").notes == []


def test_the_trained_probes_of_all_kinds_stand_in_one_table(store: Store, put: Put) -> None:
    """As in the published MLP table: frames, retrieval and tags are averaged with the others, each by its own metric."""
    tasks = load_tasks(["xares"])
    for index, task in enumerate(tasks):
        if task.name != "librispeech":
            put(task, index / 27, probe="mlp", n_test=100 + index, seed=1)
    (line,) = suite_report(store, "xares", probes=["mlp"]).lines
    assert line.probe == "mlp"
    assert {score.metric for score in line.scores} == {
        "accuracy", "map", "segment_f1_macro", "segment_f1_micro", "recall_at_1",
    }  # fmt: skip
    counted = [(index / 27, 100 + index) for index, task in enumerate(tasks) if task.name != "librispeech"]
    assert average(line) == pytest.approx(weighted_average(*zip(*counted, strict=True)))
    overall = line.averages[0]
    assert (overall.partial, overall.missing, overall.of_tasks) == (True, ("librispeech",), 27)


def test_an_error_is_normalised_by_the_worst_value_of_its_task(store: Store, put: Put) -> None:
    put("speechocean762", 25.0, probe="mlp", seed=1)
    (line,) = suite_report(store, "speechocean762").lines
    assert (line.scores[0].metric, line.scores[0].score, line.scores[0].normalised) == ("mse", 25.0, 0.75)


def test_a_partial_average_says_so_and_names_what_is_missing(store: Store, put: Put) -> None:
    put("esc50", 0.8)
    report = suite_report(store, "xares")
    (line,) = report.lines
    overall, *_ = line.averages
    assert (overall.value, overall.partial, overall.n_tasks, overall.of_tasks) == (0.8, True, 1, 20)
    assert len(overall.missing) == 19
    assert "esc50" not in overall.missing
    assert average(line, "speech") is None
    (note,) = report.notes
    assert "partial averages, 1 of 20 tasks" in note
    assert all(name in note for name in overall.missing)
    assert suite_report(Store.create(store.path.parent / "empty"), "xares").notes == [
        "The store has no score of these tasks; `xares evaluate` makes them."
    ]


def test_protocols_probes_encoders_and_probe_versions_are_lines_of_their_own(store: Store, put: Put) -> None:
    put("esc50", 0.1)
    put("esc50", 0.2, protocol="published")
    put("esc50", 0.3, probe="mlp", seed=1)
    put("esc50", 0.5, probe="mlp", seed=2)
    put("esc50", 0.6, encoder="other@11111111")
    put("esc50", 0.7, probe_version="0")
    put("esc50", 0.9, where="duration_s < 3")
    lines = suite_report(store, ["esc50"]).lines
    found = {(line.encoder, line.probe, line.protocol, line.label): average(line) for line in lines}
    assert found == {
        (ENCODER, "knn", "strict", ""): 0.1,
        (ENCODER, "knn", "published", ""): 0.2,
        (ENCODER, "mlp", "strict", ""): 0.4,
        ("other@11111111", "knn", "strict", ""): 0.6,
        (ENCODER, "knn", "strict", "probe_version: 0"): 0.7,
    }
    (mlp,) = [line for line in lines if line.probe == "mlp"]
    assert mlp.scores[0].n_seeds == 2
    assert mlp.scores[0].seed_sd == pytest.approx(0.1414, abs=1e-4)
    kept = suite_report(store, "esc50", probes=["knn"], protocols=["strict"], encoders=[]).lines
    assert len(kept) == 3


def test_settings_are_never_mixed_in_one_average(store: Store, put: Put) -> None:
    put("esc50", 0.1)
    put("esc50", 0.9, change={"k": 3})
    put("gtzan_genre", 0.2)
    report = suite_report(store, ["esc50", "gtzan_genre"])
    found = {line.label: [score.task for score in line.scores] for line in report.lines}
    assert found == {"": ["esc50", "gtzan_genre"], "k: 3": ["esc50"]}
    assert [note for note in report.notes if "(k: 3): partial averages, 1 of 2" in note]


def test_one_change_covers_tasks_whose_own_settings_it_is(store: Store, put: Put) -> None:
    """`--epochs 5` changes one task, and another has 5 epochs anyway: they were evaluated alike."""
    esc50, gtzan = load_task("esc50"), load_task("gtzan_genre")
    short = esc50.model_copy(
        update={"probe": esc50.probe.model_copy(update={"mlp": esc50.probe.mlp.model_copy(update={"epochs": 5})})}
    )
    short = Task.model_validate(short.model_dump())
    put(short, 0.4, probe="mlp")
    put(gtzan, 0.6, probe="mlp", change={"epochs": 5})
    (line,) = suite_report(store, [short, gtzan]).lines
    assert (line.label, len(line.scores)) == ("epochs: 5", 2)


def test_scores_of_another_definition_or_other_embeddings_do_not_slip_in(store: Store, put: Put) -> None:
    put("esc50", 0.1, started="2026-01-01T00:00:00+00:00", parts_digest="1" * 64)
    put("esc50", 0.2, started="2026-01-02T00:00:00+00:00", parts_digest="2" * 64)
    put("esc50", 0.9, task_address="esc50@99999999")
    put("gtzan_genre", 0.9, settings={"k": 10})
    report = suite_report(store, ["esc50", "gtzan_genre"])
    (line,) = report.lines
    assert [(score.task, score.score) for score in line.scores] == [("esc50", 0.2)]
    text = "\n".join(report.notes)
    assert "esc50@99999999" in text
    assert "the newest counts" in text
    assert "a score of gtzan_genre does not count" in text


def test_metrics_are_normalised_before_they_are_averaged(
    store: Store, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._METRICS, "accuracy", replace(registry.metric_for("accuracy"), worst=1.0, best=0.0))
    put("esc50", 0.1)
    (line,) = suite_report(store, "esc50").lines
    assert (line.scores[0].score, line.scores[0].normalised, average(line)) == (0.1, 0.9, 0.9)


def test_wrong_names_are_refused(store: Store) -> None:
    with pytest.raises(TaskError, match="xaers"):
        suite_report(store, "xaers")
    with pytest.raises(ConfigError, match="nobody"):
        suite_report(store, "xares", encoders=["nobody"])
    with pytest.raises(ConfigError, match="at least one"):
        suite_report(store, [])
    with pytest.raises(ConfigError, match="beside it"):
        leaderboard_rows(store, suite="xares", tasks=["esc50"])
    with pytest.raises(ConfigError, match="beside those of a suite"):
        leaderboard_rows(store, published=True)


def test_published_lines_stand_beside_ours_and_are_never_averaged_with_them(store: Store, put: Put) -> None:
    put("esc50", 0.5, encoder="whisper-base@00000000")
    report = suite_report(store, "xares", probes=["knn"], published=True)
    ours, first, *rest = report.lines
    assert (ours.source, ours.protocol, average(ours)) == ("store", "strict", 0.5)
    assert (first.encoder, first.source, first.protocol) == ("whisper", "X-ARES README (161f0ef)", None)
    assert [line.encoder for line in rest] == ["dasheng", "wav2vec2", "data2vec"]
    assert {one.weights for one in first.averages} == {"published"}, "no test sizes are printed"
    assert any("as printed in X-ARES README (161f0ef), not measured here" in note for note in report.notes)
    columns, rows = leaderboard_rows(store, suite="xares", probes=["knn"], published=True)
    assert (columns, rows) == report.rows()
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    assert {record["kind"] for record in records} == {"task", "average", "printed"}
    assert {record["source"] for record in records} == {"store", "X-ARES README (161f0ef)"}
    assert all(record["protocol"] is None for record in records if record["source"] != "store")


def test_the_published_scores_that_ship_are_whole() -> None:
    rows = published_scores()
    assert len(rows) == 525
    assert {row.benchmark for row in rows} >= {"X-ARES", "XARES-LLM", "OpenBEATs"}
    printed = {row.task for row in rows if row.benchmark == "X-ARES"}
    for task in load_tasks(["xares"]):
        assert task.published.result_name in printed, task.name
        assert task.published.weight, task.name
    (paper,) = [line for line in published_lines(load_tasks(["xares"])) if line.encoder == "CED"]
    assert [score.task for score in paper.scores] == ["librispeech", "vocalsound", "clotho", "esc50", "urbansound8k"]
    assert paper.averages[0].partial


@pytest.mark.parametrize(("suite", "name"), [("xares", "all"), ("xares-public", "public")])
def test_the_published_knn_averages_are_reproduced(suite: str, name: str) -> None:
    """All eight, within the rounding of the printed scores and of the average itself."""
    lines = published_lines(load_tasks([suite]), probes=["knn"])
    assert [line.encoder for line in lines] == ["dasheng", "wav2vec2", "whisper", "data2vec"]
    exact = {
        "all": [0.6827, 0.4686, 0.4748, 0.4549],
        "public": [0.5037, 0.2625, 0.2986, 0.3873],
    }[name]
    for line, expected in zip(lines, exact, strict=True):
        (printed,) = [value for printed_name, value, _ in line.printed if f"({name} tasks)" in printed_name]
        value = average(line, weights="published")
        assert not line.averages[0].partial
        assert value == pytest.approx(expected, abs=5e-5)
        assert value == pytest.approx(printed, abs=0.0005 + 0.0005), line.encoder


def _printed_mlp(names: Sequence[str], weights: dict[str, float], encoder: str, asr: str) -> float:
    rows = {
        row.task: row.score
        for row in published_scores()
        if (row.source, row.probe, row.encoder) == ("X-ARES README (161f0ef)", "MLP", encoder)
        and row.footnote in ("", "private task", asr)
    }
    return weighted_average([rows[name] for name in names], [weights[name] for name in names])


def test_the_published_mlp_averages_are_not_reproduced_and_this_is_by_how_much() -> None:
    """None of the eight agrees with its rows, with the ASR scores before v0.1.3 (a) nor with those since (b)."""
    keys = {
        "ASV2015": "ASV2015", "Clotho": "Clotho", "CREMAD": "CREMA-D", "DESED": "DESED", "ESC50": "ESC-50",
        "FSC": "Fluent Speech Commands", "FMA": "Free Music Archive Small", "FSD50k": "FSD50k", "FSD18": "FSD18-Kaggle",
        "GTZAN": "GTZAN Genre", "LibriCount": "LibriCount", "LibriSpeech": "LibriSpeech-100h",
        "LibriSpeechMF": "LibriSpeech-MF", "MAESTRO": "MAESTRO", "NSynth": "NSynth-Instruments", "RAVDESS": "RAVDESS",
        "SC1": "Speech Commands V1", "US8K": "UrbanSound 8k", "VocalImitation": "Vocal Imitation",
        "VocalSound": "VocalSound", "VoxCeleb1": "VoxCeleb1", "VoxLingua33": "VoxLingua33",
    }  # fmt: skip
    golden = json.loads((GOLDEN / "aggregate.json").read_text())["xares_readme_recomputed_from_task_weights"]
    weights: dict[str, float] = {keys[key]: weight for key, weight in golden["weights"].items()}
    public = list(weights)
    private = {row.task for row in published_scores() if row.footnote == "private task"}
    weights |= dict.fromkeys(private, golden["private_weight_each"])
    assert (len(public), len(weights), sum(weights[name] for name in public)) == (22, 27, 38752)
    # encoder -> scope -> printed, (a), (b)
    listed = {
        "dasheng": {"public": (0.699, 0.6939, 0.7238), "all": (0.801, 0.7982, 0.8164)},
        "wav2vec2": {"public": (0.490, 0.4842, 0.5203), "all": (0.664, 0.6604, 0.6824)},
        "whisper": {"public": (0.632, 0.6264, 0.6507), "all": (0.740, 0.7369, 0.7517)},
        "data2vec": {"public": (0.598, 0.5932, 0.5862), "all": (0.694, 0.6911, 0.6868)},
    }
    for encoder, scopes in listed.items():
        for scope, (printed, before, since) in scopes.items():
            names = public if scope == "public" else list(weights)
            (row,) = [
                row for row in published_scores()
                if (row.probe, row.encoder, row.task) == ("MLP", encoder, f"Weighted Average ({scope} tasks)")
            ]  # fmt: skip
            assert row.score == printed
            found = [_printed_mlp(names, weights, encoder, asr) for asr in ("value before v0.1.3", "v0.1.3")]
            assert found == [pytest.approx(before, abs=5.1e-5), pytest.approx(since, abs=5.1e-5)]
            assert found[0] == pytest.approx(golden["recomputed"][encoder][scope])
            assert 0.0028 <= printed - found[0] <= 0.0058
            assert abs(printed - found[1]) > 0.005
            suite = {"public": "xares-public", "all": "xares"}[scope]
            (line,) = [one for one in published_lines(load_tasks([suite]), probes=["mlp"]) if one.encoder == encoder]
            assert average(line, weights="published") == pytest.approx(found[1])  # the newer scores are the ones shown
            assert not line.averages[0].partial


def test_mteb_files_have_the_fields_that_mteb_reads(store: Store, put: Put, tmp_path: Path) -> None:
    put("esc50", 0.4, probe="mlp", seed=1, seconds=1.5)
    put("esc50", 0.6, probe="mlp", seed=2, seconds=2.0)
    put("gtzan_genre", 0.7, change={"k": 3})
    report = suite_report(store, "xares", published=True)
    files = write_mteb(report, tmp_path / "results")
    assert [file.relative_to(tmp_path / "results").as_posix() for file in files] == [
        "knn-strict-k_3/dasheng/00000000/gtzan_genre.json",
        "mlp-strict/dasheng/00000000/esc50.json",
    ]
    meta = json.loads((files[1].parent / "model_meta.json").read_text())
    assert (meta["name"], meta["revision"]) == ("dasheng", "00000000")
    result = json.loads(files[1].read_text())
    assert result["task_name"] == "esc50"
    assert result["dataset_revision"] == load_task("esc50").fingerprint
    assert result["mteb_version"] is None
    assert result["xares_store_version"]
    assert result["evaluation_time"] == 3.5
    (entry,) = result["scores"]["test"]
    assert entry["main_score"] == entry["accuracy"] == 0.5
    assert (entry["hf_subset"], entry["languages"], entry["n_seeds"]) == ("default", [], 2)
    assert write_mteb(report, tmp_path / "results") == files
