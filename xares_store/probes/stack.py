"""Many LayerNorm + linear probes trained as one: the arithmetic of a stack.

A stack holds ``jobs x rates`` probes over the same feature dimension and classes. Every job (a fold and a seed) has its
own batches; the learning rates of a job share them. The parameter-free half of the layer norm is the same for all
probes and epochs, so the caller applies it once to all clips. What is left is one batched matrix product forward and one
backward, and gradients short enough to write down:

    h = gamma * x + beta;  logits = W h + b
    P = G x';  dW = P * gamma + g beta';  dgamma = sum_c P * W;  dbeta = W' g;  db = g

with ``G (classes, batch)`` the gradient of the logits and ``g`` its sum over the batch. Logits lie with their classes
first: products of that shape read the weights in the order in which they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xares_store.probes.losses import Loss, loss_and_gradient
from xares_store.probes.products import is_large, product

IndexArray = npt.NDArray[np.int64]

# Parameters, gradient, two moments, the best checkpoint and, on an accelerator, products of gradients and weights.
BUFFERS_PER_MODEL = 6

# On a CPU, such products are made of so many values at a time: they and what they are made of stay in the cache.
_PIECE_VALUES = 200_000

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
        rows_at_once = max(1, _PIECE_VALUES // (n_rates * self.n_jobs * dim)) if device == "cpu" else n_classes
        self._piece = min(rows_at_once, n_classes)
        # Made anew at every step, these would be fetched from the system and given back each time.
        self._product = torch.empty(n_rates, self.n_jobs, self._piece, dim, device=device)
        self._inputs = torch.empty(0, device=device)
        # Jobs with equally many clips take the same steps, hence share Adam's bias correction: one cohort, one block
        # of memory, one call of the optimiser.
        starts = [j for j in range(self.n_jobs) if j == 0 or sizes[j] != sizes[j - 1]]
        self._cohorts = list(zip(starts, [*starts[1:], self.n_jobs], strict=True))
        steps = [[torch.zeros((), device=device) for _ in self._cohorts] for _ in range(n_rates)]
        blocks = (self.values, self._gradient, *self._moments)
        self._updates = [
            [*([block[rate, first:last] for first, last in self._cohorts] for block in blocks), steps[rate]]
            for rate in range(n_rates)
        ]

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
        weights, grad_gamma = self._weight[:, :active], self._grad_gamma[:, :active]
        gamma, beta = self._gamma[:, :active].unsqueeze(2), self._beta[:, :active].unsqueeze(2)
        inputs = self._input_buffer(rates, active, batch, dim)
        torch.addcmul(beta, gamma, x, out=inputs)
        large = is_large(classes, dim, batch, x.device)
        logits = self._logits_one_by_one(inputs) if large else self._logits(inputs)
        value, grad = loss_and_gradient(loss, logits, target, weight)
        grad_sum = grad.sum(dim=-1)  # (rates, active, classes)

        flat = weights.reshape(rates * active, classes, dim)  # a copy only where some jobs have run out of clips
        shift = torch.bmm(grad_sum.view(rates * active, 1, classes), flat)
        self._grad_beta[:, :active] = shift.view(rates, active, dim)
        self._grad_bias[:, :active] = grad_sum
        grad_gamma.zero_()
        if large:
            places = [(rate, job) for rate in range(rates) for job in range(active)]
            grad_weights = {place: product(grad[place], x[place[1]].T) for place in places}
            for (rate, job), one in grad_weights.items():
                self._through_norm(one[None, None], grad_sum, slice(rate, rate + 1), slice(job, job + 1))
            self._update_one_by_one(active, learning_rates, grad_weights)
        else:
            grad_weight = self._grad_weight[:, :active]
            for rate in range(rates):
                torch.bmm(grad[rate], x, out=grad_weight[rate])
            self._through_norm(grad_weight, grad_sum, slice(None), slice(active))
            self._update(active, learning_rates)
        return value.T

    def _logits(self, inputs: Tensor) -> Tensor:
        """Return logits ``(rates, active, classes, batch)`` in one batched product."""
        rates, active, batch, dim = inputs.shape
        weight = self._weight[:, :active].reshape(rates * active, -1, dim)
        bias = self._bias[:, :active].reshape(rates * active, -1, 1)
        return torch.baddbmm(bias, weight, inputs.view(-1, batch, dim).transpose(1, 2)).view(rates, active, -1, batch)

    def _logits_one_by_one(self, inputs: Tensor) -> Tensor:
        rates, active, batch, _ = inputs.shape
        logits = inputs.new_empty(rates, active, self.shape.n_classes, batch)
        for rate in range(rates):
            for job in range(active):
                found = product(self._weight[rate, job], inputs[rate, job])
                torch.add(found, self._bias[rate, job].unsqueeze(-1), out=logits[rate, job])
        return logits

    def _through_norm(self, gradient: Tensor, grad_sum: Tensor, rates: slice, jobs: slice) -> None:
        """Turn the gradient of the folded weights into that of the weights, in place, and add up that of gamma.

        Args:
            gradient: ``(rates, jobs, classes, dim)``.
            grad_sum: gradient of the biases of the whole stack.
            rates, jobs: which part of the stack it is.
        """
        weight, grad_gamma = self._weight[rates, jobs], self._grad_gamma[rates, jobs]
        gamma, beta = self._gamma[rates, jobs].unsqueeze(2), self._beta[rates, jobs].unsqueeze(2)
        grad_sum = grad_sum[rates, jobs]
        for first in range(0, self.shape.n_classes, self._piece):
            rows = slice(first, first + self._piece)
            piece = gradient[:, :, rows]
            n_rates, n_jobs, n_rows, _ = piece.shape
            scratch = self._product[:n_rates, :n_jobs, :n_rows]
            grad_gamma.add_(torch.mul(piece, weight[:, :, rows], out=scratch).sum(dim=2))
            piece.mul_(gamma).addcmul_(grad_sum[:, :, rows].unsqueeze(-1), beta)

    def _input_buffer(self, *shape: int) -> Tensor:
        if self._inputs.shape != shape:
            self._inputs = torch.empty(shape, device=self._inputs.device)
        return self._inputs

    def _update(self, active: int, learning_rates: Sequence[float]) -> None:
        cohorts = sum(first < active for first, _ in self._cohorts)
        for lists, learning_rate in zip(self._updates, learning_rates, strict=True):
            values, gradient, mean, square, steps = (tensors[:cohorts] for tensors in lists)
            for count in steps:
                count.add_(1)
            _adam(values, gradient, mean, square, steps, learning_rate)

    def _update_one_by_one(
        self, active: int, learning_rates: Sequence[float], grad_weights: Mapping[tuple[int, int], Tensor]
    ) -> None:
        """Update with gradients of the weights that lie apart from those of the other parameters."""
        split = self.shape.n_classes * self.shape.dim
        blocks = (self.values, self._gradient, *self._moments)
        for rate, learning_rate in enumerate(learning_rates):
            for (first, last), count in zip(self._cohorts, self._updates[rate][4], strict=True):
                if first >= active:
                    break
                count.add_(1)
                for job in range(first, last):
                    values, gradient, mean, square = (
                        [block[rate, job, :split], block[rate, job, split:]] for block in blocks
                    )
                    gradient[0] = grad_weights[rate, job].view(-1)
                    _adam(values, gradient, mean, square, [count, count], learning_rate)


def _adam(
    values: list[Tensor],
    gradient: list[Tensor],
    mean: list[Tensor],
    square: list[Tensor],
    steps: list[Tensor],
    learning_rate: float,
) -> None:
    """Call what ``torch.optim.Adam(fused=True)`` calls, after the steps were counted.

    The class would import the compiler, 0.8 s for nothing, and what it does besides takes longer than the update of a small
    probe.
    """
    torch._fused_adam_(
        values,
        gradient,
        mean,
        square,
        [],
        steps,
        amsgrad=False,
        lr=learning_rate,
        beta1=_BETA1,
        beta2=_BETA2,
        weight_decay=0.0,
        eps=_EPS,
        maximize=False,
    )
