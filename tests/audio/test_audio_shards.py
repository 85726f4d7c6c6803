from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.audio.shards import find_shards, natural_key
from xares_store.errors import ShardError
from xares_store.task import Task


@dataclass
class TaskOfPatterns:
    """The part of a task that finding shards needs."""

    patterns: dict[str, tuple[str, ...]]
    name: str = "toy"
    data: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(folder="toy"))

    def split_patterns(self) -> dict[str, tuple[str, ...]]:
        return self.patterns


def task(**patterns: str | tuple[str, ...]) -> Task:
    groups = {name: (group,) if isinstance(group, str) else group for name, group in patterns.items()}
    return cast(Task, TaskOfPatterns(groups))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(found: dict[str, list]) -> dict[str, list[str]]:
    return {split: [shard.name for shard in shards] for split, shards in found.items()}


def test_braces_and_globs_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path / "toy", "train-2.tar", "train-10.tar", "train-1.tar", "t/x_1.tar.gz", "t/x_2.tar.gz", "notes.txt")
    found = find_shards(task(train="train-*.tar", test="t/x_{1..2}.tar.gz"), tmp_path)
    assert names(found) == {"train": ["train-1", "train-2", "train-10"], "test": ["t%2Fx_1", "t%2Fx_2"]}
    assert found["test"][0].path == tmp_path / "toy" / "t" / "x_1.tar.gz"
    assert found["test"][0].split == "test"


def test_the_data_root_itself_is_looked_in_second(tmp_path: Path) -> None:
    touch(tmp_path, "a.tar")
    assert find_shards(task(all="a.tar"), tmp_path)["all"][0].path == tmp_path / "a.tar"
    touch(tmp_path / "toy", "a.tar")
    assert find_shards(task(all="a.tar"), tmp_path)["all"][0].path == tmp_path / "toy" / "a.tar"


def test_a_real_task_definition_is_understood(tmp_path: Path) -> None:
    text = """
format = 1
name = "toy"
title = "Toy"
domain = "other"
description = "Two folds."
[data]
folds = { "1" = ["f1-*.tar"], "2" = ["f2-*.tar"], "3" = ["f3-*.tar"] }
[target]
kind = "single-label"
key = "label"
labels = ["a", "b"]
[metric]
name = "accuracy"
"""
    touch(tmp_path / "toy", "f1-0.tar", "f2-0.tar", "f2-1.tar", "f3-0.tar")
    real = Task.from_text(text, where="toy.toml", base=None)
    assert names(find_shards(real, tmp_path)) == {
        "fold-1": ["f1-0"], "fold-2": ["f2-0", "f2-1"], "fold-3": ["f3-0"],
    }  # fmt: skip


def test_nothing_there_says_where_it_looked_and_how_to_set_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "other.tar")
    with pytest.raises(ShardError) as raised:
        find_shards(task(all="a-*.tar"), tmp_path)
    text = str(raised.value)
    for part in ("toy", "a-*.tar", str(tmp_path / "toy"), "does not exist", "other.tar", "--data", "XARES_DATA_HOME"):
        assert part in text, part
    with pytest.raises(ShardError, match="does not exist"):
        find_shards(task(all="a-*.tar"), tmp_path / "missing")


def test_a_missing_member_of_a_range_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "toy", *(f"a-{number:03d}.tar" for number in range(20) if number not in (7, 11)))
    with pytest.raises(ShardError) as raised:
        find_shards(task(train="a-{000..019}.tar"), tmp_path)
    assert "a-007.tar, a-011.tar" in raised.value.message
    assert "a-008.tar" not in raised.value.message.split("In ")[0]
    assert 'Split "train"' in raised.value.message


def test_a_pattern_without_files_is_an_error_although_others_have_some(tmp_path: Path) -> None:
    touch(tmp_path / "toy", "train-0.tar", "tset-0.tar")
    with pytest.raises(ShardError, match=r'Split "test" wants test-\*\.tar') as raised:
        find_shards(task(train="train-*.tar", test="test-*.tar"), tmp_path)
    assert "tset-0.tar" in str(raised.value)


def test_a_file_in_two_splits_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "toy", "a-1.tar", "a-2.tar")
    with pytest.raises(ShardError, match='"train" and "test"') as raised:
        find_shards(task(train="a-*.tar", test="a-2.tar"), tmp_path)
    assert str(raised.value.where).endswith("a-2.tar")
    (tmp_path / "toy" / "b-1.tar").symlink_to(tmp_path / "toy" / "a-1.tar")
    with pytest.raises(ShardError, match='"train" and "test"'):
        find_shards(task(train="a-*.tar", test="b-*.tar"), tmp_path)


def test_a_file_matched_twice_in_one_split_counts_once(tmp_path: Path) -> None:
    touch(tmp_path / "toy", "a-1.tar", "a-2.tar")
    assert names(find_shards(task(train=("a-*.tar", "a-1.tar")), tmp_path)) == {"train": ["a-1", "a-2"]}


def test_two_files_of_one_name_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "toy", "a.tar", "a.tar.gz")
    with pytest.raises(ShardError, match='under one name, "a"'):
        find_shards(task(train="a.tar*"), tmp_path)


def test_hidden_copies_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "toy", "a.tar", "._a.tar", "b.tar/x")
    assert names(find_shards(task(train="*.tar"), tmp_path)) == {"train": ["a"]}


@given(st.lists(st.text("ab01²٣.-", max_size=6)))
def test_natural_order_is_total(texts: list[str]) -> None:
    backwards = texts[::-1]
    assert sorted(backwards, key=natural_key) == sorted(texts, key=natural_key)
