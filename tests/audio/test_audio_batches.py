from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.audio.batches import group_batches
from xares_store.errors import ConfigError

LENGTHS = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 10_000)), max_size=120)


@given(lengths=LENGTHS, budget=st.integers(1, 20_000), equal_only=st.booleans(), max_items=st.integers(1, 40))
def test_every_clip_is_in_one_batch_within_the_budget(
    lengths: list[int], budget: int, equal_only: bool, max_items: int
) -> None:
    batches = group_batches(lengths, budget=budget, equal_only=equal_only, max_items=max_items)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert 1 <= len(batch) <= max_items
        assert len(batch) == 1 or max(sizes) * len(batch) <= budget
        if equal_only:
            assert len(set(sizes)) == 1
            assert batch == sorted(batch)
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@given(lengths=LENGTHS, budget=st.integers(1, 20_000))
def test_equal_lengths_fill_their_batches(lengths: list[int], budget: int) -> None:
    batches = group_batches(lengths, budget=budget, equal_only=True)
    for length in set(lengths):
        room = max(1, min(256, budget // length))
        mine = [len(batch) for batch in batches if lengths[batch[0]] == length]
        assert all(count == room for count in mine[:-1])


@given(lengths=LENGTHS, budget=st.integers(1, 20_000))
def test_padding_never_needs_more_batches_than_equal_lengths(lengths: list[int], budget: int) -> None:
    padded = group_batches(lengths, budget=budget, equal_only=False)
    equal = group_batches(lengths, budget=budget, equal_only=True)
    assert len(padded) <= len(equal)


def test_a_clip_beyond_the_budget_goes_alone() -> None:
    assert group_batches([100, 5, 5], budget=10, equal_only=False) == [[0], [1, 2]]


def test_no_clips_are_no_batches() -> None:
    assert group_batches([], budget=10, equal_only=True) == []


@pytest.mark.parametrize(("budget", "max_items"), [(0, 1), (1, 0)])
def test_a_batch_without_room_is_refused(budget: int, max_items: int) -> None:
    with pytest.raises(ConfigError, match="room"):
        group_batches([1], budget=budget, equal_only=False, max_items=max_items)
