"""Phase two end to end: scores from a store alone, never twice, never from half of a task or from damaged data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.toy import Toy, write_tar
from xares_store.catalog import load_task, suites
from xares_store.errors import (
    ConfigError,
    CorruptError,
    LabelError,
    ProtocolError,
    ShardError,
    StoreError,
    TaskError,
    XaresError,
)
from xares_store.metrics import registry
from xares_store.runs.compare import compare
from xares_store.runs.embed import embed
from xares_store.runs.evaluate import evaluate
from xares_store.runs.leaderboard import leaderboard_rows
from xares_store.runs.plan import select_tasks
from xares_store.store.store import Store


@pytest.fixture
def store(toy: Toy, encoder_file: Path, tmp_path: Path) -> Path:
    """A store with the toy task embedded; the audio and the encoder are deleted."""
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    shutil.rmtree(toy.root)
    encoder_file.unlink()
    return tmp_path / "s"


def test_scores_come_out_of_sql_with_intervals_and_seed_spread_apart(store: Path, toy: Toy) -> None:
    report = evaluate(store, seeds=3)
    assert [(r.probe, r.seed) for r in report.results] == [("mlp", 42), ("mlp", 43), ("mlp", 44), ("knn", None)]
    assert all(0.5 < r.value <= 1.0 and r.low <= r.value <= r.high and r.n_test == toy.clips for r in report.results)
    opened = Store.open(store)
    scores = opened.sql("select probe, seed, fold, value, low, high, n from scores").to_pylist()
    assert len(scores) == 4 * (1 + 4)
    for result in report.results:
        folds = [s["value"] for s in scores if (s["probe"], s["seed"]) == (result.probe, result.seed) and s["fold"]]
        assert np.mean(folds) == pytest.approx(result.value)
    board = opened.sql("select probe, score, n_seeds, seed_sd, low, high from leaderboard order by probe").to_pylist()
    assert [(row["probe"], row["n_seeds"]) for row in board] == [("knn", 1), ("mlp", 3)]
    values = [r.value for r in report.results if r.probe == "mlp"]
    assert board[1]["score"] == pytest.approx(np.mean(values))
    assert board[1]["seed_sd"] == pytest.approx(np.std(values, ddof=1))


def test_every_test_clip_is_predicted_once_a_run_and_accuracy_follows_from_the_rows(store: Path, toy: Toy) -> None:
    report = evaluate(store, seeds=2)
    rows = Store.open(store).sql(
        "select run_id, count(*) as n, count(distinct clip_id) as clips, avg(correct::int) as accuracy, "
        "bool_and(correct = (target = prediction)) as same from predictions group by run_id"
    ).to_pylist()  # fmt: skip
    assert len(rows) == 3
    values = {result.run_id: result.value for result in report.results}
    for row in rows:
        assert (row["n"], row["clips"], row["same"]) == (toy.clips, toy.clips, True)
        assert row["accuracy"] == pytest.approx(values[row["run_id"]])  # folds of equal size


def test_a_score_is_computed_once_and_anew_when_a_setting_changes(store: Path) -> None:
    first = evaluate(store, probes=["mlp"], seeds=2)
    again = evaluate(store, probes=["mlp"], seeds=3)
    assert [r.reused for r in again.results] == [True, True, False]
    assert [r.value for r in again.results[:2]] == [r.value for r in first.results]
    for change in (
        {"learning_rates": [0.1]},
        {"epochs": 2},
        {"batch_size": 3},
        {"where": "duration_s > 0.3"},
        {"protocol": "published"},
    ):
        assert [r.reused for r in evaluate(store, probes=["mlp"], seeds=1, **change).results] == [False], change
    for change in ({"k": 1}, {"temperature": 1.0}, {"protocol": "published"}, {}):
        assert [r.reused for r in evaluate(store, probes=["knn"], **change).results] == [False], change


def test_seeds_trained_together_equal_seeds_trained_alone(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "other")
    together = evaluate(store, probes=["mlp"], seeds=3, learning_rates=[1e-3, 1e-1]).results
    alone = [
        evaluate(tmp_path / "other", probes=["mlp"], seeds=[seed], learning_rates=[1e-3, 1e-1]).results[0]
        for seed in (42, 43, 44)
    ]
    assert [r.run_id for r in together] == [r.run_id for r in alone]
    assert [r.value for r in together] == [r.value for r in alone]


def test_a_seed_gives_the_same_predictions_twice(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "other")
    query = "select fold, clip_id, prediction, probability from predictions order by all"
    tables = []
    for place in (store, tmp_path / "other"):
        evaluate(place, seeds=1)
        tables.append(Store.open(place).sql(query))
    assert tables[0].equals(tables[1])


def test_where_restricts_training_and_test_alike(store: Path) -> None:
    report = evaluate(store, probes=["knn"], where="duration_s < 0.4")
    kept = Store.open(store).sql("select count(*) as n from clips where duration_s < 0.4").to_pylist()[0]["n"]
    assert report.results[0].n_test == kept
    _columns, rows = leaderboard_rows(store)
    assert rows == [], "the leaderboard shows full data only"
    with pytest.raises(XaresError, match="duration"):
        evaluate(store, probes=["knn"], where="durations < 3")
    with pytest.raises(XaresError):
        evaluate(store, probes=["knn"], where="duration_s < 0")


def test_another_version_of_the_metric_is_another_score(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(store, probes=["knn"]).results[0]
    monkeypatch.setitem(registry._METRICS, "accuracy", replace(registry.metric_for("accuracy"), version="2"))
    second = evaluate(store, probes=["knn"]).results[0]
    assert not second.reused
    assert first.run_id != second.run_id
    details = [Store.open(store).read_run(run.run_id).details for run in (first, second)]
    assert [one["metric_version"] for one in details] == ["1", "2"]
    columns, rows = leaderboard_rows(store)
    assert sorted(row[columns.index("metric_version")] for row in rows) == ["1", "2"], "never averaged together"


def test_protocols_are_named_and_never_averaged(store: Path) -> None:
    evaluate(store, probes=["mlp"], seeds=1)
    evaluate(store, probes=["mlp"], seeds=1, protocol="published")
    columns, rows = leaderboard_rows(store)
    assert sorted(row[columns.index("protocol")] for row in rows) == ["published", "strict"]


def test_phase_two_opens_no_audio_and_imports_no_encoder(store: Path) -> None:
    """Promise 7, in a process of its own that records every file it opens."""
    script = f"""
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from xares_store.runs.evaluate import evaluate
report = evaluate({str(store)!r}, seeds=1, learning_rates=[0.003])
assert len(report.results) == 2 and not report.failed
loaded = [name for name in sys.modules if name.startswith(("xares_store.encoders", "xares_store.audio", "soundfile", "soxr"))]
assert not loaded, loaded
audio = [name for name in opened if name.endswith((".tar", ".wav", ".flac", ".ogg", ".mp3", "enc.py"))]
assert not audio, audio
assert any(name.endswith("run.json") or ".tmp-" in name for name in opened), "the hook sees files"
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_half_of_a_task_is_refused_by_name(store: Path) -> None:
    part = Store.open(store).parts(split="fold-2")[0]
    shutil.rmtree(part.path)
    with pytest.raises(StoreError, match="fold-2/fold2"):
        evaluate(store, probes=["knn"])


