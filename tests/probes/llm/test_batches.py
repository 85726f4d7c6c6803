"""Frames of drawn clips: the stored numbers, in an order and within a memory that do not depend on each other."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.conftest import address, flip_byte, make_frames, put_part
from xares_store.errors import CorruptError
from xares_store.probes.llm import batches as module
from xares_store.probes.llm.batches import BatchReader, Frames, micro_batches
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.mixture import Draw, Mixture, Source
from xares_store.store import Store, stream
from xares_store.store.opened import Part
from xares_store.store.stream import FrameSource

CROP, DIM = 30, 6
SEED = 11


def make_source(store: Store, task: str, lengths: list[int], parts: int, crop: int | None, dim: int = DIM) -> Source:
    for number in range(parts):
        frames = make_frames(lengths[number::parts], dim, seed=number)
        kind = "float32" if number % 2 else "float16"
        put_part(
            store, address(task=f"{task}@00000000", shard=f"s{number}"), dim=dim, frames=frames, dtype=kind, failures=0
        )
    opened = [part for part in store.parts() if part.address.task.startswith(task)]
    tables = [part.clips() for part in opened]
    place = np.repeat(np.arange(len(opened)), [len(table) for table in tables])
    offset, count = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("offset", "n_frames"))
    order = np.random.default_rng(0).permutation(len(place))
    frames = FrameSource(opened, place[order], offset[order], count[order])
    return Source(frames, np.arange(len(place)), np.full(len(place), 2), crop)


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    store, rng = Store.create(tmp_path / "s"), np.random.default_rng(0)
    sources = [
        make_source(store, "long", rng.integers(1, 90, 40).tolist(), 3, CROP),
        make_source(store, "short", rng.integers(1, 20, 30).tolist(), 2, None),
    ]
    return Mixture(sources, [0.7, 0.3], batch_size=4, bucket=5, seed=SEED)


def example(draw: Draw, frames: Frames) -> Example:
    return Example(frames, (), (draw.task, draw.row, draw.text), str(draw.number))


def window(mixture: Mixture, draw: Draw) -> np.ndarray:
    frames = mixture.sources[draw.task].frames.frames(draw.row).astype(np.float32)
    if draw.task or len(frames) <= CROP:
        return frames
    start = np.random.default_rng([SEED, draw.number]).integers(len(frames) - CROP + 1)
    return frames[start : start + CROP]


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("memory", [0, 3000, 20_000, 1 << 30])
@pytest.mark.parametrize(("first", "last"), [(0, 23), (13, 17), (5, 10), (9, 9)])
def test_batches_are_the_windows_of_the_draws_whatever_the_memory(
    mixture: Mixture, memory: int, first: int, last: int
) -> None:
    found = list(BatchReader(mixture, example, memory_bytes=memory).steps(first, last))
    expected = list(islice(mixture.steps(first), last - first))
    assert len(found) == len(expected)
    for batch, draws in zip(found, expected, strict=True):
        assert [one.target for one in batch] == [(draw.task, draw.row, draw.text) for draw in draws]
        assert [one.name for one in batch] == [str(draw.number) for draw in draws]
        for one, draw in zip(batch, draws, strict=True):
            assert one.frames.dtype == np.float32
            np.testing.assert_array_equal(one.frames, window(mixture, draw))
    assert no_thread_is_left()


def test_windows_begin_anywhere_with_the_same_probability_and_differ_between_epochs(tmp_path: Path) -> None:
    source = make_source(Store.create(tmp_path / "s"), "one", [CROP + 4], 1, CROP)
    whole = source.frames.frames(0).astype(np.float32)
    mixture = Mixture([source], [1.0], batch_size=10, bucket=5, seed=SEED)
    starts = [
        int(np.flatnonzero((whole == one.frames[0]).all(axis=1))[0])
        for batch in BatchReader(mixture, example, memory_bytes=1 << 20).steps(0, 50)
        for one in batch
    ]
    counts = np.bincount(starts, minlength=5)
    assert len(counts) == 5
    assert counts.min() > 70  # 100 expected, 9 the standard deviation
    assert len(starts) == 500


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    found: list[slice] = []
    original = Part.frames

    def counted(part: Part, which: slice) -> np.ndarray:
        found.append(which)
        return original(part, which)

    monkeypatch.setattr(Part, "frames", counted)
    return found


def test_only_the_windows_of_the_steps_asked_for_are_read(
    mixture: Mixture, reads: list[slice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_GAP_BYTES", 0)
    monkeypatch.setattr(stream, "_READ_BYTES", 1)
    batches = list(BatchReader(mixture, example, memory_bytes=0).steps(7, 9))
    assert sum(which.stop - which.start for which in reads) == sum(len(one.frames) for each in batches for one in each)


def test_neighbours_of_a_pool_are_read_together(mixture: Mixture, reads: list[slice]) -> None:
    list(BatchReader(mixture, example, memory_bytes=1 << 30).steps(0, 5))
    assert len(reads) == 5  # one a part, for twenty clips


def test_the_next_unit_is_read_meanwhile_and_no_other(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Semaphore(0)
    original = BatchReader._read

    def read(*args: object) -> object:
        begun.release()
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(BatchReader, "_read", read)
    batches = BatchReader(mixture, example, memory_bytes=0).steps(0, 100)
    next(batches)
    for _ in range(2):
        assert begun.acquire(timeout=30)
    assert not begun.acquire(timeout=0.2)
    next(batches)
    assert begun.acquire(timeout=30)
    assert not begun.acquire(timeout=0.2)
    batches.close()
    assert no_thread_is_left()


def test_closing_ends_a_read_that_is_under_way(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = threading.Event(), threading.Event()
    units: list[object] = []
    served: list[int] = []
    windows, read = FrameSource.windows, BatchReader._read

    class Stop(threading.Event):
        def set(self) -> None:
            super().set()
            gate.set()

    def slow(*args: object) -> Iterator[tuple[int, np.ndarray]]:
        for at, found in windows(*args):  # type: ignore[arg-type]
            if len(units) > 1:
                begun.set()
                assert gate.wait(30)
            served.append(at)
            yield at, found

    def counted(*args: object) -> object:
        units.append(args)
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Event", Stop)
    monkeypatch.setattr(FrameSource, "windows", slow)
    monkeypatch.setattr(BatchReader, "_read", counted)
    batches = BatchReader(mixture, example, memory_bytes=1 << 30).steps(0, 100)
    next(batches)
    assert begun.wait(30)
    assert len(served) == 20
    batches.close()
    assert len(served) == 21  # the other nineteen are not waited for
    assert no_thread_is_left()


def test_an_iterator_that_is_dropped_leaves_no_thread(mixture: Mixture) -> None:
    BatchReader(mixture, example, memory_bytes=0).steps(0, 10)  # never begun
    for _ in BatchReader(mixture, example, memory_bytes=0).steps(0, 10):
        break
    assert no_thread_is_left()


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_damage_surfaces_with_its_message_where_the_frames_are_needed(mixture: Mixture, memory: int) -> None:
    damaged = mixture.sources[1].frames._parts[0]
    path = next(path for path in sorted((damaged.path / "frames/c").rglob("*")) if path.is_file())
    expected = list(islice(mixture.steps(0), 100))
    place = mixture.sources[1].frames._part
    bad = next(step for step, batch in enumerate(expected) if any(d.task and place[d.row] == 0 for d in batch))
    flip_byte(path, 20)
    found: list[list[tuple[int, ...]]] = []
    batches = BatchReader(mixture, example, memory_bytes=memory).steps(0, 100)
    with pytest.raises(CorruptError, match="checksum") as caught:
        found.extend([one.target for one in batch] for batch in batches)
    assert caught.value.where == str(path)
    assert found == [[(d.task, d.row, d.text) for d in batch] for batch in expected[: len(found)]]
    assert len(found) == (bad if memory == 0 else bad // 5 * 5)
    assert no_thread_is_left()


def test_an_error_of_the_caller_ends_the_reading(mixture: Mixture) -> None:
    def failing(draw: Draw, frames: Frames) -> Example:
        if draw.number > 30:
            raise ZeroDivisionError("of the caller")
        return example(draw, frames)

    with pytest.raises(ZeroDivisionError, match="of the caller"):
        list(BatchReader(mixture, failing, memory_bytes=0).steps(0, 100))
    assert no_thread_is_left()


def test_memory_is_that_of_two_pools_or_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_READ_BYTES", 1 << 18)
    source = make_source(Store.create(tmp_path / "s"), "many", [100] * 240, 6, None, dim=256)
    mixture = Mixture([source], [1.0], batch_size=4, bucket=16, seed=SEED)
    everything = source.frames.stored_bytes(source.rows)
    pool = everything * 64 // 240

    def peak(memory: int) -> int:
        batches = BatchReader(mixture, example, memory_bytes=memory).steps(0, mixture.steps_per_epoch)
        next(batches)
        tracemalloc.start()
        try:
            for _ in batches:
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    slack = 3 << 20  # batches as float32, chunks of a read, and the order
    assert everything > 3 * pool > 9 << 20
    assert pool < peak(1 << 30) < 2 * pool + slack
    assert peak(1 << 20) < (1 << 20) + slack < pool


LENGTHS = st.lists(st.integers(1, 12), max_size=40) | st.lists(st.integers(1, 300), max_size=40)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 60) | st.integers(1, 1000))
def test_parts_fit_the_budget_and_hold_every_example_once(lengths: list[int], budget: int) -> None:
    clip = np.zeros((1, 1), np.float32)
    examples = [Example(clip, (), (0,) * length, str(number)) for number, length in enumerate(lengths)]
    asked: list[str] = []

    def positions(one: Example) -> int:
        asked.append(one.name)
        return len(one.target)

    parts = micro_batches(examples, positions, budget)
    assert sorted(asked) == sorted(one.name for one in examples)  # once each
    laid = [one for part in parts for one in part]
    assert [one.name for one in laid] == [
        one.name for one in sorted(examples, key=lambda one: (-len(one.target), int(one.name)))
    ]
    assert len({id(one) for one in laid}) == len(laid) == len(examples)
    for part, after in zip_longest(parts, parts[1:]):
        longest = max(len(one.target) for one in part)
        assert len(part) == 1 or len(part) * longest <= budget
        assert after is None or (len(part) + 1) * longest > budget  # no room was left


def test_a_part_is_filled_to_the_budget() -> None:
    clip = np.zeros((1, 1), np.float32)
    examples = [Example(clip, (), (), str(length)) for length in (3, 6, 5, 20, 4, 6)]
    parts = micro_batches(examples, lambda one: int(one.name), 12)
    assert [[int(one.name) for one in part] for part in parts] == [[20], [6, 6], [5, 4], [3]]
