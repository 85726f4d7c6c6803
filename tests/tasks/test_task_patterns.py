"""Shard patterns: two that can name the same file are found, and only those."""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.patterns import (
    expand,
    first_overlap,
    intersection,
    names_shard,
    path_problem,
    pattern_problem,
    shard_name,
)


def matches(pattern: str, name: str) -> bool:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(wild.get(part, re.escape(part)) for part in parts), name) is not None


@given(
    one=st.text(alphabet="ab*?/", min_size=1, max_size=7),
    other=st.text(alphabet="ab*?/", min_size=1, max_size=7),
    names=st.lists(st.text(alphabet="ab/", max_size=8), max_size=40),
)
def test_intersection_agrees_with_matching(one: str, other: str, names: list[str]) -> None:
    witness = intersection(one, other)
    if witness is None:
        assert not [name for name in names if matches(one, name) and matches(other, name)]
    else:
        assert matches(one, witness)
        assert matches(other, witness)


@given(pattern=st.text(alphabet="ab*?", min_size=1, max_size=7))
def test_every_pattern_overlaps_itself(pattern: str) -> None:
    assert intersection(pattern, pattern) is not None


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("fold-1-*.tar", "fold-10-*.tar", False),
        ("fold-1*.tar", "fold-10-*.tar", True),
        ("train-{000..009}.tar", "train-{010..019}.tar", False),
        ("train-{000..010}.tar", "train-{010..019}.tar", True),
        ("a/*.tar", "b/*.tar", False),
        ("*/x.tar", "a/b/x.tar", False),
        ("**/x.tar", "a/b/x.tar", True),
        ("x[0-4].tar", "x[5-9].tar", False),
        ("x[0-5].tar", "x[5-9].tar", True),
        ("x[!0-4].tar", "x[0-4].tar", False),
        ("x[!0-4].tar", "x[3-6].tar", True),
        ("x[]].tar", "x].tar", True),
        ("*.tar", "*.tar.gz", False),
        ("*", "a.tar", True),
        ("a.tar", "a.tar", True),
    ],
)
def test_overlap(one: str, other: str, meet: bool) -> None:
    assert (first_overlap({"x": [one], "y": [other]}) is not None) == meet
    assert (first_overlap({"y": [other], "x": [one]}) is not None) == meet


def test_the_same_file_twice_in_one_split_is_no_overlap() -> None:
    assert first_overlap({"x": ["a*.tar", "ab.tar"], "y": ["b.tar"]}) is None


def test_overlap_of_many_patterns_is_found() -> None:
    groups = {"x": ["x-{00000..09999}.tar"], "y": ["y-{00000..09999}*.tar"], "z": ["y-04567-0.tar"]}
    found = first_overlap(groups)
    assert found is not None
    assert found[0] == "y"
    assert found[4] == "y-04567-0.tar"
    assert first_overlap({"x": groups["x"], "y": groups["y"]}) is None


@given(pattern=st.text(alphabet="a./{},~:*\\", min_size=1, max_size=10))
def test_accepted_patterns_stay_below_the_folder(pattern: str) -> None:
    if pattern_problem(pattern) is None:
        for name in expand(pattern):
            path = PurePosixPath(name)
            assert not path.is_absolute()
            assert ".." not in path.parts
            assert path_problem(name) is None


@pytest.mark.parametrize("pattern", ["a\nb.tar", "a\x00.tar", "{a,b}" * 20, "{0..99999}{0..99999}"])
def test_refused_patterns(pattern: str) -> None:
    assert pattern_problem(pattern)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_a_shard_name_is_one_safe_folder_name(relative: str) -> None:
    name = shard_name(relative + ".tar")
    assert name == shard_name(relative + ".tar.gz")
    assert name
    assert not set(name) & set('/\\~:*?"<>| \n')
    assert not name.startswith(".")
    assert name.isascii()


@pytest.mark.parametrize(
    "pattern",
    [
        "a-{1..3}.tar",
        "a-*.tar",
        "sub/c*.tar.gz",
        "**/a-1.tar",
        "**/*",
        "./a-[12].tar",
        "D*.TAR",
        "{a,b}-1.t*",
        "odd [[]1[]].tar",
        "odd [?]?.tar",
    ],
)
def test_a_stored_shard_is_named_by_the_patterns_that_find_its_file(pattern: str, tmp_path: Path) -> None:
    files = [
        "a-1.tar", "a-2.tar", "a-10.tar", "b-1.tar.gz", "sub/a-1.tar", "sub/c.tar.gz", "sub/deep/a-1.tar", "D.TAR",
        "odd [1].tar", "odd ?x.tar", "~x.tar", ".hidden/a-1.tar",
    ]  # fmt: skip
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = {
        PurePosixPath(hit).as_posix()
        for name in expand(pattern)
        for hit in glob.glob(name, root_dir=tmp_path, recursive=True)  # noqa: PTH207 - as shards are found
        if (tmp_path / hit).is_file()
    }
    assert found
    visible = [file for file in files if not file.startswith(".")]
    assert {file for file in visible if names_shard([pattern], shard_name(file))} == found