def test_any_flipped_byte_of_a_part_is_found_and_never_scored(store: Path) -> None:
    """Promise 5."""
    part = Store.open(store).parts()[0]
    files = sorted(path for path in Path(part.path).rglob("*") if path.is_file())
    assert len(files) >= 6
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(XaresError) as found:
            evaluate(store, probes=["knn"], k=3)
        assert "fold0" in str(found.value), path
        problems = Store.open(store).verify()
        assert any(path.name in str(problem) or "fold0" in str(problem) for problem in problems), path
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    assert Store.open(store).verify() == []
    assert evaluate(store, probes=["knn"], k=3).results


def test_any_flipped_byte_of_a_run_is_found(store: Path) -> None:
    report = evaluate(store, probes=["mlp"], seeds=1)
    folder = store / "runs" / report.results[0].run_id
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.name for path in files} == {"run.json", "predictions.parquet", "probe.safetensors"}
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
        problems = Store.open(store).verify()
        assert any(folder.name in str(problem) for problem in problems), path
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    assert Store.open(store).verify() == []


LABELS = [
    ('"hum"', '"buzz"', "buzz"),
    ('"kind"', '"sort"', "kind"),
    ('"hum"', "[1]", "f0c"),
]


@pytest.mark.parametrize(("old", "new", "named"), LABELS)
def test_labels_that_do_not_fit_are_refused_by_clip(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path, old: str, new: str, named: str
) -> None:
    toy = make_toy()
    with tarfile.open(toy.shards[0]) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
    changed = [
        (name, data.replace(old.encode(), new.encode()) if name.endswith(".json") else data) for name, data in members
    ]
    write_tar(toy.shards[0], changed)
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    with pytest.raises(LabelError, match=named):
        evaluate(tmp_path / "s")
    assert Store.open(tmp_path / "s").verify() == []


