"""What is scored of written text: the hypotheses of a fold with their references, by item and by pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.strings import labels_of
from xares_store.metrics.text import NORMALISER_VERSION, UNICODE_NORMALISER_VERSION, looks_corrupt, normalise, unspaced
from xares_store.protocol import Fold
from xares_store.runs.features import Features
from xares_store.task import Task

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Form:
    """How texts of a task are compared.

    Attributes:
        separator: what divides labels of one text; None where a text is one.
        lowercase_only: X-ARES made transcripts lower case and no more.
        every_pair: each reference of an item counts by itself, instead of the best.
    """

    separator: str | None
    lowercase_only: bool
    every_pair: bool

    @classmethod
    def of(cls, task: Task, protocol: str) -> Form:
        """Return the form of a task under a protocol."""
        published = protocol == "published"
        separator = getattr(task.target, "separator", None)
        return cls(separator, published and task.target.kind == "transcript", published)

    def comparable(self, text: str) -> str:
        """Return a text as its words and letters are counted."""
        return normalise(text, lowercase_only=self.lowercase_only, every_script=not self.every_pair)

    @property
    def normaliser(self) -> str:
        """What brings texts to that form, as score records say it."""
        if self.lowercase_only:
            return "lower case"
        return NORMALISER_VERSION if self.every_pair else UNICODE_NORMALISER_VERSION

    def same(self, text: str) -> str | tuple[str, ...]:
        """Return what two texts that say the same share: of labels, their order and white space do not count."""
        if self.separator is None:
            return self.comparable(text)
        return tuple(sorted(labels_of(text, separator=self.separator)))


@dataclass(frozen=True)
class Answers:
    """One fold.

    Attributes:
        form: how texts are compared.
        rows: row of each item in the features, int64 (items,): a recording's first crop, or a clip.
        hypotheses: what was written about each item.
        references: of each item, at least one.
        item: item of each pair with one reference, int64 (pairs,), ascending.
        clips: the clips an item is made of, as positions in ``fold.test``.
        n_corrupt: references left out because they look corrupt.
        n_dropped: recordings or clips left out because they have no reference.
    """

    form: Form
    rows: npt.NDArray[np.int64]
    hypotheses: list[str]
    references: list[tuple[str, ...]]
    item: npt.NDArray[np.int64]
    clips: list[npt.NDArray[np.int64]]
    n_corrupt: int
    n_dropped: int

    @property
    def pair_target(self) -> list[str]:
        """The reference of each pair."""
        return [reference for own in self.references for reference in own]

    @property
    def pair_prediction(self) -> list[str]:
        """The hypothesis of each pair."""
        return [self.hypotheses[item] for item in self.item.tolist()]

    @property
    def weight(self) -> Values:
        """How much each item counts in a mean: its pairs where each of them does, else 1."""
        counts = np.bincount(self.item, minlength=len(self.rows)).astype(np.float64)
        return counts if self.form.every_pair else np.ones(len(self.rows))

    def hits(self, found: Sequence[str] | None = None) -> Values:
        """Return 1.0 for each pair in which the answer equals the reference, else 0.0.

        Args:
            found: the answer of each item; what was written when left out.
        """
        answers = [self.form.same(text) for text in (self.hypotheses if found is None else found)]
        wanted = [self.form.same(text) for text in self.pair_target]
        pairs = zip(wanted, self.item.tolist(), strict=True)
        return np.array([float(one == answers[item]) for one, item in pairs])

    def of_items(self, values: Values) -> Values:
        """Return each item's value from those of its pairs: their mean where each counts, else the best."""
        if not self.form.every_pair:
            return self.best(values)
        total = np.bincount(self.item, weights=values, minlength=len(self.rows))
        return np.asarray(total / np.bincount(self.item, minlength=len(self.rows)))

    def best(self, values: Values) -> Values:
        """Return the highest value of each item's pairs."""
        result = np.full(len(self.rows), -np.inf)
        np.maximum.at(result, self.item, values)
        return result


