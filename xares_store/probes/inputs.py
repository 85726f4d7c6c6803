"""What a clip probe can be trained on: shapes, types and values, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xares_store.errors import ProbeError
from xares_store.probes.losses import Loss

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

_SHAPES: dict[Loss, tuple[str, type[np.generic]]] = {
    "cross-entropy": ("one class index per clip", np.int64),
    "bce": ("a row of 0 and 1 per clip", np.uint8),
    "mse": ("one number per clip", np.float32),
}


def check_inputs(
    features: FloatArray,
    target: npt.NDArray[Any],
    n_classes: int,
    splits: Sequence[tuple[str, IndexArray, IndexArray, IndexArray]],
    recordings: IndexArray | None,
    loss: Loss,
) -> None:
    """Refuse what a clip probe cannot be trained on.

    Args:
        features: ``(clips, dim)`` float32.
        target: by loss, see :func:`xares_store.probes.mlp.train_mlp`.
        n_classes: number of outputs.
        splits: name, train, valid and test rows of each fold.
        recordings: ``(clips,)`` or None.
        loss: what is trained with.

    Raises:
        ProbeError: a shape, type or value that does not fit; the message says which.
    """
    wanted, dtype = _SHAPES[loss]
    shape = (len(features), n_classes) if loss == "bce" else (len(features),)
    if features.ndim != 2 or target.shape != shape:
        raise ProbeError(f"Wanted features (clips, dim) and {wanted}, found {features.shape} and {target.shape}.")
    if features.dtype != np.float32 or target.dtype != dtype:
        raise ProbeError(
            f"Wanted float32 features and {np.dtype(dtype)} targets, found {features.dtype} and {target.dtype}."
        )
    if recordings is not None and recordings.shape != features.shape[:1]:
        raise ProbeError(f"Wanted one recording id per clip ({len(features)},), found {recordings.shape}.")
    if loss == "mse" and n_classes != 1:
        raise ProbeError(f"Wanted 1 output for a number, found {n_classes}.")
    if loss == "mse" and not np.isfinite(target).all():
        raise ProbeError("Wanted finite numbers to learn, found NaN or Inf.")
    if loss == "bce" and target.size and target.max() > 1:
        raise ProbeError(f"Wanted 0 and 1 as targets, found {target.max()}.")
    if loss != "mse" and n_classes < 2:
        raise ProbeError(
            f"Wanted at least 2 classes, found {n_classes}.", hint="A probe needs something to tell apart."
        )
    for fold, train, valid, test in splits:
        for name, rows in (("train", train), ("valid", valid), ("test", test)):
            if len(rows) == 0:
                raise ProbeError(f"Wanted clips in every split, found none in {name}.", where=f"fold {fold}")
            if rows.min() < 0 or rows.max() >= len(features):
                raise ProbeError(
                    f"Wanted rows 0 to {len(features) - 1} in {name}, found {rows.min()} to {rows.max()}.",
                    where=f"fold {fold}",
                )
        for labels in (target[train], target[valid]) if loss == "cross-entropy" else ():
            if labels.min() < 0 or labels.max() >= n_classes:
                raise ProbeError(
                    f"Wanted class indices 0 to {n_classes - 1}, found {labels.min()} to {labels.max()}.",
                    where=f"fold {fold}",
                )
    sums = features.sum(axis=1, dtype=np.float64)
    if not np.isfinite(sums).all():
        row = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise ProbeError(
            "Wanted finite features, found NaN or Inf.",
            where=f"row {row}",
            hint="Verify the store; an encoder that returns NaN is refused when it embeds.",
        )
