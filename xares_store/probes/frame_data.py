"""The frames of clips as normalised tensors, block by block and within a memory budget.

The parameter-free half of the layer norm is the same for all probes, so it is applied once to a block. A block that does
not fit the budget stays on disk and is read slice by slice. Slices are cut at the same frames either way, so results do
not depend on the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xares_store.probes.clips import tensor_of
from xares_store.store.stream import BLOCK_BYTES, Block, FrameSource

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Roll = Callable[[int], npt.NDArray[np.uint8]]

# What slices, gradients, decoding and what the allocator holds back take beside the frames of a block: 55 to 80 MiB.
WORK_BYTES = 96 << 20
_SLICE_BYTES = 8 << 20
_NORM_BYTES = 2 << 20


def slice_rows(dim: int, columns: int) -> int:
    """Return how many frames are worked on at once: 8 MiB of frames, logits and gradients.

    Example:
        >>> slice_rows(768, 40)
        2259
    """
    return max(64, _SLICE_BYTES // (4 * dim + 16 * columns))


class BlockFrames:
    """One block: clips whose frames are taken in any order of clips.

    Args:
        source: where clips come from that are not in memory.
        block: its clips, in memory or not; the frames are taken over and freed.
        roll: row to targets ``(n_frames, classes)``; None where no targets are needed.
        buffer: room for the normalised frames of a block in memory, on the device where slices are wanted.
    """

    def __init__(self, source: FrameSource, block: Block, roll: Roll | None, buffer: Tensor) -> None:
        self.rows = block.rows
        self.n_frames = source.n_frames[block.rows]
        self._source, self._roll, self._device = source, roll, buffer.device
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        if block.frames is None:
            return
        self._bound = np.concatenate([[0], np.cumsum(self.n_frames)])
        self._x = buffer[: int(self._bound[-1])]
        for clip in reversed(range(len(block.rows))):
            self._x[int(self._bound[clip]) : int(self._bound[clip + 1])].copy_(tensor_of(block.frames.pop(), "cpu"))
        for part in self._x.split(max(1, _NORM_BYTES // (4 * source.dim))):  # type: ignore[no-untyped-call]
            part.copy_(_normalised(part))
        if roll is not None and len(block.rows):
            self._y = tensor_of(np.concatenate([roll(row) for row in block.rows.tolist()]), self._device)

    def slices(self, clips: IndexArray, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the frames of clips laid end to end, ``size`` at a time.

        Args:
            clips: positions in the block.
            size: frames in every slice but the last.

        Yields:
            Normalised frames ``(frames, dim)`` and targets ``(frames, classes)`` uint8, None without a ``roll``.
        """
        return self._from_disk(clips, size) if self._x is None else self._from_memory(self._x, clips, size)

    def _from_memory(self, x: Tensor, clips: IndexArray, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        index = np.concatenate([np.arange(self._bound[clip], self._bound[clip + 1]) for clip in clips.tolist()])
        # Always a copy: a product may round differently where its operands begin elsewhere in memory.
        for start in range(0, len(index), size):
            part = tensor_of(index[start : start + size], self._device)
            yield x.index_select(0, part), None if self._y is None else self._y.index_select(0, part)

    def _from_disk(self, clips: IndexArray, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        held: list[Tensor] = []
        held_y: list[Tensor] = []
        missing = size
        for clip in clips.tolist():
            row, count, start = int(self.rows[clip]), int(self.n_frames[clip]), 0
            y = None if self._roll is None else tensor_of(self._roll(row), self._device)
            while start < count:
                stop = min(count, start + missing)
                held.append(_normalised(tensor_of(self._source.frames(row, start, stop), self._device).float()))
                if y is not None:
                    held_y.append(y[start:stop])
                missing -= stop - start
                start = stop
                if missing == 0:
                    yield torch.cat(held), torch.cat(held_y) if held_y else None
                    held, held_y, missing = [], [], size
        if held:
            yield torch.cat(held), torch.cat(held_y) if held_y else None


class FrameReader:
    """Blocks of a source as tensors, within a memory budget.

    Args:
        source: the clips.
        n_classes: columns of the targets.
        device: where tensors are wanted.
        memory_bytes: for frames, targets, prefetched frames and work space together; what is left over keeps frames
            between epochs. However small it is, one slice is held.
        reserved_bytes: part of it that is taken already.
        block_bytes: size of a block of clips as float32; results depend on it through the order of clips.
    """

    def __init__(
        self,
        source: FrameSource,
        n_classes: int,
        *,
        device: str,
        memory_bytes: int,
        reserved_bytes: int = 0,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.source, self.device, self.block_bytes = source, device, block_bytes
        self._room = max(0, memory_bytes - reserved_bytes - WORK_BYTES)
        # A block in use takes its size as float32 and its targets, the one it was made from and the one that is being
        # read meanwhile their stored size.
        everything = np.arange(len(source.n_frames))
        stored = source.stored_bytes(everything) / max(1, source.float_bytes(everything))
        self._factor = 1 + n_classes / (4 * source.dim) + 2 * stored
        self._limit = int(self._room / self._factor)
        self._buffer = torch.empty(0, source.dim, device=device)

    def keep(self, rows: IndexArray, batch: int) -> int:
        """Keep as many of these clips in memory as the budget allows beside the blocks.

        Args:
            rows: clips that are read in every epoch.
            batch: clips of a batch; a block has at least so many.

        Returns:
            Bytes that will be kept.
        """
        source = self.source
        largest = np.sort(source.n_frames[rows])[-batch:].sum() * 4 * source.dim
        block = min(source.float_bytes(rows), max(self.block_bytes, int(largest)), self._limit)
        return source.keep(rows, max(0, self._room - int(block * self._factor)))

    def blocks(self, plan: Sequence[IndexArray], roll: Roll | None = None) -> Iterator[BlockFrames]:
        """Yield the blocks of a plan, the next one being read meanwhile; each is valid until the next one is asked for."""
        sizes = [self.source.float_bytes(rows) for rows in plan]
        count = max((size for size in sizes if size <= self._limit), default=0) // (4 * self.source.dim)
        if count > len(self._buffer):
            self._buffer = torch.empty(0, self.source.dim, device=self.device)  # the old one goes first
            self._buffer = torch.empty(count, self.source.dim, device=self.device)
        for block in self.source.blocks(plan, limit_bytes=self._limit):
            yield BlockFrames(self.source, block, roll, self._buffer)

    def logits(self, rows: IndexArray, weight: Tensor, bias: Tensor) -> Iterator[tuple[int, FloatArray]]:
        """Apply linear probes to the frames of clips.

        Args:
            rows: which clips.
            weight: ``(models, classes, dim)`` over normalised frames.
            bias: ``(models, classes)``.

        Yields:
            Row and logits ``(n_frames, models, classes)`` float32, in storage order.
        """
        models, classes, _ = weight.shape
        flat, flat_bias = weight.flatten(0, 1).T, bias.flatten()
        size = slice_rows(self.source.dim, models * classes)
        for block in self.blocks(self.source.plan(rows, block_bytes=self.block_bytes)):
            clip, filled = 0, 0
            out: FloatArray | None = None
            for x, _ in block.slices(np.arange(len(block.rows)), size):
                found = torch.addmm(flat_bias, x, flat).view(len(x), models, classes).cpu().numpy()
                used = 0
                while used < len(found):
                    count = int(block.n_frames[clip])
                    if out is None:
                        out, filled = np.empty((count, models, classes), np.float32), 0
                    take = min(count - filled, len(found) - used)
                    out[filled : filled + take] = found[used : used + take]
                    used, filled = used + take, filled + take
                    if filled == count:
                        yield int(block.rows[clip]), out
                        clip, out = clip + 1, None


def _normalised(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[1:])
