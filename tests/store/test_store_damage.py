"""A changed, cut, missing or added byte anywhere is named by verify and refused before use."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from tests.store.conftest import ENCODER, TASK, flip_byte, put_part, put_run
from xares_store.errors import CorruptError
from xares_store.store import Store, arrays

FILES = ["part.json", "clips.parquet", "frames/zarr.json", "frames/c/0/0", "pooled/zarr.json", "pooled/c/0/0"]
RUN_FILES = ["run.json", "predictions.parquet", "probe.safetensors"]


def _names(store: Store) -> list[str]:
    return [problem.path for problem in Store.open(store.path).verify()]


def test_the_list_of_files_is_complete(full: Store) -> None:
    part = full.parts()[0]
    assert sorted(path.relative_to(part.path).as_posix() for path in part.path.rglob("*") if path.is_file()) == sorted(
        FILES
    )
    assert sorted(path.name for path in (full.path / "runs/run-42").iterdir()) == sorted(RUN_FILES)
    assert _names(full) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_flipped_byte_in_a_part(store: Store, name: str, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "ZSTD_GAIN", 1e9 if codec == "raw" else 0.0)
    path = put_part(store).path / name
    intact = path.read_bytes()
    rng = random.Random(0)
    positions = range(len(intact)) if len(intact) < 150 else [0, len(intact) - 1, *rng.sample(range(len(intact)), 16)]
    for position in positions:
        flip_byte(path, position)
        assert path.relative_to(store.path).as_posix() in _names(store), position
        with pytest.raises(CorruptError) as caught:
            Store.open(store.path).pooled(ENCODER, TASK)
        assert str(path) in str(caught.value)
        assert caught.value.hint
        path.write_bytes(intact)
    assert _names(store) == []


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_flipped_byte_in_a_run(full: Store, name: str) -> None:
    path = full.path / "runs/run-42" / name
    intact = path.read_bytes()
    for position in [0, len(intact) - 1, *random.Random(0).sample(range(len(intact)), 12)]:
        flip_byte(path, position)
        assert _names(full) == [f"runs/run-42/{name}"]
        with pytest.raises(CorruptError) as caught:
            full.read_run("run-42")
        assert str(path) in str(caught.value)
        with pytest.raises(CorruptError):
            full.predictions("run-42")
        path.write_bytes(intact)
    assert full.read_run("run-43").seed == 43


@pytest.mark.parametrize("name", ["encoders/logmel@1a2b3c4d.json", "tasks/esc10@00000000.toml", "store.json"])
def test_a_flipped_byte_elsewhere(full: Store, name: str) -> None:
    path = full.path / name
    intact = path.read_bytes()
    for position in range(len(intact)):
        flip_byte(path, position)
        if name == "store.json":
            with pytest.raises(OSError, match=r"store\.json|checksum|Written in format"):
                Store.open(full.path)
        else:
            assert _names(full) == [name]
            with pytest.raises(CorruptError):
                full.encoders() if name.startswith("encoders") else full.tasks()
        path.write_bytes(intact)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_or_cut_file(full: Store, name: str) -> None:
    path = full.parts()[0].path / name
    intact = path.read_bytes()
    for data in (None, b"", intact[:-1], intact + b"\0"):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        assert _names(full) == [path.relative_to(full.path).as_posix()]
        assert [problem.path for problem in full.verify(deep=False)] == _names(full)  # sizes alone tell
        with pytest.raises(CorruptError, match="damaged"):
            full.pooled(ENCODER, TASK)
        path.write_bytes(intact)


def test_files_nobody_listed_are_named(full: Store) -> None:
    part = full.parts()[0]
    (part.path / "frames/c/9").mkdir()
    (part.path / "frames/c/9/0").write_bytes(b"x")
    (full.path / "runs/run-42/notes.txt").write_text("x")
    assert _names(full) == [f"{part.address.path}/frames/c/9/0", "runs/run-42/notes.txt"]


def test_a_part_in_the_wrong_place_is_refused(full: Store) -> None:
    part = full.parts()[0]
    moved = part.path.with_name("other")
    shutil.copytree(part.path, moved)
    assert _names(full) == [f"{moved.relative_to(full.path).as_posix()}/part.json"]
    with pytest.raises(CorruptError, match="belongs to"):
        full.pooled(ENCODER, TASK)


def test_a_run_in_the_wrong_place_is_refused(full: Store) -> None:
    shutil.copytree(full.path / "runs/run-42", full.path / "runs/copy")
    assert _names(full) == ["runs/copy/run.json"]
    with pytest.raises(CorruptError, match="belongs to"):
        full.read_run("copy")


def test_half_copied_parts_and_runs_are_named_and_do_not_count(full: Store) -> None:
    part = full.parts()[0]
    (part.path / "part.json").unlink()
    (full.path / "runs/run-42/run.json").unlink()
    assert _names(full) == sorted([part.address.path, "runs/run-42"])
    assert len(full.parts()) == 2
    assert full.runs() == ["run-43"]
    assert put_run(full, "run-42")
    assert full.runs() == ["run-42", "run-43"]


def test_one_clip_in_two_shards_is_named(store: Store) -> None:
    from tests.store.conftest import address

    put_part(store, address(shard="a"), prefix="same")
    put_part(store, address(shard="b"), prefix="same")
    put_part(store, address(split="fold-2", shard="c"), prefix="same")  # another split may reuse a key
    problems = store.verify()
    assert [problem.path for problem in problems] == [f"{address(shard='b').path}/clips.parquet"]
    assert "same-0" in problems[0].what


def test_a_clip_row_that_lies_is_found(store: Store, tmp_path: Path) -> None:
    """A part whose checksums agree but whose rows do not: only a wrong writer can make one."""
    from unittest import mock

    from xares_store.store.part import PartWriter

    real = PartWriter._table

    def wrong(self: PartWriter) -> object:
        table = real(self)
        return table.set_column(5, "offset", [[0, 0, 0]])

    with mock.patch.object(PartWriter, "_table", wrong):
        put_part(store)
    assert ["do not add up" in problem.what for problem in store.verify()] == [True]


@pytest.mark.parametrize("column", ["key", "label", "duration_s"])
def test_an_empty_field_in_a_clip_row_is_found(store: Store, column: str) -> None:
    from unittest import mock

    from xares_store.store.part import PartWriter

    real = PartWriter._table

    def wrong(self: PartWriter) -> pa.Table:
        table = real(self)
        place = table.schema.names.index(column)
        values = [None, *table[column].to_pylist()[1:]]
        return table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))

    with mock.patch.object(PartWriter, "_table", wrong):
        put_part(store)
    for look in (lambda: store.sql("select * from clips"), lambda: store.pooled(ENCODER, TASK)):
        with pytest.raises(CorruptError, match=f"none in {column}"):
            look()


@pytest.mark.parametrize("name", ["part.json", "clips.parquet", "pooled/c/0/0"])
def test_a_pipe_instead_of_a_file_does_not_hang(store: Store, name: str) -> None:
    path = put_part(store).path / name
    path.unlink()
    os.mkfifo(path)
    assert [Path(name) for name in _names(store)] == [path.relative_to(store.path)]
    with pytest.raises(CorruptError):
        Store.open(store.path).pooled(ENCODER, TASK)


def test_a_sealed_monster_is_refused(store: Store) -> None:
    path = put_part(store).path / "part.json"
    deep = b'{\n "a": ' + b"[" * 200_000 + b"]" * 200_000
    path.write_bytes(deep + b',\n "checksum": "' + hashlib.sha256(deep).hexdigest().encode() + b'"\n}\n')
    with pytest.raises(CorruptError):
        Store.open(store.path).parts()
