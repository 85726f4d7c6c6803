"""Scoring linear probes on the clips of a task, in blocks of bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xares_store.probes.losses import Loss, validation_scores
from xares_store.probes.products import product

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

# Values in one block of logits or votes: 64 MB.
_BLOCK_VALUES = 16_000_000


def tensor_of(array: npt.NDArray[Any], device: str | torch.device) -> Tensor:
    """Put an array on a device; torch shares the memory of writable arrays only, others are copied."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


@dataclass(frozen=True)
class Clips:
    """Normalised features and targets of all clips of a task, on the device.

    Args:
        x: ``(clips, dim)``, each row with mean 0 and variance 1.
        target: ``(clips,)`` class indices or numbers, or ``(clips, classes)`` 0 and 1.
        n_classes: number of classes; 1 for a number.
        recordings: ``(clips,)`` id of the recording a clip is a crop of; ``None`` when every clip counts by itself.
    """

    x: Tensor
    target: Tensor
    n_classes: int
    recordings: IndexArray | None
    loss: Loss = "cross-entropy"

    def outputs(self, rows: IndexArray, weight: Tensor, bias: Tensor) -> FloatArray:
        """Outputs ``(rows, classes)`` of one probe: ``weight (classes, dim)``, ``bias (classes,)``.

        Class probabilities under cross entropy; else the linear layer's own: logits, or a number.
        """
        result = np.empty((len(rows), self.n_classes), dtype=np.float32)
        step = max(1, _BLOCK_VALUES // max(weight.shape))
        for start in range(0, len(rows), step):
            part = tensor_of(rows[start : start + step], self.x.device)
            logits = product(self.x[part], weight).add_(bias)
            found = torch.softmax(logits, dim=-1) if self.loss == "cross-entropy" else logits
            result[start : start + step] = found.cpu().numpy()
        return result

    def scores(self, rows: IndexArray, weight: Tensor, bias: Tensor) -> list[float]:
        """Validate several probes on the same clips: accuracy, macro mAP or mean squared error, as the loss asks for.

        Crops of one recording vote with their mean probabilities or numbers.

        Args:
            rows: which clips.
            weight: ``(models, classes, dim)``.
            bias: ``(models, classes)``.

        Returns:
            One value per model; NaN for a model whose outputs are not all finite.
        """
        items = None if self.recordings is None else np.unique(self.recordings[rows], return_inverse=True)[1]
        if self.loss != "cross-entropy":
            return self._whole_scores(rows, weight, bias, items)
        held = 1 if items is None else int(items.max()) + 1  # votes of all recordings are held at once
        models = max(1, _BLOCK_VALUES // (held * self.n_classes))
        scores: list[float] = []
        for first in range(0, len(weight), models):
            block = slice(first, first + models)
            scores += self._accuracy_block(rows, weight[block], bias[block], items)
        return scores

    def _whole_scores(
        self, rows: IndexArray, weight: Tensor, bias: Tensor, items: npt.NDArray[np.intp] | None
    ) -> list[float]:
        """Score what needs the outputs of all clips at once, a few models at a time."""
        models = max(1, _BLOCK_VALUES // (len(rows) * self.n_classes))
        index = tensor_of(rows, self.x.device)
        x, target = self.x[index], self.target[index].float().cpu().numpy()
        scores: list[float] = []
        for first in range(0, len(weight), models):
            flat, flat_bias = weight[first : first + models].flatten(0, 1), bias[first : first + models].flatten()
            outputs = product(x, flat).add_(flat_bias).view(len(rows), -1, self.n_classes).cpu().numpy()
            scores += validation_scores(self.loss, outputs, target, items)
        return scores

    def _accuracy_block(
        self, rows: IndexArray, weight: Tensor, bias: Tensor, items: npt.NDArray[np.intp] | None
    ) -> list[float]:
        device, models = self.x.device, len(weight)
        flat, flat_bias = weight.flatten(0, 1), bias.flatten()
        step = max(1, _BLOCK_VALUES // max(flat.shape))
        index = tensor_of(rows, device)
        item = None if items is None else tensor_of(items, device)
        n_items = len(rows) if items is None else int(items.max()) + 1
        finite = torch.ones(models, dtype=torch.bool, device=device)
        correct = torch.zeros(models, dtype=torch.int64, device=device)
        votes = torch.zeros(0 if item is None else n_items, models, self.n_classes, device=device)
        for start in range(0, len(rows), step):
            part = index[start : start + step]
            logits = product(self.x[part], flat).add_(flat_bias).view(-1, models, self.n_classes)
            finite &= torch.isfinite(logits).all(dim=2).all(dim=0)
            if item is None:
                correct += (logits.argmax(-1) == self.target[part].unsqueeze(1)).sum(0)
            else:
                votes.index_add_(0, item[start : start + step], torch.softmax(logits, dim=-1))
        if item is not None:
            # Crops carry the label of their recording, so any of them names the target.
            target = torch.zeros(n_items, dtype=torch.int64, device=device)
            target[item] = self.target[index]
            correct = (votes.argmax(-1) == target.unsqueeze(1)).sum(0)
        pairs = zip(correct.tolist(), finite.tolist(), strict=True)
        return [count / n_items if ok else math.nan for count, ok in pairs]
