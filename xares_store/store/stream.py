"""Stream the frames of many clips: neighbours are read together, in a seeded order, ahead of use and within a budget.

The order depends on the clips and the epoch alone, never on how much memory there is, so that a training gives the same
result in one gigabyte as in a hundred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
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

    def frame_bytes(self, rows: Indices) -> Indices:
        """Bytes of one frame of each clip in the stored dtype, ``(clips,)``."""
        return self._itemsize[rows] * self.dim

    def stored_bytes(self, rows: Indices) -> int:
        """Bytes of the clips' frames in the stored dtype."""
        return int((self.n_frames[rows] * self.frame_bytes(rows)).sum())

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
        for places, start, data in self._reads(missing, self._offset[missing], self.n_frames[missing]):
            for row in missing[places].tolist():
                first = int(self._offset[row]) - start
                clip = data[first : first + int(self.n_frames[row])]
                if self._keep[row]:
                    found[row] = self._kept[row] = clip.copy()  # a view would hold on to its neighbours
                else:
                    found[row] = clip
        return [found[row] for row in rows.tolist()]

    def windows(self, rows: Indices, start: Indices, length: Indices) -> Iterator[tuple[int, Array]]:
        """Read stretches of many clips, neighbours together.

        Args:
            rows: ``(stretches,)`` which clips, in any order; a clip may stand there more than once.
            start: ``(stretches,)`` first frame of each, counted from the start of its clip.
            length: ``(stretches,)`` how many frames of each, 1 or more.

        Yields:
            Place among ``rows`` and frames ``(length, dim)`` in the stored dtype, in storage order. Every stretch has
            its own memory, so that dropping it frees it.

        Raises:
            CorruptError: a checksum fails.
            IndexError: frames outside a clip.
        """
        wrong = (start < 0) | (length < 1) | (start > self.n_frames[rows] - length)
        if wrong.any():
            row, first, count = (int(values[np.flatnonzero(wrong)[0]]) for values in (rows, start, length))
            raise IndexError(f"Frames {first}:{first + count} are outside 0:{self.n_frames[row]} of clip {row}.")
        begin = self._offset[rows] + start
        order = np.lexsort((begin, self._part[rows]))
        begin, length = begin[order], length[order]
        for places, first, data in self._reads(rows[order], begin, length):
            for place in places.tolist():
                at = int(begin[place]) - first
                yield int(order[place]), data if len(places) == 1 else data[at : at + int(length[place])].copy()

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
        self,
        rows: Indices,
        *,
        epoch: int | Sequence[int] | None = None,
        batch: int = 1,
        block_bytes: int = BLOCK_BYTES,
    ) -> list[Indices]:
        """Divide clips into blocks.

        Args:
            rows: which clips.
            epoch: runs of neighbouring clips are drawn in an order that depends on the epoch and the clips alone; None
                keeps the storage order. Several numbers, all 0 or more, name an epoch of one training among others.
            batch: every block but the last has a multiple of so many clips, so that no batch spans two blocks.
            block_bytes: size of a block's frames as float32, one batch at least.

        Returns:
            The clips of each block, in storage order within a block.
        """
        ordered, bound = self.drawn(rows, epoch=epoch, batch=batch, block_bytes=block_bytes)
        return [self._stored_order(ordered[first:last]) for first, last in pairwise(bound.tolist())]

    def drawn(
        self,
        rows: Indices,
        *,
        epoch: int | Sequence[int] | None,
        batch: int = 1,
        block_bytes: int = BLOCK_BYTES,
    ) -> tuple[Indices, Indices]:
        """Divide clips into the blocks of :meth:`plan`, as two arrays.

        Returns:
            ``(clips,)`` the clips, block after block, and ``(blocks + 1,)`` where each block begins and the last ends.
        """
        ordered = self._stored_order(rows)
        size = self.n_frames[ordered] * (4 * self.dim)
        if epoch is not None and len(ordered):
            run_bytes = min(RUN_BYTES, max(1, block_bytes // 8))
            run = np.cumsum(np.diff((np.cumsum(size) - size) // run_bytes, prepend=0) != 0)
            place = np.empty(int(run[-1]) + 1, np.int64)
            place[np.random.default_rng(epoch).permutation(len(place))] = np.arange(len(place))
            drawn = np.argsort(place[run], kind="stable")
            ordered, size = ordered[drawn], size[drawn]
        total = np.concatenate([[0], np.cumsum(size)])
        bound = [0]
        while bound[-1] < len(ordered):
            first = bound[-1]
            fitting = int(total.searchsorted(total[first] + block_bytes, side="right")) - 1 - first
            bound.append(min(len(ordered), first + max(batch, fitting // batch * batch)))
        return ordered, np.array(bound, np.int64)

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

    def _reads(self, rows: Indices, begin: Indices, length: Indices) -> Iterator[tuple[Indices, int, Array]]:
        """Read stretches that are in storage order, neighbours in one go.

        Args:
            rows: their clips.
            begin: first frame of each in its part.
            length: frames of each.

        Yields:
            Which stretches one read fetched, the frame of the part it began at, and its frames.
        """
        part, end = self._part[rows], begin + length
        row_bytes = self.frame_bytes(rows)
        apart = (np.diff(part) != 0) | ((begin[1:] - end[:-1]) * row_bytes[1:] > _GAP_BYTES)
        apart |= np.diff(begin * row_bytes // _READ_BYTES) != 0
        bound = [0, *(np.flatnonzero(apart) + 1).tolist(), len(rows)]
        for first, last in pairwise(bound if len(rows) else []):
            start, stop = int(begin[first]), int(end[first:last].max())
            yield np.arange(first, last), start, self._parts[int(part[first])].frames(slice(start, stop))
