"""Retrieval between audio and text: where the right captions and the right clip stand among all.

Ties are ranked pessimistically: a wrong answer as similar as the right one stands before it. Embeddings that collapsed to
one point then score as if nothing was learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError

Direction = Literal["a2t", "t2a"]
Ranks = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

# Rank up to which mAP@10 counts.
_DEPTH = 10
# Cosines of float32 vectors that differ by less are equal: rounding depends on where in a block a pair stands.
_SAME_COSINE = 1e-6
# Similarities held at once.
_BLOCK = 8_000_000


@dataclass(frozen=True)
class RetrievalRanks:
    """Ranks of every right pair, from 1, and the scores made of them.

    A value per clip counts its captions alike, and a score is the mean over clips, so that clips can be resampled.
    Where all clips have the same number of captions, this is the mean over captions too.

    Attributes:
        a2t: ``(captions,)`` rank of each caption among all captions, asked with its own clip.
        t2a: ``(captions,)`` rank of the caption's clip among all clips, asked with the caption.
        clip_of_caption: ``(captions,)`` row of the clip.
        n_clips: number of clips.
    """

    a2t: Ranks
    t2a: Ranks
    clip_of_caption: npt.NDArray[np.int64]
    n_clips: int

    def ranks(self, direction: Direction) -> Ranks:
        """Rank that each query found a right answer at.

        ``a2t``: ``(clips,)``, of the best of a clip's captions. ``t2a``: ``(captions,)``.
        """
        if direction == "t2a":
            return self.t2a
        best = np.full(self.n_clips, np.iinfo(np.int64).max)
        np.minimum.at(best, self.clip_of_caption, self.a2t)
        return best

    def hits(self, k: int, direction: Direction) -> Values:
        """Recall at rank ``k`` of each clip, 0 to 1, ``(clips,)``.

        ``a2t``: whether one of its captions is among the first k. ``t2a``: the share of its captions that find it there.
        """
        if k < 1:
            raise MetricError(f"Wanted a rank of at least 1, found {k}.")
        if direction == "a2t":
            return (self.ranks("a2t") <= k).astype(np.float64)
        return self._mean_over_captions((self.t2a <= k).astype(np.float64))

    def precision_at_10(self, direction: Direction) -> Values:
        """Average precision within the first ten of each clip, 0 to 1, ``(clips,)``.

        ``a2t``: the precision at the rank of each caption, 0 beyond ten, averaged over the clip's captions (over ten
        where it has more). ``t2a``: one over the rank, 0 beyond ten, averaged over the clip's captions.
        """
        if direction == "t2a":
            return self._mean_over_captions(np.where(self.t2a <= _DEPTH, 1.0 / self.t2a, 0.0))
        order = np.lexsort((self.a2t, self.clip_of_caption))
        clip, rank = self.clip_of_caption[order], self.a2t[order]
        number = np.arange(len(clip)) - np.searchsorted(clip, clip) + 1
        total = np.bincount(clip, weights=np.where(rank <= _DEPTH, number / rank, 0.0), minlength=self.n_clips)
        return total / np.minimum(self._captions(), _DEPTH)

    def per_clip(self, of: Callable[[Direction], Values], direction: Direction | None = None) -> Values:
        """Values of each clip in one direction, or the mean of both.

        Example:
            >>> found = ranks_from_similarity([[0.9, 0.1], [0.2, 0.8]], [0, 1])
            >>> found.per_clip(lambda way: found.hits(1, way)).tolist()
            [1.0, 1.0]
        """
        return of(direction) if direction is not None else (of("a2t") + of("t2a")) / 2

    def recall_at(self, k: int, direction: Direction | None = None) -> float:
        """Recall at rank ``k``, 0 to 1: in one direction, or the mean of both."""
        return float(self.per_clip(lambda way: self.hits(k, way), direction).mean())

    def map_at_10(self, direction: Direction | None = None) -> float:
        """Mean of :meth:`precision_at_10`, 0 to 1: in one direction, or the mean of both."""
        return float(self.per_clip(self.precision_at_10, direction).mean())

    def mean_rank(self, direction: Direction | None = None) -> float:
        """Mean over queries of :meth:`ranks`, from 1 (best): in one direction, or the mean of both."""
        return _over_queries(lambda way: float(self.ranks(way).mean()), direction)

    def median_rank(self, direction: Direction | None = None, *, whole: bool = False) -> float:
        """Median over queries of :meth:`ranks`, from 1 (best): in one direction, or the mean of both.

        Args:
            direction: ``a2t``, ``t2a``, or None for the mean of both.
            whole: round a median between two ranks down, as the published tables do.
        """

        def median(way: Direction) -> float:
            value = float(np.median(self.ranks(way)))
            return float(np.floor(value)) if whole else value

        return _over_queries(median, direction)

    def _captions(self) -> Ranks:
        return np.bincount(self.clip_of_caption, minlength=self.n_clips)

    def _mean_over_captions(self, values: Values) -> Values:
        return np.bincount(self.clip_of_caption, weights=values, minlength=self.n_clips) / self._captions()


def retrieval_ranks(audio: npt.ArrayLike, text: npt.ArrayLike, clip_of_caption: npt.ArrayLike) -> RetrievalRanks:
    """Rank by cosine, any number of captions per clip, a block of clips at a time.

    Args:
        audio: ``(clips, dim)`` embeddings; a vector of zeros is as similar to everything as nothing.
        text: ``(captions, dim)`` embeddings.
        clip_of_caption: ``(captions,)`` row of ``audio`` that each caption describes; every clip has at least one.

    Returns:
        Ranks of all right pairs. 50,000 clips with 250,000 captions hold 32 MB of similarities at once.

    Raises:
        MetricError: embeddings that are not finite, of different widths, or captions and clips that do not fit.

    Example:
        >>> found = retrieval_ranks([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [0.0, 3.0]], [0, 1])
        >>> found.recall_at(1), found.median_rank("t2a")
        (1.0, 1.0)
    """
    sounds, captions = _unit(audio), _unit(text)
    if sounds.shape[1] != captions.shape[1]:
        raise MetricError(f"Wanted embeddings of one width, found {sounds.shape[1]} and {captions.shape[1]}.")
    clip = _clips(clip_of_caption, len(sounds), len(captions))
    own = np.concatenate(
        [
            np.einsum("ij,ij->i", sounds[clip[rows]], captions[rows])
            for rows in np.array_split(np.arange(len(clip)), 1 + captions.size // _BLOCK)
        ]
    )
    return _ranked(lambda start, stop: sounds[start:stop] @ captions.T, own, clip, len(sounds), _SAME_COSINE)


def ranks_from_similarity(similarity: npt.ArrayLike, clip_of_caption: npt.ArrayLike) -> RetrievalRanks:
    """Rank by similarities that were computed elsewhere.

    Args:
        similarity: ``(clips, captions)``, higher is more alike; a memory-mapped array is read a block at a time.
        clip_of_caption: ``(captions,)`` row of the clip that each caption describes.

    Raises:
        MetricError: values that are not finite, or captions and clips that do not fit.

    Example:
        >>> ranks_from_similarity([[0.9, 0.1], [0.2, 0.8]], [0, 1]).mean_rank()
        1.0
    """
    values = np.asanyarray(similarity)
    if values.ndim != 2:
        raise MetricError(f"Wanted similarities (clips, captions), found shape {values.shape}.")
    clip = _clips(clip_of_caption, *values.shape)
    own = values[clip, np.arange(len(clip))]
    return _ranked(lambda start, stop: np.array(values[start:stop]), own, clip, len(values), 0.0)


def published_ranks(
    audio_rows: npt.ArrayLike, text_rows: npt.ArrayLike, *, captions_per_clip: int = 5
) -> RetrievalRanks:
    """Rank as the published tables: rows are (clip, caption) pairs, a fixed number of neighbours per clip.

    The first row of each group is its clip; that the others repeat it is taken for granted, as it was there.

    Args:
        audio_rows: ``(rows, dim)``.
        text_rows: ``(rows, dim)``.
        captions_per_clip: rows in a group.

    Raises:
        MetricError: when the rows are not whole groups.
    """
    audio, text = np.asarray(audio_rows), np.asarray(text_rows)
    if len(audio) != len(text) or not len(audio) or len(audio) % captions_per_clip:
        raise MetricError(
            f"Wanted as many audio as text rows, {captions_per_clip} for each clip, found {len(audio)} and {len(text)}."
        )
    return retrieval_ranks(audio[::captions_per_clip], text, np.arange(len(text)) // captions_per_clip)


def _ranked(
    block: Callable[[int, int], npt.NDArray[Any]],
    own: npt.NDArray[Any],
    clip: npt.NDArray[np.int64],
    n_clips: int,
    same: float,
) -> RetrievalRanks:
    # Captions in the order of their clips; within a clip the most similar first, which is their order among themselves.
    order = np.lexsort((-own, clip))
    first = np.searchsorted(clip[order], np.arange(n_clips + 1))
    place = np.empty(len(clip), dtype=np.int64)
    place[order] = np.arange(len(clip)) - first[clip[order]]
    to_text, to_audio = np.ones(len(clip), dtype=np.int64), np.ones(len(clip), dtype=np.int64)
    bound = own - same
    step = max(1, _BLOCK // len(clip))
    for start in range(0, n_clips, step):
        stop = min(start + step, n_clips)
        values = block(start, stop)
        if not np.isfinite(values).all():
            raise MetricError("Wanted finite similarities, found NaN or Inf.")
        mine = order[first[start] : first[stop]]
        values[clip[mine] - start, mine] = -np.inf  # a right answer is no rival
        to_audio += np.add.reduce((values >= bound).view(np.uint8), axis=0, dtype=np.int32)
        for caption in mine.tolist():
            to_text[caption] += place[caption] + np.count_nonzero(values[clip[caption] - start] >= bound[caption])
    return RetrievalRanks(to_text, to_audio, clip, n_clips)


def _unit(vectors: npt.ArrayLike) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.asarray(vectors)
    if array.dtype != np.float64:
        array = array.astype(np.float32)
    if array.ndim != 2 or not len(array) or not np.isfinite(array).all():
        raise MetricError(f"Wanted finite embeddings (rows, dim) and at least one row, found shape {array.shape}.")
    # Divided by the largest value first: squares of large ones overflow.
    largest = np.abs(array).max(axis=1, keepdims=True, initial=0)
    array = np.divide(array, largest, out=np.zeros_like(array), where=largest > 0)
    norm = np.linalg.norm(array, axis=1, keepdims=True)
    np.divide(array, norm, out=array, where=norm > 0)
    return array


def _clips(clip_of_caption: npt.ArrayLike, n_clips: int, n_captions: int) -> npt.NDArray[np.int64]:
    clip = np.asarray(clip_of_caption)
    if clip.shape != (n_captions,) or not n_captions or not np.issubdtype(clip.dtype, np.integer):
        raise MetricError(f"Wanted the row of a clip for each of {n_captions} captions, found shape {clip.shape}.")
    if clip.min() < 0 or clip.max() >= n_clips:
        raise MetricError(f"Wanted rows from 0 to {n_clips - 1}, found {clip.min()} to {clip.max()}.")
    silent = np.flatnonzero(np.bincount(clip, minlength=n_clips) == 0)
    if len(silent):
        raise MetricError(f"Wanted a caption for every clip, found none for clip {silent[0]} and {len(silent)} in all.")
    return clip.astype(np.int64)


def _over_queries(of: Callable[[Direction], float], direction: Direction | None) -> float:
    return of(direction) if direction is not None else (of("a2t") + of("t2a")) / 2
