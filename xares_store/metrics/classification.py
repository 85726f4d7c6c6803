"""Metrics of single-label and multi-label classification."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.frames import count_active, f1_from_counts

IndexArray = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def predicted_class(scores: npt.ArrayLike) -> IndexArray:
    """Index of the largest score of each clip.

    The first of equal scores wins; NaN counts as the largest.

    Args:
        scores: ``(clips, classes)`` logits or probabilities, at least two classes.

    Returns:
        ``(clips,)`` class indices.

    Raises:
        MetricError: when there are not at least two columns.

    Example:
        >>> predicted_class([[0.1, 0.9], [0.5, 0.5]]).tolist()
        [1, 0]
    """
    array = np.asarray(scores)
    if array.ndim != 2 or array.shape[1] < 2:
        raise MetricError(
            f"Wanted scores (clips, classes) with at least 2 classes, found shape {array.shape}.",
            hint="A single score per clip is a detection task: use eer.",
        )
    return np.asarray(array.argmax(axis=1), dtype=np.int64)


def correct(target: npt.ArrayLike, prediction: npt.ArrayLike) -> Values:
    """Score each clip 1.0 where the predicted class is the target, else 0.0.

    Args:
        target: ``(clips,)`` class indices. An index that no column stands for is simply not hit.
        prediction: ``(clips,)`` class indices, or ``(clips, classes)`` scores.

    Returns:
        ``(clips,)``.

    Raises:
        MetricError: when the lengths differ.
    """
    wanted, found = np.asarray(target), np.asarray(prediction)
    if found.ndim != 1:
        found = predicted_class(found)
    _same_length(wanted, found)
    if wanted.shape != found.shape:
        raise MetricError(f"Wanted one class index per clip, found targets of shape {wanted.shape}.")
    values: Values = (wanted == found).astype(np.float64)
    return values


def accuracy(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Fraction of clips whose predicted class is the target, 0 to 1.

    Args:
        target: ``(clips,)`` class indices.
        prediction: ``(clips,)`` class indices, or ``(clips, classes)`` scores.

    Raises:
        MetricError: without clips, with different lengths, or with one column of scores.

    Example:
        >>> accuracy([0, 1, 2, 0], [0, 1, 1, 0])
        0.75
    """
    values = correct(target, prediction)
    _some(values)
    return float(values.mean())


