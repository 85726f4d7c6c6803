"""The clip probe that the field calls MLP: layer norm and a linear map, trained with Adam.

All folds, seeds and learning rates of a task are trained together as one stack (:mod:`xares_store.probes.stack`). Each
probe sees exactly the batches it would see alone, so stacking changes time and nothing else.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xares_store.errors import ProbeError
from xares_store.probes.clips import Clips, tensor_of
from xares_store.probes.inputs import check_inputs
from xares_store.probes.losses import SIGN, Loss
from xares_store.probes.parallel import StoppedError, side_by_side
from xares_store.probes.schedule import epoch_learning_rate
from xares_store.probes.stack import BUFFERS_PER_MODEL, Batches, Shape, Stack, parameter_count

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Unit = tuple[float, float]  # mean and scale of the numbers that a job learns

# Memory for the parameters of one stack; larger stacks are trained one slice after another. Every step passes over all
# of it, so on a CPU it has to stay in the cache: five probes of 768 x 1251 took 1.1 of the time of plain loops in one
# stack and 0.7 in five. An accelerator wants stacks as large as it can hold.
_STACK_BYTES_CPU = 32_000_000
_STACK_BYTES = 1_500_000_000


@dataclass(frozen=True)
class MlpSettings:
    """What decides the training besides the data, the fold and the seed.

    Args:
        epochs: passes over the training clips, at least 1.
        batch_size: clips per step, at least 1; the last batch of an epoch may be smaller.
        learning_rates: grid of initial rates; the one with the best validation score is used.
        loss: ``cross-entropy`` for one class a clip, ``bce`` for any number of classes, ``mse`` for a number.
        standardise: with ``mse``, learn numbers in units of the training clips' deviation from their mean, so that the
            learning rate does not have to suit the scale; what is predicted and stored is in the numbers' own unit.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-3,)
    loss: Loss = "cross-entropy"
    standardise: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ProbeError(
                f"Wanted at least 1 epoch and batches of at least 1 clip, found {self.epochs} and {self.batch_size}."
            )
        rates = self.learning_rates
        if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates) or len(set(rates)) != len(rates):
            raise ProbeError(f"Wanted distinct learning rates above 0, found {list(rates)}.")


@dataclass(frozen=True)
class MlpJob:
    """One fold and seed to train: row indices into the features.

    Args:
        fold: name of the fold, for results and messages.
        train: rows to learn from.
        valid: rows that choose the epoch and the learning rate.
        test: rows to predict.
        seed: initial weights and order of batches follow from it.
    """

    fold: str
    train: IndexArray
    valid: IndexArray
    test: IndexArray
    seed: int


@dataclass
class MlpResult:
    """The trained probe of one job.

    Attributes:
        fold: name of the fold.
        seed: the seed.
        learning_rate: the rate of the grid with the best validation score.
        best_epoch: 1-based epoch whose weights were kept.
        valid_score: validation score of these weights: accuracy or mAP, 0 to 1, or the mean squared error.
        history: per rate ``{"learning_rate", "valid", "train_loss"}``, the latter two one value per epoch; a diverged
            rate has ``None`` where there is no number.
        outputs: ``(test clips, classes)`` float32, in the order of the job's ``test``: class probabilities under cross
            entropy, logits under ``bce`` (saturated probabilities would tie), numbers ``(test clips, 1)`` under ``mse``.
        state: ``ln.weight (dim,)``, ``ln.bias (dim,)``, ``fc.weight (classes, dim)``, ``fc.bias (classes,)`` float32.
    """

    fold: str
    seed: int
    learning_rate: float
    best_epoch: int
    valid_score: float
    outputs: FloatArray
    state: dict[str, FloatArray]
    history: list[dict[str, Any]] = field(default_factory=list)


def epoch_order(n_clips: int, seed: int, epoch: int) -> IndexArray:
    """Order in which the training clips of a fold are seen in one epoch.

    The same for every learning rate and device, and independent of what else is trained.

    Args:
        n_clips: number of training clips.
        seed: the job's seed, at least 0.
        epoch: 1-based epoch.

    Returns:
        A permutation of ``0 .. n_clips - 1``.
    """
    return np.random.default_rng((seed, epoch)).permutation(n_clips).astype(np.int64)