def references_of(task: Task, texts: Sequence[str], *, protocol: str) -> tuple[str, ...]:
    """Return the references that count among a clip's test texts; none for a clip that is not scored.

    Args:
        task: says what its answers are.
        texts: as the clip's JSON has them.
        protocol: under ``published`` texts of a ``text`` task that look corrupt do not count; under ``strict`` no label is
            an answer too, where a text may hold several.
    """
    if protocol == "published" and task.target.kind == "text":
        return tuple(text for text in texts if not looks_corrupt(text))
    if not texts and getattr(task.target, "separator", None) is not None:
        return ("",)
    return tuple(texts)


def answers_of(task: Task, features: Features, fold: Fold, hypotheses: Sequence[str], *, protocol: str) -> Answers:
    """Put what was written about test clips beside what might have been.

    Args:
        task: says whether answers are labels, and what divides them.
        features: ``target`` is a list of :class:`~xares_store.targets.Texts`.
        fold: the fold.
        hypotheses: one a test clip, in the order of ``fold.test``.
        protocol: under ``strict`` the crops of a recording become one text: joined in time, or where answers are labels
            the most frequent one, the first of several. Under ``published`` references that look corrupt are left out
            of ``text`` tasks.

    Raises:
        MetricError: another number of texts, or nothing is left to score.
    """
    if len(hypotheses) != len(fold.test):
        raise MetricError(
            f"Wanted one text for each of {len(fold.test)} test clips, found {len(hypotheses)}.",
            where=f"fold {fold.name}",
        )
    form = Form.of(task, protocol)
    closed = getattr(task.target, "closed", False)
    kept: list[npt.NDArray[np.int64]] = []
    texts: list[str] = []
    references: list[tuple[str, ...]] = []
    n_corrupt = n_dropped = 0
    for clips in _clips_of_items(features, fold, whole=protocol == "strict" and features.cropped):
        own: tuple[str, ...] = features.target[fold.test[clips[0]]].test
        sound = references_of(task, own, protocol=protocol)
        n_corrupt += max(0, len(own) - len(sound))
        if not sound:
            n_dropped += 1
            continue
        kept.append(clips)
        written = [hypotheses[clip] for clip in clips.tolist()]
        texts.append(_voted(written, form) if closed else _joined(written))
        references.append(sound)
    if not kept:
        raise MetricError(
            "Wanted a test clip with a reference text, found none.",
            where=f"task {task.name}, fold {fold.name}",
            hint="Correct target.keys or target.test_keys in the task file.",
        )
    return Answers(
        form=form,
        rows=fold.test[[clips[0] for clips in kept]],
        hypotheses=texts,
        references=references,
        item=np.repeat(np.arange(len(kept)), [len(own) for own in references]),
        clips=kept,
        n_corrupt=n_corrupt,
        n_dropped=n_dropped,
    )


def _clips_of_items(features: Features, fold: Fold, *, whole: bool) -> list[npt.NDArray[np.int64]]:
    """Return the clips of each item in the order of time, as positions in ``fold.test``."""
    if not whole:
        return [np.array([position]) for position in range(len(fold.test))]
    recording = features.recording[fold.test]
    order = np.lexsort((features.start_s[fold.test], recording))
    ends = np.flatnonzero(np.diff(recording[order])) + 1
    return np.split(order, ends)


def _voted(texts: Sequence[str], form: Form) -> str:
    """Return the most frequent of some answers, the first of several that are; spellings of one answer are one."""
    same = [form.same(text) for text in texts]
    (most, _) = Counter(same).most_common(1)[0]  # of equal counts, the one that was met first
    return texts[same.index(most)]


def _joined(texts: Sequence[str]) -> str:
    """Join texts that follow each other, by a space where the script has any."""
    result = ""
    for text in (text.strip() for text in texts):
        gap = result and text and not (unspaced(result[-1]) and unspaced(text[0]))
        result += (" " if gap else "") + text
    return result if len(texts) > 1 else texts[0]
