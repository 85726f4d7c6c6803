"""Manifests of every kind of target, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.importer.material import members, write_csv, write_files, write_sound
from xares_store import embed, evaluate, import_audio, load_task
from xares_store.errors import ConfigError, LabelError
from xares_store.importer.columns import choose_roles
from xares_store.importer.options import Options
from xares_store.importer.table import Row, Table
from xares_store.kinds import Captions, Events, MultiLabel, Regression, SingleLabel, Transcript

N = 12
NAMES = [f"a/{number:02d}.wav" for number in range(N)]


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A folder with twelve files."""
    return write_files(tmp_path / "source", NAMES)


def facts(out: Path, name: str) -> dict[str, dict[str, Any]]:
    """The JSON of every clip, by path."""
    found = [
        json.loads(data)
        for shard in members(out, name).values()
        for member, data in shard.items()
        if member.endswith(".json")
    ]
    return {one["path"]: one for one in found}


def test_csv_columns_are_found_by_their_names_and_cells_stay_text(audio: Path, tmp_path: Path) -> None:
    rows = [
        {"filename": n, "category": f"0{i % 2}", "fold": i % 3 + 1, "speaker": f"s{i % 3}", "age": "07"}
        for i, n in enumerate(NAMES)
    ]
    report = import_audio(write_csv(audio / "meta.csv", rows), name="x", out=tmp_path / "out")
    assert report.columns == {"path": "filename", "label": "category", "fold": "fold", "group": "speaker"}
    task = load_task(report.task)
    assert isinstance(task.target, SingleLabel)
    assert (task.target.key, task.target.group_key, task.labels) == ("category", "speaker", ("00", "01"))
    assert list(task.split_patterns()) == ["fold-1", "fold-2", "fold-3"]
    assert facts(tmp_path / "out", "x")["a/04.wav"] == {
        "path": "a/04.wav", "category": "00", "fold": "2", "speaker": "s1", "age": "07",
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".tsv", ";csv", ".jsonl", ".json", ".parquet"])
def test_formats_of_manifests(audio: Path, tmp_path: Path, suffix: str) -> None:
    rows = [{"path": n, "label": "á,b" if i % 2 else 'say "c"'} for i, n in enumerate(NAMES)]
    manifest = audio / f"m{suffix.replace(';', '.')}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), manifest)
    elif suffix.startswith(".json"):
        text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)) + "\n\n"
        manifest.write_text(text, encoding="utf-8-sig" if suffix == ".jsonl" else "utf-8")
    else:
        write_csv(manifest, rows, delimiter="\t" if suffix == ".tsv" else ";")
    report = import_audio(manifest, name="x", out=tmp_path / "out", folds=3)
    assert report.labels == ('say "c"', "á,b")
    assert report.clips == N


def test_labels_with_a_separator(audio: Path, tmp_path: Path) -> None:
    cells = ["Dog; Bark", "Cat", "", "Dog;Dog"] * 3
    rows = [{"path": n, "labels": cell} for n, cell in zip(NAMES, cells, strict=True)]
    report = import_audio(write_csv(audio / "m.csv", rows), name="x", out=tmp_path / "out", separator=";", folds=3)
    assert isinstance(load_task(report.task).target, MultiLabel)
    assert report.labels == ("Bark", "Cat", "Dog")
    found = facts(tmp_path / "out", "x")
    assert [found[n]["labels"] for n in NAMES[:4]] == [["Dog", "Bark"], ["Cat"], [], ["Dog"]]


def test_lists_of_labels_and_one_row_a_label(audio: Path, tmp_path: Path) -> None:
    lists = [{"path": n, "tags": ["a", "b"] if i % 2 else ["c"]} for i, n in enumerate(NAMES)]
    (audio / "m.jsonl").write_text("\n".join(map(json.dumps, lists)))
    one = import_audio(audio / "m.jsonl", name="x", out=tmp_path / "out", folds=3)
    rows = [{"path": item["path"], "tags": tag} for item in lists for tag in item["tags"]]
    two = import_audio(write_csv(audio / "m.csv", rows), name="y", out=tmp_path / "out", folds=3, kind="multi-label")
    assert one.kind == two.kind == "multi-label"
    assert facts(tmp_path / "out", "x") == facts(tmp_path / "out", "y")
    with pytest.raises(ConfigError, match="several"):
        import_audio(audio / "m.csv", name="z", out=tmp_path / "out")


