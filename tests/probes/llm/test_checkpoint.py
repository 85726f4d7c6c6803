"""Files of a training: what goes in comes out, damage is found, and a killed writer leaves the file before."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xares_store.errors import CorruptError, ProbeError, StoreError, StoreFormatError
from xares_store.probes.llm import checkpoint
from xares_store.probes.llm.checkpoint import CHECKPOINT, FINISHED, Snapshot, TrainingFolder
from xares_store.store import files

RECORD = {"step": 3, "history": [{"loss": 0.1, "valid": None}], "note": "naïve"}


def snapshot(value: float = 1.5) -> Snapshot:
    arrays = {
        "parameter/a.weight": np.full((3, 2), value, np.float32),
        "losses": np.zeros(0, np.float32),
        "tokens": np.arange(5),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    return Snapshot(arrays, RECORD)


def same(one: Snapshot | None, other: Snapshot) -> bool:
    assert one is not None
    return one.record == other.record and all(
        np.array_equal(one.arrays[name], value) and one.arrays[name].dtype == value.dtype
        for name, value in other.arrays.items()
    )


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    training = TrainingFolder(tmp_path / "a" / "b", "id")
    assert training.checkpoint() is None
    assert training.finished() is None
    training.clean()
    assert list(tmp_path.iterdir()) == []
    training.save(snapshot())
    assert same(training.checkpoint(), snapshot())
    training.save(snapshot(2.5))
    assert same(training.checkpoint(), snapshot(2.5))
    assert [path.name for path in training.folder.iterdir()] == [CHECKPOINT]
    training.finish(snapshot(4.0))
    assert same(training.finished(), snapshot(4.0))
    assert [path.name for path in training.folder.iterdir()] == [FINISHED]


def test_every_kind_of_damage_is_found(tmp_path: Path) -> None:
    training = TrainingFolder(tmp_path, "id")
    training.save(snapshot())
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    random.seed(5)
    unseen, named = 0, set()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        try:
            found = training.checkpoint()
        except (CorruptError, StoreFormatError) as error:
            named.add(error.where)
        else:
            assert same(found, snapshot())  # a name or number of the header that says the same
            unseen += 1
    assert unseen <= 8  # white space after the header
    assert named == {str(path)}
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptError, match=rf"Remove {tmp_path}: training then starts anew"):
            training.checkpoint()
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptError):
        training.checkpoint()


def test_another_training_and_a_newer_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TrainingFolder(tmp_path, "one").save(snapshot())
    with pytest.raises(ProbeError, match="identity two, found one with one") as caught:
        TrainingFolder(tmp_path, "two").checkpoint()
    assert f"Remove {tmp_path}" in str(caught.value.hint)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        TrainingFolder(tmp_path, "one").save(snapshot())
    with pytest.raises(
        StoreFormatError, match="Format 2 of a training was written by a newer version; this one reads 1"
    ):
        TrainingFolder(tmp_path, "one").checkpoint()


def test_what_is_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CHECKPOINT)  # opening it would wait for ever
    assert TrainingFolder(tmp_path, "id").checkpoint() is None


def test_a_disk_that_is_full_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingFolder(tmp_path, "id")
    training.save(snapshot())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="disk is full"):
        training.save(snapshot(2.0))
    monkeypatch.undo()
    assert same(training.checkpoint(), snapshot())
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_what_killed_writers_left_behind_is_removed(tmp_path: Path) -> None:
    training = TrainingFolder(tmp_path, "id")
    script = "from xares_store.store.files import temporary_name; print(temporary_name())"
    gone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    mine = files.temporary_name()  # of a writer that is alive
    for name in (gone, mine, "notes.txt"):
        (tmp_path / name).write_text("half")
    training.save(snapshot())
    training.clean()
    assert {path.name for path in tmp_path.iterdir()} == {mine, "notes.txt", CHECKPOINT}
    training.finish(snapshot())
    training.save(snapshot())  # another process was still at it
    training.clean()
    assert {path.name for path in tmp_path.iterdir()} == {mine, "notes.txt", FINISHED}
