"""Folders of class folders."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest

from tests.importer.material import class_folder, content, members, write_files, write_sound
from xares_store import import_audio, load_task
from xares_store.audio.samples import Sample, iter_samples
from xares_store.audio.shards import find_shards
from xares_store.errors import AudioError, ConfigError, LabelError


def labels_by_split(out: Path, name: str) -> dict[str, list[str]]:
    task = load_task(out / f"{name}.toml")
    return {
        split: sorted(
            json.loads(sample.label)["path"]
            for shard in shards
            for sample in iter_samples(shard.path)
            if isinstance(sample, Sample)
        )
        for split, shards in find_shards(task, out).items()
    }


def test_class_folders_become_five_folds_with_every_class_and_the_bytes_as_they_were(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source", each=10)
    report = import_audio(source, name="pets", out=tmp_path / "out")
    task = load_task(report.task)
    assert task.labels == ("cat", "dog", "owl")
    assert list(task.split_patterns()) == [f"fold-{n}" for n in range(1, 6)]
    assert report.made_splits
    assert [(s.clips, s.classes) for s in report.splits] == [(6, 3)] * 5
    stored = {name: data for shard in members(tmp_path / "out", "pets").values() for name, data in shard.items()}
    assert stored["cat__cat1.wav"] == (source / "cat/cat1.wav").read_bytes()
    assert stored["cat__cat0.flac"] == (source / "cat/cat0.flac").read_bytes()
    assert json.loads(stored["cat__cat1.json"]) == {"label": "cat", "path": "cat/cat1.wav"}
    assert len(stored) == 60


def test_equal_input_gives_equal_bytes_wherever_it_is_and_however_many_threads(tmp_path: Path) -> None:
    one, two = class_folder(tmp_path / "a" / "source"), class_folder(tmp_path / "b" / "source")
    import_audio(one, name="pets", out=tmp_path / "one", workers=1)
    import_audio(two, name="pets", out=tmp_path / "two", workers=4)
    assert content(tmp_path / "one", report=False) == content(tmp_path / "two", report=False)
    import_audio(two, name="pets", out=tmp_path / "three", seed=1)
    assert labels_by_split(tmp_path / "three", "pets") != labels_by_split(tmp_path / "two", "pets")


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "validation", "test"), ["train", "valid", "test"]),
        (("Training", "eval"), ["train", "test"]),
        (("fold1", "fold2", "fold10"), ["fold-1", "fold-2", "fold-10"]),
    ],
)
def test_upper_folders_are_splits_or_folds(tmp_path: Path, folders: tuple[str, ...], splits: list[str]) -> None:
    paths = [f"{folder}/{c}/{n}.wav" for folder in folders for c in ("a", "b") for n in range(2)]
    report = import_audio(write_files(tmp_path / "source", paths), name="x", out=tmp_path / "out")
    assert not report.made_splits
    assert list(load_task(report.task).split_patterns()) == splits
    assert labels_by_split(tmp_path / "out", "x") == {
        split: sorted(path for path in paths if path.startswith(folder + "/"))
        for split, folder in zip(splits, folders, strict=True)
    }


def test_classes_that_are_called_like_splits_can_be_said_to_be_classes(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "source", [f"{c}/{d}/{n}.wav" for c in ("train", "test") for d in "ab" for n in "12"]
    )
    report = import_audio(source, name="vehicles", out=tmp_path / "out", split_folders=False, folds=2)
    assert report.labels == ("test", "train")


def test_a_split_folder_of_another_name_is_refused_until_it_is_said_what_it_is(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "source", [f"{s}/{c}/{n}.wav" for s in ("train", "extra") for c in "ab" for n in "12"]
    )
    with pytest.raises(ConfigError, match="extra") as caught:
        import_audio(source, name="x", out=tmp_path / "out")
    assert "--split-as" in str(caught.value)
    report = import_audio(source, name="x", out=tmp_path / "out", split_as={"extra": "test"})
    assert [(split.name, split.clips) for split in report.splits] == [("train", 4), ("test", 4)]


def test_odd_names_hidden_files_and_empty_classes(tmp_path: Path) -> None:
    names = ["Ünï çøde 日本.wav", "dots.in.name.WAV", "-dash.wav", "a b.wav", "a_b.wav", "A_B.wav", "x" * 120 + ".wav"]
    source = write_files(tmp_path / "source", [f"{c}/{name}" for c in ("größe [1]", "日本") for name in names])
    (source / "empty").mkdir()
    (source / "日本" / "notes.txt").write_text("no audio")
    (source / "日本" / "._a.wav").write_bytes(b"what a Mac leaves")
    report = import_audio(source, name="odd", out=tmp_path / "out", folds=2)
    assert report.labels == ("größe [1]", "日本")
    assert any("empty" in note for note in report.notes)
    assert any("1 .txt" in note for note in report.notes)
    assert report.clips == 2 * 7
    names_in = [name for shard in members(tmp_path / "out", "odd").values() for name in shard]
    assert len({name.lower() for name in names_in}) == len(names_in) == 2 * 2 * 7
    assert all(name.isascii() and len(name) <= 100 and name.count(".") == 1 and name[0] != "-" for name in names_in)
    shards = find_shards(load_task(report.task), tmp_path / "out")
    found = [sample for group in shards.values() for shard in group for sample in iter_samples(shard.path)]
    assert all(isinstance(sample, Sample) for sample in found)
    assert {json.loads(s.label)["path"] for s in found if isinstance(s, Sample)} >= {"日本/Ünï çøde 日本.wav"}


def test_a_file_name_that_is_no_text_is_imported_too(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source", classes=("a", "b"), each=4)
    odd = os.fsencode(source / "a") + b"/caf\xe9.wav"
    write_sound(source / "a" / "tmp.wav", 99)
    (source / "a" / "tmp.wav").rename(os.fsdecode(odd))
    report = import_audio(source, name="odd", out=tmp_path / "out", folds=2)
    assert report.clips == 9
    assert "a/caf\\xe9.wav" in {path for paths in labels_by_split(tmp_path / "out", "odd").values() for path in paths}


def test_a_file_outside_of_class_folders_is_named(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source")
    write_sound(source / "loose.wav", 77)
    with pytest.raises(ConfigError, match=r"loose\.wav"):
        import_audio(source, name="x", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_are_followed_and_a_loop_of_them_is_refused(tmp_path: Path) -> None:
    class_folder(tmp_path / "elsewhere", classes=("owl",), each=4)
    source = class_folder(tmp_path / "source", classes=("cat", "dog"), each=4)
    (source / "owl").symlink_to(tmp_path / "elsewhere" / "owl")
    report = import_audio(source, name="x", out=tmp_path / "out", folds=2, allow_duplicates=True)
    assert report.labels == ("cat", "dog", "owl")
    (source / "cat" / "again").symlink_to(source)
    with pytest.raises(ConfigError, match="leads back"):
        import_audio(source, name="y", out=tmp_path / "out", folds=2)
    (source / "cat" / "again").unlink()
    (source / "cat" / "gone.wav").symlink_to(tmp_path / "nothing.wav")
    with pytest.raises(ConfigError, match="leads nowhere"):
        import_audio(source, name="z", out=tmp_path / "out", folds=2)


def test_duplicate_base_names_in_different_folders_get_keys_of_their_own(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", [f"{c}/s{s}/1.{e}" for c in "ab" for s in "12" for e in ("wav", "flac")])
    report = import_audio(source, name="x", out=tmp_path / "out", folds=2)
    assert report.clips == 8
    names = [name for shard in members(tmp_path / "out", "x").values() for name in shard]
    assert len(set(names)) == 16


def test_speakers_are_found_by_a_pattern_and_kept_together(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "source", [f"{c}/spk{s}_{n}.wav" for c in ("no", "yes") for s in range(6) for n in range(3)]
    )
    report = import_audio(source, name="words", out=tmp_path / "out", folds=3, group_pattern=r"/(spk\d+)_")
    assert load_task(report.task).target.group_key == "group"
    speakers = [{path.split("/")[1].split("_")[0] for path in paths} for paths in labels_by_split(tmp_path / "out", "words").values()]  # fmt: skip
    assert sum(len(part) for part in speakers) == len(set().union(*speakers)) == 6
    with pytest.raises(LabelError, match="does not match the path"):
        import_audio(source, name="other", out=tmp_path / "out", group_pattern=r"/(spk[0-4])_")


def test_shares_of_train_valid_and_test(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source", each=20)
    report = import_audio(source, name="x", out=tmp_path / "out", split=(0.7, 0.1, 0.2))
    assert [(s.name, s.clips, s.classes) for s in report.splits] == [("train", 42, 3), ("valid", 6, 3), ("test", 12, 3)]
    report = import_audio(source, name="y", out=tmp_path / "out", split=(0.75, 0.0, 0.25))
    assert [(s.name, s.clips) for s in report.splits] == [("train", 45), ("test", 15)]


def test_shards_are_as_large_as_said_and_named_one_by_one(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source", each=10)
    report = import_audio(source, name="x", out=tmp_path / "out", folds=2, shard_clips=4)
    data = tomllib.loads(report.task.read_text())["data"]
    assert data["folds"]["1"] == ["x-fold-1-{000000..000003}.tar"]
    assert [len(shard) // 2 for shard in members(tmp_path / "out", "x").values()] == [4, 4, 4, 3] * 2
    (tmp_path / "out/x/x-fold-1-000002.tar").unlink()
    with pytest.raises(OSError, match="x-fold-1-000002"):
        find_shards(load_task(report.task), tmp_path / "out")


def test_a_long_vocabulary_stands_beside_the_task_file(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(101)]
    source = write_files(tmp_path / "source", [f"{name}/{n}.wav" for name in names for n in "12"])
    report = import_audio(source, name="many", out=tmp_path / "out", folds=2)
    assert tomllib.loads(report.task.read_text())["target"]["vocabulary"] == "many-labels.txt"
    assert load_task(report.task).labels == tuple(names)  # in natural order: c2 before c10


def test_a_given_vocabulary_keeps_its_order_and_refuses_what_it_does_not_hold(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source")
    words = tmp_path / "words.txt"
    words.write_text("owl\ndog\ncat\nyak\n")
    report = import_audio(source, name="x", out=tmp_path / "out", vocabulary=words)
    assert report.labels == ("owl", "dog", "cat", "yak")
    assert any("yak" in note for note in report.notes)
    words.write_text("owl\ndoge\ncat\n")
    with pytest.raises(LabelError, match='"dog", first in') as caught:
        import_audio(source, name="y", out=tmp_path / "out", vocabulary=words)
    assert 'Did you mean "doge"' in str(caught.value)


def test_a_format_that_cannot_be_read_is_a_named_failure(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source")
    (source / "cat" / "song.m4a").write_bytes(b"\0\0\0 ftypM4A ")
    with pytest.raises(AudioError, match=r"cat/song\.m4a \(undecodable\)"):
        import_audio(source, name="x", out=tmp_path / "out")
    assert import_audio(source, name="x", out=tmp_path / "out", skip_bad=True).clips == 18


def test_what_is_there_already_is_not_touched(tmp_path: Path) -> None:
    source, out = class_folder(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    (out / "mine.toml").write_text("mine")
    with pytest.raises(ConfigError, match="no import made"):
        import_audio(source, name="mine", out=out, replace=True)
    (out / "other").mkdir()
    (out / "other" / "notes.tar").write_text("mine too")
    with pytest.raises(ConfigError, match="no import made"):
        import_audio(source, name="other", out=out, replace=True)
    assert (out / "mine.toml").read_text() == "mine"
    assert sorted(path.name for path in out.rglob("*")) == ["mine.toml", "notes.tar", "other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Pets"}, "small letters"),
        ({"kind": "single"}, "single-label"),
        ({"folds": 1}, "folds"),
        ({"folds": 3, "split": (0.8, 0.1, 0.1)}, "Choose one"),
        ({"split": (0.8, 0.1, 0.2)}, "add up to 1"),
        ({"domain": "birds"}, "domain"),
        ({"group_pattern": "("}, "regular expression"),
        ({"group_pattern": "spk"}, "brackets"),
        ({"split_as": {"x": "extra"}}, "train, valid or test"),
        ({"label_column": ("sound",)}, "label_column"),
        ({"label_columns": ("lable",)}, 'Did you mean "label"'),
        ({"folds": 50}, "groups"),
    ],
)
def test_options_that_cannot_be_used_say_why(tmp_path: Path, options: dict[str, object], message: str) -> None:
    source = class_folder(tmp_path / "source")
    with pytest.raises((ValueError, TypeError)) as caught:
        import_audio(source, **{"name": "x", "out": tmp_path / "out", **options})  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
