"""Read rows of a Zarr v3 array of a part, every checksum checked.

The arrays that :mod:`xares_store.store.part` writes are read directly. An uncompressed shard is chunk, checksum, chunk,
checksum, ..., index, so one ``preadv`` scatters a run of chunks straight into the result; Zstandard chunks are decoded
on a few threads. Everything else goes through zarr. All ways give the same numbers; the direct ones are several times
faster and do not import zarr.
"""

from __future__ import annotations

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xares_store.errors import CorruptError
from xares_store.store.files import read_small

_ABSENT = (1 << 64) - 1
_IOV_MAX = 512  # half of what Linux and macOS allow in one call
_FEW = 4
_MAX_CHUNK_BYTES = 2 << 30
_CODECS = {"bytes", "crc32c", "zstd", "blosc", "gzip", "sharding_indexed"}
_LITTLE: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_CRC: dict[str, Any] = {"name": "crc32c"}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ArrayMeta:
    """What ``zarr.json`` says about a two-dimensional array.

    Attributes:
        rows: number of rows.
        dim: number of columns; chunks span all of them.
        dtype: ``<f2`` or ``<f4``.
        chunk_rows: rows of an inner chunk.
        shard_rows: rows of a shard; equal to ``chunk_rows`` without sharding.
        sharded: whether files are shards.
        codec: ``raw`` or ``zstd`` for the direct reader; ``zarr`` for what only zarr understands.
    """

    rows: int
    dim: int
    dtype: np.dtype[Any]
    chunk_rows: int
    shard_rows: int
    sharded: bool
    codec: Literal["raw", "zstd", "zarr"]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk."""
        return self.chunk_rows * self.dim * self.dtype.itemsize


def read_meta(folder: Path) -> ArrayMeta:
    """Read and validate ``zarr.json``; only plain codecs and bounded sizes are accepted.

    Raises:
        CorruptError: names the file and what is wrong.
    """
    path = folder / "zarr.json"
    data = read_small(path, limit=1 << 20)
    try:
        return _parse_meta(json.loads(data))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise CorruptError(
            f"Expected a two-dimensional Zarr v3 array, found something else ({error}).", where=path
        ) from error


def _parse_meta(record: dict[str, Any]) -> ArrayMeta:
    if record["zarr_format"] != 3 or record["node_type"] != "array" or record.get("storage_transformers"):
        raise ValueError("not a plain array")
    rows, dim = (int(size) for size in record["shape"])
    outer_rows, outer_dim = (int(size) for size in record["chunk_grid"]["configuration"]["chunk_shape"])
    codecs: list[dict[str, Any]] = record["codecs"]
    sharded = codecs[0]["name"] == "sharding_indexed"
    chunk_rows, chunk_dim, location = outer_rows, outer_dim, "end"
    index_codecs: list[dict[str, Any]] = [_LITTLE, _CRC]
    if sharded:
        shard = codecs[0]["configuration"]
        chunk_rows, chunk_dim = (int(size) for size in shard["chunk_shape"])
        index_codecs, location = shard["index_codecs"], shard.get("index_location", "end")
        if len(codecs) != 1:
            raise ValueError("a codec around a shard")
        codecs = shard["codecs"]
    names = [codec["name"] for codec in [*codecs, *index_codecs]]
    if unknown := set(names) - _CODECS:
        raise ValueError(f"codec {sorted(unknown)[0]!r} is not one this store uses")
    if names.count("crc32c") < 2:
        raise ValueError("no crc32c checksum")
    dtype: np.dtype[Any] = np.dtype({"float16": "<f2", "float32": "<f4"}[record["data_type"]])
    if not (rows >= 0 and dim >= 1 and outer_dim == chunk_dim == dim and 1 <= chunk_rows <= outer_rows):
        raise ValueError("unusual shape")
    if outer_rows % chunk_rows or chunk_rows * dim * dtype.itemsize > _MAX_CHUNK_BYTES:
        raise ValueError("unusual chunks")
    codec: Literal["raw", "zstd", "zarr"] = "zarr"
    known_index = index_codecs == [_LITTLE, _CRC] and location == "end"
    if known_index and record["chunk_key_encoding"] == _KEYS and hasattr(os, "preadv"):
        if codecs == [_LITTLE, _CRC]:
            codec = "raw"
        elif names[:3] == ["bytes", "zstd", "crc32c"] and codecs[0] == _LITTLE and sharded:
            codec = "zstd"
    return ArrayMeta(rows, dim, dtype, chunk_rows, outer_rows, sharded, codec)


def read_rows(folder: Path, meta: ArrayMeta, start: int = 0, stop: int | None = None) -> Array:
    """Read rows ``[start, stop)`` of an array.

    Args:
        folder: folder of the array (holds ``zarr.json``).
        meta: from :func:`read_meta`; compare its shape with the manifest before trusting it.
        start: first row, 0 or more.
        stop: one past the last row; None for all.

    Returns:
        ``(stop - start, dim)`` in the stored dtype.

    Raises:
        CorruptError: a checksum fails, or a chunk or file is missing; names the file.
        IndexError: rows outside the array.
    """
    stop = meta.rows if stop is None else stop
    if not 0 <= start <= stop <= meta.rows:
        raise IndexError(f"Rows {start}:{stop} are outside 0:{meta.rows}.")
    if start == stop:
        return np.empty((0, meta.dim), meta.dtype)
    if meta.codec == "zarr":
        return _read_zarr(folder, meta, start, stop)
    out = np.empty((stop - start, meta.dim), meta.dtype)
    for shard in range(start // meta.shard_rows, (stop - 1) // meta.shard_rows + 1):
        first = shard * meta.shard_rows
        low, high = max(start, first), min(stop, first + meta.shard_rows)
        path = folder / "c" / str(shard) / "0"
        try:
            handle = os.open(path, os.O_RDONLY)
            try:
                read = _read_raw if meta.codec == "raw" else _read_zstd
                read(handle, path, meta, low - first, high - first, out[low - start : high - start])
            finally:
                os.close(handle)
        except OSError as error:
            if isinstance(error, CorruptError):
                raise
            raise CorruptError(f"The file cannot be read ({error.strerror or error}).", where=path) from error
    return out


def _places(handle: int, path: Path, meta: ArrayMeta, chunks: range) -> NDArray[np.int64]:
    """Where each chunk starts and how long it is, after checking the index and that every chunk lies inside the file."""
    size = os.fstat(handle).st_size
    if not meta.sharded:
        if size != meta.chunk_bytes + 4:
            raise CorruptError(f"Expected {meta.chunk_bytes + 4:,} bytes, found {size:,}.", where=path)
        return np.array([[0, size]], np.int64)
    count = meta.shard_rows // meta.chunk_rows
    length = 16 * count + 4
    if size < length:
        raise CorruptError(f"Expected at least {length:,} bytes, found {size:,}.", where=path)
    data = os.pread(handle, length, size - length)
    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise CorruptError("The shard index does not match its checksum.", where=path)
    index = np.frombuffer(data, "<u8", 2 * count).reshape(count, 2)[chunks.start : chunks.stop]
    if (index == _ABSENT).any():
        raise CorruptError("A chunk is missing.", where=path)
    limit = size - length
    wrong = meta.codec == "raw" and (index[:, 1] != meta.chunk_bytes + 4).any()
    if wrong or (index > limit).any() or (index[:, 1] < 5).any() or (index.sum(axis=1) > limit).any():
        raise CorruptError("The shard index points outside its file.", where=path)
    return index.astype(np.int64)


def _chunks(meta: ArrayMeta, low: int, high: int) -> range:
    return range(low // meta.chunk_rows, (high - 1) // meta.chunk_rows + 1)


def _read_raw(handle: int, path: Path, meta: ArrayMeta, low: int, high: int, out: Array) -> None:
    """Fill ``out`` with rows ``[low, high)`` of one file; each run of neighbouring chunks is one scattered read."""
    size = meta.chunk_rows
    chunks = _chunks(meta, low, high)
    offsets = _places(handle, path, meta, chunks)[:, 0]
    tails = np.empty((len(chunks), 4), np.uint8)
    targets: list[Array] = []
    edges: list[tuple[Array, int, int]] = []  # chunks of which only some rows are wanted, and where those go
    for chunk in chunks:
        first = chunk * size
        if first >= low and first + size <= high:
            targets.append(out[first - low : first - low + size])
        else:
            scratch = np.empty((size, meta.dim), meta.dtype)
            targets.append(scratch)
            edges.append((scratch, max(low, first), min(high, first + size)))
    step = meta.chunk_bytes + 4
    begin = 0
    while begin < len(chunks):
        end = begin + 1
        here = int(offsets[begin])
        while end < len(chunks) and end - begin < _IOV_MAX // 2 and offsets[end] == here + (end - begin) * step:
            end += 1
        _scatter(handle, path, here, [*itertools.chain(*zip(targets[begin:end], tails[begin:end], strict=True))])
        begin = end
    for target, tail in zip(targets, tails, strict=True):
        if google_crc32c.value(target.reshape(-1).view(np.uint8)) != int.from_bytes(tail.tobytes(), "little"):
            raise CorruptError("A chunk does not match its checksum.", where=path)
    for scratch, first, last in edges:
        origin = first // size * size
        out[first - low : last - low] = scratch[first - origin : last - origin]


def _read_zstd(handle: int, path: Path, meta: ArrayMeta, low: int, high: int, out: Array) -> None:
    """Fill ``out`` with rows ``[low, high)`` of one file of Zstandard chunks, decoded on a few threads."""
    chunks = _chunks(meta, low, high)
    places = _places(handle, path, meta, chunks)

    def decode(number: int) -> None:
        offset, length = (int(value) for value in places[number])
        data = os.pread(handle, length, offset)
        if len(data) != length or google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise CorruptError("A chunk does not match its checksum.", where=path)
        try:
            # The size is known beforehand, so no stranger's chunk can unpack to more.
            raw = pa.Codec("zstd").decompress(data[:-4], decompressed_size=meta.chunk_bytes)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptError(f"A chunk cannot be decompressed ({error}).", where=path) from error
        if raw.size != meta.chunk_bytes:
            raise CorruptError(f"Expected a chunk of {meta.chunk_bytes:,} bytes, found {raw.size:,}.", where=path)
        rows = np.frombuffer(raw, meta.dtype).reshape(meta.chunk_rows, meta.dim)
        first = chunks[number] * meta.chunk_rows
        begin, end = max(low, first), min(high, first + meta.chunk_rows)
        out[begin - low : end - low] = rows[begin - first : end - first]

    if len(chunks) <= _FEW:
        for number in range(len(chunks)):
            decode(number)
        return
    with ThreadPoolExecutor(max_workers=min(_FEW, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(chunks))):
            pass


def _scatter(handle: int, path: Path, offset: int, buffers: list[Array]) -> None:
    views = [memoryview(buffer.reshape(-1).view(np.uint8).data) for buffer in buffers]
    while views:
        done = os.preadv(handle, views, offset)
        if done == 0:
            raise CorruptError("The file ends too early.", where=path)
        offset += done
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:  # the kernel may stop anywhere, a signal or the 2 GiB limit of one call
            views[0] = views[0][done:]


def _read_zarr(folder: Path, meta: ArrayMeta, start: int, stop: int) -> Array:
    import zarr

    for shard in range(start // meta.shard_rows, (stop - 1) // meta.shard_rows + 1):
        path = folder / "c" / str(shard) / "0"
        if not path.is_file():  # zarr would read a missing file as zeros
            raise CorruptError("The file is missing.", where=path)
    try:
        array = zarr.open_array(store=folder, mode="r")
        return np.asarray(array[start:stop])
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # zarr meets metadata that nobody writes with whatever its code happens to raise.
        raise CorruptError(f"The array cannot be read ({error}).", where=folder) from error
