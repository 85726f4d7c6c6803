"""The frame probes of several seeds and learning rates: parameters, binary cross entropy, gradients, Adam.

The arithmetic is that of :mod:`xares_store.probes.stack` with a sigmoid for every class. The learning rates of a seed
see the same batch and are one matrix product; a batch is worked on slice by slice, its gradients summed, so that a
recording of any length is one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim.adam import adam

from xares_store.probes.stack import BUFFERS_PER_MODEL, Shape, parameter_count

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def stack_bytes(dim: int, n_classes: int, models: int) -> int:
    """Return the memory of a stack of so many probes.

    Example:
        >>> stack_bytes(768, 10, 20)
        4428480
    """
    return 4 * BUFFERS_PER_MODEL * parameter_count(dim, n_classes) * models


class FrameStack:
    """Parameters, Adam state and best checkpoints of ``jobs x rates`` probes.

    Args:
        initial: one state a job, as in :class:`xares_store.probes.stack.Stack`; every rate starts from it.
        n_rates: learning rates of each job.
        positive_weight: how much an active frame counts in the loss.
        device: where the stack lives.
    """

    def __init__(
        self, initial: Sequence[Mapping[str, Tensor]], *, n_rates: int, positive_weight: float, device: str
    ) -> None:
        n_classes, dim = initial[0]["fc.weight"].shape
        self.shape = Shape(n_classes, dim)
        self.n_rates = n_rates
        rows = torch.stack([self.shape.row(state) for state in initial]).to(device)
        self.values = rows.unsqueeze(1).expand(-1, n_rates, -1).clone()  # (jobs, rates, parameters)
        self.best = self.values.clone()
        self._moments = (torch.zeros_like(self.values), torch.zeros_like(self.values))
        self._gradient = torch.zeros_like(self.values[0])
        self._steps = [[torch.zeros((), device=device) for _ in range(n_rates)] for _ in initial]
        self._positive_weight = positive_weight

    def keep(self, better: npt.NDArray[np.bool_]) -> None:
        """Copy the probes marked in ``better (jobs, rates)`` to ``best``."""
        where = torch.from_numpy(better).to(self.values.device)
        self.best[where] = self.values[where]

    def step(
        self, job: int, slices: Iterable[tuple[Tensor, Tensor | None]], n_frames: int, learning_rates: Sequence[float]
    ) -> Tensor:
        """Take one Adam step with the mean loss over all frames and classes of a batch.

        Args:
            job: which job.
            slices: normalised frames ``(frames, dim)`` and targets ``(frames, classes)``, together the batch.
            n_frames: frames in all slices.
            learning_rates: one per rate.

        Returns:
            Loss before the step, ``(rates,)``.
        """
        rates, classes = self.n_rates, self.shape.n_classes
        stacked_weight, _, gamma, beta = self.shape.parts(self.values[job])
        weight, bias = self.shape.effective(self.values[job])
        flat, flat_bias = weight.flatten(0, 1), bias.flatten()
        grad_flat, grad_sum = torch.zeros_like(flat), torch.zeros_like(flat_bias)
        loss = torch.zeros(rates, device=flat.device)
        for x, target in slices:
            assert target is not None
            # With m = -z for an active frame and z for another one, the loss is log(1 + exp(m)), times its weight.
            y = target.float().unsqueeze(1)
            sign, weighting = 1 - 2 * y, 1 + (self._positive_weight - 1) * y
            margin = torch.addmm(flat_bias, x, flat.T).view(-1, rates, classes).mul_(sign)
            loss += softplus(margin).mul_(weighting).sum(dim=(0, 2))
            grad = margin.sigmoid_().mul_(sign * weighting).flatten(1)
            grad_flat.addmm_(grad.T, x)
            grad_sum += grad.sum(dim=0)
        scale = 1.0 / (n_frames * classes)
        grad_weight = grad_flat.mul_(scale).view(rates, classes, -1)
        grad_bias = grad_sum.mul_(scale).view(rates, classes)
        out_weight, out_bias, out_gamma, out_beta = self.shape.parts(self._gradient)
        torch.mul(grad_weight, gamma.unsqueeze(1), out=out_weight)
        out_weight.addcmul_(grad_bias.unsqueeze(2), beta.unsqueeze(1))
        out_bias.copy_(grad_bias)
        torch.sum(grad_weight * stacked_weight, dim=1, out=out_gamma)
        torch.sum(grad_bias.unsqueeze(2) * stacked_weight, dim=1, out=out_beta)
        self._update(job, learning_rates)
        return loss * scale

    def _update(self, job: int, learning_rates: Sequence[float]) -> None:
        for rate, learning_rate in enumerate(learning_rates):
            # The function behind torch.optim.Adam: the class would import the compiler, 0.8 s for nothing.
            adam(
                [self.values[job, rate]],
                [self._gradient[rate]],
                [self._moments[0][job, rate]],
                [self._moments[1][job, rate]],
                [],
                [self._steps[job][rate]],
                foreach=False,
                fused=True,
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=learning_rate,
                weight_decay=0.0,
                eps=_EPS,
                maximize=False,
            )
