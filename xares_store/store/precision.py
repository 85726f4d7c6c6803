"""Which dtype a part's frames are stored in: float16 unless its values do not fit or would lose too much."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xares_store.errors import StoreError

FLOAT16_MAX = 65504.0
CLIP_LOSS = 1e-3
DIM_LOSS = 1e-2
# Squared relative error of a float16 rounding, at most, and squared absolute error below the normal range (6.1e-5).
ROUNDING = 2.0**-22
SUBNORMAL = 2.0**-50

Float32 = NDArray[np.float32]


class FrameBuffer:
    """The frames of one part, clip by clip, with the running decision between float16 and float32.

    A cast to float16 turns values above 65504 into infinity and values under 3e-8 into zero without a word, so every
    clip is measured: its relative L2 error against float32 may be at most 1e-3 (about 2e-4 is usual), and each dimension's
    error over the part at most 1e-2. One clip that breaks this makes the whole part float32; no clip is ever clamped.

    Attributes:
        rows: number of frames so far.
        reason: why the part is float32, or ``"fits"``.
        low: smallest value, high: largest value, flushed: count of non-zero values that became zero.
    """

    def __init__(self, dim: int, *, dtype: str) -> None:
        self.dim = dim
        self.rows = 0
        self.reason = "fits" if dtype == "float16" else "asked for"
        self.low: float | None = None
        self.high: float | None = None
        self._flushed = 0
        self._full: list[Float32] = []
        self._half: list[NDArray[np.float16]] | None = [] if dtype == "float16" else None
        self._dim_error = np.zeros(dim)
        self._dim_power = np.zeros(dim)

    @property
    def flushed(self) -> int:
        """Non-zero values that are zero as stored."""
        return self._flushed if self._half is not None else 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the frames as they would be stored now, before any compression."""
        return self.rows * self.dim * (4 if self._half is None else 2)

    @property
    def dtype(self) -> Literal["float16", "float32"]:
        """As the frames would be stored now; final after :meth:`finish`."""
        return "float32" if self._half is None else "float16"

    def add(self, clip_id: str, frames: Float32) -> None:
        """Copy one clip's frames, shape ``(n_frames, dim)``.

        Raises:
            StoreError: NaN or infinity, or a wrong shape. The buffer is as before.
        """
        if frames.ndim != 2 or frames.shape[1] != self.dim or frames.shape[0] < 1:
            raise StoreError(f"Expected frames of shape (n >= 1, {self.dim}), found {frames.shape}.", where=clip_id)
        full = np.array(frames, dtype="<f4", order="C", copy=True)
        low, high = float(full.min()), float(full.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise StoreError("Expected finite frames, found NaN or infinity.", where=clip_id)
        self.low = low if self.low is None else min(low, self.low)
        self.high = high if self.high is None else max(high, self.high)
        self.rows += len(full)
        self._full.append(full)
        if self._half is not None:
            reason = self._halve(clip_id, full, max(-low, high))
            if reason:
                self._widen(reason)

    def _halve(self, clip_id: str, full: Float32, peak: float) -> str | None:
        assert self._half is not None
        if peak > FLOAT16_MAX:
            return f"|x| up to {peak:.6g} in clip {clip_id} is above {FLOAT16_MAX:.0f}"
        half = full.astype("<f2")
        # -0.0 is zero too, so the sign bit is left out of the count; counting integers is several times faster.
        flushed = _nonzero(full.view("<u4"), 0x7FFFFFFF) - _nonzero(half.view("<u2"), 0x7FFF)
        power = _power(full)
        if flushed or not _surely_fits(power, len(full)):
            error = half.astype(np.float64) - full
            dim_error, power = _power(error), _power(full.astype(np.float64))
            total = power.sum()
            loss = float(np.sqrt(dim_error.sum() / total)) if total > 0 else float(peak > 0)
            if loss > CLIP_LOSS:
                return f"relative error {loss:.2g} of clip {clip_id} in float16 is above {CLIP_LOSS:g}"
            self._dim_error += dim_error
        else:
            self._dim_error += power * ROUNDING
        self._dim_power += power
        self._flushed += flushed
        self._half.append(half)
        return None

    def _widen(self, reason: str) -> None:
        self.reason = reason
        self._half = None

    def finish(self) -> list[NDArray[np.float16]] | list[Float32]:
        """Take the last decision and hand the clips' frames over; the other copy is freed."""
        if self._half is not None:
            loss = np.sqrt(self._dim_error / np.where(self._dim_power > 0, self._dim_power, 1.0))
            worst = int(loss.argmax())
            if loss[worst] > DIM_LOSS:
                self._widen(f"relative error {loss[worst]:.2g} of dimension {worst} in float16 is above {DIM_LOSS:g}")
        if self._half is None:
            return self._full
        self._full = []
        return self._half


def _surely_fits(power: NDArray[np.float64], rows: int) -> bool:
    """Whether the squares of a clip prove, without measuring the error, that every dimension of it fits.

    Either a value is rounded relatively, or it is subnormal and off by at most 2^-25; where a dimension's squares
    outweigh the latter, its relative error is below 7e-4. A dimension of zeros has no error.
    """
    return bool(np.all((power == 0) | (power * ROUNDING >= rows * SUBNORMAL)))


def _nonzero(bits: NDArray[Any], mask: int) -> int:
    return int(np.count_nonzero(bits & bits.dtype.type(mask)))


def _power(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of squares of each column."""
    power: NDArray[np.float64] = np.einsum("nd,nd->d", values, values).astype(np.float64)
    return power
