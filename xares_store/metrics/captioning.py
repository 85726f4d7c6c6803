"""FENSE and DATE: captions compared by sentence vectors, once those and the probabilities of errors are given.

Sources: FENSE: Zhou et al., "Can audio captions be evaluated with image caption metrics?", ICASSP 2022. DATE: the MECAT
benchmark, whose two releases compute slightly different values; both are offered by name.

The models that make the vectors are :mod:`xares_store.probes.captions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
DateKind = Literal["long", "short", "speech", "music", "sound", "environment"]
Release = Literal["1.1.0", "head"]

# A caption with an error for certain keeps a tenth of its score.
ERROR_ABOVE = 0.9
FLAGGED = 0.1
# Width of the band in which another clip's reference counts as similar as the own one, for each kind of caption.
DATE_DELTA: dict[DateKind, float] = {
    "long": 0.1703,
    "short": 0.1772,
    "speech": 0.2078,
    "music": 0.1566,
    "sound": 0.1988,
    "environment": 0.2150,
}
# Release 1.1.0 adds this to a denominator that may be zero.
_EPSILON = 1e-8
# Similarities held at once.
_BLOCK = 4_000_000


def flags(error_probability: npt.ArrayLike) -> Values:
    """Factor of each caption's similarity: 0.1 where an error is more probable than 0.9, else 1.

    Args:
        error_probability: ``(clips,)``, 0 to 1.

    Raises:
        MetricError: a probability outside 0 to 1 or NaN.

    Example:
        >>> flags([0.2, 0.9, 0.95]).tolist()
        [1.0, 1.0, 0.1]
    """
    values = np.asarray(error_probability, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise MetricError("Wanted probabilities of errors, 0 to 1.", hint="Check the error checker.")
    return np.where(values > ERROR_ABOVE, FLAGGED, 1.0)


def fense(target: npt.ArrayLike, clip: npt.ArrayLike, prediction: npt.ArrayLike, factor: npt.ArrayLike = 1.0) -> Values:
    """FENSE of each clip, -1 to 1 (best): mean cosine between the caption and the clip's references, times a factor.

    Args:
        target: ``(references, dim)`` unit vectors of the references.
        clip: ``(references,)`` row of the clip that each reference belongs to, in any order.
        prediction: ``(clips, dim)`` unit vectors of the captions.
        factor: ``(clips,)`` as from :func:`flags`.

    Returns:
        ``(clips,)``; the score of a corpus is its mean.

    Raises:
        MetricError: without clips, a clip without references, or shapes that do not fit.

    Example:
        >>> fense([[1.0, 0.0], [0.0, 1.0]], [0, 0], [[0.6, 0.8]]).round(3).tolist()
        [0.7]
    """
    written = _vectors(prediction)
    found: Values = (written * _means(target, clip, written)).sum(axis=1) * np.asarray(factor, dtype=np.float64)
    return found


@dataclass(frozen=True)
class DateScores:
    """DATE of each clip and what it is made of.

    Attributes:
        similarity: ``(clips,)``, -1 to 1, as FENSE but with other vectors.
        discrimination: ``(clips,)``, 0 to ``1 - 1/clips``: share of clips whose references are clearly less similar.
        date: ``(clips,)`` harmonic mean of both; 0 to :attr:`ceiling` unless a published release was asked for.
        ceiling: the best possible score among so many clips.
    """

    similarity: Values
    discrimination: Values
    date: Values
    ceiling: float

    @property
    def value(self) -> float:
        """Score of the corpus: the mean over clips."""
        return float(self.date.mean())


def date(
    target: npt.ArrayLike,
    clip: npt.ArrayLike,
    prediction: npt.ArrayLike,
    factor: npt.ArrayLike = 1.0,
    *,
    delta: float = DATE_DELTA["long"],
    release: Release | None = None,
) -> DateScores:
    """DATE of each clip: whether a caption is near its own references, and nearer than to those of other clips.

    ``S[i, j]`` is the factor of i times the product of caption i and the mean reference vector of clip j; similarity is
    ``S[i, i]``, discrimination ``1 - (number of j with S[i, j] >= S[i, i] - delta / 2) / clips``. The clip itself is counted, so
    that the score depends on how many clips there are and reaches :func:`date_ceiling` at best. The mean is over the clip's
    own references, however many.

    Args:
        target, clip, prediction, factor: as in :func:`fense`.
        delta: width of the band, one of ``DATE_DELTA``.
        release: None clips a negative similarity to 0, so that a score is 0 to the ceiling. A release of the published
            program does not: where similarity is about minus discrimination a score explodes (``1.1.0``) or is infinite or
            NaN (``head``).

    Raises:
        MetricError: as :func:`fense`, or clips with different numbers of references for a release, which had no answer.

    Example:
        >>> found = date([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[1.0, 0.0], [0.0, 1.0]])
        >>> found.discrimination.tolist(), round(found.value, 4), round(found.ceiling, 4)
        ([0.5, 0.5], 0.6667, 0.6667)
    """
    written = _vectors(prediction)
    counts = np.bincount(np.asarray(clip, dtype=np.int64), minlength=len(written))
    if release is not None and len(set(counts.tolist())) > 1:
        raise MetricError(
            f"Release {release} of DATE wants the same number of references for every clip, found "
            f"{counts.min()} to {counts.max()}.",
            hint="Give a row to every reference, or leave the release out.",
        )
    means = _means(target, clip, written)
    weighted = written * np.broadcast_to(np.asarray(factor, dtype=np.float64), len(written))[:, None]
    similarity, rivals = np.empty(len(written)), np.empty(len(written))
    for first, last in _blocks(len(written), len(written)):
        block = weighted[first:last] @ means.T
        own = np.diagonal(block, first)
        similarity[first:last] = own
        rivals[first:last] = (block >= own[:, None] - delta / 2).sum(axis=1)
    discrimination = 1.0 - rivals / len(written)
    return DateScores(
        similarity, discrimination, _harmonic(similarity, discrimination, release), date_ceiling(len(written))
    )


def date_ceiling(clips: int) -> float:
    """Return the best DATE that captions of so many clips can reach: ``2 (1 - 1/N) / (2 - 1/N)``.

    Example:
        >>> [round(date_ceiling(clips), 3) for clips in (1, 5, 1000)]
        [0.0, 0.889, 0.999]
    """
    best = 1.0 - 1.0 / clips
    return 2.0 * best / (1.0 + best)


def tfidf_weights(
    sentences: Sequence[Sequence[int]],
    table: npt.NDArray[np.floating],
    *,
    pad: int,
    start: int,
    end: int,
    half: bool = False,
) -> list[Values]:
    """Weight the tokens of sentences for DATE: those that say much in their sentence and are rare among sentences.

    With c the cosine of two rows of the token table: tf of a token is the sum of c squared over the tokens of its sentence,
    df the sum over sentences of ``min(1, that sum)``, idf ``ln((n + 1) / (df + 1)) + 1`` for n sentences. A weight is tf times idf over
    its mean in the sentence; the start token gets the largest of them, the end token the smallest, padding 1. A sentence
    without words has weights 1. Weights of a sentence depend on the other sentences.

    Args:
        sentences: token ids of each sentence, special tokens included.
        table: ``(vocabulary, dim)`` input embeddings.
        pad, start, end: ids of the special tokens.
        half: round cosines and weights to half precision, as release 1.1.0 did.

    Returns:
        Weights of each sentence, ``(tokens,)``; equal sentences may share an array.

    Raises:
        MetricError: an id outside the table.

    Example:
        >>> found = tfidf_weights([[1, 3, 4, 2], [1, 3, 2]], np.eye(5), pad=0, start=1, end=2)
        >>> [one.round(2).tolist() for one in found]
        [[1.17, 0.83, 1.17, 0.83], [1.0, 1.0, 1.0]]
    """
    from scipy.sparse import csr_array  # late: nothing else here needs it

    distinct = list(dict.fromkeys(tuple(sentence) for sentence in sentences))
    number = {sentence: row for row, sentence in enumerate(distinct)}
    times = np.bincount([number[tuple(sentence)] for sentence in sentences], minlength=len(distinct))
    special = {pad, start, end}
    words = np.array(sorted({token for sentence in distinct for token in sentence} - special), dtype=np.int64)
    if len(words) and not 0 <= words[0] <= words[-1] < len(table):
        raise MetricError(f"Wanted token ids 0 to {len(table) - 1}, found {words[0]} to {words[-1]}.")
    flat = [token for sentence in distinct for token in sentence if token not in special]
    lengths = np.array([sum(token not in special for token in sentence) for sentence in distinct], dtype=np.int64)
    column = np.searchsorted(words, np.array(flat, dtype=np.int64))
    sentence_of = np.repeat(np.arange(len(distinct)), lengths)
    occurs = csr_array((np.ones(len(column)), (sentence_of, column)), shape=(len(distinct), len(words)))
    unit = _unit(table[words], half)
    product = np.empty(len(column))  # tf * idf of every word where it stands
    by_word = np.argsort(column, kind="stable")
    for first, last in _blocks(len(words), max(len(words), len(distinct))):
        cosines = (unit @ unit[first:last].T).astype(np.float16 if half else np.float64)
        total = occurs @ np.square(cosines).astype(np.float64)  # (sentences, words of the block)
        idf = np.log((len(sentences) + 1) / (times @ np.minimum(total, 1.0) + 1)) + 1
        low, high = np.searchsorted(column[by_word], [first, last])
        here = by_word[low:high]
        product[here] = total[sentence_of[here], column[here] - first] * idf[column[here] - first]
    ends = np.cumsum(lengths)
    weights = [
        _weights_of(sentence, product[stop - length : stop], start, end, special, half)
        for sentence, stop, length in zip(distinct, ends, lengths, strict=True)
    ]
    return [weights[number[tuple(sentence)]] for sentence in sentences]


def _weights_of(
    sentence: Sequence[int], product: Values, start: int, end: int, special: set[int], half: bool
) -> Values:
    weights = np.ones(len(sentence))
    mean = float(product.mean()) if len(product) else 0.0
    if mean > 0:
        tokens = np.array(sentence)
        scaled = product / mean
        weights[~np.isin(tokens, list(special))] = scaled
        weights[tokens == start] = scaled.max()
        weights[tokens == end] = scaled.min()
    return weights.astype(np.float16).astype(np.float64) if half else weights


def _unit(rows: npt.NDArray[np.floating], half: bool) -> Values:
    values = rows.astype(np.float16 if half else np.float64).astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    unit: Values = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
    return unit.astype(np.float16).astype(np.float64) if half else unit


def _harmonic(similarity: Values, discrimination: Values, release: Release | None) -> Values:
    if release is None:
        near = np.clip(similarity, 0.0, 1.0)
        total = near + discrimination
        return np.divide(2 * near * discrimination, total, out=np.zeros_like(total), where=total > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        epsilon = _EPSILON if release == "1.1.0" else 0.0
        found: Values = 2 * similarity * discrimination / (similarity + discrimination + epsilon)
        return found


def _vectors(values: npt.ArrayLike) -> Values:
    vectors = np.asarray(values, dtype=np.float64)
    if vectors.ndim != 2 or not len(vectors):
        raise MetricError(f"Wanted vectors (clips, dim) of at least one clip, found shape {vectors.shape}.")
    return vectors


def _means(target: npt.ArrayLike, clip: npt.ArrayLike, written: Values) -> Values:
    """Mean reference vector of each clip, ``(clips, dim)``."""
    references, rows = np.asarray(target, dtype=np.float64), np.asarray(clip, dtype=np.int64)
    if references.ndim != 2 or references.shape[1] != written.shape[1] or rows.shape != references.shape[:1]:
        raise MetricError(
            f"Wanted reference vectors (references, {written.shape[1]}) and the clip of each, found shapes "
            f"{references.shape} and {rows.shape}."
        )
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(written):
        raise MetricError(f"Wanted references of clips 0 to {len(written) - 1}, found {rows.min()} to {rows.max()}.")
    counts = np.bincount(rows, minlength=len(written))
    if not counts.all():
        raise MetricError("Wanted at least one reference, found none.", where=f"clip {np.flatnonzero(counts == 0)[0]}")
    sums = np.zeros_like(written)
    np.add.at(sums, rows, references)
    return sums / counts[:, None]


def _blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK // max(width, 1))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)