def initial_state(dim: int, n_classes: int, seed: int) -> dict[str, Tensor]:
    """Initial weights: what ``nn.LayerNorm`` and ``nn.Linear`` start with after seeding, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1.0 / math.sqrt(dim)
    return {
        "ln.weight": torch.ones(dim),
        "ln.bias": torch.zeros(dim),
        "fc.weight": torch.empty(n_classes, dim).uniform_(-bound, bound, generator=generator),
        "fc.bias": torch.empty(n_classes).uniform_(-bound, bound, generator=generator),
    }


def train_mlp(
    features: FloatArray,
    target: npt.NDArray[Any],
    n_classes: int,
    jobs: Sequence[MlpJob],
    settings: MlpSettings,
    *,
    device: str = "cpu",
    recordings: IndexArray | None = None,
    progress: Callable[[int, int], None] | None = None,
    shuffle: bool = True,
    init: Mapping[str, npt.ArrayLike] | None = None,
    stack_bytes: int | None = None,
) -> list[MlpResult]:
    """Train one probe per job and learning rate, and predict each job's test clips with the chosen one.

    Validation follows every epoch; the first epoch with the strictly best score is kept: accuracy, macro mAP or mean
    squared error, by loss. The learning rate with the best kept score wins, the first in the grid among equals. An epoch
    with NaN or Inf among its validation logits is never kept.

    Args:
        features: ``(clips, dim)`` float32, one pooled embedding per clip.
        target: by loss: ``(clips,)`` class indices int64, 0 to ``n_classes - 1``; ``(clips, n_classes)`` 0 and 1, uint8;
            ``(clips,)`` numbers, float32. Only rows that a job uses are looked at.
        n_classes: number of classes, at least 2; 1 for a number.
        jobs: folds and seeds.
        settings: epochs, batch size and learning rates.
        device: torch device; the order of batches and the initial weights do not depend on it.
        recordings: ``(clips,)`` id of the recording each clip is a crop of. When given, the mean probabilities (or
            numbers) of a recording's crops decide in validation, and the recording is counted once.
        progress: called with (done, total) epochs.
        shuffle: ``False`` keeps the order of ``train`` in every epoch.
        init: initial weights for every job instead of seeded ones, named as in :attr:`MlpResult.state`.
        stack_bytes: memory for the parameters of a stack, by default what suits the device; results do not depend
            on it.

    Returns:
        One result per job, in order.

    Raises:
        ProbeError: unusable input, or every learning rate of a job diverged.

    Example:
        >>> x = np.array([[0, 0, 9], [9, 0, 0]] * 8, dtype=np.float32)
        >>> y = np.array([0, 1] * 8)
        >>> rows = np.arange(16)
        >>> job = MlpJob("1", rows[:8], rows[8:12], rows[12:], seed=0)
        >>> (result,) = train_mlp(x, y, 2, [job], MlpSettings(batch_size=4, learning_rates=(1e-3, 1e-1)))
        >>> result.outputs.argmax(axis=1).tolist()
        [0, 1, 0, 1]
    """
    splits = [(job.fold, job.train, job.valid, job.test) for job in jobs]
    check_inputs(features, target, n_classes, splits, recordings, settings.loss)
    dim = features.shape[1]
    if init is None:
        # Folds of one seed start from the same weights: drawn once.
        seeded = {seed: initial_state(dim, n_classes, seed) for seed in dict.fromkeys(job.seed for job in jobs)}
        states = [seeded[job.seed] for job in jobs]
    else:
        states = [{key: torch.as_tensor(np.asarray(value)) for key, value in init.items()}] * len(jobs)
    with torch.inference_mode():
        x = torch.nn.functional.layer_norm(tensor_of(features, device), (dim,))
        clips = Clips(x, tensor_of(target, device), n_classes, recordings, settings.loss)
        units = [_unit(target, job, settings) for job in jobs]
        on_cpu = x.device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu else 1
        budget = stack_bytes or (_STACK_BYTES_CPU // threads if on_cpu else _STACK_BYTES)
        rates = settings.learning_rates
        slices = _slices(jobs, len(rates), parameter_count(dim, n_classes), budget, threads)
        report = None if progress is None else _Progress(progress, len(slices) * settings.epochs)

        def train(job_rows: list[int], rate_rows: list[int], stop: threading.Event) -> list[_Candidate]:
            return _train_slice(
                clips,
                [jobs[j] for j in job_rows],
                [states[j] for j in job_rows],
                [units[j] for j in job_rows],
                [rates[rate] for rate in rate_rows],
                settings,
                shuffle=shuffle,
                report=report,
                stop=stop,
            )

        trained = side_by_side([partial(train, *one) for one in slices], threads)
        found = [_Candidate() for _ in jobs]
        for (job_rows, _), candidates in zip(slices, trained, strict=True):
            for j, candidate in zip(job_rows, candidates, strict=True):
                found[j].take(candidate)
        return [_result(clips, *one) for one in zip(jobs, found, units, strict=True)]


@dataclass
class _Candidate:
    """The best learning rate of one job so far; ``best_epoch`` 0: none gave a number yet."""

    learning_rate: float = math.nan
    best_epoch: int = 0
    valid_score: float = -math.inf
    values: Tensor | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def take(self, other: _Candidate) -> None:
        """Add what further learning rates of the grid gave; the first of equals stays."""
        self.history += other.history
        if other.valid_score > self.valid_score:
            self.learning_rate, self.best_epoch = other.learning_rate, other.best_epoch
            self.valid_score, self.values = other.valid_score, other.values


class _Progress:
    """Counts epochs of all slices."""

    def __init__(self, call: Callable[[int, int], None], total: int) -> None:
        self._call, self._done, self._total = call, 0, total
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._done += 1
            self._call(self._done, self._total)


def _unit(target: npt.NDArray[Any], job: MlpJob, settings: MlpSettings) -> Unit:
    """Return mean and deviation of the training clips' numbers, or (0, 1) where they are learnt as they are."""
    if not (settings.loss == "mse" and settings.standardise):
        return 0.0, 1.0
    numbers = target[job.train].astype(np.float64)
    return float(numbers.mean()), float(numbers.std()) or 1.0


