"""Folds: disjoint, complete, whole groups, and independent of the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xares_store.errors import ProtocolError
from xares_store.protocol import Fold, make_folds, stratified_groups
from xares_store.task import Task

MakeTask = Callable[..., Task]
N_CLASSES = 3
KFOLD = 'folds = { a = ["a.tar"], b = ["b.tar"], c = ["c.tar"], d = ["d.tar"] }'
TWOFOLD = 'folds = { a = ["a.tar"], b = ["b.tar"] }'
FIXED = 'splits = { train = ["a.tar"], valid = ["b.tar"], test = ["c.tar"] }'
CARVED = 'splits = { train = ["a.tar"], test = ["c.tar"] }'
ON_TEST = 'published_valid = "test"\nsplits = { train = ["a.tar"], test = ["c.tar"] }'
POOL = 'pool = ["a.tar"]\npool_folds = 4'
SCHEMES = {"k-fold": KFOLD, "two folds": TWOFOLD, "fixed": FIXED, "carved": CARVED, "pool": POOL}


@dataclass
class Table:
    split: list[str]
    target: np.ndarray
    group: list[str]

    def folds(self, task: Task, protocol: str = "strict") -> list[Fold]:
        return make_folds(task, protocol, split=self.split, target=self.target, group=self.group)

    def permuted(self, order: np.ndarray) -> Table:
        return Table([self.split[i] for i in order], self.target[order], [self.group[i] for i in order])


@st.composite
def tables(draw: st.DrawFn, splits: list[str]) -> Table:
    """Clips in groups of 1 to 4; a group lies in one split, mostly of one class."""
    group, split, target = [], [], []
    for number in range(draw(st.integers(20, 60))):
        where = splits[number % len(splits)] if number < 2 * len(splits) else draw(st.sampled_from(splits))
        label = draw(st.integers(0, N_CLASSES - 1))
        for _ in range(draw(st.integers(1, 4))):
            group.append(f"g{number}")
            split.append(where)
            target.append(label if draw(st.integers(0, 9)) else (label + 1) % N_CLASSES)
    return Table(split, np.array(target, dtype=np.int64), group)


def folds_or_skip(table: Table, task: Task) -> list[Fold]:
    try:
        return table.folds(task)
    except ProtocolError as error:
        assume("Too few groups" not in error.message)
        raise


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_strict_keeps_its_promises(make_task: MakeTask, scheme: str, data: st.DataObject) -> None:
    task = make_task(SCHEMES[scheme], 'group_key = "g"')
    table = data.draw(tables(list(task.split_patterns())))
    everything = np.arange(len(table.split))
    folds = folds_or_skip(table, task)
    for fold in folds:
        sides = [fold.train, fold.valid, fold.test]
        joined = np.concatenate(sides)
        assert all(len(side) for side in sides)
        assert len(joined) == len(np.unique(joined))  # disjoint
        assert sorted(joined.tolist()) == everything.tolist()  # nobody is left out
        assert all(side.dtype == np.int64 and (np.diff(side) > 0).all() for side in sides)
        names = [{table.group[row] for row in side.tolist()} for side in sides]
        assert sum(map(len, names)) == len(set().union(*names))  # whole groups
        assert not set(fold.knn_train.tolist()) & set(fold.test.tolist())
    if scheme not in ("fixed", "carved"):
        tested = np.concatenate([fold.test for fold in folds])
        assert sorted(tested.tolist()) == everything.tolist()  # every clip is tested once


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_the_order_of_the_table_does_not_matter(make_task: MakeTask, scheme: str, data: st.DataObject) -> None:
    task = make_task(SCHEMES[scheme])
    table = data.draw(tables(list(task.split_patterns())))
    order = np.array(data.draw(st.permutations(range(len(table.split)))))
    for fold, other in zip(folds_or_skip(table, task), table.permuted(order).folds(task), strict=True):
        assert fold.name == other.name
        for side in ("train", "valid", "test", "knn_train"):
            assert np.sort(order[getattr(other, side)]).tolist() == getattr(fold, side).tolist()


def plain(splits: dict[str, int], per_group: int = 2) -> Table:
    """Groups of two clips, classes in turn."""
    split, target, group = [], [], []
    for name, count in splits.items():
        for number in range(count):
            split.append(name)
            target.append(number // per_group % N_CLASSES)
            group.append(f"{name}-{number // per_group}")
    return Table(split, np.array(target, dtype=np.int64), group)


def names(table: Table, rows: np.ndarray) -> set[str]:
    return {table.split[row] for row in rows.tolist()}


def test_strict_rotates_the_validation_fold(make_task: MakeTask) -> None:
    task = make_task('folds = { c = ["c.tar"], a = ["a.tar"], b = ["b.tar"], x = ["x.tar"] }')
    table = plain({"fold-a": 6, "fold-b": 6, "fold-c": 6, "fold-x": 6})
    folds = table.folds(task)
    assert [fold.name for fold in folds] == ["c", "a", "b", "x"]
    assert [(names(table, f.test), names(table, f.valid)) for f in folds] == [
        ({"fold-c"}, {"fold-a"}),
        ({"fold-a"}, {"fold-b"}),
        ({"fold-b"}, {"fold-x"}),
        ({"fold-x"}, {"fold-c"}),
    ]
    for fold in folds:
        assert fold.knn_train.tolist() == sorted([*fold.train, *fold.valid])


def test_published_validates_on_the_held_out_fold(make_task: MakeTask) -> None:
    table = plain({"fold-a": 6, "fold-b": 6, "fold-c": 6, "fold-d": 6})
    for fold in table.folds(make_task(KFOLD), "published"):
        assert fold.valid.tolist() == fold.test.tolist()
        assert names(table, fold.test) == {f"fold-{fold.name}"}
        assert len(fold.train) == 18
        assert fold.knn_train.tolist() == fold.train.tolist()


def test_declared_splits_stay_as_they_are(make_task: MakeTask) -> None:
    table = plain({"train": 12, "valid": 4, "test": 8})
    for protocol in ("strict", "published"):
        (fold,) = table.folds(make_task(FIXED), protocol)
        assert fold.name == "test"
        assert [names(table, side) for side in (fold.train, fold.valid, fold.test)] == [{"train"}, {"valid"}, {"test"}]
        assert fold.knn_train.tolist() == fold.train.tolist()  # a declared validation split is no neighbour


def test_published_may_validate_on_test_but_strict_never(make_task: MakeTask) -> None:
    table = plain({"train": 96, "test": 12})
    task = make_task(ON_TEST)
    (published,) = table.folds(task, "published")
    assert published.valid.tolist() == published.test.tolist()
    assert len(published.train) == 96
    (strict,) = table.folds(task)
    assert names(table, strict.valid) == {"train"}
    assert not set(strict.valid.tolist()) & set(strict.test.tolist())
    assert len(strict.knn_train) == 96


def test_a_task_without_validation_carves_under_both_protocols(make_task: MakeTask) -> None:
    table = plain({"train": 96, "test": 12})
    (strict,), (published,) = table.folds(make_task(CARVED)), table.folds(make_task(CARVED), "published")
    assert strict.valid.tolist() == published.valid.tolist()


def test_carved_part_is_stratified_and_an_eighth(make_task: MakeTask) -> None:
    table = plain({"train": 4800, "test": 3})
    (fold,) = table.folds(make_task(CARVED))
    assert len(fold.valid) == 600
    assert np.bincount(table.target[fold.valid]).tolist() == [200, 200, 200]
    assert np.diff(fold.valid).max() < 200  # drawn from all over the table, not a block of it
    assert fold.valid.max() - fold.valid.min() > 4000


def test_carving_is_the_same_for_ever(make_task: MakeTask) -> None:
    """Stored scores name their clips: another division would silently make them incomparable."""
    table = plain({"train": 48, "test": 3})
    (fold,) = table.folds(make_task(CARVED))
    assert fold.valid.tolist() == [0, 1, 10, 11, 38, 39]


def test_a_class_with_one_group_stays_in_train(make_task: MakeTask) -> None:
    task = make_task(CARVED)
    for rare in range(24):
        table = plain({"train": 48, "test": 3})
        table.target = np.where(table.target == 2, 0, table.target)
        table.target[2 * rare : 2 * rare + 2] = 2
        (fold,) = table.folds(task)
        assert 2 in table.target[fold.train]


def test_pool_becomes_stratified_folds_or_everything(make_task: MakeTask) -> None:
    table = plain({"all": 120})
    folds = table.folds(make_task(POOL))
    assert [fold.name for fold in folds] == ["1", "2", "3", "4"]
    for fold in folds:
        assert np.bincount(table.target[fold.test]).tolist() == [10, 10, 10]
    (published,) = table.folds(make_task(POOL), "published")
    assert published.train.tolist() == published.valid.tolist() == published.test.tolist() == list(range(120))
    assert published.knn_train.tolist() == list(range(120))
    assert len(table.folds(make_task('pool = ["a.tar"]'))) == 5


@pytest.mark.parametrize(
    ("data", "splits", "expected"),
    [
        (KFOLD, {"fold-a": 4, "fold-b": 4, "fold-c": 4}, ['"fold-d" has no clips', "task mine"]),
        (KFOLD, {"fold-a": 4, "fold-z": 4}, ['"fold-z" that the task does not declare']),
        (CARVED, {"train": 2, "test": 4}, ["Too few groups to carve", "1 groups over 1 classes"]),
        (CARVED, {"train": 6, "test": 4}, ["Too few groups to carve", "3 groups over 3 classes"]),
        (POOL, {"all": 6}, ["at least 4 groups", "found 3"]),
        (POOL, {}, ['"all" has no clips']),
    ],
)
def test_refused(make_task: MakeTask, data: str, splits: dict[str, int], expected: list[str]) -> None:
    with pytest.raises(ProtocolError) as caught:
        plain(splits).folds(make_task(data))
    for part in expected:
        assert part in str(caught.value)
    assert caught.value.hint


def test_a_group_on_two_sides_is_named_when_the_task_groups(make_task: MakeTask) -> None:
    table = plain({"train": 12, "valid": 4, "test": 8})
    table.group[-1] = table.group[0]
    task = make_task(FIXED, 'group_key = "speaker"')
    with pytest.raises(ProtocolError, match=r'"train-0" \(speaker\) is in train and in test'):
        table.folds(task)
    table.folds(task, "published")
    table.folds(make_task(FIXED))  # keys of recordings may repeat between splits


def test_unknown_protocol_and_lengths(make_task: MakeTask) -> None:
    table = plain({"train": 12, "valid": 4, "test": 8})
    with pytest.raises(ProtocolError, match="strikt") as caught:
        table.folds(make_task(FIXED), "strikt")
    assert caught.value.hint == 'Did you mean "strict"?'
    with pytest.raises(ProtocolError, match="as many"):
        make_folds(make_task(FIXED), "strict", split=table.split, target=table.target, group=table.group[:-1])


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=40), n_parts=st.integers(2, 8))
def test_dealing_keeps_groups_whole_and_balanced(sizes: list[int], n_parts: int) -> None:
    group = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    target = np.zeros(len(group), dtype=np.int64)
    dealt = stratified_groups(np.arange(len(group)), target, group, n_parts)
    assert sorted(name for part in dealt for name in part) == sorted(set(group))
    totals = [sum(group.count(name) for name in part) for part in dealt]
    assert max(totals) - min(totals) <= max(sizes)
