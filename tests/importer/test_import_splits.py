"""Splits that are made: whole groups, all classes where possible, whatever the order."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.errors import ProtocolError
from xares_store.importer.names import make_keys
from xares_store.importer.splits import make_division

# Clips as (group, class); groups may hold several classes.
clips = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=80)
schemes = st.one_of(
    st.integers(2, 6).map(lambda folds: {"folds": folds, "split": None}),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.7, 0.0, 0.3), (0.34, 0.33, 0.33)]).map(
        lambda split: {"folds": None, "split": split}
    ),
)


def divide(rows: list[tuple[object, int]], scheme: dict[str, object], seed: int = 0) -> list[str]:
    division = make_division(
        np.array([label for _, label in rows]),
        [frozenset([label]) for _, label in rows],
        [str(group) for group, _ in rows],
        seed=seed,
        **scheme,  # type: ignore[arg-type]
    )
    assert set(division.of) == set(division.names)  # no split without clips
    return list(division.of)


@settings(max_examples=200, deadline=None)
@given(clips, schemes, st.integers(0, 5))
def test_no_group_crosses_and_no_split_is_empty(
    rows: list[tuple[int, int]], scheme: dict[str, object], seed: int
) -> None:
    n_splits = scheme["folds"] or sum(share > 0 for share in scheme["split"])  # type: ignore[attr-defined]
    if len({group for group, _ in rows}) < n_splits:
        with pytest.raises(ProtocolError, match="groups"):
            divide(list(rows), scheme, seed)
        return
    of = divide(list(rows), scheme, seed)
    splits_of_group = defaultdict(set)
    for (group, _), split in zip(rows, of, strict=True):
        splits_of_group[group].add(split)
    assert all(len(splits) == 1 for splits in splits_of_group.values())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(2, 6), schemes, st.randoms())
def test_a_class_with_enough_groups_is_in_every_split(
    sizes: list[int], extra: int, scheme: dict[str, object], rng
) -> None:
    """Every class has groups of its own here, more than there are splits, of different sizes."""
    n_splits = scheme["folds"] or sum(share > 0 for share in scheme["split"])  # type: ignore[attr-defined]
    rows = [
        (f"{label}-{number}", label)
        for label in range(len(sizes))
        for number in range(n_splits + extra)
        for _ in range(sizes[(label + number) % len(sizes)])
    ]
    of = divide(list(rows), scheme)
    present = defaultdict(set)
    for (_, label), split in zip(rows, of, strict=True):
        present[label].add(split)
    assert all(len(splits) == n_splits for splits in present.values())
    order = list(range(len(rows)))
    rng.shuffle(order)
    assert divide([rows[at] for at in order], scheme) == [of[at] for at in order]


def test_shares_are_kept_and_another_seed_makes_other_splits() -> None:
    rows = [(number, number % 4) for number in range(400)]
    scheme = {"folds": None, "split": (0.8, 0.1, 0.1)}
    of = divide(list(rows), scheme)
    assert Counter(of) == {"train": 320, "valid": 40, "test": 40}
    assert Counter(zip(of, (label for _, label in rows), strict=True))["test", 2] == 10
    other = divide(list(rows), scheme, seed=1)
    assert Counter(other) == Counter(of)
    assert other != of


def test_what_cannot_be_learnt_goes_to_train() -> None:
    rows = [(number, 0) for number in range(50)] + [("rare", 1)]
    assert divide(list(rows), {"folds": None, "split": (0.6, 0.2, 0.2)})[-1] == "train"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), unique=True))
def test_keys_are_unique_and_safe_and_do_not_depend_on_the_order(paths: list[str]) -> None:
    keys = make_keys(paths)
    assert len({key.lower() for key in keys}) == len(paths)
    assert all(key.isascii() and len(key) <= 80 and set(key) <= set(SAFE) and key[0] not in "-_" for key in keys)
    assert make_keys(paths[::-1]) == keys[::-1]


SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