def test_a_new_task_over_the_same_audio_costs_no_embed(store: Path, toy: Toy, tmp_path: Path) -> None:
    text = toy.task.read_text()
    text = text.replace('name = "toy"', 'name = "steady"\naudio_of = "toy"', 1)
    text = text.replace('key = "kind"', 'key = "take"').replace(
        'labels = ["hum", "hiss", "chirp"]', f"labels = {json.dumps([str(i) for i in range(9)])}"
    )
    text = text.replace("[data]", '[data]\nfolder = "toy"', 1)
    path = tmp_path / "steady.toml"
    path.write_text(text)
    report = evaluate(store, tasks=[str(path)], probes=["knn"])
    assert report.results[0].task == "steady"
    assert report.results[0].n_test == toy.clips


def test_shards_dealt_to_other_folds_are_never_trained_and_tested_on(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path
) -> None:
    """Promise 6: the store keeps what an earlier definition named, but a clip of now's test fold is not in train."""
    toy = make_toy(folds=3)
    text = toy.task.read_text()
    arguments = {"store": tmp_path / "s", "data": toy.root, "workers": 0}
    embed(str(encoder_file), [str(toy.task)], **arguments)
    first = evaluate(tmp_path / "s", tasks=[str(toy.task)], probes=["knn"])
    turned = text.replace("fold0.tar", "x").replace("fold1.tar", "fold0.tar").replace("x", "fold1.tar", 1)
    assert turned != text
    toy.task.write_text(turned)
    with pytest.raises(StoreError, match="needs the splits"):
        evaluate(tmp_path / "s", tasks=[str(toy.task)], probes=["knn"])
    embed(str(encoder_file), [str(toy.task)], **arguments)
    second = evaluate(tmp_path / "s", tasks=[str(toy.task)], probes=["knn"])
    assert second.results[0].n_test == toy.clips
    rows = Store.open(tmp_path / "s").sql(
        "select run_id, fold, clip_id from predictions order by all"
    ).to_pylist()  # fmt: skip
    for report, order in ((first, "012"), (second, "102")):
        mine = [row for row in rows if row["run_id"] == report.results[0].run_id]
        assert {(row["fold"], row["clip_id"][:2]) for row in mine} == {(str(i), f"f{o}") for i, o in enumerate(order)}
    toy.task.write_text(text)
    assert evaluate(tmp_path / "s", tasks=[str(toy.task)], probes=["knn"]).results[0].reused


def test_dropped_counts_samples_to_test_alone(make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path) -> None:
    toy = make_toy(folds=3)
    for shard, bad in zip(toy.shards, (1, 2, 3), strict=True):
        with tarfile.open(shard) as tar:
            members = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
        write_tar(shard, [*members, *((f"bad{number}.json", b'{"kind": "hum"}') for number in range(bad))])
    text = toy.task.read_text()
    fixed = 'splits = { train = ["fold0.tar"], valid = ["fold1.tar"], test = ["fold2.tar"] }'
    for scheme, dropped in ((next(line for line in text.splitlines() if line.startswith("folds")), 6), (fixed, 3)):
        toy.task.write_text("\n".join(scheme if line.startswith("folds") else line for line in text.splitlines()))
        embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
        report = evaluate(tmp_path / "s", tasks=[str(toy.task)], probes=["knn"])
        assert report.results[0].n_dropped == dropped


