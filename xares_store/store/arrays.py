"""Write the Zarr arrays of a part: whole shards only, each written once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Codec = Literal["crc32c", "zstd+crc32c"]

SHARD_BYTES = 64 << 20
# float16 alone is just above half of float32 with clip rows and checksums on top. Zstandard's fastest level takes 8 % off
# even from Gaussian noise, 16 to 22 % from log-mel and modulation features and more than half from features after a ReLU;
# decoding runs at 1.6 GB/s a core, which is several times what a probe consumes.
ZSTD_GAIN = 1.05
ZSTD_LEVEL = 1
_SAMPLE_BYTES = 4 << 20


def chunk_rows(rows: int, dim: int, itemsize: int) -> tuple[int, int]:
    """Choose rows per chunk and rows per shard.

    Chunks hold about 1 MiB, 256 KiB for narrow features whose clips are small; shards about 64 MiB. The rows are spread
    evenly over the chunks so that the last one is not mostly padding.

    Example:
        >>> chunk_rows(1_000_000, 768, 2)
        (682, 43648)
        >>> chunk_rows(1000, 64, 2)
        (1000, 1000)
    """
    target = (1 << 20) if dim >= 256 else (256 << 10)
    most = max(1, target // (dim * itemsize))
    count = max(1, -(-rows // most))
    chunk = max(1, -(-rows // count))
    per_shard = max(1, SHARD_BYTES // (chunk * dim * itemsize))
    return chunk, chunk * min(per_shard, count)


def write_frames(
    path: Path, clips: Sequence[NDArray[Any]], rows: int, dim: int, dtype: Literal["float16", "float32"]
) -> Codec:
    """Write clips end to end as a sharded array ``(rows, dim)``.

    Args:
        path: folder of the new array.
        clips: ``(n_frames, dim)`` each, all of one dtype.
        rows: sum of their lengths.
        dim: columns.
        dtype: of the clips, and of the array.

    Returns:
        The codec: ``zstd+crc32c`` when a sample of the data shrinks by more than 5 %, else ``crc32c``.
    """
    kind: np.dtype[Any] = np.dtype({"float16": "<f2", "float32": "<f4"}[dtype])
    chunk, shard = chunk_rows(rows, dim, kind.itemsize)
    codec: Codec = "zstd+crc32c" if _gain(clips) > ZSTD_GAIN else "crc32c"
    array = _create(path, (rows, dim), kind, chunk, shard, codec)
    clip, inside = 0, 0
    for start in range(0, rows, shard):
        block = np.empty((min(shard, rows - start), dim), kind)
        filled = 0
        while filled < len(block):
            take = min(len(clips[clip]) - inside, len(block) - filled)
            block[filled : filled + take] = clips[clip][inside : inside + take]
            filled, inside = filled + take, inside + take
            if inside == len(clips[clip]):
                clip, inside = clip + 1, 0
        array[start : start + len(block)] = block
    return codec


def write_pooled(path: Path, vectors: Sequence[NDArray[np.float32]], dim: int) -> None:
    """Write the clips' mean vectors as one chunk ``(clips, dim)`` float32."""
    rows = len(vectors)
    array = _create(path, (rows, dim), np.dtype("<f4"), max(1, rows), None, "crc32c")
    if rows:
        array[:] = np.stack(vectors)


def _create(
    path: Path, shape: tuple[int, int], dtype: np.dtype[Any], chunk: int, shard: int | None, codec: Codec
) -> Any:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return zarr.create_array(
        store=path,
        shape=shape,
        dtype=dtype,
        chunks=(chunk, shape[1]),
        shards=None if shard is None else (shard, shape[1]),
        filters=None,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()] if codec == "zstd+crc32c" else [Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},  # so that an absent chunk always means damage
    )


def _gain(clips: Sequence[NDArray[Any]]) -> float:
    """How much zstd shrinks a sample: up to 4 MiB taken from clips spread over the part."""
    from numcodecs.zstd import Zstd  # what zarr compresses with

    sample, size = [], 0
    for clip in clips[:: max(1, len(clips) // 16)]:
        data = clip[: max(1, _SAMPLE_BYTES // 16 // max(1, clip.shape[1] * clip.itemsize))].tobytes()
        sample.append(data)
        size += len(data)
    if not size:
        return 1.0
    return size / len(Zstd(level=ZSTD_LEVEL).encode(b"".join(sample)))
