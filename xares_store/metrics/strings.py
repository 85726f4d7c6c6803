"""Metrics of labels that were written as text: several in one text, divided by a separator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.text import normalise

Hot = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


def labels_of(text: str, *, separator: str = ";", trim: bool = True) -> set[str]:
    """Return the labels that a text names, normalised with their punctuation kept.

    Args:
        text: such as ``"dog;rain"``.
        separator: what divides labels; it is normalised as the text is.
        trim: take white space from around labels and drop empty ones.

    Raises:
        MetricError: nothing of the separator is left after normalisation.

    Example:
        >>> sorted(labels_of("Dog; rain;"))
        ['dog', 'rain']
    """
    divider = normalise(separator, keep_punctuation=True)
    if not divider:
        raise MetricError(
            f"Wanted a separator of labels that normalising leaves in a text, found {separator!r}.",
            hint='Use ";" or ",".',
        )
    labels = normalise(text, keep_punctuation=True).split(divider)
    return {label.strip() for label in labels if label.strip()} if trim else set(labels)


def label_matrices(
    target: Sequence[str], prediction: Sequence[str], *, separator: str = ";", trim: bool = True
) -> tuple[Hot, Hot]:
    """Turn texts into which label was wanted and which was written.

    Args:
        target: labels of each clip.
        prediction: labels that were written for it. Labels that no target has do not appear.
        separator, trim: as in :func:`labels_of`.

    Returns:
        Two arrays ``(clips, labels of the targets)``; labels are in the order of their spelling.

    Raises:
        MetricError: without clips or for different numbers of texts.
    """
    _same_length(target, prediction)
    wanted, found = (
        [labels_of(text, separator=separator, trim=trim) for text in texts] for texts in (target, prediction)
    )
    column = {label: number for number, label in enumerate(sorted(set().union(*wanted)))}
    sides = []
    for rows in (wanted, found):
        hot = np.zeros((len(rows), len(column)), dtype=bool)
        for row, labels in enumerate(rows):
            hot[row, [column[label] for label in labels if label in column]] = True
        sides.append(hot)
    return sides[0], sides[1]


def string_map(
    target: Sequence[str], prediction: Sequence[str], *, n_classes: int, separator: str = ";", trim: bool = True
) -> float:
    """Mean average precision of labels that were written as text, 0 to 1.

    Texts are normalised with their punctuation kept. A written label is a score of 1 and any other one of 0, so that
    the average precision of a class is ``R P + (1 - R) q`` with recall R, precision P and the share q of its clips:
    writing nothing scores q and not 0. Labels that no target has are ignored.

    Args:
        target: labels of each clip, such as ``"dog;rain"``.
        prediction: labels that were predicted for it.
        n_classes: number of classes that the mean is over; those that do not occur in the targets add 0.
        separator: what divides labels.
        trim: take white space from around labels and drop empty ones. The published tables did not: there ``"a; b"``
            is not ``"a;b"``, and a separator at the end makes an empty label.

    Raises:
        MetricError: without clips, for different numbers of texts, or more distinct targets than classes.

    Example:
        >>> string_map(["dog;rain", "rain"], ["dog; rain", "rain"], n_classes=2)
        1.0
    """
    return map_of_matrices(*label_matrices(target, prediction, separator=separator, trim=trim), n_classes=n_classes)


def string_macro_f1(
    target: Sequence[str], prediction: Sequence[str], *, n_classes: int, separator: str = ";", trim: bool = True
) -> float:
    """Mean over classes of the F1 of labels that were written as text, 0 to 1: writing nothing scores 0.

    A class that no target has adds 0, whether it was written or not; so do labels that are no class at all, which add
    nothing else. They cost precision of no other class.

    Args:
        target, prediction, n_classes, separator, trim: as in :func:`string_map`.

    Raises:
        MetricError: as :func:`string_map`.

    Example:
        >>> string_macro_f1(["dog;rain", "rain"], ["dog;cat", ""], n_classes=2)
        0.5
    """
    return f1_of_matrices(*label_matrices(target, prediction, separator=separator, trim=trim), n_classes=n_classes)


def confusion(wanted: Hot, written: Hot) -> npt.NDArray[np.float32]:
    """Return true positives, false positives and false negatives of each clip, ``(clips, 3, labels)``.

    Args:
        wanted, written: what :func:`label_matrices` gives.

    Example:
        >>> confusion(*label_matrices(["a;b"], ["b"])).tolist()
        [[[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]]
    """
    return np.stack([wanted & written, ~wanted & written, wanted & ~written], axis=1).astype(np.float32)


def map_of_matrices(wanted: Hot, written: Hot, *, n_classes: int) -> float:
    """Return :func:`string_map` of what :func:`label_matrices` gives.

    Raises:
        MetricError: more labels occur in the targets than there are classes.
    """
    hits, positive, listed = _sums(wanted, written, n_classes)
    recall, precision = _ratio(hits, positive), _ratio(hits, listed)
    return float((recall * precision + (1.0 - recall) * positive / len(wanted)).sum() / n_classes)


def f1_of_matrices(wanted: Hot, written: Hot, *, n_classes: int) -> float:
    """Return :func:`string_macro_f1` of what :func:`label_matrices` gives.

    Raises:
        MetricError: as :func:`map_of_matrices`.
    """
    hits, positive, listed = _sums(wanted, written, n_classes)
    return float(_ratio(2 * hits, positive + listed).sum() / n_classes)


def _sums(wanted: Hot, written: Hot, n_classes: int) -> tuple[Values, Values, Values]:
    if wanted.shape[1] > n_classes:
        raise MetricError(
            f"Wanted at most {n_classes} distinct labels in the targets, found {wanted.shape[1]}.",
            hint="Correct metric.n_classes or target.separator of the task.",
        )
    hits, positive, listed = ((side.sum(axis=0, dtype=np.float64)) for side in (wanted & written, wanted, written))
    return hits, positive, listed


def _ratio(above: Values, below: Values) -> Values:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _same_length(target: Sequence[str], prediction: Sequence[str]) -> None:
    if len(target) != len(prediction) or not target:
        raise MetricError(f"Wanted one prediction per target and at least one, found {len(prediction)}.")
