"""Hugging Face datasets on disk, written by the library itself; audio is never decoded by it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.importer.material import members, sound, write_files
from tests.toy import wav
from xares_store import import_audio, load_task
from xares_store.errors import ConfigError

datasets = pytest.importorskip("datasets")
N = 12


def rows(first: int = 0, *, n: int = N) -> dict[str, list[object]]:
    numbers = range(first, first + n)
    return {
        "audio": [{"bytes": wav(sound(number), 8000), "path": f"/home/somebody/{number}.wav"} for number in numbers],
        "label": [number % 3 for number in numbers],
        "speaker": [f"s{number // 2}" for number in numbers],
    }


FEATURES = datasets.Features(
    {
        "audio": datasets.Audio(decode=False),
        "label": datasets.ClassLabel(names=["zebra", "yak", "ant", "unused"]),
        "speaker": datasets.Value("string"),
    }
)


def made(content: dict[str, list[object]], features: Any = FEATURES) -> Any:
    """A dataset made by casting, because encoding audio wants one more library."""
    return datasets.Dataset(pa.table(content)).cast(features)


def test_a_dataset_without_splits(tmp_path: Path) -> None:
    data = made(rows())
    data.save_to_disk(tmp_path / "d", num_shards=2)
    report = import_audio(tmp_path / "d", name="x", out=tmp_path / "out", folds=3)
    task = load_task(report.task)
    assert task.labels == ("zebra", "yak", "ant", "unused")  # the order of the dataset
    assert task.target.group_key == "speaker"
    assert report.clips == N
    assert report.made_splits
    stored = {name: content for shard in members(tmp_path / "out", "x").values() for name, content in shard.items()}
    assert stored["00000003-3.wav"] == wav(sound(3), 8000)
    assert json.loads(stored["00000003-3.json"]) == {"label": "zebra", "path": "00000003-3.wav", "speaker": "s1"}


def test_a_dataset_dict_keeps_its_splits_and_the_order_of_rows_that_were_selected(tmp_path: Path) -> None:
    train = made(rows()).shuffle(seed=1)
    test = made(rows(100, n=6))
    datasets.DatasetDict(
        {"train": train, "validation": test.select([5, 1]), "test": test.select([0, 2, 3])}
    ).save_to_disk(tmp_path / "d")
    report = import_audio(tmp_path / "d", name="x", out=tmp_path / "out", group_column="none")
    assert [(split.name, split.clips) for split in report.splits] == [("train", 12), ("valid", 2), ("test", 3)]
    stored = members(tmp_path / "out", "x")["x-valid-000000.tar"]
    assert stored["validation__00000000-105.wav"] == wav(sound(105), 8000)
    assert json.loads(stored["validation__00000001-101.json"])["label"] == "ant"


def test_folds_lists_of_classes_and_events_in_columns(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "sound": datasets.Audio(decode=False),
            "labels": datasets.List(datasets.ClassLabel(names=["a", "b", "c"])),
            "fold": datasets.Value("int64"),
        }
    )
    content = {
        "sound": rows()["audio"],
        "labels": [[0, 2] if n % 2 else [] for n in range(N)],
        "fold": [n % 3 + 1 for n in range(N)],
    }
    datasets.DatasetDict({"train": made(content, features)}).save_to_disk(tmp_path / "d")
    report = import_audio(tmp_path / "d", name="x", out=tmp_path / "out")
    assert (report.kind, report.labels) == ("multi-label", ("a", "b", "c"))
    assert list(load_task(report.task).split_patterns()) == ["fold-1", "fold-2", "fold-3"]
    found = [json.loads(data) for shard in members(tmp_path / "out", "x").values() for name, data in shard.items() if name.endswith("json")]  # fmt: skip
    assert sorted(map(str, (one["labels"] for one in found))) == ["['a', 'c']"] * 6 + ["[]"] * 6


def test_audio_by_path_and_audio_without_a_name(tmp_path: Path) -> None:
    write_files(tmp_path / "files", [f"{n}.flac" for n in range(N)])
    by_path = rows() | {"audio": [str(tmp_path / "files" / f"{n}.flac") for n in range(N)]}
    made(by_path).save_to_disk(tmp_path / "d")
    assert import_audio(tmp_path / "d", name="x", out=tmp_path / "out", folds=3).clips == N
    nameless = rows() | {"audio": [{"bytes": wav(sound(n), 8000), "path": None} for n in range(N)]}
    made(nameless).save_to_disk(tmp_path / "e")
    assert import_audio(tmp_path / "e", name="y", out=tmp_path / "out", folds=3).clips == N
    assert "00000003-clip.wav" in {name for shard in members(tmp_path / "out", "y").values() for name in shard}


def test_what_is_no_such_dataset_is_said(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"label": [1, 2]}).save_to_disk(tmp_path / "d")
    with pytest.raises(ConfigError, match="one Audio column, found none among label"):
        import_audio(tmp_path / "d", name="x", out=tmp_path / "out")
    made(rows()).save_to_disk(tmp_path / "e")
    next((tmp_path / "e").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        import_audio(tmp_path / "e", name="x", out=tmp_path / "out")


def test_unknown_labels_of_a_dataset_are_named(tmp_path: Path) -> None:
    content = rows()
    content["label"][4] = None
    made(content).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match=r"row\[4\] .*: no label"):
        import_audio(tmp_path / "d", name="x", out=tmp_path / "out")


def test_without_the_library_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(rows()).save_to_disk(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="datasets is needed") as caught:
        import_audio(tmp_path / "d", name="x", out=tmp_path / "out")
    assert "xares-store[hf]" in str(caught.value)