def _slices(
    jobs: Sequence[MlpJob], n_rates: int, parameters: int, stack_bytes: int, threads: int
) -> list[tuple[list[int], list[int]]]:
    """Cut jobs x rates into stacks that fit into memory, one a thread or more: lists of job numbers and rate numbers."""
    models = max(1, stack_bytes // (4 * BUFFERS_PER_MODEL * parameters))
    models = min(models, -(-len(jobs) * n_rates // threads))
    # Rates of a job share its batches, but no thread should wait for another that got one job more.
    choices = [(rates, min(max(1, models // rates), len(jobs))) for rates in range(min(n_rates, models), 0, -1)]

    def rounds(choice: tuple[int, int]) -> int:
        rates, of_jobs = choice
        stacks = -(-len(jobs) // of_jobs) * -(-n_rates // rates)
        return -(-stacks // threads) * rates * of_jobs

    rates_each, jobs_each = min(choices, key=rounds)
    # Jobs of one size step together; keeping them in one slice leaves no model idle.
    order = sorted(range(len(jobs)), key=lambda j: -len(jobs[j].train))
    return [
        (order[first : first + jobs_each], list(range(rate, min(rate + rates_each, n_rates))))
        for first in range(0, len(order), jobs_each)
        for rate in range(0, n_rates, rates_each)
    ]


def _train_slice(
    clips: Clips,
    jobs: Sequence[MlpJob],
    states: Sequence[Mapping[str, Tensor]],
    units: Sequence[Unit],
    rates: Sequence[float],
    settings: MlpSettings,
    *,
    shuffle: bool,
    report: _Progress | None,
    stop: threading.Event,
) -> list[_Candidate]:
    """Train one stack and return the best of each job."""
    device, loss_name, sign = str(clips.x.device), settings.loss, SIGN[settings.loss]
    mean, scale = (torch.tensor(values, device=device).unsqueeze(-1) for values in zip(*units, strict=True))
    sizes = [len(job.train) for job in jobs]
    stack = Stack(states, n_rates=len(rates), sizes=sizes, device=device)
    batches = Batches(sizes, settings.batch_size, device)
    shared: dict[bytes, list[int]] = {}  # jobs with the same validation clips are scored in one product
    for j, job in enumerate(jobs):
        shared.setdefault(job.valid.tobytes(), []).append(j)
    shape = (settings.epochs, len(rates), len(jobs))
    scores, losses = np.full(shape, math.nan), np.full(shape, math.nan)
    best = np.full(shape[1:], -math.inf)
    best_epoch = np.zeros(shape[1:], dtype=np.int64)
    for epoch in range(settings.epochs):
        current = [epoch_learning_rate(rate, epoch + 1, settings.epochs) for rate in rates]
        order = [job.train[epoch_order(len(job.train), job.seed, epoch + 1)] if shuffle else job.train for job in jobs]
        loss = torch.zeros(len(jobs), len(rates), device=device)
        for rows, weight, count in batches.epoch(order):
            if stop.is_set():
                raise StoppedError
            x = clips.x.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)
            target = clips.target[rows]
            if loss_name == "mse":
                target = (target - mean[: len(rows)]) / scale[: len(rows)]
            loss[: len(rows)] += count * stack.step(x, target, weight, current, loss_name)
        losses[epoch] = loss.cpu().numpy().T / sizes
        for group in shared.values():
            weight, bias = stack.shape.effective(stack.values[:, group].flatten(0, 1))
            if loss_name == "mse":
                times = scale[group].repeat(len(rates), 1)
                weight, bias = weight * times.unsqueeze(-1), bias * times + mean[group].repeat(len(rates), 1)
            found = clips.scores(jobs[group[0]].valid, weight, bias)
            scores[epoch][:, group] = sign * np.reshape(found, (len(rates), len(group)))
        better = scores[epoch] > best  # never true for NaN
        best[better] = scores[epoch][better]
        best_epoch[better] = epoch + 1
        stack.keep(better)
        if report is not None:
            report()
    candidates = [_Candidate() for _ in jobs]
    for j, candidate in enumerate(candidates):
        for r, rate in enumerate(rates):
            candidate.history.append(
                {
                    "learning_rate": rate,
                    "valid": [_number(sign * value) for value in scores[:, r, j]],
                    "train_loss": [_number(value) for value in losses[:, r, j]],
                }
            )
            if best[r, j] > candidate.valid_score:
                candidate.learning_rate, candidate.valid_score = rate, float(best[r, j])
                candidate.best_epoch, candidate.values = int(best_epoch[r, j]), stack.best[r, j].clone()
    return candidates


def _number(value: float) -> float | None:
    """Return a float that JSON can hold."""
    return float(value) if math.isfinite(value) else None


def _result(clips: Clips, job: MlpJob, candidate: _Candidate, unit: Unit) -> MlpResult:
    if candidate.values is None:
        tried = ", ".join(f"{row['learning_rate']:g}" for row in candidate.history)
        raise ProbeError(
            f"Training diverged: no epoch gave finite validation logits with learning rate {tried}.",
            where=f"fold {job.fold}, seed {job.seed}",
            hint="Add a smaller learning rate to the grid.",
        )
    shape = Shape(clips.n_classes, clips.x.shape[1])
    mean, scale = unit  # folded into the linear layer, which then gives numbers in their own unit
    weight, bias, *_ = shape.parts(candidate.values)
    weight.mul_(scale)
    bias.mul_(scale).add_(mean)
    return MlpResult(
        fold=job.fold,
        seed=job.seed,
        learning_rate=candidate.learning_rate,
        best_epoch=candidate.best_epoch,
        valid_score=SIGN[clips.loss] * candidate.valid_score,
        outputs=clips.outputs(job.test, *shape.effective(candidate.values)),
        state={key: value.cpu().numpy().copy() for key, value in shape.state(candidate.values).items()},
        history=candidate.history,
    )
