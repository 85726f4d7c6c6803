"""What the clip probe is trained with, by kind of target: loss and gradient of a stack, and how validation is scored.

* ``cross-entropy``: one class a clip; validated by accuracy.
* ``bce``: any number of classes a clip, binary cross entropy as a mean over all elements; validated by macro mAP.
* ``mse``: one number a clip, squared error; validated by the mean squared error.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xares_store.metrics.aggregate import mean_over, voted_logits
from xares_store.metrics.ranking import average_precisions

Loss = Literal["cross-entropy", "bce", "mse"]
# What a validation score is multiplied with to make more of it better.
SIGN: dict[Loss, float] = {"cross-entropy": 1.0, "bce": 1.0, "mse": -1.0}


def loss_and_gradient(loss: Loss, logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of every probe and its gradient.

    Args:
        loss: which one.
        logits: ``(rates, jobs, outputs, batch)``; may be overwritten.
        target: class indices or numbers ``(jobs, batch)``, or 0 and 1 ``(jobs, batch, outputs)``.
        weight: ``(jobs, batch)``: 1 / (clips in the job's batch), 0 for rows that only fill up the batch.

    Returns:
        Loss ``(rates, jobs)`` and gradient of the logits ``(rates, jobs, outputs, batch)``.
    """
    if loss == "cross-entropy":
        picked = target.unsqueeze(1).expand(len(logits), -1, 1, -1)
        log_probability = torch.log_softmax(logits, dim=2)
        value = -log_probability.gather(2, picked).squeeze(2)
        grad = log_probability.exp_()
        grad.scatter_add_(2, picked, grad.new_tensor(-1.0).expand(picked.shape))
    elif loss == "bce":
        wanted = target.transpose(1, 2)
        outputs = logits.shape[2]
        value = (torch.nn.functional.softplus(logits) - logits * wanted).mean(dim=2)
        grad = logits.sigmoid_().sub_(wanted).div_(outputs)
    else:
        grad = logits.sub_(target.unsqueeze(1))
        value = grad.squeeze(2).square()
        grad = grad.mul_(2)
    return (value * weight).sum(dim=-1), grad.mul_(weight.unsqueeze(1))


def validation_scores(
    loss: Loss, outputs: npt.NDArray[np.float32], target: npt.NDArray[np.float32], items: npt.NDArray[np.intp] | None
) -> list[float]:
    """Score several probes on the same clips by mAP or mean squared error.

    Args:
        loss: ``bce`` or ``mse``.
        outputs: ``(clips, models, outputs)``: logits, or numbers.
        target: ``(clips, outputs)`` 0 and 1, or ``(clips,)`` numbers.
        items: ``(clips,)`` number of the recording each clip is a crop of, from 0; crops vote with their mean
            probabilities or numbers.

    Returns:
        One value a model; NaN for a model whose outputs are not all finite.
    """
    found: list[float] = []
    for model in range(outputs.shape[1]):
        values: npt.NDArray[Any] = outputs[:, model]
        if not np.isfinite(values).all():
            found.append(math.nan)
            continue
        wanted: npt.NDArray[Any] = target
        if items is not None:
            values, wanted = (voted_logits if loss == "bce" else mean_over)(values, items), mean_over(target, items)
        if loss == "bce":
            found.append(float(average_precisions(wanted > 0.5, values).mean()))
        else:
            found.append(float(np.square(values[:, 0].astype(np.float64) - wanted).mean()))
    return found
