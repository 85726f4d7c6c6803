"""Which clip of which task is learnt when: an endless seeded order that can be entered at any step.

Shares are kept by the divisor method of Webster (Balinski and Young, Fair Representation, 1982): draw r of a task with
share p falls due at (r + 1/2) / p, and what is due first is drawn first. After any number of draws a rare task has had
its share to within half a draw, a frequent one to within a few, whatever the seed and the number of its clips; drawing at
random would miss the share of a rare task by a fifth in ten thousand draws. How often each task was drawn before a step
follows from the step alone, so that a training is resumed without going through what it has done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from xares_store.errors import ProbeError
from xares_store.store.stream import FrameSource

Indices = NDArray[np.int64]

# Last word of the seeds, so that no two purposes share random numbers. Crops, seeded with (seed, number), have none.
_RUNS, _ITEMS, _POOLS = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Draw:
    """One clip with one of its texts, at its place in the order.

    Attributes:
        task: which of the sources.
        row: which of its clips: a row of its clip table.
        text: which of the clip's texts, from 0.
        number: how many draws come before it; seeds what is random about it alone.
    """

    task: int
    row: int
    text: int
    number: int


@dataclass(frozen=True)
class Source:
    """The training clips of one task.

    Attributes:
        frames: where their frames are.
        rows: ``(clips,)`` rows of ``frames`` that train, each once.
        n_texts: ``(clips,)`` how many texts each has; a clip without any is not drawn.
        crop_frames: longest stretch of a clip that is learnt at once; None for whole clips.
    """

    frames: FrameSource
    rows: Indices
    n_texts: Indices
    crop_frames: int | None = None

    def lengths(self, rows: Indices) -> Indices:
        """Return how many frames of each clip are learnt at once, ``(clips,)``."""
        whole = self.frames.n_frames[rows]
        return whole if self.crop_frames is None else np.minimum(whole, self.crop_frames)


class Mixture:
    """The order in which the clips of several tasks are learnt.

    Within a task every item (clip and text) comes once an epoch. An epoch draws runs of neighbouring clips in random
    order (:meth:`FrameSource.drawn`) and shuffles the items of a block of runs. Tasks are mixed by their shares, in
    random order inside a pool of ``bucket`` batches. A pool is sorted by length and cut into batches, so that little is
    padded, and its batches are shuffled. All of it depends on the arguments alone.

    Args:
        sources: the clips of each task.
        shares: share of each task in the draws, above 0; divided by their sum.
        batch_size: draws in an optimiser step.
        bucket: batches in a pool.
        seed: of the order, 0 or more.

    Attributes:
        sources: as given.
        shares: ``(tasks,)`` adding up to 1.
        batch_size: as given.
        bucket: as given.
        seed: as given.
        n_items: items of each task.
        steps_per_epoch: optimiser steps that draw as many items as all tasks have, rounded up.

    Raises:
        ProbeError: no task, a share that is not above 0, a task without a clip to learn, a clip that is given twice, or
            a crop to no frames.

    Example:
        ``for step, draws in zip(range(100, 200), mixture.steps(100)): ...``
    """

    def __init__(
        self, sources: Sequence[Source], shares: Sequence[float], *, batch_size: int, bucket: int, seed: int
    ) -> None:
        if len(sources) != len(shares) or not len(shares):
            raise ProbeError(f"Wanted a share for each of one task or more, found {len(sources)} and {len(shares)}.")
        if not all(share > 0 and np.isfinite(share) for share in shares):
            raise ProbeError(f"Wanted shares above 0, found {', '.join(f'{share:g}' for share in shares)}.")
        if min(batch_size, bucket) < 1 or seed < 0:
            raise ProbeError(
                f"Wanted a batch size and a bucket of 1 or more and a seed of 0 or more, found {batch_size}, {bucket} "
                f"and {seed}."
            )
        self.sources = tuple(sources)
        self.shares = np.asarray(shares, np.float64) / np.sum(shares, dtype=np.float64)
        self.batch_size, self.bucket, self.seed = batch_size, bucket, seed
        self.n_items = tuple(_check(task, source) for task, source in enumerate(sources))
        self.steps_per_epoch = -(-sum(self.n_items) // batch_size)

    def steps(self, first: int) -> Iterator[list[Draw]]:
        """Yield the draws of optimiser steps ``first``, ``first + 1`` and so on, without end; shortest clip first."""
        skip = first % self.bucket
        for batches in self.pools(first // self.bucket):
            yield from batches[skip:]
            skip = 0

    def pools(self, first: int) -> Iterator[list[list[Draw]]]:
        """Yield the steps pool by pool, from pool ``first`` on, without end: ``bucket`` batches each."""
        orders = [_Order(source, (self.seed, task)) for task, source in enumerate(self.sources)]
        size = self.bucket * self.batch_size
        for pool in count(first):
            yield self._pool(pool, size, orders)

    def _pool(self, pool: int, size: int, orders: Sequence[_Order]) -> list[list[Draw]]:
        rng = np.random.default_rng((self.seed, pool, 0, _POOLS))
        before, due = apportion(self.shares, pool * size, size)
        task = rng.permutation(due)
        row, text, length = np.empty((3, size), np.int64)
        places = np.split(np.argsort(task, kind="stable"), np.cumsum(np.bincount(task, minlength=len(orders)))[:-1])
        for number, place in enumerate(places):
            if len(place):
                row[place], text[place] = orders[number].take(int(before[number]), len(place))
                length[place] = self.sources[number].lengths(row[place])
        batches = np.argsort(length, kind="stable").reshape(self.bucket, self.batch_size)
        batches = batches[rng.permutation(self.bucket)]
        columns = (task[batches], row[batches], text[batches], batches + pool * size)
        return [[*map(Draw, *drawn)] for drawn in zip(*(column.tolist() for column in columns), strict=True)]


def apportion(shares: NDArray[np.float64], first: int, draws: int) -> tuple[Indices, Indices]:
    """Say whose turn it is, by the divisor method of Webster.

    Args:
        shares: ``(tasks,)`` each above 0, adding up to 1.
        first: draws that came before.
        draws: how many turns are wanted.

    Returns:
        ``(tasks,)`` how often each task was drawn before, and ``(draws,)`` whose turn it is then.

    Example:
        >>> apportion(np.array([0.75, 0.25]), 4, 8)
        (array([3, 1]), array([0, 0, 1, 0, 0, 0, 1, 0]))
    """

    def before(time: float) -> Indices:
        """Count the draws that fall due before a time; the formula and then the times themselves, against rounding."""
        counted = least = np.maximum(0, np.floor(time * shares + 0.5).astype(np.int64) - 1)
        for more in range(3):
            counted = counted + ((least + more + 0.5) / shares < time)
        return counted

    # So many draws are due before a time as the time says, up to half a draw a task.
    tasks = len(shares)
    start, stop = before(first - tasks), before(first + draws + tasks)
    counts = stop - start
    task = np.repeat(np.arange(tasks), counts)
    turn = np.arange(len(task)) - np.repeat(np.cumsum(counts) - counts, counts) + start[task]
    due = task[np.lexsort((task, (turn + 0.5) / shares[task]))]
    skip = first - int(start.sum())
    return start + np.bincount(due[:skip], minlength=tasks), due[skip : skip + draws]


class _Order:
    """The items of one task, epoch after epoch: the order of one epoch's clips and of one block's items are held."""

    def __init__(self, source: Source, seed: tuple[int, int]) -> None:
        self._frames, self._rows, self._seed = source.frames, source.rows, seed
        self._n_texts = np.zeros(len(source.frames.n_frames), np.int64)
        self._n_texts[source.rows] = source.n_texts
        self._size = int(source.n_texts.sum())
        self._place = (-1, -1)

    def take(self, first: int, items: int) -> tuple[Indices, Indices]:
        """Return rows and texts of items ``first`` to ``first + items``, counted through all epochs."""
        found = []
        while items:
            epoch, item = divmod(first, self._size)
            if epoch != self._place[0]:
                self._drawn, self._bound = self._frames.drawn(self._rows, epoch=(*self._seed, epoch, _RUNS))
                self._end = np.cumsum(self._n_texts[self._drawn])[self._bound[1:] - 1]
            block = int(self._end.searchsorted(item, side="right"))
            if (epoch, block) != self._place:
                self._items = self._shuffled(epoch, block)
                self._place = (epoch, block)
            rows, texts = self._items
            start = item - (int(self._end[block]) - len(rows))
            stop = min(len(rows), start + items)
            found.append((rows[start:stop], texts[start:stop]))
            first, items = first + stop - start, items - (stop - start)
        return np.concatenate([rows for rows, _ in found]), np.concatenate([texts for _, texts in found])

    def _shuffled(self, epoch: int, block: int) -> tuple[Indices, Indices]:
        rows = self._drawn[self._bound[block] : self._bound[block + 1]]
        texts = self._n_texts[rows]
        end = np.cumsum(texts)
        order = np.random.default_rng((*self._seed, epoch, block, _ITEMS)).permutation(int(end[-1]))
        clip = end.searchsorted(order, side="right")
        return rows[clip], order - (end - texts)[clip]


def _check(task: int, source: Source) -> int:
    """Check a source and return how many items it has."""
    where = f"task {task} of the mixture"
    clips = len(source.rows)
    if len(source.n_texts) != clips or (clips and source.n_texts.min() < 0):
        raise ProbeError(f"Wanted a count of texts for each of {clips} clips.", where=where)
    if clips and np.bincount(source.rows).max() > 1:
        raise ProbeError("Wanted every clip once, found one twice.", where=where)
    if source.crop_frames is not None and source.crop_frames < 1:
        raise ProbeError(f"Wanted a crop of 1 frame or more, found {source.crop_frames}.", where=where)
    items = int(source.n_texts.sum())
    if not items:
        raise ProbeError("Wanted a training clip with a text, found none.", where=where)
    return items
