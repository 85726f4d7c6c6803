"""Many LayerNorm + linear probes trained as one: the arithmetic of a stack.

A stack holds ``jobs x rates`` probes over the same feature dimension and classes. Every job (a fold and a seed) has its
own batches; the learning rates of a job share them. The parameter-free half of the layer norm is the same for all
probes and epochs, so the caller applies it once to all clips; the affine half folds into the linear map:

    logits = W (gamma * x + beta) + b = (W * gamma) x + (W beta + b)

which leaves one batched matrix product forward and one backward, and gradients short enough to write down:

    dW_eff = G' x;  dW = dW_eff * gamma + g beta';  dgamma = sum_c dW_eff * W;  dbeta = W' g;  db = g

with ``G (batch, classes)`` the gradient of the logits and ``g`` its sum over the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.adam import adam

from xares_store.probes.losses import Loss, loss_and_gradient

IndexArray = npt.NDArray[np.int64]

# Parameters, gradient, two moments, the best checkpoint and two work buffers of the size of the parameters.
BUFFERS_PER_MODEL = 7

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def parameter_count(dim: int, n_classes: int) -> int:
    """Return the number of trained values of one probe.

    Example:
        >>> parameter_count(768, 50)
        39986
    """
    return 2 * dim + dim * n_classes + n_classes


@dataclass(frozen=True)
class Shape:
    """How the parameters of a probe lie in one row: weights, biases, gamma, beta."""

    n_classes: int
    dim: int

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of ``values (..., parameters)``: weight, bias, gamma and beta."""
        sizes = [self.n_classes * self.dim, self.n_classes, self.dim, self.dim]
        weight, bias, gamma, beta = torch.split_with_sizes(values, sizes, dim=-1)
        return weight.view(*weight.shape[:-1], self.n_classes, self.dim), bias, gamma, beta

    def effective(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Fold the affine layer norm into the linear map.

        Args:
            values: ``(..., parameters)``.

        Returns:
            Weights ``(..., classes, dim)`` and biases ``(..., classes)`` over normalised features.
        """
        weight, bias, gamma, beta = self.parts(values)
        return weight * gamma.unsqueeze(-2), bias + (weight @ beta.unsqueeze(-1)).squeeze(-1)

    def state(self, values: Tensor) -> dict[str, Tensor]:
        """Name the parts of one probe's parameters ``(parameters,)`` as ``LayerNorm`` and ``Linear`` do."""
        weight, bias, gamma, beta = self.parts(values)
        return {"ln.weight": gamma, "ln.bias": beta, "fc.weight": weight, "fc.bias": bias}

    def row(self, state: Mapping[str, Tensor]) -> Tensor:
        """Lay the parts of :meth:`state` end to end, ``(parameters,)`` float32."""
        names = ("fc.weight", "fc.bias", "ln.weight", "ln.bias")
        return torch.cat([state[name].reshape(-1).float() for name in names])


class Batches:
    """The batches of jobs with different numbers of clips, side by side.

    Args:
        sizes: training clips per job, in descending order.
        batch_size: clips per job and step; a job's last batch may be smaller.
        device: where the batches are wanted.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, device: str):
        batch_size = min(batch_size, sizes[0])  # a larger one makes the same batches and only takes memory
        self._steps = -(-sizes[0] // batch_size)
        self._batch_size, self._device = batch_size, device
        count = torch.tensor(sizes).view(1, -1) - torch.arange(self._steps).view(-1, 1) * batch_size
        count = count.clamp(0, batch_size)  # (steps, jobs)
        inside = torch.arange(batch_size) < count.unsqueeze(-1)
        self._weight = (inside / count.clamp(min=1).unsqueeze(-1)).to(device)
        self._active = [int(row.count_nonzero()) for row in count]
        self._width = [int(row[0]) for row in count]
        self._count = count.unsqueeze(-1).to(device)

    def epoch(self, order: Sequence[IndexArray]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield one step after another.

        Args:
            order: per job, its training rows in the order of this epoch.

        Yields:
            Rows ``(active, batch)`` (the job's first row where its batch is shorter), their weights
            ``(active, batch)`` (0 there, else 1 / count) and the counts ``(active, 1)``.
        """
        rows = np.empty((len(order), self._steps * self._batch_size), dtype=np.int64)
        for row, one in zip(rows, order, strict=True):
            row[: len(one)] = one
            row[len(one) :] = one[0]
        index = torch.from_numpy(rows).to(self._device)
        for step, (active, width) in enumerate(zip(self._active, self._width, strict=True)):
            first = step * self._batch_size
            weight = self._weight[step, :active, :width]
            yield index[:active, first : first + width], weight, self._count[step, :active]


class Stack:
    """Parameters, gradients and Adam state of ``rates x jobs`` probes.

    Args:
        initial: one state per job: ``ln.weight (dim,)``, ``ln.bias (dim,)``, ``fc.weight (classes, dim)``,
            ``fc.bias (classes,)``; every rate of the job starts from it.
        n_rates: how many learning rates each job is trained with.
        sizes: number of training clips per job, in descending order, so that the jobs which still have a batch at a
            given step of an epoch are always the first ones.
        device: where the stack lives.
    """

    def __init__(self, initial: Sequence[Mapping[str, Tensor]], *, n_rates: int, sizes: Sequence[int], device: str):
        n_classes, dim = initial[0]["fc.weight"].shape
        self.shape = Shape(n_classes, dim)
        self.n_jobs, self.n_rates = len(initial), n_rates
        rows = torch.stack([self.shape.row(state) for state in initial])
        self.values = rows.to(device).expand(n_rates, -1, -1).clone()  # (rates, jobs, parameters)
        self._gradient = torch.zeros_like(self.values)
        self._moments = (torch.zeros_like(self.values), torch.zeros_like(self.values))
        self.best = self.values.clone()
        self._weight, self._bias, self._gamma, self._beta = self.shape.parts(self.values)
        self._grad_weight, self._grad_bias, self._grad_gamma, self._grad_beta = self.shape.parts(self._gradient)
        shape = (self.n_jobs, n_rates, n_classes, dim)
        self._effective = torch.empty(shape, device=device)
        self._grad_effective = torch.empty(shape, device=device)
        self._bias_effective = torch.empty(shape[:3], device=device)
        # Jobs with equally many clips take the same steps, hence share Adam's bias correction: one cohort, one block
        # of memory, one call of the optimiser.
        starts = [j for j in range(self.n_jobs) if j == 0 or sizes[j] != sizes[j - 1]]
        self._cohorts = list(zip(starts, [*starts[1:], self.n_jobs], strict=True))
        self._steps = [[torch.zeros((), device=device) for _ in self._cohorts] for _ in range(n_rates)]

    def keep(self, better: npt.NDArray[np.bool_]) -> None:
        """Copy the probes marked in ``better (rates, jobs)`` to ``best``."""
        if better.all():
            self.best.copy_(self.values)
        elif better.any():
            where = torch.from_numpy(better).to(self.values.device)
            self.best[where] = self.values[where]

    def step(
        self, x: Tensor, target: Tensor, weight: Tensor, learning_rates: Sequence[float], loss: Loss = "cross-entropy"
    ) -> Tensor:
        """Take one Adam step with the mean loss of a batch per job.

        Args:
            x: normalised features ``(active, batch, dim)`` of the first ``active`` jobs.
            target: what :func:`~xares_store.probes.losses.loss_and_gradient` wants, of the first ``active`` jobs.
            weight: ``(active, batch)``: 1 / (clips in the job's batch), 0 for rows that only fill up the batch.
            learning_rates: one per rate.
            loss: by kind of target.

        Returns:
            Loss of every probe before the step, ``(active, rates)``.
        """
        active, batch, dim = x.shape
        rates, classes = self.n_rates, self.shape.n_classes
        stacked_weight = self._weight[:, :active]
        gamma, beta = self._gamma[:, :active], self._beta[:, :active]
        effective, grad_effective = self._effective[:active], self._grad_effective[:active]
        bias = self._bias_effective[:active]

        torch.mul(stacked_weight.transpose(0, 1), gamma.transpose(0, 1).unsqueeze(2), out=effective)
        for rate in range(rates):
            shift = torch.bmm(stacked_weight[rate], beta[rate].unsqueeze(-1)).squeeze(-1)
            torch.add(shift, self._bias[rate, :active], out=bias[:, rate])
        flat = effective.view(active, rates * classes, dim)
        logits = torch.baddbmm(bias.view(active, 1, rates * classes), x, flat.transpose(1, 2))
        value, grad = loss_and_gradient(loss, logits.view(active, batch, rates, classes), target, weight)
        grad_sum = grad.sum(dim=1).transpose(0, 1)  # (rates, active, classes)
        torch.bmm(
            grad.view(active, batch, rates * classes).transpose(1, 2),
            x,
            out=grad_effective.view(active, rates * classes, dim),
        )
        grad_weight = self._grad_weight[:, :active]
        torch.mul(grad_effective.transpose(0, 1), gamma.unsqueeze(2), out=grad_weight)
        grad_weight.addcmul_(grad_sum.unsqueeze(-1), beta.unsqueeze(2))
        # The folded weights have been used, so their buffer may hold this product.
        torch.mul(grad_effective, stacked_weight.transpose(0, 1), out=effective)
        self._grad_gamma[:, :active] = effective.sum(dim=2).transpose(0, 1)
        for rate in range(rates):
            self._grad_beta[rate, :active] = torch.bmm(grad_sum[rate].unsqueeze(1), stacked_weight[rate]).squeeze(1)
        self._grad_bias[:, :active] = grad_sum
        self._update(active, learning_rates)
        return value

    def _update(self, active: int, learning_rates: Sequence[float]) -> None:
        cohorts = [index for index, (first, _) in enumerate(self._cohorts) if first < active]
        for rate, learning_rate in enumerate(learning_rates):
            values, gradient, mean, square = (
                [block[rate, slice(*self._cohorts[index])] for index in cohorts]
                for block in (self.values, self._gradient, *self._moments)
            )
            # The function behind torch.optim.Adam: the class would import the compiler, 0.8 s for nothing.
            adam(
                values,
                gradient,
                mean,
                square,
                [],
                [self._steps[rate][index] for index in cohorts],
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
