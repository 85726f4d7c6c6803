"""CIDEr-D: how many n-grams a caption shares with its references, rare ones counting more.

Source: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based image description evaluation", CVPR 2015. What tools print
as CIDEr is its variant D, computed here: counts are clipped and captions of another length cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.text import normalise

Values = npt.NDArray[np.float64]
Gram = tuple[str, ...]

_LONGEST = 4  # words of an n-gram
_TWICE_VARIANCE = 72.0  # 2 * 6^2: of the Gaussian over the difference in length
_SCALE = 10.0


def caption_words(text: str) -> list[str]:
    """Split a caption into the words that are compared: those of :func:`~xares_store.metrics.text.normalise`.

    That is Unicode NFKC, lower case, hyphens as spaces, no ASCII punctuation, split at white space. Nothing is stemmed and
    "it's" is one word; the Penn Treebank tokeniser of COCO, which needs Java, makes two of it.

    Example:
        >>> caption_words("A dog barks -- it's LOUD.")
        ['a', 'dog', 'barks', 'its', 'loud']
    """
    return normalise(text).split()


def cider_d(
    target: Sequence[Sequence[str]],
    prediction: Sequence[str],
    *,
    words_of: Callable[[str], list[str]] = caption_words,
) -> Values:
    """Score each clip's caption against its references with CIDEr-D, 0 to 10 (best); papers print 100 times the mean.

    For n = 1 to 4, captions are vectors over n-grams: count times ``ln N - ln max(1, df)``, with N clips and df clips that
    have the n-gram in a reference. Their cosine, with counts clipped to the reference's, is multiplied by
    ``exp(-(difference in the number of bigrams)^2 / 72)``, averaged over n and over references, and multiplied by 10.

    A single clip scores 0 whatever is written, because an n-gram of all clips has no weight: the value of a clip depends on
    the other clips' references. The score of a corpus is the mean over clips.

    Args:
        target: references of each clip, at least one.
        prediction: one caption a clip.
        words_of: splits a text into words.

    Returns:
        ``(clips,)``.

    Raises:
        MetricError: without clips, for different numbers of clips, or a clip without references.

    Example:
        >>> cider_d([["a dog barks loudly now"], ["rain falls on a roof"]], ["a dog barks loudly now", "rain"]).round(2).tolist()
        [10.0, 1.0]
    """
    if len(target) != len(prediction) or not target:
        raise MetricError(
            f"Wanted one caption a clip and at least one clip, found {len(prediction)} for {len(target)}."
        )
    references = [[_grams(words_of(text)) for text in texts] for texts in target]
    for row, of_clip in enumerate(references):
        if not of_clip:
            raise MetricError("Wanted at least one reference, found none.", where=f"clip {row}")
    seen = Counter(gram for of_clip in references for gram in set().union(*of_clip))
    weight = {gram: math.log(len(target)) - math.log(count) for gram, count in seen.items()}
    unseen = math.log(len(target))
    scores = np.empty(len(target))
    for row, (text, of_clip) in enumerate(zip(prediction, references, strict=True)):
        written = _Vector.of(_grams(words_of(text)), weight, unseen)
        scores[row] = sum(written.similarity(_Vector.of(one, weight, unseen)) for one in of_clip) / len(of_clip)
    return _SCALE * scores


@dataclass(frozen=True)
class _Vector:
    """A caption as weights of n-grams, with a norm per n and its number of bigrams."""

    values: dict[Gram, float]
    norms: tuple[float, ...]
    bigrams: int

    @classmethod
    def of(cls, counts: Counter[Gram], weight: dict[Gram, float], unseen: float) -> _Vector:
        values = {gram: count * weight.get(gram, unseen) for gram, count in counts.items()}
        norms = tuple(_norm(value for gram, value in values.items() if len(gram) == n) for n in range(1, _LONGEST + 1))
        return cls(values, norms, sum(count for gram, count in counts.items() if len(gram) == 2))

    def similarity(self, reference: _Vector) -> float:
        shared = [0.0] * _LONGEST
        for gram, value in self.values.items():
            wanted = reference.values.get(gram, 0.0)
            shared[len(gram) - 1] += min(value, wanted) * wanted
        norms = zip(shared, self.norms, reference.norms, strict=True)
        cosines = [above / (own * other) if own * other > 0 else 0.0 for above, own, other in norms]
        return math.exp(-((self.bigrams - reference.bigrams) ** 2) / _TWICE_VARIANCE) * sum(cosines) / _LONGEST


def _grams(words: Sequence[str]) -> Counter[Gram]:
    return Counter(
        tuple(words[first : first + n]) for n in range(1, _LONGEST + 1) for first in range(len(words) - n + 1)
    )


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(sum(value * value for value in values))
