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
_PIECE_VALUES = 400_000

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


@dataclass(frozen=True)
class _Probe:
    """Views of one probe of a stack, made once: ``pieces`` of its weights, then what is updated, weights first."""

    pieces: tuple[Tensor, ...]
    gamma: Tensor
    beta: Tensor
    grad_gamma: Tensor
    values: list[Tensor]
    gradient: Tensor
    mean: list[Tensor]
    square: list[Tensor]
    steps: list[Tensor]


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
        # How many classes of a whole stack, and of one probe, make a piece.
        models = n_rates * self.n_jobs
        self._piece, self._piece_of_one = (
            min(n_classes, max(1, _PIECE_VALUES // (count * dim))) if device == "cpu" else n_classes
            for count in (models, 1)
        )
        # Made anew at every step, these would be fetched from the system and given back each time.
        size = max(models * self._piece, self._piece_of_one) * dim
        self._scratch = torch.empty(size, device=device)
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
        cohort_of = [index for index, (first, last) in enumerate(self._cohorts) for _ in range(first, last)]
        self._probes = [
            [self._probe(rate, job, steps[rate][cohort_of[job]]) for job in range(self.n_jobs)]
            for rate in range(n_rates)
        ]

    def _probe(self, rate: int, job: int, steps: Tensor) -> _Probe:
        split = self.shape.n_classes * self.shape.dim
        weight = self._weight[rate, job]
        return _Probe(
            pieces=torch.split(weight, self._piece_of_one),
            gamma=self._gamma[rate, job],
            beta=self._beta[rate, job],
            grad_gamma=self._grad_gamma[rate, job],
            values=[weight, self.values[rate, job, split:]],
            gradient=self._gradient[rate, job, split:],
            mean=[self.shape.parts(self._moments[0])[0][rate, job], self._moments[0][rate, job, split:]],
            square=[self.shape.parts(self._moments[1])[0][rate, job], self._moments[1][rate, job, split:]],
            steps=[steps, steps],
        )

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
        # A view, and a copy only where some jobs have run out of clips.
        weights = self._weight[:, :active].reshape(rates * active, classes, dim)
        gamma, beta = self._gamma[:, :active].unsqueeze(2), self._beta[:, :active].unsqueeze(2)
        inputs = self._input_buffer(rates, active, batch, dim)
        torch.addcmul(beta, gamma, x, out=inputs)
        large = is_large(classes, dim, batch, x.device)
        flat = inputs.view(rates * active, batch, dim)
        if large:
            logits = torch.stack([product(*one) for one in zip(weights.unbind(), flat.unbind(), strict=True)])
        else:
            logits = torch.bmm(weights, flat.transpose(1, 2))
        logits = logits.view(rates, active, classes, batch).add_(self._bias[:, :active].unsqueeze(-1))
        value, grad = loss_and_gradient(loss, logits, target, weight)
        grad_sum = grad.sum(dim=-1)  # (rates, active, classes)

        shift = torch.bmm(grad_sum.view(rates * active, 1, classes), weights)
        self._grad_beta[:, :active] = shift.view(rates, active, dim)
        self._grad_bias[:, :active] = grad_sum
        if large:
            self._finish_one_by_one(grad, grad_sum, x, learning_rates)
        else:
            self._finish(grad, grad_sum, x, learning_rates)
        return value.T

    def _finish(self, grad: Tensor, grad_sum: Tensor, x: Tensor, learning_rates: Sequence[float]) -> None:
        """Make the gradients of weights and gamma in batched products, and update.

        Args:
            grad: gradient of the logits, ``(rates, active, classes, batch)``.
            grad_sum: its sum over the batch.
            x: normalised features ``(active, batch, dim)``.
            learning_rates: one per rate.
        """
        active = len(x)
        weight, grad_weight, grad_gamma = (
            part[:, :active] for part in (self._weight, self._grad_weight, self._grad_gamma)
        )
        gamma, beta = self._gamma[:, :active].unsqueeze(2), self._beta[:, :active].unsqueeze(2)
        for one, found in zip(grad.unbind(), grad_weight.unbind(), strict=True):
            torch.bmm(one, x, out=found)
        grad_gamma.zero_()
        for first in range(0, self.shape.n_classes, self._piece):
            rows = slice(first, first + self._piece)
            piece = grad_weight[:, :, rows]
            scratch = self._scratch[: piece.numel()].view(piece.shape)
            grad_gamma.add_(torch.mul(piece, weight[:, :, rows], out=scratch).sum(dim=2))
            piece.mul_(gamma).addcmul_(grad_sum[:, :, rows].unsqueeze(-1), beta)
        cohorts = sum(first < active for first, _ in self._cohorts)
        for lists, learning_rate in zip(self._updates, learning_rates, strict=True):
            values, gradient, mean, square, steps = (tensors[:cohorts] for tensors in lists)
            for count in steps:
                count.add_(1)
            _adam(values, gradient, mean, square, steps, learning_rate)

    def _finish_one_by_one(self, grad: Tensor, grad_sum: Tensor, x: Tensor, learning_rates: Sequence[float]) -> None:
        """Do the same for large probes: their products are faster one by one."""
        inputs = [one.T for one in x.unbind()]
        for rate, learning_rate in enumerate(learning_rates):
            for (first, _), count in zip(self._cohorts, self._updates[rate][4], strict=True):
                if first < len(x):
                    count.add_(1)
            parts = zip(grad[rate].unbind(), grad_sum[rate].unsqueeze(-1).unbind(), inputs, strict=True)
            # Only the first jobs may have clips left; the others are not reached.
            for probe, (one, sums, clips) in zip(self._probes[rate], parts, strict=False):
                found = product(one, clips)
                probe.grad_gamma.zero_()
                for piece, weight in zip(torch.split(found, self._piece_of_one), probe.pieces, strict=True):
                    scratch = self._scratch[: piece.numel()].view(piece.shape)
                    probe.grad_gamma.add_(torch.mul(piece, weight, out=scratch).sum(dim=0))
                found.mul_(probe.gamma).addcmul_(sums, probe.beta)
                _adam(probe.values, [found, probe.gradient], probe.mean, probe.square, probe.steps, learning_rate)

    def _input_buffer(self, *shape: int) -> Tensor:
        if self._inputs.shape != shape:
            self._inputs = torch.empty(shape, device=self._inputs.device)
        return self._inputs


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
