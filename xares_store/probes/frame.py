"""The frame probe: layer norm and a linear map on every frame, trained with binary cross entropy and Adam.

Frames are streamed from the store (:mod:`xares_store.store.stream`), so memory does not grow with a task or a recording.
No frame is padded: a batch is the frames of its clips, end to end. Folds are trained one after another; the seeds and
learning rates of a fold share every block that is read, and the learning rates of a seed every batch. The order of blocks
follows from the epoch, the order of clips inside a block from seed and epoch, so what else is trained changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xares_store.errors import ProbeError
from xares_store.probes.frame_data import FrameReader, Roll, slice_rows
from xares_store.probes.frame_stack import FrameStack, stack_bytes
from xares_store.probes.mlp import MlpSettings, initial_state
from xares_store.probes.schedule import epoch_learning_rate
from xares_store.probes.stack import Shape
from xares_store.store.stream import BLOCK_BYTES, FrameSource

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
State = Mapping[str, npt.ArrayLike]

MEMORY_BYTES = 1 << 30
# Logits of one clip for all probes that are scored together.
CLIP_BYTES = 32 << 20


@dataclass(frozen=True)
class FrameSettings(MlpSettings):
    """What decides the training besides the data, the fold and the seed.

    Args:
        epochs: passes over the training clips, at least 1.
        batch_size: clips per step, at least 1; the last batch of an epoch may be smaller.
        learning_rates: grid of initial rates; the one with the best validation score is used.
        positive_weight: how much an active frame counts in the loss, above 0.
    """

    positive_weight: float = 1.0

    def __post_init__(self) -> None:
        MlpSettings.__post_init__(self)
        if not (math.isfinite(self.positive_weight) and self.positive_weight > 0):
            raise ProbeError(f"Wanted a positive weight above 0, found {self.positive_weight}.")


@dataclass(frozen=True)
class FrameJob:
    """One fold and seed to train.

    Args:
        fold: name of the fold, for results and messages.
        train: clips to learn from.
        valid: clips that choose the epoch and the learning rate.
        seed: initial weights and order of clips follow from it.
    """

    fold: str
    train: IndexArray
    valid: IndexArray
    seed: int


@dataclass
class FrameResult:
    """The trained probe of one job; fields as in :class:`xares_store.probes.mlp.MlpResult`."""

    fold: str
    seed: int
    learning_rate: float
    best_epoch: int
    valid_score: float
    state: dict[str, FloatArray]
    history: list[dict[str, Any]] = field(default_factory=list)


class ValidScore(Protocol):
    """Scores several probes on the same clips, one clip after another."""

    def add(self, row: int, logits: FloatArray) -> None:
        """Take in the logits ``(n_frames, models, classes)`` of a clip."""

    def values(self) -> list[float]:
        """Return one score a model, larger is better."""


def clip_order(n_clips: int, seed: int, epoch: int, block: int) -> IndexArray:
    """Order in which one seed sees the clips of a block.

    Args:
        n_clips: clips in the block.
        seed: the job's seed, at least 0.
        epoch: 1-based epoch.
        block: number of the block in the epoch.

    Returns:
        A permutation of ``0 .. n_clips - 1``.
    """
    return np.random.default_rng((seed, epoch, block)).permutation(n_clips).astype(np.int64)


def train_frames(
    source: FrameSource,
    roll: Roll,
    n_classes: int,
    jobs: Sequence[FrameJob],
    settings: FrameSettings,
    *,
    valid_score: Callable[[int], ValidScore],
    score_bytes: int = 0,
    device: str = "cpu",
    memory_bytes: int = MEMORY_BYTES,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
    shuffle: bool = True,
    init: State | None = None,
) -> list[FrameResult]:
    """Train one probe per job and learning rate and keep the best one of each job.

    Validation follows every epoch; the first epoch with the strictly best score is kept, and the first learning rate of
    the grid among equals. An epoch with NaN or Inf among its validation logits is never kept.

    Args:
        source: the clips' frames.
        roll: row to frame targets ``(n_frames, classes)``, 0 or 1.
        n_classes: number of classes, at least 1.
        jobs: folds and seeds.
        settings: epochs, batch size, learning rates and positive weight.
        valid_score: number of models to a fresh :class:`ValidScore`.
        score_bytes: memory that one takes for each model.
        device: torch device; the order of clips and the initial weights do not depend on it.
        memory_bytes: most memory to take; results do not depend on it.
        block_bytes: size of a block of clips as float32; the order of clips depends on it.
        progress: called with (done, total) epochs.
        shuffle: False keeps the order of storage in every epoch.
        init: initial weights for every job instead of seeded ones, named as in :attr:`FrameResult.state`.

    Returns:
        One result per job, in order.

    Raises:
        ProbeError: a job without clips, or one whose every learning rate diverged.
        CorruptError: frames are damaged; names the file.
    """
    _check(source, n_classes, jobs)
    folds: dict[tuple[bytes, bytes], list[int]] = {}
    for number, job in enumerate(jobs):
        folds.setdefault((job.train.tobytes(), job.valid.tobytes()), []).append(number)
    each = stack_bytes(source.dim, n_classes, len(settings.learning_rates))
    most = max(1, memory_bytes // 4 // each)  # jobs whose parameters take a quarter of the memory
    groups = [rows[first : first + most] for rows in folds.values() for first in range(0, len(rows), most)]
    results: dict[int, FrameResult] = {}
    for number, group in enumerate(groups):
        reader = FrameReader(
            source,
            n_classes,
            device=device,
            memory_bytes=memory_bytes,
            reserved_bytes=each * len(group),
            block_bytes=block_bytes,
        )

        def report(epoch: int, before: int = number * settings.epochs) -> None:
            if progress is not None:
                progress(before + epoch, len(groups) * settings.epochs)

        mine = [jobs[job] for job in group]
        states = [initial_state(source.dim, n_classes, job.seed) if init is None else _tensors(init) for job in mine]
        with torch.inference_mode():
            stack = FrameStack(
                states,
                n_rates=len(settings.learning_rates),
                positive_weight=settings.positive_weight,
                device=device,
            )
            longest = max(int(source.n_frames[job.valid].max()) for job in mine)
            together = CLIP_BYTES // (4 * longest * n_classes)
            if score_bytes:
                together = min(together, memory_bytes // 4 // score_bytes)
            found = _train(reader, roll, stack, mine, settings, valid_score, max(1, together), shuffle, report)
        results |= dict(zip(group, found, strict=True))
    source.keep(jobs[0].train[:0], 0)
    return [results[number] for number in range(len(jobs))]


def frame_logits(
    source: FrameSource,
    rows: IndexArray,
    states: Sequence[State],
    *,
    device: str = "cpu",
    memory_bytes: int = MEMORY_BYTES,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[int, FloatArray]]:
    """Apply trained probes to the frames of clips, a block in memory at a time.

    Args:
        source: the clips' frames.
        rows: which clips.
        states: trained probes, :attr:`FrameResult.state`.
        device: torch device.
        memory_bytes: most memory to take, besides the logits of one clip.
        block_bytes: how much is read at once, as float32.

    Yields:
        Row and logits ``(n_frames, models, classes)`` float32, in storage order.
    """
    tensors = [_tensors(state) for state in states]
    n_classes, dim = tensors[0]["fc.weight"].shape
    shape = Shape(n_classes, dim)
    reader = FrameReader(source, n_classes, device=device, memory_bytes=memory_bytes, block_bytes=block_bytes)
    with torch.inference_mode():
        weight, bias = shape.effective(torch.stack([shape.row(state) for state in tensors]).to(device))
        # Not "yield from": inference mode is thread-wide and must not leak into the caller between two clips.
        logits = reader.logits(rows, weight, bias)
    while True:
        with torch.inference_mode():
            item = next(logits, None)
        if item is None:
            return
        yield item


def _check(source: FrameSource, n_classes: int, jobs: Sequence[FrameJob]) -> None:
    if n_classes < 1:
        raise ProbeError(f"Wanted at least 1 class, found {n_classes}.")
    for job in jobs:
        for name, rows in (("train", job.train), ("valid", job.valid)):
            if len(rows) == 0:
                raise ProbeError(f"Wanted clips in every split, found none in {name}.", where=f"fold {job.fold}")
            if rows.min() < 0 or rows.max() >= len(source.n_frames):
                raise ProbeError(
                    f"Wanted clips 0 to {len(source.n_frames) - 1} in {name}, found {rows.min()} to {rows.max()}.",
                    where=f"fold {job.fold}",
                )


def _tensors(state: State) -> dict[str, Tensor]:
    return {key: torch.as_tensor(np.asarray(value)) for key, value in state.items()}


def _train(
    reader: FrameReader,
    roll: Roll,
    stack: FrameStack,
    jobs: Sequence[FrameJob],
    settings: FrameSettings,
    valid_score: Callable[[int], ValidScore],
    together: int,
    shuffle: bool,
    report: Callable[[int], None],
) -> list[FrameResult]:
    """Train the seeds and learning rates of one fold."""
    source, rates = reader.source, settings.learning_rates
    train, valid = jobs[0].train, jobs[0].valid
    reader.keep(np.union1d(train, valid), settings.batch_size)
    size = slice_rows(source.dim, stack.shape.n_classes)
    shape = (settings.epochs, len(jobs), len(rates))
    scores, losses = np.full(shape, math.nan), np.full(shape, math.nan)
    best, best_epoch = np.full(shape[1:], -math.inf), np.zeros(shape[1:], np.int64)
    for epoch in range(1, settings.epochs + 1):
        current = [epoch_learning_rate(rate, epoch, settings.epochs) for rate in rates]
        plan = source.plan(
            train, epoch=epoch if shuffle else None, batch=settings.batch_size, block_bytes=reader.block_bytes
        )
        loss = torch.zeros(shape[1:], device=reader.device)
        for number, block in enumerate(reader.blocks(plan, roll)):
            count = len(block.rows)
            for j, job in enumerate(jobs):
                order = clip_order(count, job.seed, epoch, number) if shuffle else np.arange(count)
                for first in range(0, count, settings.batch_size):
                    batch = order[first : first + settings.batch_size]
                    slices = block.slices(batch, size)
                    loss[j] += len(batch) * stack.step(j, slices, int(block.n_frames[batch].sum()), current)
            del block  # it looks into the buffer that validation may replace
        losses[epoch - 1] = loss.cpu().numpy() / len(train)
        weight, bias = stack.shape.effective(stack.values.flatten(0, 1))
        scores[epoch - 1] = np.reshape(_validate(reader, valid, weight, bias, valid_score, together), shape[1:])
        better = scores[epoch - 1] > best  # never true for NaN
        best[better] = scores[epoch - 1][better]
        best_epoch[better] = epoch
        stack.keep(better)
        report(epoch)
    return [_result(stack, j, job, rates, scores, losses, best, best_epoch) for j, job in enumerate(jobs)]


def _validate(
    reader: FrameReader,
    rows: IndexArray,
    weight: Tensor,
    bias: Tensor,
    valid_score: Callable[[int], ValidScore],
    together: int,
) -> list[float]:
    """Score probes ``weight (models, classes, dim)``, so many at a time; NaN for one whose logits are not all finite."""
    values: list[float] = []
    for first in range(0, len(weight), together):
        models = slice(first, first + together)
        score = valid_score(len(weight[models]))
        finite = np.ones(len(weight[models]), bool)
        for row, logits in reader.logits(rows, weight[models], bias[models]):
            good = np.isfinite(logits).all(axis=(0, 2))
            finite &= good
            score.add(row, logits if good.all() else np.nan_to_num(logits, posinf=0.0, neginf=0.0))
        values += [value if ok else math.nan for value, ok in zip(score.values(), finite.tolist(), strict=True)]
    return values


def _result(
    stack: FrameStack,
    j: int,
    job: FrameJob,
    rates: Sequence[float],
    scores: npt.NDArray[np.float64],
    losses: npt.NDArray[np.float64],
    best: npt.NDArray[np.float64],
    best_epoch: npt.NDArray[np.int64],
) -> FrameResult:
    chosen = int(best[j].argmax())
    if not best_epoch[j, chosen]:
        raise ProbeError(
            "Training diverged: no epoch gave finite validation logits with learning rate "
            f"{', '.join(f'{rate:g}' for rate in rates)}.",
            where=f"fold {job.fold}, seed {job.seed}",
            hint="Add a smaller learning rate to the grid.",
        )
    return FrameResult(
        fold=job.fold,
        seed=job.seed,
        learning_rate=rates[chosen],
        best_epoch=int(best_epoch[j, chosen]),
        valid_score=float(best[j, chosen]),
        state={key: value.cpu().numpy().copy() for key, value in stack.shape.state(stack.best[j, chosen]).items()},
        history=[
            {
                "learning_rate": rate,
                "valid": [_number(value) for value in scores[:, j, r]],
                "train_loss": [_number(value) for value in losses[:, j, r]],
            }
            for r, rate in enumerate(rates)
        ],
    )


def _number(value: float) -> float | None:
    """Return a float that JSON can hold."""
    return float(value) if math.isfinite(value) else None
