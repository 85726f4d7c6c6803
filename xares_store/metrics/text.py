"""Text as it is compared: equal or not, and the word and character error rates of transcripts."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from xares_store.errors import MetricError

Unit = Literal["word", "character"]

# Written into score records: another normaliser gives other numbers. The first is that of the published tables.
NORMALISER_VERSION = "1"
UNICODE_NORMALISER_VERSION = "2"

# Unicode names of letters that are written without spaces between words.
_UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA")

_PUNCTUATION = str.maketrans("", "", string.punctuation)

# What looks corrupt: so many marks that are put on the letter before, so many characters of which so few differ.
_MOST_MARKS = 3
_LONG, _DISTINCT = 10, 4


@dataclass(frozen=True)
class ErrorCount:
    """Edit errors of one clip by kind, and the number of reference units they are relative to."""

    substitutions: int
    deletions: int
    insertions: int
    units: int

    @property
    def errors(self) -> int:
        """Errors of all kinds."""
        return self.substitutions + self.deletions + self.insertions


def normalise(
    text: str, *, keep_punctuation: bool = False, lowercase_only: bool = False, every_script: bool = False
) -> str:
    """Bring text to the form in which it is compared.

    In this order: Unicode NFKC, lower case, "-" to a space, ASCII punctuation removed, runs of white space to one
    space, ends trimmed. Punctuation outside ASCII stays, except what NFKC maps into it.

    Args:
        text: any text.
        keep_punctuation: leave ASCII punctuation in place (hyphens still become spaces).
        lowercase_only: only make it lower case and trim it, as the published tables of X-ARES did: a comma is then an
            error of its word.
        every_script: remove the punctuation of all scripts, take any dash for a space, and take away white space between
            letters of scripts that have none.

    Example:
        >>> normalise("State-of-the-art;  it's 3.5%")
        'state of the art its 35'
        >>> normalise("你好。 世界、 “ok”", every_script=True)
        '你好世界 ok'
    """
    if lowercase_only:
        return text.lower().strip()
    text = unicodedata.normalize("NFKC", text).lower().replace("-", " ")
    if every_script:
        return _plain(text)
    if not keep_punctuation:
        text = text.translate(_PUNCTUATION)
    return " ".join(text.split())


def _plain(text: str) -> str:
    kinds = [(letter, unicodedata.category(letter)) for letter in text.translate(_PUNCTUATION)]
    words = "".join(" " if kind == "Pd" else "" if kind[0] == "P" else letter for letter, kind in kinds).split()
    found = ""
    for word in words:
        found += (" " if found and not (unspaced(found[-1]) and unspaced(word[0])) else "") + word
    return found


def unspaced(letter: str) -> bool:
    """Tell whether a letter belongs to a script that is written without spaces between words.

    Example:
        >>> unspaced("世"), unspaced("w")
        (True, False)
    """
    return unicodedata.name(letter, "").startswith(_UNSPACED)


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
        [ErrorCount(substitutions=1, deletions=0, insertions=1, units=3)]
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
            counts.append(ErrorCount(0, 0, len(found), 0))
            continue
        result = process(reference, hypothesis)
        units = result.hits + result.substitutions + result.deletions
        counts.append(ErrorCount(result.substitutions, result.deletions, result.insertions, units))
    return counts


def error_rate(counts: Sequence[ErrorCount]) -> float:
    """Errors of all clips over reference units of all clips, 0 (best) upwards.

    When no clip has a reference unit, the number of errors itself is returned.

    Example:
        >>> error_rate([ErrorCount(1, 0, 0, units=1), ErrorCount(0, 0, 0, units=9)])
        0.1
    """
    return sum(count.errors for count in counts) / max(1, sum(count.units for count in counts))


def wer(target: Sequence[str], prediction: Sequence[str], *, lowercase_only: bool = False) -> float:
    """Word error rate of a corpus, 0 (best) upwards; may exceed 1.

    Args:
        target, prediction: as in :func:`error_counts`, but as they came: they are normalised here.
        lowercase_only: as in :func:`normalise`.

    Example:
        >>> wer(["Hello, world!"], ["hello word"])
        0.5
    """
    return error_rate(_normalised_counts(target, prediction, "word", lowercase_only))


def cer(target: Sequence[str], prediction: Sequence[str], *, lowercase_only: bool = False) -> float:
    """Character error rate of a corpus, as :func:`wer`; spaces inside a text count.

    Example:
        >>> cer(["你好世界"], ["你号世界"])
        0.25
    """
    return error_rate(_normalised_counts(target, prediction, "character", lowercase_only))


def iwer(target: Sequence[str], prediction: Sequence[str], *, lowercase_only: bool = False) -> float:
    """Inverted word error rate ``max(0, 1 - WER)``, 0 to 1 (best)."""
    return max(0.0, 1.0 - wer(target, prediction, lowercase_only=lowercase_only))


def icer(target: Sequence[str], prediction: Sequence[str], *, lowercase_only: bool = False) -> float:
    """Inverted character error rate ``max(0, 1 - CER)``, 0 to 1 (best)."""
    return max(0.0, 1.0 - cer(target, prediction, lowercase_only=lowercase_only))


def string_accuracy(target: Sequence[str], prediction: Sequence[str]) -> float:
    """Fraction of clips whose predicted text equals the target after normalisation, 0 to 1.

    Args:
        target: one text a clip.
        prediction: what was written for it.

    Raises:
        MetricError: without clips or for different numbers of texts.

    Example:
        >>> string_accuracy(["Yes", "3"], ["yes.", "three"])
        0.5
    """
    if len(target) != len(prediction) or not target:
        raise MetricError(f"Wanted one prediction per target and at least one, found {len(prediction)}.")
    pairs = zip(target, prediction, strict=True)
    return sum(normalise(wanted) == normalise(found) for wanted, found in pairs) / len(target)


def looks_corrupt(text: str) -> bool:
    """Say whether XARES-LLM would leave a text out, of training and of testing alike.

    That is the case for more than 3 combining diacritical marks, for more characters that are neither letter nor digit
    than ones that are (spaces count), and for more than 10 characters of which fewer than 4 are distinct.

    Example:
        >>> [looks_corrupt(text) for text in ("a dog barks", "[- I am.", "haha hahaha", "")]
        [False, True, True, False]
    """
    marks = sum("\u0300" < letter < "\u0370" for letter in text)
    others = sum(not letter.isalnum() for letter in text)
    few = len(text) > _LONG and len(set(text)) < _DISTINCT
    return marks > _MOST_MARKS or others > len(text) / 2 or few


def _normalised_counts(
    target: Sequence[str], prediction: Sequence[str], unit: Unit, lowercase_only: bool
) -> list[ErrorCount]:
    wanted, found = ([normalise(text, lowercase_only=lowercase_only) for text in side] for side in (target, prediction))
    return error_counts(wanted, found, unit=unit)
