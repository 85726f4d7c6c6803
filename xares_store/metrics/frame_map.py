"""Average precision over all frames of a test set, in bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xares_store.errors import MetricError

_BINS = 1 << 16


class FrameAveragePrecision:
    """Average precision of each class over frames that arrive clip by clip.

    An exact value needs every score at once: 20 hours of music at a hop of 40 ms are 150 million. This keeps how often
    each float16 score occurred among positives and negatives instead, 1 MiB a class. Scores that are equal in float16
    become ties, so the value is exact for float16 scores and near it for others.

    Example:
        >>> metric = FrameAveragePrecision(1)
        >>> metric.update([[1], [0]], [[2.0], [-1.0]])
        >>> metric.update([[1]], [[-2.0]])
        >>> metric.value().round(4).tolist()
        [0.8333]
    """

    def __init__(self, n_classes: int) -> None:
        if n_classes < 1:
            raise MetricError(f"Wanted at least one class, found {n_classes}.")
        # [negative or positive, class, score from low to high]
        self._counts = np.zeros((2, n_classes, _BINS), dtype=np.int64)

    def update(self, target: npt.ArrayLike, logits: npt.ArrayLike) -> None:
        """Count the frames of one clip.

        Args:
            target: ``(frames, classes)`` 0 or 1.
            logits: ``(frames, classes)``; beyond the range of float16 they count as its largest value.

        Raises:
            MetricError: other shapes, or scores that are not finite.
        """
        wanted, scores = np.asarray(target), np.asarray(logits)
        if wanted.ndim != 2 or wanted.shape != scores.shape or wanted.shape[1] != self._counts.shape[1]:
            raise MetricError(
                f"Wanted targets and logits (frames, {self._counts.shape[1]}), found {wanted.shape} and {scores.shape}."
            )
        if not np.isfinite(scores).all():
            raise MetricError("Wanted finite scores, found NaN or Inf.")
        column = np.broadcast_to(np.arange(wanted.shape[1]), wanted.shape)
        np.add.at(self._counts, ((wanted > 0).astype(np.int64), column, _ranked(scores)), 1)

    @property
    def positives(self) -> npt.NDArray[np.int64]:
        """Positive frames so far, ``(classes,)``."""
        return np.asarray(self._counts[1].sum(axis=1), dtype=np.int64)

    def value(self) -> npt.NDArray[np.float64]:
        """Average precision, 0 to 1, ``(classes,)``; 0 for a class without positive frames.

        Raises:
            MetricError: before any frame.
        """
        if not self._counts.any():
            raise MetricError("Wanted at least one frame, found none: frame mAP is undefined.")
        result = np.zeros(self._counts.shape[1])
        for number in np.flatnonzero(self.positives):
            alarms, hits = self._counts[:, number, ::-1]
            used = np.flatnonzero(hits)
            found = np.cumsum(hits)[used]
            above = found + np.cumsum(alarms)[used]
            result[number] = (hits[used] * (found / above)).sum() / found[-1]
        return result


def _ranked(scores: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Map scores to 0..65535 in their float16 order."""
    largest = np.finfo(np.float16).max
    # Adding 0 turns -0 into 0: they are the same score and different bits.
    half = np.clip(scores, -largest, largest).astype(np.float16) + np.float16(0)
    bits = np.ascontiguousarray(half).view(np.uint16)
    # Bits of positive numbers rise with them; those of negative ones fall, and all lie above.
    return np.where(bits & 0x8000, ~bits, bits | 0x8000).astype(np.int64)
