"""The order of a joint training: exact shares, every item once an epoch, the same from wherever it is entered."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.catalog import load_recipe
from xares_store.errors import ProbeError
from xares_store.probes.llm.mixture import Draw, Mixture, Source, apportion
from xares_store.store.opened import Part
from xares_store.store.stream import FrameSource

SHARES = {name: mixture.shares() for name, mixture in load_recipe("xares-llm").mixtures.items()}


def source(
    lengths: Sequence[int], texts: Sequence[int] | int = 1, *, dim: int = 4, crop: int | None = None, first: int = 0
) -> Source:
    """Clips without frames, stored in another order than that of their table; the first few do not train."""
    frames = FrameSource.__new__(FrameSource)
    frames.dim, frames.n_frames = dim, np.array(lengths, np.int64)
    frames._rank = np.random.default_rng(1).permutation(len(lengths))
    rows = np.arange(first, len(lengths))
    return Source(frames, rows, np.broadcast_to(np.array(texts, np.int64), len(lengths))[first:], crop)


def mixed(sizes: Sequence[int], shares: Sequence[float], *, seed: int = 0, batch: int = 4, bucket: int = 8) -> Mixture:
    rng = np.random.default_rng(len(sizes))
    sources = [source(rng.integers(1, 200, size), rng.integers(1, 4, size)) for size in sizes]
    return Mixture(sources, shares, batch_size=batch, bucket=bucket, seed=seed)


def flat(steps: Iterator[list[Draw]], count: int) -> list[Draw]:
    return [draw for batch in islice(steps, count) for draw in batch]


def in_order(mixture: Mixture, task: int, count: int) -> list[tuple[int, int]]:
    """The first items of a task, in the order of its own."""
    found: list[tuple[int, int, int]] = []
    for batches in mixture.pools(0):
        found += [(draw.number, draw.row, draw.text) for batch in batches for draw in batch if draw.task == task]
        if len(found) >= count:
            return [(row, text) for _, row, text in sorted(found)[:count]]
    raise AssertionError


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("seed", range(3))
def test_shares_are_met_within_two_percent_after_ten_thousand_draws(name: str, seed: int) -> None:
    shares = SHARES[name]
    sizes = np.random.default_rng(seed).integers(1, 3000, len(shares))  # the sizes of the data sets play no part
    sources = [source([10] * int(size)) for size in sizes]
    mixture = Mixture(sources, list(shares.values()), batch_size=4, bucket=32, seed=seed)
    drawn = Counter(draw.task for draw in flat(mixture.steps(0), 2500))
    assert sum(drawn.values()) == 10_000
    for task, share in enumerate(shares.values()):
        assert drawn[task] / 10_000 == pytest.approx(share, rel=0.02)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=20),
    first=st.integers(0, 10**9) | st.integers(0, 300),
    draws=st.integers(1, 300),
)
def test_turns_follow_the_shares_from_wherever_they_are_counted(weights: list[float], first: int, draws: int) -> None:
    shares = np.array(weights) / np.sum(weights)
    before, due = apportion(shares, first, draws)
    assert before.sum() == first
    assert len(due) == draws
    # A task is ahead or behind by half a draw, and by its share of what rounding all others adds up to.
    allowed = 0.5 + shares * len(shares) / 2 + 1e-6
    after, _ = apportion(shares, first + draws, 1)
    np.testing.assert_array_equal(after, before + np.bincount(due, minlength=len(shares)))
    for number, counted in ((first, before), (first + draws, after)):
        assert (np.abs(counted - number * shares) <= allowed).all()
    np.testing.assert_array_equal(apportion(shares, first, draws + 50)[1][:draws], due)


def test_equal_shares_take_turns() -> None:
    assert apportion(np.full(3, 1 / 3), 0, 9)[1].tolist() == [0, 1, 2] * 3


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    first=st.integers(0, 90),
    batch=st.integers(1, 6),
    bucket=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_any_step_can_be_entered(
    sizes: list[int], first: int, batch: int, bucket: int, seed: int, data: st.DataObject
) -> None:
    shares = data.draw(st.lists(st.floats(0.01, 1.0), min_size=len(sizes), max_size=len(sizes)))
    whole = list(islice(mixed(sizes, shares, batch=batch, bucket=bucket, seed=seed).steps(0), 100))
    tail = list(islice(mixed(sizes, shares, batch=batch, bucket=bucket, seed=seed).steps(first), 100 - first))
    assert tail == whole[first:]
    assert all(len(step) == batch for step in whole)
    numbers = sorted(draw.number for step in whole[: 100 // bucket * bucket] for draw in step)
    assert numbers == list(range(len(numbers)))


def test_a_late_step_of_many_tasks_is_entered_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "frames", lambda *_: pytest.fail("frames were read"))
    drawn = []
    original = FrameSource.drawn

    def counted(*args: object, **more: object) -> object:
        drawn.append(args)
        return original(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(FrameSource, "drawn", counted)
    shares = list(SHARES["all"].values())
    mixture = Mixture([source([5] * 3000) for _ in shares], shares, batch_size=4, bucket=32, seed=0)
    steps = mixture.steps(100_000)
    assert len(next(steps)) == 4
    assert len(drawn) <= 2 * len(shares)  # the epochs that are running, not those before them
    assert list(islice(mixture.steps(2990), 10)) == list(islice(mixture.steps(0), 3000))[2990:]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), block=st.integers(1, 3000), data=st.data())
def test_every_item_of_a_task_comes_once_an_epoch(sizes: list[int], block: int, data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.floats(0.1, 1.0), min_size=len(sizes), max_size=len(sizes)))
    mixture = mixed(sizes, shares, batch=3, bucket=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameSource.drawn, "__kwdefaults__", {"batch": 1, "block_bytes": block})
        for task, each in enumerate(mixture.sources):
            items = [(row, text) for row in range(sizes[task]) for text in range(int(each.n_texts[row]))]
            assert mixture.n_items[task] == len(items)
            found = in_order(mixture, task, 3 * len(items))
            for epoch in range(3):
                assert sorted(found[epoch * len(items) : (epoch + 1) * len(items)]) == items
    assert mixture.steps_per_epoch == -(-sum(mixture.n_items) // 3)


def test_epochs_and_seeds_differ_and_equal_seeds_are_equal() -> None:
    one, same, other = (mixed([60, 70], [0.5, 0.5], seed=seed) for seed in (3, 3, 4))
    steps = [flat(mixture.steps(0), 64) for mixture in (one, same, other)]
    assert steps[0] == steps[1] != steps[2]
    items = one.n_items[0]
    found = in_order(one, 0, 2 * items)
    assert found[:items] != found[items:]
    assert in_order(other, 0, items) != found[:items]
    # Two tasks over the same clips are not learnt in step.
    twins = Mixture([source([9] * 50)] * 2, [0.5, 0.5], batch_size=4, bucket=8, seed=0)
    assert in_order(twins, 0, 50) != in_order(twins, 1, 50)


def test_a_task_alone_follows_its_own_order_block_by_block() -> None:
    each = source(np.random.default_rng(0).integers(500, 3000, 600).tolist(), 2, dim=1024)
    mixture = Mixture([each], [7.0], batch_size=4, bucket=4, seed=5)
    found = in_order(mixture, 0, 2400)
    for epoch in range(2):
        clips, bound = each.frames.drawn(each.rows, epoch=(5, 0, epoch, 1))
        assert len(bound) > 10
        for first, last in pairwise(1200 * epoch + 2 * bound):
            block = found[first:last]
            here = clips[(first - 1200 * epoch) // 2 : (last - 1200 * epoch) // 2].tolist()
            assert sorted(block) == sorted((row, text) for row in here for text in (0, 1))
            assert block != sorted(block)
    many = Mixture([each, source([10] * 50)], [0.9, 0.1], batch_size=4, bucket=4, seed=5)
    assert in_order(many, 0, 2400) == found  # company changes nothing


def test_a_pool_is_sorted_by_length_and_its_batches_are_shuffled() -> None:
    lengths = np.random.default_rng(2).integers(1, 1000, 640)
    each = source(lengths.tolist(), crop=700)
    mixture = Mixture([each, source([350] * 90)], [0.9, 0.1], batch_size=8, bucket=10, seed=0)
    for batches in islice(mixture.pools(0), 4):
        sizes = [[int(mixture.sources[d.task].lengths(np.array([d.row]))[0]) for d in batch] for batch in batches]
        assert sizes != sorted(sizes)
        ranges = sorted((min(batch), max(batch)) for batch in sizes)
        assert all(one[1] <= other[0] for one, other in pairwise(ranges))
        assert max(max(batch) for batch in sizes) == 700


def test_tasks_of_equal_length_share_batches() -> None:
    mixture = Mixture([source([10] * 99), source([10] * 99)], [0.5, 0.5], batch_size=8, bucket=16, seed=0)
    counts = [Counter(draw.task for draw in batch)[0] for batch in islice(mixture.steps(0), 16)]
    assert len(set(counts)) > 2  # at random: not alternating, and not one task after the other
    assert 0 not in counts
    assert sum(counts) == 64


def test_clips_without_a_text_and_clips_that_do_not_train_are_not_drawn() -> None:
    each = source([3] * 20, [0, 1] * 10, first=4)
    found = in_order(Mixture([each], [1.0], batch_size=2, bucket=2, seed=0), 0, 8)
    assert sorted(found) == [(row, 0) for row in range(5, 20, 2)]


def clips(count: int) -> Mixture:
    each = source(np.random.default_rng(0).integers(50, 1500, count).tolist(), dim=768)
    return Mixture([each], [1.0], batch_size=4, bucket=32, seed=0)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_a_hundred_thousand_clips_take_a_few_megabytes() -> None:
    mixture = clips(100_000)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    assert len(list(islice(mixture.steps(mixture.steps_per_epoch - 40), 80))) == 80  # two epochs
    assert tracemalloc.get_traced_memory()[1] - before < 10 << 20


@pytest.mark.usefixtures("traced")
def test_memory_does_not_grow_with_the_steps() -> None:
    mixture = clips(400)
    steps, held = mixture.steps(0), []
    for _ in range(8):  # epochs
        for _ in range(mixture.steps_per_epoch):
            next(steps)
        held.append(tracemalloc.get_traced_memory()[0])
    assert max(held[1:]) - held[0] < 20_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": [1.0]}, "share for each"),
        ({"sources": [], "shares": []}, "one task or more"),
        ({"shares": [1.0, 0.0]}, "above 0"),
        ({"shares": [1.0, float("inf")]}, "above 0"),
        ({"batch_size": 0}, "batch size"),
        ({"bucket": 0}, "bucket"),
        ({"seed": -1}, "seed"),
        ({"sources": [source([3]), source([3], 0)]}, r"found none(.|\n)*task 1"),
        ({"sources": [source([3]), source([3], first=1)]}, "found none"),
        ({"sources": [source([3]), source([3], crop=0)]}, "crop"),
        ({"sources": [source([3]), source([3, 3], [1, -1])]}, "count of texts"),
        ({"sources": [source([3]), Source(source([3]).frames, np.array([0, 0]), np.array([1, 1]))]}, "twice"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(change: dict[str, object], message: str) -> None:
    made: dict[str, object] = {"sources": [source([3]), source([4])], "shares": [0.5, 0.5]}
    made |= {"batch_size": 2, "bucket": 2, "seed": 0, **change}
    with pytest.raises(ProbeError, match=message):
        Mixture(made.pop("sources"), made.pop("shares"), **made)  # type: ignore[arg-type]