def test_crops_of_a_recording_vote_under_strict_and_stand_alone_under_published(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path
) -> None:
    toy = make_toy(audio='[audio]\ncrop_s = 0.1\ntail = "drop"', seconds=(0.15, 0.5))
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    crops = Store.open(tmp_path / "s").clips().num_rows
    assert crops > toy.clips
    strict = evaluate(tmp_path / "s", seeds=1)
    published = evaluate(tmp_path / "s", seeds=1, protocol="published")
    assert {r.n_test for r in strict.results} == {toy.clips}
    assert {r.n_test for r in published.results} == {crops}


def test_a_suite_stands_for_its_tasks(store: Path, toy: Toy, tmp_path: Path) -> None:
    report = evaluate(store, tasks=["xares", str(toy.task)], probes=["knn"])
    assert [result.task for result in report.results] == ["toy"]
    assert report.failed == []
    tasks = [load_task(name) for name in suites()["xares"]]
    near = [task for task in tasks if task.target.kind == "single-label"]
    text = "\n".join(report.notes)
    (public,) = [note for note in report.notes if "not embedded, left out" in note and "private" not in note]
    (private,) = [note for note in report.notes if "private and not embedded, left out" in note]
    assert all((task.name in private) == task.private and (task.name in public) != task.private for task in near)
    with pytest.raises(StoreError, match="None of these tasks is embedded"):
        evaluate(store, tasks=["xares"], probes=["knn"])
    assert {row[1] for row in leaderboard_rows(store, tasks=[str(toy.task)])[1]} <= {"toy"}
    others = [task.name for task in tasks if task not in near]
    assert others == ["librispeech", "clotho", "desed", "fsd50k", "maestro"]
    assert all(f'Task "{name}" is not evaluated' in text for name in others)
    with pytest.raises(ShardError, match=r"(?s)No audio shards of 22 tasks: asvspoof2015, .*xares fetch asvspoof2015"):
        select_tasks(["xares"], tmp_path)


def test_private_tasks_of_a_suite_are_skipped_by_name_and_refused_when_asked_for(toy: Toy) -> None:
    folder = toy.root / "finger_snap"
    found, left_out = select_tasks([str(toy.task), "xares-private"], toy.root)
    assert [task.name for task, _ in found] == ["toy"]
    assert [name for name, _ in left_out] == suites()["xares-private"]
    assert all(str(toy.root) in reason or name in reason for name, reason in left_out)
    with pytest.raises(ShardError, match="finger_snap"):
        select_tasks([str(toy.task), "finger_snap"], toy.root)
    folder.mkdir()
    for name in ("finger_snap_train-0.tar", "finger_snap_test-0.tar"):
        (folder / name).write_bytes(toy.shards[0].read_bytes())
    found, _ = select_tasks(["xares-private"], toy.root)
    assert [task.name for task, _ in found] == ["finger_snap"]


def test_names_that_do_not_exist_get_a_suggestion(store: Path) -> None:
    with pytest.raises(ConfigError, match="BandEncoder"):
        evaluate(store, encoders=["BandEncodr"])
    with pytest.raises(TaskError, match="toy"):
        evaluate(store, tasks=["toi"])
    with pytest.raises(TaskError, match='Did you mean "toy"'):
        leaderboard_rows(store, tasks=["toi"])
    with pytest.raises(ConfigError, match="mlp"):
        evaluate(store, probes=["mpl"])
    with pytest.raises(ConfigError, match="strict"):
        evaluate(store, protocol="strickt")


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rates": [-1.0]},
        {"learning_rates": [float("nan")]},
        {"k": 0},
        {"epochs": -3},
        {"temperature": 0.0},
        {"seeds": 0},
        {"seeds": [-1]},
    ],
)
def test_settings_that_cannot_be_used_are_refused(store: Path, bad: dict[str, object]) -> None:
    with pytest.raises(XaresError):
        evaluate(store, **bad)
    assert not list((store / "runs").glob("*")) if (store / "runs").exists() else True


def test_a_duplicate_clip_in_one_split_is_refused(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path
) -> None:
    toy = make_toy()
    text = toy.task.read_text().replace('"0" = ["fold0.tar"]', '"0" = ["fold0*.tar"]')
    toy.task.write_text(text)
    shutil.copy(toy.shards[0], toy.shards[0].with_name("fold0b.tar"))
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    with pytest.raises(CorruptError, match="twice"):
        evaluate(tmp_path / "s")