def macro_accuracy(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Mean over classes of the fraction of their clips that are recognised, 0 to 1: each class counts the same.

    Classes without a clip in the targets do not count.

    Args:
        target: ``(clips,)`` class indices.
        prediction: ``(clips,)`` class indices, or ``(clips, classes)`` scores.

    Raises:
        MetricError: as :func:`accuracy`.

    Example:
        >>> macro_accuracy([0, 0, 0, 1], [0, 0, 0, 0])
        0.5
    """
    values = correct(target, prediction)
    _some(values)
    _, member = np.unique(np.asarray(target), return_inverse=True)
    return float((np.bincount(member, weights=values) / np.bincount(member)).mean())


def class_counts(target: npt.ArrayLike, prediction: npt.ArrayLike, *, threshold: float = 0.5) -> IndexArray:
    """Count true positives, false positives and false negatives of each class: what F1 is made of.

    Args:
        target: ``(clips,)`` class indices of a single-label task, or ``(clips, classes)`` 0 or 1 of a multi-label one.
        prediction: ``(clips, classes)`` scores; ``(clips,)`` class indices do for a single-label task.
        threshold: a label of a multi-label task is predicted above it: 0.5 for probabilities, 0 for logits.

    Returns:
        ``(3, classes)``; with class indices on both sides, as many columns as the largest index needs.

    Raises:
        MetricError: without clips, for different shapes, or a negative class index.

    Example:
        >>> class_counts([[1, 0], [1, 1]], [[0.9, 0.7], [0.2, 0.8]]).tolist()
        [[1, 1], [0, 1], [1, 0]]
    """
    wanted, found = np.asarray(target), np.asarray(prediction)
    _same_length(wanted, found)
    _some(wanted)
    if wanted.ndim == 2:
        return count_active(wanted, found > threshold)
    n_classes = found.shape[1] if found.ndim == 2 else 0
    if found.ndim != 1:
        found = predicted_class(found)
    if wanted.shape != found.shape or min(wanted.min(), found.min()) < 0:
        raise MetricError(f"Wanted class indices from 0, one per clip, found {wanted.shape} and {found.shape}.")
    n_classes = max(n_classes, int(wanted.max()) + 1, int(found.max()) + 1)
    hit = wanted == found
    parts = (wanted[hit], found[~hit], wanted[~hit])
    return np.stack([np.bincount(part, minlength=n_classes) for part in parts]).astype(np.int64)


def macro_f1(target: npt.ArrayLike, prediction: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), 0 to 1.

    In a single-label task the classes that occur among targets or predictions count; in a multi-label task all columns
    do, one without targets and predictions as 0.

    Args:
        target, prediction, threshold: as in :func:`class_counts`.

    Example:
        >>> macro_f1([0, 0, 1, 1], [0, 0, 1, 0])
        0.7333333333333334
    """
    single = np.asarray(target).ndim == 1
    return float(f1_from_counts(class_counts(target, prediction, threshold=threshold), present_only=single))


def micro_f1(target: npt.ArrayLike, prediction: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """F1 over the labels of all classes together, 0 to 1; in a single-label task it equals the accuracy.

    Args:
        target, prediction, threshold: as in :func:`class_counts`.

    Example:
        >>> micro_f1([[1, 0], [1, 1]], [[0.9, 0.7], [0.2, 0.8]])
        0.6666666666666666
    """
    return float(f1_from_counts(class_counts(target, prediction, threshold=threshold), "micro"))


def chroma_accuracy(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Fraction of clips whose predicted note has the pitch class of the target, 0 to 1: octave errors are forgiven.

    Args:
        target: ``(clips,)`` indices of notes in semitones.
        prediction: ``(clips,)`` indices, or ``(clips, notes)`` scores.

    Raises:
        MetricError: as :func:`accuracy`.

    Example:
        >>> chroma_accuracy([12, 1], [0, 2])
        0.5
    """
    found = np.asarray(prediction)
    return accuracy(np.asarray(target) % 12, (found if found.ndim == 1 else predicted_class(found)) % 12)


def eer(
    target: npt.ArrayLike, prediction: npt.ArrayLike, *, variant: Literal["interpolated", "nearest"] = "interpolated"
) -> float:
    """Equal error rate, 0 (best) to 1: where false positive and false negative rate meet on the ROC.

    Args:
        target: ``(clips,)`` 0 or 1.
        prediction: ``(clips,)`` scores, higher for 1.
        variant: ``"interpolated"``: the crossing on the piecewise-linear ROC. ``"nearest"``: the mean of both rates at
            the ROC point where they differ least, after dropping points that lie on a line with their neighbours;
            the dropping changes the value, which is why this is not the default.

    Raises:
        MetricError: when only one class occurs or a score is not finite.

    Reference:
        Section 2 of the metrics facts; "interpolated" is common in anti-spoofing work.

    Example:
        >>> eer([1, 0, 1, 1, 0, 0, 0], [0.9, 0.7, 0.6, 0.55, 0.5, 0.3, 0.1])
        0.25
    """
    wanted, scores = np.asarray(target), np.asarray(prediction, dtype=np.float64)
    _same_length(wanted, scores)
    _some(scores)
    if not np.isin(wanted, (0, 1)).all():
        raise MetricError(f"Wanted targets 0 and 1, found {np.unique(wanted).tolist()[:5]}.")
    if not np.isfinite(scores).all():
        raise MetricError("Wanted finite scores, found NaN or Inf.")
    positives = int((wanted == 1).sum())
    negatives = len(wanted) - positives
    if not positives or not negatives:
        raise MetricError(f"Wanted clips of both classes, found {positives} positive and {negatives} negative.")
    hits, alarms = _roc_counts(wanted, scores)
    if variant == "nearest":
        inside = np.diff(hits, 2).astype(bool) | np.diff(alarms, 2).astype(bool)
        kept = np.concatenate([[True], inside, [True]]) if len(hits) > 2 else np.ones(len(hits), dtype=bool)
        hits, alarms = hits[kept], alarms[kept]
    fpr = np.concatenate([[0.0], alarms / negatives])
    fnr = 1.0 - np.concatenate([[0.0], hits / positives])
    gap = fpr - fnr  # rises from -1 to 1
    if variant == "nearest":
        best = int(np.argmin(np.abs(gap)))
        return float((fpr[best] + fnr[best]) / 2)
    after = int(np.argmax(gap >= 0))
    share = gap[after] / (gap[after] - gap[after - 1])
    return float(fpr[after] - share * (fpr[after] - fpr[after - 1]))


def _roc_counts(wanted: npt.NDArray[Any], scores: Values) -> tuple[IndexArray, IndexArray]:
    """Return true and false positives at each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(wanted[order] == 1)[last_of_tie]
    return hits, last_of_tie + 1 - hits


def average_precision(target: npt.ArrayLike, prediction: npt.ArrayLike) -> Values:
    """Average precision of each class, 0 to 1; 0 for a class without positives.

    Thresholds lie at the distinct scores, so tied scores are one threshold; nothing is interpolated.

    Args:
        target: ``(clips, classes)`` 0 or 1.
        prediction: ``(clips, classes)`` scores. Only their order counts: pass logits, because saturated probabilities
            tie.

    Returns:
        ``(classes,)``.

    Raises:
        MetricError: for different shapes or scores that are not finite.
    """
    wanted, scores = np.asarray(target), np.asarray(prediction)
    if wanted.ndim != 2 or wanted.shape != scores.shape:
        raise MetricError(
            f"Wanted targets and scores of one shape (clips, classes), found {wanted.shape} and {scores.shape}."
        )
    _some(wanted)
    if not np.isfinite(scores).all():
        raise MetricError("Wanted finite scores, found NaN or Inf.")
    from sklearn.metrics import average_precision_score  # takes most of a second to import

    result = np.zeros(wanted.shape[1])
    seen = np.flatnonzero(wanted.any(axis=0))  # scikit-learn warns about a class without positives; here it is 0
    if len(seen):
        result[seen] = average_precision_score(wanted[:, seen], scores[:, seen], average=None)
    return result


def mean_average_precision(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Macro mean of :func:`average_precision` over all classes, those without positives included as 0.

    Args:
        target: ``(clips, classes)`` 0 or 1.
        prediction: ``(clips, classes)`` scores.

    Example:
        >>> mean_average_precision([[1, 0], [0, 1]], [[0.9, 0.2], [0.1, 0.7]])
        1.0
    """
    return float(average_precision(target, prediction).mean())


def mae(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Mean over clips of the absolute errors, summed over a clip's outputs; 0 is best.

    Args:
        target: ``(clips,)`` or ``(clips, outputs)``.
        prediction: the same number of values per clip.

    Example:
        >>> mae([1.5, 2.0, 2.0], [1.0, 2.0, 4.0])
        0.8333333333333334
    """
    return float(np.abs(_errors(target, prediction)).sum(axis=1).mean())


def mse(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Mean over clips of the squared errors, summed over a clip's outputs; 0 is best."""
    return float(np.square(_errors(target, prediction)).sum(axis=1).mean())


def pearson(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Pearson's correlation, -1 to 1 (best); 0 where one side is constant, because nothing can be seen to rise with it.

    A side is constant when its values differ by no more than rounding to float32 makes of one value.

    Args:
        target: ``(clips,)`` or ``(clips, 1)``.
        prediction: the same number of values.

    Raises:
        MetricError: without clips, with several outputs, or values that are not finite.

    Example:
        >>> round(pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.5]), 4)
        0.9979
    """
    wanted, error = np.asarray(target, dtype=np.float64), _errors(target, prediction)
    if error.shape[1] != 1 or not (np.isfinite(error).all() and np.isfinite(wanted).all()):
        raise MetricError(f"Wanted one finite value per clip, found {error.shape[1]} outputs.")
    # The predictions themselves: targets plus errors would round a constant into noise.
    sides = [wanted.ravel(), np.asarray(prediction, dtype=np.float64).ravel()]
    # Equal clips in one product of matrices may differ in their last bit.
    if any(np.ptp(side) <= 4 * np.finfo(np.float32).eps * np.abs(side).max() for side in sides):
        return 0.0
    first, second = ((side - side.mean()) / np.linalg.norm(side - side.mean()) for side in sides)
    return float(np.clip(first @ second, -1.0, 1.0))


def _errors(target: npt.ArrayLike, prediction: npt.ArrayLike) -> Values:
    wanted, found = np.asarray(target, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    _same_length(wanted, found)
    _some(wanted)
    # (clips,) and (clips, 1) are the same thing here; broadcasting them would compare every clip with every other.
    wanted, found = wanted.reshape(len(wanted), -1), found.reshape(len(found), -1)
    if wanted.shape != found.shape:
        raise MetricError(f"Wanted as many outputs as targets per clip, found {found.shape[1]} and {wanted.shape[1]}.")
    return found - wanted


def _same_length(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
    if wanted.ndim < 1 or found.ndim < 1 or len(wanted) != len(found):
        raise MetricError(
            f"Wanted one prediction per target, found targets {wanted.shape} and predictions {found.shape}."
        )


def _some(values: npt.NDArray[Any]) -> None:
    if not len(values):
        raise MetricError("Wanted at least one clip, found none: the metric is undefined.")
