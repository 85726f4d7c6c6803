from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

from tests.store.conftest import flip_byte, make_frames, put_part
from xares_store.errors import CorruptError
from xares_store.store import Store, arrays
from xares_store.store.reader import read_meta, read_rows


@pytest.fixture(params=["raw", "zstd"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(arrays, "ZSTD_GAIN", 1e9 if request.param == "raw" else 0.0)
    return str(request.param)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several chunks from a few hundred rows."""
    monkeypatch.setattr(arrays, "SHARD_BYTES", 4096)
    monkeypatch.setattr(arrays, "chunk_rows", lambda rows, dim, itemsize: (7, 28) if rows >= 28 else (7, 7))


@pytest.mark.usefixtures("small_shards")
def test_equal_to_zarr_at_every_place(store: Store, codec: str) -> None:
    part = put_part(store, dim=3, frames=make_frames([40, 1, 61, 9], 3))
    folder = part.path / "frames"
    meta = read_meta(folder)
    assert meta.codec == codec
    assert len(list((folder / "c").iterdir())) == 4
    wanted = zarr.open_array(store=folder, mode="r")[:]
    rng = np.random.default_rng(0)
    ranges = [(0, 0), (0, 111), (6, 8), (7, 14), (27, 29), (28, 56), (110, 111), (111, 111)]
    ranges += [tuple(sorted(int(value) for value in rng.integers(0, 112, 2))) for _ in range(60)]
    for start, stop in ranges:
        np.testing.assert_array_equal(read_rows(folder, meta, start, stop), wanted[start:stop])


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 3000), dim=st.sampled_from([1, 3, 64, 300]), data=st.data())
def test_equal_to_zarr_with_real_chunk_sizes(
    tmp_path_factory: pytest.TempPathFactory, rows: int, dim: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("a") / "frames"
    frames = np.random.default_rng(rows).standard_normal((rows, dim)).astype(np.float16)
    arrays.write_frames(folder, [frames], rows, dim, "float16")
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    np.testing.assert_array_equal(read_rows(folder, read_meta(folder), start, stop), frames[start:stop])
    np.testing.assert_array_equal(zarr.open_array(store=folder, mode="r")[start:stop], frames[start:stop])


def test_many_chunks_in_one_read(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).standard_normal((4000, 2)).astype(np.float32)
    array = zarr.create_array(
        store=tmp_path / "a", shape=frames.shape, dtype="<f4", chunks=(1, 2), shards=(4000, 2), filters=None,
        compressors=[Crc32cCodec()], config={"write_empty_chunks": True},
    )  # fmt: skip
    array[:] = frames
    meta = read_meta(tmp_path / "a")
    assert meta.codec == "raw"
    np.testing.assert_array_equal(read_rows(tmp_path / "a", meta), frames)


@pytest.mark.parametrize("compressor", [BloscCodec(), GzipCodec()])
def test_other_codecs_go_through_zarr(tmp_path: Path, compressor: object) -> None:
    frames = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float16)
    array = zarr.create_array(
        store=tmp_path / "a", shape=frames.shape, dtype="<f2", chunks=(5, 4), shards=(20, 4), filters=None,
        compressors=[compressor, Crc32cCodec()], config={"write_empty_chunks": True},
    )  # fmt: skip
    array[:] = frames
    meta = read_meta(tmp_path / "a")
    assert meta.codec == "zarr"
    np.testing.assert_array_equal(read_rows(tmp_path / "a", meta, 3, 33), frames[3:33])
    flip_byte(tmp_path / "a/c/0/0", 30)
    with pytest.raises(CorruptError):
        read_rows(tmp_path / "a", meta)
    (tmp_path / "a/c/1/0").unlink()
    with pytest.raises(CorruptError, match="missing"):
        read_rows(tmp_path / "a", meta, 20, 22)


@pytest.mark.usefixtures("small_shards")
def test_every_flipped_byte_raises(store: Store, codec: str) -> None:
    part = put_part(store, dim=2, frames=make_frames([12], 2))
    path = part.path / "frames/c/0/0"
    intact = path.read_bytes()
    meta = read_meta(part.path / "frames")
    for position in range(len(intact)):
        flip_byte(path, position)
        with pytest.raises(CorruptError) as caught:
            read_rows(part.path / "frames", meta)
        assert str(path) in str(caught.value)
        path.write_bytes(intact)
    for length in (0, 3, 40, len(intact) - 1):
        path.write_bytes(intact[:length])
        with pytest.raises(CorruptError):
            read_rows(part.path / "frames", meta)
    path.unlink()
    with pytest.raises(CorruptError):
        read_rows(part.path / "frames", meta)


def test_an_absent_chunk_is_damage_not_zeros(tmp_path: Path) -> None:
    array = zarr.create_array(
        store=tmp_path / "a", shape=(8, 2), dtype="<f2", chunks=(2, 2), shards=(8, 2), filters=None,
        compressors=[Crc32cCodec()], fill_value=0, config={"write_empty_chunks": False},
    )  # fmt: skip
    array[:2] = 1  # the other chunks are not written
    meta = read_meta(tmp_path / "a")
    np.testing.assert_array_equal(read_rows(tmp_path / "a", meta, 0, 2), np.ones((2, 2)))
    with pytest.raises(CorruptError, match="missing"):
        read_rows(tmp_path / "a", meta)


def _edit(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "zarr.json").read_text())
    record.update(changes)
    (folder / "zarr.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [10]},
        {"shape": [-1, 5]},
        {"shape": ["x", 5]},
        {"data_type": "object"},
        {"zarr_format": 2},
        {"codecs": []},
        {"codecs": [{"name": "bytes"}, {"name": "pickle"}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 5]}}},
        {"storage_transformers": [{"name": "x"}]},
        {"chunk_key_encoding": 1},
    ],
)
def test_strange_metadata_is_refused(store: Store, changes: dict) -> None:
    part = put_part(store)
    _edit(part.path / "frames", **changes)
    with pytest.raises(CorruptError):
        read_rows(part.path / "frames", read_meta(part.path / "frames"))


def test_rows_outside_are_refused(store: Store) -> None:
    part = put_part(store)
    meta = read_meta(part.path / "frames")
    for start, stop in [(-1, 2), (3, 2), (0, meta.rows + 1)]:
        with pytest.raises(IndexError):
            read_rows(part.path / "frames", meta, start, stop)


def test_short_reads_are_continued(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "ZSTD_GAIN", 1e9)
    part = put_part(store, dim=3, frames=make_frames([50], 3))
    real = os.preadv

    def short(handle: int, buffers: list, offset: int) -> int:
        return real(handle, [memoryview(buffers[0])[:17]], offset)

    wanted = part.frames()
    monkeypatch.setattr(os, "preadv", short)
    np.testing.assert_array_equal(part.frames(), wanted)


def test_a_bomb_is_not_unpacked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import google_crc32c
    import pyarrow as pa

    monkeypatch.setattr(arrays, "ZSTD_GAIN", 0.0)
    part = put_part(store, dim=1, frames=[np.arange(6, dtype=np.float32)[:, None]])
    path = part.path / "frames/c/0/0"
    packed = pa.Codec("zstd").compress(b"\0" * (256 << 20), asbytes=True)
    chunk = packed + google_crc32c.value(packed).to_bytes(4, "little")
    index = np.array([[0, len(chunk)]], "<u8").tobytes()
    path.write_bytes(chunk + index + google_crc32c.value(index).to_bytes(4, "little"))
    with pytest.raises(CorruptError):
        read_rows(part.path / "frames", read_meta(part.path / "frames"))
