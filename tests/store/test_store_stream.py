"""Streaming the frames of many clips: the same numbers as the clips themselves, in an order that memory does not change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.conftest import ENCODER, TASK, address, flip_byte, make_frames, put_part
from xares_store.errors import CorruptError
from xares_store.store import Store, arrays, stream
from xares_store.store.opened import Part
from xares_store.store.stream import FrameSource

DIM = 6


@pytest.fixture(params=["raw", "zstd"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "ZSTD_GAIN", 1e9 if request.param == "raw" else 0.0)


def build(store: Store, lengths: list[list[int]], dtype: str = "float16") -> tuple[FrameSource, list[np.ndarray]]:
    """A store with a part for each list of lengths, and its clips in a shuffled table."""
    kept = []
    for number, each in enumerate(lengths):
        frames = make_frames(each, DIM, seed=number)
        kind = "float32" if dtype == "mixed" and number % 2 else "float16"
        put_part(store, address(shard=f"s{number}"), dim=DIM, frames=frames, dtype=kind, failures=0)
        kept += [values if kind == "float32" else values.astype(np.float16) for values in frames]
    parts = store.parts(ENCODER, TASK)
    tables = [part.clips() for part in parts]
    place = np.repeat(np.arange(len(parts)), [len(table) for table in tables])
    offset, count = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("offset", "n_frames"))
    order = np.random.default_rng(0).permutation(len(place))
    return FrameSource(parts, place[order], offset[order], count[order]), [kept[row] for row in order]


LENGTHS = [[40, 1, 61, 9, 3], [25, 25, 25], [7, 80, 2, 2, 2, 2]]


@pytest.mark.usefixtures("codec")
def test_clips_are_what_was_stored(store: Store) -> None:
    source, frames = build(store, LENGTHS, "mixed")
    assert (source.dim, source.hop_ms) == (DIM, 10.0)
    assert source.n_frames.tolist() == [len(values) for values in frames]
    everything = np.arange(len(frames))
    for rows in (everything, everything[::-1], everything[[3, 0, 7]]):
        for found, row in zip(source.load(rows), rows, strict=True):
            assert found.dtype == frames[row].dtype
            np.testing.assert_array_equal(found, frames[row])
    for row, found in source.read(everything, block_bytes=500):
        np.testing.assert_array_equal(found, frames[row])
        np.testing.assert_array_equal(source.frames(row, 1, 1), frames[row][1:1])
        np.testing.assert_array_equal(source.frames(row, 0, 1), frames[row][:1])
        np.testing.assert_array_equal(source.frames(row), frames[row])


def test_reading_is_in_storage_order_and_neighbours_are_read_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, frames = build(store, LENGTHS)
    reads: list[tuple[str, slice]] = []
    original = Part.frames

    def counted(part: Part, which: slice) -> np.ndarray:
        reads.append((part.address.shard, which))
        return original(part, which)

    monkeypatch.setattr(Part, "frames", counted)
    source.load(np.arange(len(frames)))
    assert [shard for shard, _ in reads] == ["s0", "s1", "s2"]
    rows = [row for row, _ in source.read(np.arange(len(frames)), block_bytes=1)]
    order = np.random.default_rng(0).permutation(len(frames))  # as the table was shuffled
    assert order[rows].tolist() == list(range(len(frames)))
    monkeypatch.setattr(stream, "_GAP_BYTES", 0)
    monkeypatch.setattr(stream, "_READ_BYTES", 100)
    reads.clear()
    for found, values in zip(source.load(np.arange(len(frames))), frames, strict=True):
        np.testing.assert_array_equal(found, values)
    assert len(reads) > 6


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    epoch=st.integers(1, 50),
    batch=st.integers(1, 7),
    block=st.integers(1, 3000),
    data=st.data(),
)
def test_a_plan_has_every_clip_once_in_blocks_of_whole_batches(
    sizes: list[int], epoch: int, batch: int, block: int, data: st.DataObject
) -> None:
    source = FrameSource.__new__(FrameSource)
    source.dim, source.n_frames = 2, np.array(sizes)
    source._rank = np.random.default_rng(1).permutation(len(sizes))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1))))
    for number in (epoch, None):
        plan = source.plan(rows, epoch=number, batch=batch, block_bytes=block)
        assert sorted(np.concatenate(plan).tolist()) == rows.tolist()
        assert all(len(part) % batch == 0 for part in plan[:-1])
        for part in plan:
            assert len(part) <= batch or source.float_bytes(part) <= block
            assert (np.diff(source._rank[part]) > 0).all()
        again = source.plan(np.random.default_rng(2).permutation(rows), epoch=number, batch=batch, block_bytes=block)
        assert [part.tolist() for part in again] == [part.tolist() for part in plan]


def test_epochs_draw_blocks_from_other_places_of_the_store() -> None:
    source = FrameSource.__new__(FrameSource)
    source.dim, source.n_frames, source._rank = 4, np.full(3000, 10), np.arange(3000)
    rows = np.arange(3000)
    first, second = (source.plan(rows, epoch=epoch, batch=8, block_bytes=32_000) for epoch in (1, 2))
    assert [part.tolist() for part in first] != [part.tolist() for part in second]
    for part in first[:-1]:
        assert len(np.flatnonzero(np.diff(part) > 1)) >= 4  # several runs in one block
        assert (np.diff(part) == 1).mean() > 0.8  # each of many neighbours
    flat = np.concatenate(source.plan(rows, block_bytes=32_000))
    assert flat.tolist() == rows.tolist()


@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize("read_bytes", [1, 100, 1 << 20])
def test_stretches_of_clips_are_what_was_stored(store: Store, monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    monkeypatch.setattr(stream, "_READ_BYTES", read_bytes)
    source, frames = build(store, LENGTHS, "mixed")
    rng = np.random.default_rng(3)
    rows = rng.integers(0, len(frames), 60)  # clips more than once, their stretches overlap
    start = rng.integers(0, source.n_frames[rows])
    length = rng.integers(1, source.n_frames[rows] - start + 1)
    found = dict(source.windows(rows, start, length))
    assert sorted(found) == list(range(60))
    for place, values in found.items():
        expected = frames[rows[place]][start[place] : start[place] + length[place]]
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)
        assert values.base is None  # a view would hold on to its neighbours
    assert source.stored_bytes(rows) == (source.frame_bytes(rows) * source.n_frames[rows]).sum()
    none = np.array([], np.int64)
    assert list(source.windows(none, none, none)) == []


def test_stretches_outside_their_clip_are_refused(store: Store) -> None:
    source, _ = build(store, LENGTHS)
    whole = int(source.n_frames[1])
    for start, length in [(-1, 1), (0, 0), (0, whole + 1), (whole, 1), (1, (1 << 63) - 1)]:
        with pytest.raises(IndexError, match="clip 1"):
            list(source.windows(np.array([0, 1]), np.array([0, start]), np.array([1, length])))


def test_a_read_spans_little_even_when_few_clips_are_wanted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = build(store, [[5] * 200])
    rows = np.flatnonzero(source._offset % 20 == 0)  # every fourth clip
    reads: list[slice] = []
    original = Part.frames

    def counted(part: Part, which: slice) -> np.ndarray:
        reads.append(which)
        return original(part, which)

    monkeypatch.setattr(Part, "frames", counted)
    monkeypatch.setattr(stream, "_READ_BYTES", 100 * DIM * 2)
    source.load(rows)
    assert len(reads) == 10
    assert max(which.stop - which.start for which in reads) <= 105


def test_several_numbers_name_an_epoch() -> None:
    source = FrameSource.__new__(FrameSource)
    source.dim, source.n_frames, source._rank = 4, np.full(3000, 10), np.arange(3000)
    rows = np.arange(3000)
    plans = [source.drawn(rows, epoch=epoch, block_bytes=32_000) for epoch in (5, (5, 1), (5, 2), (5, 1))]
    assert plans[1][0].tolist() == plans[3][0].tolist()
    assert len({tuple(drawn.tolist()) for drawn, _ in plans}) == 3
    drawn, bound = plans[1]
    blocks = source.plan(rows, epoch=(5, 1), block_bytes=32_000)
    assert [len(block) for block in blocks] == np.diff(bound).tolist()
    assert [block.tolist() for block in blocks] == [
        sorted(drawn[first:last].tolist()) for first, last in pairwise(bound)
    ]


@pytest.mark.usefixtures("codec")
def test_kept_clips_are_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source, frames = build(store, LENGTHS)
    everything = np.arange(len(frames))
    total = source.stored_bytes(everything)
    assert total == sum(values.nbytes for values in frames)
    assert source.keep(everything, total) == total
    for _ in range(2):
        for row, found in source.read(everything, block_bytes=700):
            np.testing.assert_array_equal(found, frames[row])
    monkeypatch.setattr(Part, "frames", lambda *_: pytest.fail("read again"))
    for row, found in source.read(everything[2:]):
        np.testing.assert_array_equal(found, frames[row])
        np.testing.assert_array_equal(source.frames(row, 0, 1), frames[row][:1])
    monkeypatch.undo()
    half = source.keep(everything, total // 2)
    assert 0 < half <= total // 2
    for row, found in source.read(everything, block_bytes=700):
        np.testing.assert_array_equal(found, frames[row])
    assert sum(values.nbytes for values in source._kept.values()) == half
    assert all(
        values.base is None for values in source._kept.values()
    )  # no view, which would hold on to its neighbours
    assert source.keep(everything, 0) == 0
    assert not source._kept


def test_a_gap_between_kept_clips_is_not_kept(store: Store) -> None:
    source, frames = build(store, LENGTHS)
    rows = np.arange(len(frames))[::2]
    kept = source.keep(rows, 1 << 20)
    assert kept == sum(frames[row].nbytes for row in rows)
    for row, found in source.read(np.arange(len(frames))):
        np.testing.assert_array_equal(found, frames[row])
    assert sum(values.nbytes for values in source._kept.values()) == kept


def test_a_block_over_the_limit_stays_on_disk(store: Store) -> None:
    source, frames = build(store, LENGTHS)
    plan = source.plan(np.arange(len(frames)), epoch=1, block_bytes=40 * DIM * 4)
    seen = []
    for block in source.blocks(plan, limit_bytes=50 * DIM * 4):
        large = sum(len(frames[row]) for row in block.rows) > 50
        assert (block.frames is None) == large
        seen.append(large)
    assert set(seen) == {True, False}


def test_the_next_block_is_read_while_one_is_in_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source, frames = build(store, LENGTHS)
    threads, begun = set(), threading.Semaphore(0)
    original = FrameSource.load

    def load(self: FrameSource, rows: np.ndarray) -> list[np.ndarray]:
        threads.add(threading.current_thread())
        begun.release()
        return original(self, rows)

    monkeypatch.setattr(FrameSource, "load", load)
    blocks = source.blocks(source.plan(np.arange(len(frames)), block_bytes=800))
    next(blocks)
    assert begun.acquire(timeout=30)
    assert begun.acquire(timeout=30)  # the second one without anybody asking for it
    assert not begun.acquire(blocking=False)  # and no third: memory is bounded
    assert threading.current_thread() not in threads
    blocks.close()
    assert not any(thread.is_alive() for thread in threads)


def test_no_clips_are_no_blocks(store: Store) -> None:
    source, _ = build(store, LENGTHS)
    none = np.array([], np.int64)
    assert source.plan(none, epoch=3) == []
    assert list(source.blocks([])) == []
    assert source.load(none) == []
    assert source.keep(none, 100) == 0


def chunk_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted((folder / "frames/c").rglob("*")) if path.is_file())


@pytest.mark.usefixtures("codec")
def test_damage_is_found(store: Store) -> None:
    source, frames = build(store, LENGTHS)
    rows = np.arange(len(frames))
    path = next(chunk_files(source._parts[1].path))
    flip_byte(path, 20)
    with pytest.raises(CorruptError, match="checksum"):
        list(source.read(rows, block_bytes=900))


def test_clips_outside_their_part_and_parts_that_differ_are_refused(store: Store) -> None:
    source, _ = build(store, LENGTHS)
    parts = source._parts
    one = np.array([1])
    for offset, count in [(-1, 3), (70, 6), (0, 0), (75, 1), (0, 1 << 62), ((1 << 63) - 1, 1)]:
        with pytest.raises(CorruptError, match="frames"):
            FrameSource(parts, one, np.array([offset]), np.array([count]))
    with pytest.raises(IndexError):
        source.frames(0, 0, int(source.n_frames[0]) + 1)
    other = put_part(store, address(shard="other"), dim=DIM + 1, lengths=[3])
    with pytest.raises(CorruptError, match="dimensions"):
        FrameSource([*parts, other], one, np.array([0]), np.array([3]))
