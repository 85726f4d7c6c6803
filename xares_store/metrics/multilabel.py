"""Metrics of multi-label classification that rank clips by score, and the variants of other benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError
from xares_store.metrics.classification import average_precision, predicted_class
from xares_store.metrics.frames import count_active

Values = npt.NDArray[np.float64]


def map_present(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Mean average precision over the classes that have positives, 0 to 1.

    Args:
        target: ``(clips, classes)`` 0 or 1.
        prediction: ``(clips, classes)`` scores.

    Raises:
        MetricError: as :func:`xares_store.metrics.classification.average_precision`, or when no class has positives.

    Example:
        >>> map_present([[1, 0], [0, 0]], [[0.9, 0.2], [0.1, 0.7]])
        1.0
    """
    values = average_precision(target, prediction)
    seen = np.asarray(target).any(axis=0)
    if not seen.any():
        raise MetricError("Wanted at least one positive label, found none: mAP over present classes is undefined.")
    return float(values[seen].mean())


def auroc(target: npt.ArrayLike, prediction: npt.ArrayLike) -> Values:
    """Area under the ROC of each class, 0 to 1 (best), chance 0.5: how often a positive outranks a negative.

    Args:
        target: ``(clips, classes)`` 0 or 1.
        prediction: ``(clips, classes)`` scores; a tie counts half.

    Returns:
        ``(classes,)``; NaN for a class without positives or without negatives.

    Raises:
        MetricError: for different shapes or scores that are not finite.

    Example:
        >>> auroc([[1], [1], [0]], [[0.9], [0.2], [0.2]]).tolist()
        [0.75]
    """
    wanted, scores = _checked(target, prediction)
    from sklearn.metrics import roc_auc_score  # takes most of a second to import

    result = np.full(wanted.shape[1], np.nan)
    seen = np.flatnonzero(wanted.any(axis=0) & ~wanted.all(axis=0))
    if len(seen):
        result[seen] = roc_auc_score(wanted[:, seen], scores[:, seen], average=None)
    return result


def mean_auroc(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Mean of :func:`auroc` over the classes where it is defined, 0 to 1.

    Raises:
        MetricError: as :func:`auroc`, or when no class has both positives and negatives.
    """
    return _mean_of_defined(auroc(target, prediction))


def d_prime(target: npt.ArrayLike, prediction: npt.ArrayLike, *, clip: bool = True) -> Values:
    """Sensitivity index of each class, chance 0: sqrt(2) times the normal quantile of :func:`auroc`.

    Args:
        target: ``(clips, classes)`` 0 or 1.
        prediction: ``(clips, classes)`` scores.
        clip: keep the area half a pair away from 0 and 1, so that a perfect class is finite: with P positives and N
            negatives, from 1 / (2 P N) to 1 - 1 / (2 P N). Without, as the HEAR tables, it is infinite.

    Returns:
        ``(classes,)``; NaN where :func:`auroc` is.

    Example:
        >>> d_prime([[1], [1], [0]], [[0.9], [0.8], [0.1]]).round(4).tolist()
        [0.9539]
    """
    area = auroc(target, prediction)
    if clip:
        positives = np.asarray(target, dtype=bool).sum(axis=0)
        pairs = np.maximum(1, positives * (len(np.asarray(target)) - positives))
        area = np.clip(area, 0.5 / pairs, 1.0 - 0.5 / pairs)
    from scipy.special import ndtri  # late: nothing else here needs it

    return np.asarray(np.sqrt(2.0) * ndtri(area), dtype=np.float64)


def mean_d_prime(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Mean of :func:`d_prime`, clipped, over the classes where it is defined.

    Raises:
        MetricError: as :func:`mean_auroc`.
    """
    return _mean_of_defined(d_prime(target, prediction))


def beans_average_precision(target: npt.ArrayLike, prediction: npt.ArrayLike) -> Values:
    """Average precision of each class as the BEANS benchmark computes it, 0 to 1.

    Precision is averaged at every positive in sort order. Ties are not grouped, so clips with equal scores count in the
    order in which they are listed; :func:`xares_store.metrics.classification.average_precision` does not depend on it.

    Args:
        target: ``(clips, classes)`` 0 or 1.
        prediction: ``(clips, classes)`` scores.

    Returns:
        ``(classes,)``; 0 for a class without positives.

    Example:
        >>> beans_average_precision([[1], [0], [1]], [[0.9], [0.5], [0.1]]).round(4).tolist()
        [0.8333]
    """
    wanted, scores = _checked(target, prediction)
    ranked = np.take_along_axis(wanted, np.argsort(-scores, axis=0, kind="stable"), axis=0)
    precision = np.cumsum(ranked, axis=0) / np.arange(1, len(ranked) + 1)[:, None]
    return np.asarray((precision * ranked).sum(axis=0) / np.maximum(1, ranked.sum(axis=0)), dtype=np.float64)


def beans_scores(target: npt.ArrayLike, logits: npt.ArrayLike) -> dict[str, float]:
    """Precision, recall and F1 of the BEANS detection tasks, each the plain mean over classes, 0 to 1.

    Args:
        target: ``(clips, classes)`` 0 or 1.
        logits: ``(clips, classes)``; a label is predicted above 0.

    Returns:
        ``precision``, ``recall`` and ``f1``; all 0 without clips, as there.

    Example:
        >>> beans_scores([[1], [1]], [[2.0], [-1.0]])
        {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666}
    """
    if not len(np.asarray(target)):
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    wanted, scores = _checked(target, logits)
    hits, wrong, missed = count_active(wanted, scores > 0)
    sizes = {"precision": hits + wrong, "recall": hits + missed, "f1": hits + (wrong + missed) / 2}
    return {name: float((hits / np.where(size > 0, size, 1)).mean()) for name, size in sizes.items()}


def beans_accuracy(target: npt.ArrayLike, prediction: npt.ArrayLike) -> float:
    """Accuracy of the BEANS classification tasks, 0 to 1: the usual one, but 0 without clips.

    Args:
        target: ``(clips,)`` class indices.
        prediction: ``(clips, classes)`` scores.
    """
    wanted = np.asarray(target)
    return float((wanted == predicted_class(prediction)).mean()) if len(wanted) else 0.0


def _checked(target: npt.ArrayLike, prediction: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
    wanted, scores = np.asarray(target), np.asarray(prediction)
    if wanted.ndim != 2 or wanted.shape != scores.shape or not len(wanted):
        raise MetricError(
            f"Wanted targets and scores of one shape (clips, classes), found {wanted.shape} and {scores.shape}."
        )
    if not np.isfinite(scores).all():
        raise MetricError("Wanted finite scores, found NaN or Inf.")
    return wanted.astype(bool), scores


def _mean_of_defined(values: Values) -> float:
    defined = values[~np.isnan(values)]
    if not len(defined):
        raise MetricError("Wanted a class with both positives and negatives, found none.")
    return float(defined.mean())
