"""Average precision of many weightings of the same clips: sorted once, then a product of matrices each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float32]


class Ranking:
    """Classes with their clips in order of score, ready for any weights of the clips.

    Only sums between the scores of neighbouring positives matter: a sparse matrix a class, one row a positive score.

    Args:
        target: ``(clips, classes)``.
        scores: ``(clips, classes)``, finite.

    Example:
        >>> ranking = Ranking(np.array([[True], [False], [True]]), np.array([[0.9], [0.5], [0.1]]))
        >>> ranking.average_precision(np.array([[1, 0], [1, 2], [1, 1]], dtype=np.float32)).round(4).tolist()
        [[0.8333], [0.3333]]
    """

    def __init__(self, target: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> None:
        from scipy.sparse import csr_array  # late: nothing else here needs it

        self._classes: list[tuple[Any, Any] | None] = []
        for positive, column in zip(target.T, np.ascontiguousarray(scores.T), strict=True):
            levels = np.unique(column[positive])
            if not len(levels):
                self._classes.append(None)
                continue
            level = np.searchsorted(levels, column, side="right") - 1
            clip = np.flatnonzero(level >= 0)
            shape = (len(levels), len(column))
            # Highest score first, so that running sums go down the ranking.
            row = len(levels) - 1 - level
            both = [
                csr_array((np.ones(len(kept), np.float32), (row[kept], kept)), shape=shape)
                for kept in (clip, np.flatnonzero(positive))
            ]
            self._classes.append((both[0], both[1]))

    def average_precision(self, weights: Weights) -> Values:
        """Average precision of clips that count as often as their weight.

        Args:
            weights: ``(clips, replicates)``, at least 0.

        Returns:
            ``(replicates, classes)``; 0 where no positive has any weight.
        """
        result = np.zeros((weights.shape[1], len(self._classes)))
        for number, matrices in enumerate(self._classes):
            if matrices is None:
                continue
            everything, positives = (np.asarray(matrix @ weights, dtype=np.float64) for matrix in matrices)
            found, listed = np.cumsum(positives, axis=0), np.cumsum(everything, axis=0)
            precision = np.divide(found, listed, out=np.zeros_like(found), where=listed > 0)
            total = found[-1]
            area = np.einsum("ij,ij->j", precision, positives)
            result[:, number] = np.divide(area, total, out=np.zeros_like(area), where=total > 0)
        return result


def average_precisions(target: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> Values:
    """Average precision of each class, 0 for one without positives; tied scores are one threshold.

    The mean over positives of the precision at each one's score: two sorts of plain numbers a class, 40 times faster than
    scikit-learn. Validation after every epoch can tell; scores are made with
    :func:`xares_store.metrics.classification.average_precision`, which a test keeps equal.

    Args:
        target: ``(clips, classes)``.
        scores: ``(clips, classes)``, finite.

    Returns:
        ``(classes,)``.

    Example:
        >>> average_precisions(np.array([[True], [False], [True]]), np.array([[0.9], [0.5], [0.1]])).round(4).tolist()
        [0.8333]
    """
    result = np.zeros(target.shape[1])
    for number, (positive, column) in enumerate(zip(target.T, np.ascontiguousarray(scores.T), strict=True)):
        found = np.sort(column[positive])
        if len(found):
            hits = len(found) - np.searchsorted(found, found)
            result[number] = np.mean(hits / (len(column) - np.searchsorted(np.sort(column), found)))
    return result