def test_events_one_row_each(audio: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    for index, name in enumerate(NAMES[:-1]):
        rows.append({"filename": name, "onset": 0.1, "offset": "0.20", "event_label": "60"})
        if index % 2:
            rows.append({"filename": name, "onset": 0, "offset": 0.05, "event_label": "9"})
    rows.append({"filename": NAMES[-1], "onset": "", "offset": "", "event_label": ""})
    report = import_audio(write_csv(audio / "m.csv", rows), name="x", out=tmp_path / "out", folds=3)
    assert isinstance(load_task(report.task).target, Events)
    assert report.labels == ("9", "60")
    found = facts(tmp_path / "out", "x")
    assert found[NAMES[1]] == {
        "path": NAMES[1],
        "events": [{"onset": 0.0, "offset": 0.05, "label": "9"}, {"onset": 0.1, "offset": 0.2, "label": "60"}],
    }
    assert found[NAMES[-1]]["events"] == []


@pytest.mark.parametrize("as_text", [False, True])
def test_lists_of_events(audio: Path, tmp_path: Path, as_text: bool) -> None:
    events = [{"start": 0.1, "end": 0.2, "label": "a"}, {"start": 0.0, "end": 0.1, "label": "b"}]
    rows = [{"path": n, "events": json.dumps(events) if as_text else events} for n in NAMES]
    (audio / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    import_audio(audio / "m.jsonl", name="x", out=tmp_path / "out", folds=3)
    first = facts(tmp_path / "out", "x")[NAMES[0]]["events"]
    assert first == [{"onset": 0.0, "offset": 0.1, "label": "b"}, {"onset": 0.1, "offset": 0.2, "label": "a"}]


def test_captions_in_columns_in_rows_and_in_lists(audio: Path, tmp_path: Path) -> None:
    columns = [{"file_name": n, "caption_1": f"one {n}", "caption_2": f"two {n}"} for n in NAMES]
    rows = [{"file_name": n, "caption": f"{word} {n}"} for n in NAMES for word in ("one", "two")]
    lists = [{"file_name": n, "captions": [f"one {n}", f"two {n}"]} for n in NAMES]
    (audio / "lists.jsonl").write_text("\n".join(map(json.dumps, lists)))
    out = tmp_path / "out"
    reports = [
        import_audio(write_csv(audio / "columns.csv", columns), name="x", out=out, folds=3),
        import_audio(write_csv(audio / "rows.csv", rows), name="y", out=out, folds=3),
        import_audio(audio / "lists.jsonl", name="z", out=out, folds=3),
    ]
    assert all(isinstance(load_task(report.task).target, Captions) for report in reports)
    assert facts(out, "x") == facts(out, "y") == facts(out, "z")
    assert facts(out, "x")[NAMES[0]]["captions"] == [f"one {NAMES[0]}", f"two {NAMES[0]}"]


def test_numbers_and_transcripts(audio: Path, tmp_path: Path) -> None:
    rows = [{"path": n, "mos": f"{i / 4}", "text": f"words {i}"} for i, n in enumerate(NAMES)]
    manifest = write_csv(audio / "m.csv", rows)
    number = import_audio(manifest, name="x", out=tmp_path / "out", folds=3, kind="regression")
    words = import_audio(manifest, name="y", out=tmp_path / "out", folds=3)
    assert isinstance(load_task(number.task).target, Regression)
    assert isinstance(load_task(words.task).target, Transcript)
    assert facts(tmp_path / "out", "x")["a/01.wav"]["mos"] == 0.25


CELLS: dict[str, list[dict[str, object]]] = {
    "single-label": [{"label": f"c{i % 3}"} for i in range(N)],
    "multi-label": [{"labels": ["a", "b"] if i % 2 else ["c"]} for i in range(N)],
    "events": [{"events": [{"onset": 0.0, "offset": 0.1, "label": f"c{i % 2}"}]} for i in range(N)],
    "captions": [{"caption": f"the sound of {i}"} for i in range(N)],
    "regression": [{"score": i / 3} for i in range(N)],
    "transcript": [{"transcript": f"number {i}"} for i in range(N)],
}


@pytest.mark.parametrize("kind", CELLS)
def test_every_kind_can_be_embedded_and_evaluated_at_once(audio: Path, tmp_path: Path, kind: str) -> None:
    rows = [{"path": n, **cells} for n, cells in zip(NAMES, CELLS[kind], strict=True)]
    (audio / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = import_audio(audio / "m.jsonl", name="x", out=tmp_path / "out", split=(0.5, 0.25, 0.25))
    assert report.kind == load_task(report.task).target.kind == kind
    result = embed("logmel", [report.task], store=tmp_path / "s", data=tmp_path / "out", workers=0, device="cpu")
    assert result.ok
    assert (result.clips, result.bad_labels) == (N, [])
    if kind == "transcript":  # evaluated by a language model
        return
    scored = evaluate(tmp_path / "s", seeds=1, epochs=1, device="cpu")
    assert not scored.failed
    assert scored.results


def test_missing_files_are_named_before_anything_is_written(audio: Path, tmp_path: Path) -> None:
    rows = [{"path": n, "label": "ab"[i % 2]} for i, n in enumerate([*NAMES, *(f"gone{i}.wav" for i in range(14))])]
    with pytest.raises(ConfigError, match="14 audio files are not there") as caught:
        import_audio(write_csv(audio / "m.csv", rows), name="x", out=tmp_path / "out")
    text = str(caught.value)
    assert "line 14: " in text
    assert "gone9.wav" in text
    assert "gone10.wav" not in text
    assert "and 4 more" in text
    assert not (tmp_path / "out").exists()


def test_paths_start_at_the_audio_root_or_are_absolute(audio: Path, tmp_path: Path) -> None:
    rows = [{"path": Path(n).name, "label": "ab"[i % 2]} for i, n in enumerate(NAMES)]
    manifest = write_csv(tmp_path / "m.csv", rows)
    import_audio(manifest, name="x", out=tmp_path / "out", audio_root=audio / "a", folds=3)
    far = write_sound(tmp_path / "far" / "z.wav", 500)
    absolute = [{"path": str(audio / n), "label": "ab"[i % 2]} for i, n in enumerate(NAMES)] + [
        {"path": str(far), "label": "a"}
    ]
    import_audio(write_csv(tmp_path / "n.csv", absolute), name="y", out=tmp_path / "out", folds=3)
    assert set(facts(tmp_path / "out", "y")) == {f"source/{n}" for n in NAMES} | {"far/z.wav"}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("path,label\na/00.wav,x,y\n", "line 2"),
        ('path,label\na/00.wav,"x\n', "line 2"),
        ("path,path\n", "twice"),
        ("path,label\n", "no audio"),
        ("", "no audio"),
        ("name,kind\nx,y\n", "Columns: name, kind"),
        ("path,label\na/00.wav,\na/01.wav,b\n", "line 2 (a/00.wav): no label"),
        ("path,label\na/00.wav,a\na/01.wav,a\n", "two different labels"),
        ("path,label\na/00.wav,a\na/00.wav,b\n", "a/00.wav: line 2, line 3"),
        ("path,label,split\na/00.wav,a,train\na/01.wav,b,\n", "line 3"),
        ("path,label,split\na/00.wav,a,train\na/01.wav,b,extra\n", '"extra" (1)'),
        ("path,label,split\na/00.wav,a,train\na/01.wav,b,dev\n", "train and test"),
        ("path,onset,offset,label\na/00.wav,2,1,a\na/01.wav,1,2,b\n", "before it starts"),
        ("path,onset,offset,label\na/00.wav,x,1,a\na/01.wav,1,2,b\n", "wanted a number, found 'x'"),
        ("path,mos\na/00.wav,nan\na/01.wav,2\n", "wanted a number"),
        ("path,label,speaker\na/00.wav,a,\na/01.wav,b,s\n", "as group"),
    ],
)
def test_what_does_not_fit_is_said_with_its_line(audio: Path, tmp_path: Path, text: str, where: str) -> None:
    (audio / "m.csv").write_text(text)
    with pytest.raises((ConfigError, LabelError)) as caught:
        import_audio(audio / "m.csv", name="x", out=tmp_path / "out")
    assert where in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_manifests_that_are_no_text_or_no_json(audio: Path, tmp_path: Path) -> None:
    (audio / "m.csv").write_bytes(b"path,label\na/00.wav,\xff\n")
    (audio / "m.jsonl").write_text('{"path": "a/00.wav"}\n["a"]\n')
    (audio / "n.jsonl").write_text('{"path": \n')
    (audio / "m.parquet").write_bytes(b"PAR1")
    (audio / "m.xlsx").write_bytes(b"PK")
    for name, message in (
        ("m.csv", "not UTF-8"), ("m.jsonl", "line 2"), ("n.jsonl", "line 1"), ("m.parquet", "Parquet"),
        ("m.xlsx", r"suffix \"\.xlsx\""), ("nothing.csv", "no such"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message.replace('\\"', '"')):
            import_audio(audio / name, name="x", out=tmp_path / "out")


def test_a_leaking_group_is_refused_by_name_with_two_of_its_files(audio: Path, tmp_path: Path) -> None:
    rows = [
        {"path": n, "label": "ab"[i % 2], "split": "test" if i > 7 else "train", "speaker": f"s{i % 4 + 4 * (i > 7)}"}
        for i, n in enumerate(NAMES)
    ]
    assert import_audio(write_csv(audio / "m.csv", rows), name="x", out=tmp_path / "out").clips == N
    rows[9]["speaker"] = "s2"
    with pytest.raises(ValueError, match=r'"s2": a/02\.wav in train, a/09\.wav in test'):
        import_audio(write_csv(audio / "m.csv", rows), name="y", out=tmp_path / "out")
    assert not (tmp_path / "out" / "y").exists()
    report = import_audio(audio / "m.csv", name="y", out=tmp_path / "out", group_column="none")
    assert load_task(report.task).target.group_key is None


def test_a_manifest_of_numbers_as_labels_says_what_to_do(audio: Path, tmp_path: Path) -> None:
    table = pa.table({"path": NAMES, "label": np.arange(N) % 3 / 2})
    pq.write_table(table, audio / "m.parquet")
    with pytest.raises(LabelError, match="--kind regression"):
        import_audio(audio / "m.parquet", name="x", out=tmp_path / "out")
    assert import_audio(audio / "m.parquet", name="x", out=tmp_path / "out", kind="regression", folds=3).clips == N


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([f"{i + 0.125}" for i in range(240)], "regression"),
        ([f"{i % 30 / 4}" for i in range(240)], "regression"),
        ([f"{i % 5 / 4}" for i in range(240)], "single-label"),  # five steps of a knob
        ([f"{i % 30}.0" for i in range(240)], "single-label"),  # whole numbers that a table with gaps made decimal
        ([f"{i}" for i in range(240)], "regression"),
        ([f"{i % 30}" for i in range(240)], "single-label"),
        ([f"{i:03d}" for i in range(240)], "single-label"),  # names
        ([*(f"{i + 0.5}" for i in range(239)), "unknown"], "single-label"),
        ([i / 7 for i in range(240)], "regression"),
        ([i % 30 for i in range(240)], "single-label"),
    ],
)
def test_a_column_of_measured_numbers_is_no_column_of_classes(tmp_path: Path, values: list[Any], kind: str) -> None:
    rows = [Row(f"line {i}", {"path": "a.wav", "khz": value}) for i, value in enumerate(values)]
    table = Table(tmp_path / "m", "manifest", ("path", "khz"), rows)
    roles = choose_roles(table, Options(name="x", label_columns=("khz",)))
    assert (roles.kind, roles.labels) == (kind, ("khz",))
    assert len(table.notes) == (kind == "regression")