def test_compare_pairs_predictions_and_corrects_for_the_number_of_rows(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path
) -> None:
    toy = make_toy(per_fold=12)
    for seed in ("0", "1"):
        embed(
            str(encoder_file),
            [str(toy.task)],
            store=tmp_path / "s",
            data=toy.root,
            workers=0,
            encoder_args={"seed": seed},
        )
    evaluate(tmp_path / "s", seeds=2)
    names = sorted(Store.open(tmp_path / "s").encoders())
    rows = compare(tmp_path / "s", names[0], names[1])
    assert [(row.probe, row.n) for row in rows] == [("knn", toy.clips), ("mlp", toy.clips)]
    for row in rows:
        assert row.difference == pytest.approx(row.a - row.b)
        assert row.low <= row.difference <= row.high
        assert 0 < row.p <= row.p_holm <= 1
    back = compare(tmp_path / "s", names[1], names[0])
    assert [row.difference for row in back] == pytest.approx([-row.difference for row in rows])
    assert [row.p for row in back] == pytest.approx([row.p for row in rows], abs=0.02)
    with pytest.raises(ConfigError, match="twice"):
        compare(tmp_path / "s", names[0], names[0])
    with pytest.raises(TaskError, match='Did you mean "toy"'):
        compare(tmp_path / "s", names[0], names[1], tasks=["toi"])
    toy.task.write_text(toy.task.read_text().replace("Toy", "Another definition"))
    evaluate(tmp_path / "s", tasks=[str(toy.task)], probes=["knn"])
    again = compare(tmp_path / "s", names[0], names[1], probes=["knn"])
    assert [row.n for row in again] == [toy.clips, toy.clips]
    assert len({row.task_address for row in again}) == 2


def test_fewer_neighbours_than_asked_for_is_said(store: Path) -> None:
    report = evaluate(store, probes=["knn"], k=500)
    assert len(report.notes) == 1
    assert "500 neighbours" in report.notes[0]
    assert "27 clips" in report.notes[0]
    assert report.results[0].value > 0


@pytest.mark.parametrize("text", ['{"fold-1": [1.5]}', '{"fold-1": "x"}', "[" * 100_000, "\udcff"])
def test_a_damaged_list_of_shards_is_named(store: Path, text: str) -> None:
    (path,) = store.glob("embeddings/*/*/expected.json")
    path.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(StoreError, match=r"Expected(.|\n)*expected\.json"):
        evaluate(store, probes=["knn"])


@pytest.mark.parametrize(
    ("probe", "option"), [("knn", {"learning_rates": [0.1]}), ("knn", {"epochs": 3}), ("mlp", {"k": 3})]
)
def test_a_setting_of_a_probe_not_asked_for_is_refused(store: Path, probe: str, option: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="not asked for"):
        evaluate(store, probes=[probe], **option)


def test_the_same_file_in_two_splits_is_refused_under_strict(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path
) -> None:
    toy = make_toy()
    shutil.copy(toy.shards[0], toy.shards[2])
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    with pytest.raises(ProtocolError, match="the same file"):
        evaluate(tmp_path / "s", probes=["knn"])


def test_predictions_of_replaced_embeddings_are_not_compared(
    make_toy: Callable[..., Toy], encoder_file: Path, tmp_path: Path
) -> None:
    toy = make_toy()
    store = tmp_path / "s"
    for seed in ("0", "1"):
        embed(str(encoder_file), [str(toy.task)], store=store, data=toy.root, workers=0, encoder_args={"seed": seed})
    evaluate(store, probes=["knn"])
    names = sorted(Store.open(store).encoders())
    before = compare(store, *names)
    # An older run of the same evaluation, over embeddings that are gone, right on every clip.
    opened = Store.open(store)
    run_id = next(run_id for run_id in opened.runs() if opened.read_run(run_id).encoder == names[0])
    run = opened.read_run(run_id).model_dump(mode="json")
    table = opened.predictions(run_id)
    table = table.set_column(table.column_names.index("correct"), "correct", [[True] * len(table)])
    kept = {key: value for key, value in run.items() if key not in ("run_id", "files", "format")}
    opened.write_run("older", {**kept, "started": "2001-01-01T00:00:00+00:00", "parts_digest": "0" * 64}, table, None)
    assert compare(store, *names) == before
