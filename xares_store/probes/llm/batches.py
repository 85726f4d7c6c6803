"""The frames of drawn clips, read ahead of use and within a budget, and batches divided by how much fits at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xares_store.probes.clips import tensor_of
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.mixture import Draw, Indices, Mixture

Array = NDArray[Any]
Frames = NDArray[np.float32]
Read = list[tuple[Draw, Array]]


class BatchReader:
    """The clips of a mixture, batch by batch.

    Clips are read in units: as many batches of a pool as fit into half of the memory, one at least. While a unit is
    used, a thread reads the next one; what has been used is freed batch by batch. A clip longer than its task's
    ``crop_frames`` is cut to a window that begins at any possible frame with the same probability, drawn with the
    mixture's seed and the draw's number; nothing else of it is read. What is yielded does not depend on the memory.

    Args:
        mixture: what is drawn when.
        example: called with a draw and its frames, float32 ``(frames, dim)``, by whoever asks for the batch.
        memory_bytes: for the frames of two units, in the dtype they are stored in. The batch in use as float32 and what
            a single read takes (some 20 MiB) come on top.

    Example:
        ``for batch in BatchReader(mixture, example, memory_bytes=1 << 30).steps(0, 100): ...``
    """

    def __init__(self, mixture: Mixture, example: Callable[[Draw, Frames], Example], *, memory_bytes: int) -> None:
        self._mixture, self._example, self._memory_bytes = mixture, example, memory_bytes

    def steps(self, first: int, last: int) -> Iterator[list[Example]]:
        """Yield the batches of optimiser steps ``[first, last)``.

        Closing the iterator early stops the reading, within the time of a single read.

        Raises:
            CorruptError: a checksum fails; names the file.
        """
        stop = Event()
        units = self._units(first, last, stop)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:

            def begin() -> Future[deque[Read] | None]:
                return thread.submit(next, units, None)

            try:
                ahead = begin()
                while (unit := ahead.result()) is not None:
                    ahead = begin()
                    while unit:
                        yield self._examples(unit.popleft())
            finally:
                stop.set()

    def _examples(self, batch: Read) -> list[Example]:
        # Torch converts float16 about twenty times faster than numpy does.
        return [self._example(draw, tensor_of(frames, "cpu").float().numpy()) for draw, frames in batch]

    def _units(self, first: int, last: int, stop: Event) -> Iterator[deque[Read]]:
        """Plan and read one unit after another; runs in the thread."""
        bucket, size = self._mixture.bucket, self._mixture.batch_size
        entry = first // bucket
        for number, pool in enumerate(self._mixture.pools(entry), entry):
            wanted = pool[max(0, first - number * bucket) : max(0, last - number * bucket)]
            if not wanted:
                return
            draws = [draw for batch in wanted for draw in batch]
            start, length, stored = self._windows(draws)
            for begin, end in pairwise(_cuts(stored.reshape(-1, size).sum(axis=1).tolist(), self._memory_bytes // 2)):
                part = slice(begin * size, end * size)
                unit = self._read(draws[part], start[part], length[part], stop)
                if unit is None:
                    return
                yield unit  # emptied by whoever took it

    def _windows(self, draws: Sequence[Draw]) -> tuple[Indices, Indices, Indices]:
        """Return where the window of each draw begins, how many frames it has, and how many bytes as stored."""
        start, length, stored, spare = np.zeros((4, len(draws)), np.int64)
        for task, place, rows in _by_task(draws):
            source = self._mixture.sources[task]
            length[place] = source.lengths(rows)
            spare[place] = source.frames.n_frames[rows] - length[place]
            stored[place] = length[place] * source.frames.frame_bytes(rows)
        for at in np.flatnonzero(spare).tolist():
            start[at] = np.random.default_rng((self._mixture.seed, draws[at].number)).integers(spare[at] + 1)
        return start, length, stored

    def _read(self, draws: Sequence[Draw], start: Indices, length: Indices, stop: Event) -> deque[Read] | None:
        """Read the windows of the draws of some batches; None when nobody waits for them any more."""
        found: dict[int, Array] = {}
        for task, place, rows in _by_task(draws):
            for at, frames in self._mixture.sources[task].frames.windows(rows, start[place], length[place]):
                if stop.is_set():
                    return None
                found[int(place[at])] = frames
        size = self._mixture.batch_size
        return deque(
            [(draws[at], found[at]) for at in range(first, first + size)] for first in range(0, len(draws), size)
        )


def micro_batches(
    examples: Sequence[Example], positions: Callable[[Example], int], frame_budget: int
) -> list[list[Example]]:
    """Divide a batch into parts that pass through the decoder at once, with little padding and as few as possible.

    Args:
        examples: the batch.
        positions: how many positions of the decoder an example takes.
        frame_budget: most positions of a part, padding included. An example that is longer goes alone.

    Returns:
        The parts, longest examples first, so that a lack of memory shows at once. Every example is in one of them;
        those of equal length keep their order.

    Example:
        >>> clip = np.zeros((1, 2), np.float32)
        >>> batch = [Example(clip, (), (0,) * length, str(length)) for length in (2, 9, 3, 4)]
        >>> [[one.name for one in part] for part in micro_batches(batch, lambda one: len(one.target), 8)]
        [['9'], ['4', '3'], ['2']]
    """
    sized = sorted(((positions(example), example) for example in examples), key=lambda pair: -pair[0])
    parts: list[list[Example]] = []
    longest = 0
    for size, example in sized:
        if parts and (len(parts[-1]) + 1) * longest <= frame_budget:
            parts[-1].append(example)
        else:
            parts.append([example])
            longest = size
    return parts


def _by_task(draws: Sequence[Draw]) -> Iterator[tuple[int, Indices, Indices]]:
    """Yield each task with the places of its draws and their rows."""
    task = np.array([draw.task for draw in draws], np.int64)
    row = np.array([draw.row for draw in draws], np.int64)
    for number in np.unique(task).tolist():
        place = np.flatnonzero(task == number)
        yield number, place, row[place]


def _cuts(sizes: Sequence[int], limit: int) -> list[int]:
    """Return where to cut so that pieces are as long as the limit allows, with one member at least."""
    cuts, held = [0], 0
    for place, size in enumerate(sizes):
        if place > cuts[-1] and held + size > limit:
            cuts.append(place)
            held = 0
        held += size
    return [*cuts, len(sizes)]