def test_a_guessed_regression_says_so_and_how_to_object(audio: Path, tmp_path: Path) -> None:
    manifest = write_csv(audio / "m.csv", [{"path": n, "khz": f"{i + 0.5}"} for i, n in enumerate(NAMES)])
    report = import_audio(manifest, name="x", out=tmp_path / "out", folds=3, label_columns=("khz",))
    assert isinstance(load_task(report.task).target, Regression)
    assert facts(tmp_path / "out", "x")["a/01.wav"]["khz"] == 1.5
    (note,) = report.notes
    assert "regression" in note
    assert "--kind single-label" in note
    said = import_audio(
        manifest, name="y", out=tmp_path / "out", folds=3, label_columns=("khz",), kind="single-label", dry_run=True
    )
    assert (said.kind, len(said.labels)) == ("single-label", N)


def test_numbers_too_large_and_half_characters(audio: Path, tmp_path: Path) -> None:
    many = "1" + "0" * 400
    (audio / "m.jsonl").write_text(f'{{"path": "a/00.wav", "score": {many}}}\n{{"path": "a/01.wav", "score": 1e39}}\n')
    with pytest.raises(LabelError, match="wanted a number"):
        import_audio(audio / "m.jsonl", name="x", out=tmp_path / "out")
    (audio / "m.csv").write_text("path,captions\n" + "".join(f'a/0{n}.wav,"[""\\ud800 {n}""]"\n' for n in range(3)))
    import_audio(audio / "m.csv", name="x", out=tmp_path / "out", folds=3)
    texts = [
        text for shard in members(tmp_path / "out", "x").values() for name, text in shard.items() if "json" in name
    ]
    assert all(json.loads(text)["captions"][0].startswith("\\ud800 ") for text in texts)
    assert len(texts) == 3
