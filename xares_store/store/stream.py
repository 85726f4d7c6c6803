"""Stream the frames of many clips: neighbours are read together, in a seeded order, ahead of use and within a budget.

The order depends on the clips and the epoch alone, never on how much memory there is, so that a training gives the same
result in one gigabyte as in a hundred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xares_store.errors import CorruptError
from xares_store.store.opened import Part

Array = NDArray[Any]
Indices = NDArray[np.int64]

# Bytes of frames as float32, whatever they are stored as. A run is a few Zarr chunks, so that little is read twice; a
# block is drawn from eight places of the store. Training depends on both through the order of clips.
RUN_BYTES = 8 << 20
BLOCK_BYTES = 64 << 20
# Clips closer together than this are read in one go: the chunk between them would be read anyway.
_GAP_BYTES = 1 << 20
# Long stretches are read in pieces, so that what has been used can be freed before the rest.
_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Block:
    """Clips that are in memory together.

    Attributes:
        rows: ``(clips,)`` which clips, in storage order.
        frames: ``(n_frames, dim)`` for each of them, in the stored dtype; None for a block that does not fit into the
            memory allowed, whose clips are read with :meth:`FrameSource.frames`.
    """

    rows: Indices
    frames: list[Array] | None


class FrameSource:
    """The frames of the clips of an evaluation: row i of its clip table is clip i here.

    Args:
        parts: committed parts of one encoder, checked whole (:func:`xares_store.store.checked.check_parts`).
        part: ``(clips,)`` which of the parts holds a clip.
        offset: ``(clips,)`` its first frame there.
        n_frames: ``(clips,)`` how many frames it has.

    Attributes:
        n_frames: as given.
        dim: size of an embedding.
        hop_ms: time between two frames.

    Raises:
        CorruptError: a clip lies outside its part, or parts differ in dimension or hop.

    Example:
        ``for row, frames in FrameSource(parts, part, offset, n_frames).read(rows): ...``
    """

    def __init__(self, parts: Sequence[Part], part: Indices, offset: Indices, n_frames: Indices) -> None:
        first = parts[0].manifest
        self._parts = list(parts)
        self.dim, self.hop_ms = first.dim, first.hop_ms
        for one in parts:
            found = one.manifest
            if (found.dim, found.hop_ms) != (self.dim, self.hop_ms):
                raise CorruptError(
                    f"Expected {self.dim} dimensions every {self.hop_ms:g} ms in all parts, found {found.dim} every "
                    f"{found.hop_ms:g} ms.",
                    where=one.path,
                )
        self._part, self._offset = part.astype(np.int64), offset.astype(np.int64)
        self.n_frames = n_frames.astype(np.int64)
        rows = np.array([one.manifest.counts.frames for one in parts], np.int64)[self._part]
        wrong = (
            (self._offset < 0) | (self.n_frames < 1) | (self.n_frames > rows) | (self._offset > rows - self.n_frames)
        )
        if wrong.any():
            clip = int(np.flatnonzero(wrong)[0])
            raise CorruptError(
                f"Clip {clip} has {self.n_frames[clip]} frames from frame {self._offset[clip]} on, which its part of "
                f"{rows[clip]} frames does not hold.",
                where=self._parts[int(self._part[clip])].path,
            )
        self._itemsize = np.array([2 if one.manifest.dtype == "float16" else 4 for one in parts], np.int64)[self._part]
        self._rank = np.empty(len(self._part), np.int64)
        self._rank[np.lexsort((self._offset, self._part))] = np.arange(len(self._part))
        self._keep = np.zeros(len(self._part), bool)
        self._kept: dict[int, Array] = {}

    def stored_bytes(self, rows: Indices) -> int:
        """Bytes of the clips' frames in the stored dtype."""
        return int((self.n_frames[rows] * self._itemsize[rows]).sum()) * self.dim

    def float_bytes(self, rows: Indices) -> int:
        """Bytes of the clips' frames as float32."""
        return int(self.n_frames[rows].sum()) * 4 * self.dim

    def frames(self, row: int, start: int = 0, stop: int | None = None) -> Array:
        """Frames ``[start, stop)`` of one clip, ``(stop - start, dim)`` in the stored dtype.

        Raises:
            CorruptError: a checksum fails.
            IndexError: frames outside the clip.
        """
        stop = int(self.n_frames[row]) if stop is None else stop
        if not 0 <= start <= stop <= self.n_frames[row]:
            raise IndexError(f"Frames {start}:{stop} are outside 0:{self.n_frames[row]} of clip {row}.")
        if row in self._kept:
            return self._kept[row][start:stop]
        first = int(self._offset[row])
        return self._parts[int(self._part[row])].frames(slice(first + start, first + stop))

    def keep(self, rows: Indices, limit_bytes: int) -> int:
        """Hold clips in memory once they have been read: as many as fit, the first ones in storage order.

        Args:
            rows: clips that will be read again and again.
            limit_bytes: for all of them; 0 lets go of everything.

        Returns:
            Bytes that will be held.
        """
        ordered = self._stored_order(rows)
        total = np.cumsum(self.n_frames[ordered] * self._itemsize[ordered]) * self.dim
        count = int(np.searchsorted(total, limit_bytes, side="right"))
        self._keep[:] = False
        self._keep[ordered[:count]] = True
        self._kept = {row: frames for row, frames in self._kept.items() if self._keep[row]}
        return int(total[count - 1]) if count else 0

    def load(self, rows: Indices) -> list[Array]:
        """Read whole clips, neighbours together.

        Args:
            rows: clips, in any order.

        Returns:
            ``(n_frames, dim)`` for each, in the order given.
        """
        found = {row: self._kept[row] for row in rows.tolist() if row in self._kept}
        missing = self._stored_order(np.array([row for row in rows.tolist() if row not in found], np.int64))
        for group in self._reads(missing):
            start = int(self._offset[group[0]])
            stop = int((self._offset[group] + self.n_frames[group]).max())
            data = self._parts[int(self._part[group[0]])].frames(slice(start, stop))
            for row in group.tolist():
                first = int(self._offset[row]) - start
                clip = data[first : first + int(self.n_frames[row])]
                if self._keep[row]:
                    found[row] = self._kept[row] = clip.copy()  # a view would hold on to its neighbours
                else:
                    found[row] = clip
        return [found[row] for row in rows.tolist()]

    def read(self, rows: Indices, *, block_bytes: int = RUN_BYTES) -> Iterator[tuple[int, Array]]:
        """Read clips one after another, ahead of use.

        Args:
            rows: which clips.
            block_bytes: how much is read at once, as float32; the next so much is read meanwhile.

        Yields:
            Row and frames ``(n_frames, dim)`` in the stored dtype, in storage order.
        """
        for block in self.blocks(self.plan(rows, block_bytes=block_bytes)):
            yield from zip(block.rows.tolist(), block.frames or [], strict=True)

    def plan(
        self, rows: Indices, *, epoch: int | None = None, batch: int = 1, block_bytes: int = BLOCK_BYTES
    ) -> list[Indices]:
        """Divide clips into blocks.

        Args:
            rows: which clips.
            epoch: runs of neighbouring clips are drawn in an order that depends on the epoch and the clips alone; None
                keeps the storage order.
            batch: every block but the last has a multiple of so many clips, so that no batch spans two blocks.
            block_bytes: size of a block's frames as float32, one batch at least.

        Returns:
            The clips of each block, in storage order within a block.
        """
        ordered = self._stored_order(rows)
        size = self.n_frames[ordered] * (4 * self.dim)
        if epoch is not None and len(ordered):
            run_bytes = min(RUN_BYTES, max(1, block_bytes // 8))
            number = (np.cumsum(size) - size) // run_bytes
            starts = np.flatnonzero(np.diff(number, prepend=-1))
            runs = np.split(np.arange(len(ordered)), starts[1:])
            drawn = np.concatenate([runs[run] for run in np.random.default_rng(epoch).permutation(len(runs))])
            ordered, size = ordered[drawn], size[drawn]
        total = np.concatenate([[0], np.cumsum(size)])
        blocks, first = [], 0
        while first < len(ordered):
            fitting = int(np.searchsorted(total, total[first] + block_bytes, side="right")) - 1 - first
            last = first + max(batch, fitting // batch * batch)
            blocks.append(self._stored_order(ordered[first:last]))
            first = last
        return blocks

    def blocks(self, plan: Sequence[Indices], *, limit_bytes: int | None = None) -> Iterator[Block]:
        """Read the blocks of a plan, each while the one before is in use.

        Args:
            plan: from :meth:`plan`.
            limit_bytes: size of a block as float32 above which it is not loaded.

        Yields:
            One block after another. Emptying a block's list of frames frees them at once.

        Raises:
            CorruptError: a checksum fails; names the file.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="frames") as pool:

            def begin(number: int) -> Future[list[Array]] | None:
                if number >= len(plan) or (limit_bytes is not None and self.float_bytes(plan[number]) > limit_bytes):
                    return None
                return pool.submit(self.load, plan[number])

            ahead = begin(0)
            for number, rows in enumerate(plan):
                frames = None if ahead is None else ahead.result()
                ahead = begin(number + 1)
                yield Block(rows, frames)

    def _stored_order(self, rows: Indices) -> Indices:
        return rows[np.argsort(self._rank[rows], kind="stable")]

    def _reads(self, ordered: Indices) -> list[Indices]:
        """Group clips in storage order by the read that fetches them."""
        if not len(ordered):
            return []
        start = self._offset[ordered]
        stop = start + self.n_frames[ordered]
        row_bytes = self._itemsize[ordered] * self.dim
        apart = (np.diff(self._part[ordered]) != 0) | ((start[1:] - stop[:-1]) * row_bytes[1:] > _GAP_BYTES)
        total = np.cumsum(self.n_frames[ordered] * row_bytes)
        apart |= np.diff(total // _READ_BYTES) != 0
        return np.split(ordered, np.flatnonzero(apart) + 1)
