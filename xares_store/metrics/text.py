"""Metrics of text: word and character error rates of transcripts, and labels that were written as text."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from xares_store.errors import MetricError

Unit = Literal["word", "character"]

# Written into score records: another normaliser gives other numbers.
NORMALISER_VERSION = "1"

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class ErrorCount:
    """Edit errors of one clip and the number of reference units they are relative to."""

    errors: int
    units: int


def normalise(text: str, *, keep_punctuation: bool = False) -> str:
    """Bring text to the form in which it is compared.

    In this order: Unicode NFKC, lower case, "-" to a space, ASCII punctuation removed, runs of white space to one
    space, ends trimmed. Punctuation outside ASCII stays, except what NFKC maps into it.

    Args:
        text: any text.
        keep_punctuation: leave ASCII punctuation in place (hyphens still become spaces).

    Example:
        >>> normalise("State-of-the-art;  it's 3.5%")
        'state of the art its 35'
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("-", " ")
    if not keep_punctuation:
        text = text.translate(_PUNCTUATION)
    return " ".join(text.split())


def error_counts(target: Sequence[str], prediction: Sequence[str], *, unit: Unit = "word") -> list[ErrorCount]:
    """Count the edit errors of each clip: substitutions, deletions and insertions.

    Args:
        target: reference transcripts, one per clip, already normalised.
        prediction: predicted transcripts.
        unit: what is compared. Characters include the spaces between words.

    Returns:
        One count per clip. An empty reference has 0 units; whatever is predicted for it is an insertion.

    Raises:
        MetricError: for different numbers of transcripts.

    Example:
        >>> error_counts(["the cat sat"], ["the cat sit down"])
        [ErrorCount(errors=2, units=3)]
    """
    if len(target) != len(prediction):
        raise MetricError(f"Wanted one transcript per reference, found {len(prediction)} for {len(target)}.")
    import jiwer  # late: nothing but transcripts needs it

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    counts: list[ErrorCount] = []
    for reference, hypothesis in zip(target, prediction, strict=True):
        if not reference.strip():
            # Releases of jiwer disagree on empty references, so they never reach it.
            found = hypothesis.split() if unit == "word" else list(hypothesis.strip())
            counts.append(ErrorCount(len(found), 0))
            continue
        result = process(reference, hypothesis)
        errors = result.substitutions + result.deletions + result.insertions
        counts.append(ErrorCount(errors, result.hits + result.substitutions + result.deletions))
    return counts


def error_rate(counts: Sequence[ErrorCount]) -> float:
    """Errors of all clips over reference units of all clips, 0 (best) upwards.

    When no clip has a reference unit, the number of errors itself is returned.

    Example:
        >>> error_rate([ErrorCount(1, 1), ErrorCount(0, 9)])
        0.1
    """
    return sum(count.errors for count in counts) / max(1, sum(count.units for count in counts))


def wer(target: Sequence[str], prediction: Sequence[str]) -> float:
    """Word error rate of a corpus over normalised text, 0 (best) upwards; may exceed 1.

    Example:
        >>> wer(["Hello, world!"], ["hello word"])
        0.5
    """
    return error_rate(_normalised_counts(target, prediction, "word"))


def cer(target: Sequence[str], prediction: Sequence[str]) -> float:
    """Character error rate of a corpus over normalised text, 0 (best) upwards; spaces inside a text count.

    Example:
        >>> cer(["你好世界"], ["你号世界"])
        0.25
    """
    return error_rate(_normalised_counts(target, prediction, "character"))


def iwer(target: Sequence[str], prediction: Sequence[str]) -> float:
    """Inverted word error rate ``max(0, 1 - WER)``, 0 to 1 (best)."""
    return max(0.0, 1.0 - wer(target, prediction))


def icer(target: Sequence[str], prediction: Sequence[str]) -> float:
    """Inverted character error rate ``max(0, 1 - CER)``, 0 to 1 (best)."""
    return max(0.0, 1.0 - cer(target, prediction))


def string_accuracy(target: Sequence[str], prediction: Sequence[str]) -> float:
    """Fraction of clips whose predicted text equals the target after normalisation, 0 to 1.

    Example:
        >>> string_accuracy(["Yes", "3"], ["yes.", "three"])
        0.5
    """
    if len(target) != len(prediction) or not target:
        raise MetricError(f"Wanted one prediction per target and at least one, found {len(prediction)}.")
    pairs = zip(target, prediction, strict=True)
    return sum(normalise(wanted) == normalise(found) for wanted, found in pairs) / len(target)


def string_map(target: Sequence[str], prediction: Sequence[str], *, n_classes: int, trim: bool = True) -> float:
    """Mean average precision of labels that were written as text, separated by ";", 0 to 1.

    Texts are normalised with their punctuation kept. A written label is a score of 1 and any other one of 0, so that
    the average precision of a class is ``R P + (1 - R) q`` with recall R, precision P and the share q of its clips:
    writing nothing scores q and not 0. Labels that no target has are ignored.

    Args:
        target: labels of each clip, such as ``"dog;rain"``.
        prediction: labels that were predicted for it.
        n_classes: number of classes that the mean is over; those that do not occur in the targets add 0.
        trim: take white space from around labels and drop empty ones. The published tables did not: there ``"a; b"``
            is not ``"a;b"``, and a separator at the end makes an empty label.

    Raises:
        MetricError: without clips, for different numbers of texts, or more distinct targets than classes.

    Example:
        >>> string_map(["dog;rain", "rain"], ["dog; rain", "rain"], n_classes=2)
        1.0
    """
    if len(target) != len(prediction) or not target:
        raise MetricError(f"Wanted one prediction per target and at least one, found {len(prediction)}.")
    wanted, found = ([_labels(text, trim) for text in texts] for texts in (target, prediction))
    classes = set().union(*wanted)
    if len(classes) > n_classes:
        raise MetricError(f"Wanted at most {n_classes} distinct labels in the targets, found {len(classes)}.")
    total = 0.0
    for label in classes:
        positive = sum(label in labels for labels in wanted)
        written = sum(label in labels for labels in found)
        hits = sum(label in labels for labels, right in zip(found, wanted, strict=True) if label in right)
        recall, precision = hits / positive, hits / written if written else 0.0
        total += recall * precision + (1.0 - recall) * positive / len(wanted)
    return total / n_classes


def _labels(text: str, trim: bool) -> set[str]:
    labels = normalise(text, keep_punctuation=True).split(";")
    return {label.strip() for label in labels if label.strip()} if trim else set(labels)


def _normalised_counts(target: Sequence[str], prediction: Sequence[str], unit: Unit) -> list[ErrorCount]:
    wanted, found = [normalise(text) for text in target], [normalise(text) for text in prediction]
    return error_counts(wanted, found, unit=unit)
