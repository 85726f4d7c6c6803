"""Training of the LLM-projector probe: optimiser steps that can stop at any instant and go on bit for bit.

A step takes a whole batch: it is divided into micro-batches by the frame budget, the gradients of their summed losses are
added up and divided by the number of learnt tokens of the whole batch, so the division changes nothing but rounding.
Random numbers are seeded at every step from (seed, step, process); nothing else that is random is carried along, which is
why a resumed training and one that was never interrupted agree. Processes that were launched together share every batch
(:mod:`xares_store.probes.llm.ranks`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xares_store.errors import CorruptError, ProbeError, XaresError
from xares_store.probes.llm.checkpoint import Arrays, Snapshot, TrainingFolder
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.gradients import Gradients, Model, not_finite, where
from xares_store.probes.llm.ranks import Ranks
from xares_store.probes.llm.schedule import epoch_steps, learning_rate
from xares_store.probes.llm.updates import Updates, check_precision, ctrl_c_later
from xares_store.recipe import Optimiser

FloatArray = NDArray[np.float32]
Steps = Callable[[int, int], Iterator[list[Example]]]

WINDOW = 50  # steps that progress averages over
MAX_SKIPPED = 100  # steps in a row that loss scaling may skip before training is given up


class Paused(XaresError):  # noqa: N818 - nothing went wrong
    """Training stopped because its time was up; a checkpoint holds what was done.

    Attributes:
        step: steps that are done.
        steps: of the whole training.
    """

    def __init__(self, step: int, steps: int, folder: Path) -> None:
        super().__init__(
            f"The time is up after {step:,} of {steps:,} steps; they are kept.",
            where=folder,
            hint="Run the same command again to go on.",
        )
        self.step, self.steps = step, steps


@dataclass(frozen=True)
class TrainPlan:
    """What decides a training besides its data and its model.

    Args:
        steps: optimiser steps, at least 1.
        steps_per_epoch: at least 1.
        optimiser: of the recipe.
        precision: ``fp32``, ``bf16`` (CUDA, CPU) or ``fp16`` (CUDA).
        frame_budget: positions, padding included, that pass through the decoder at once.
        checkpoint_s: seconds between checkpoints; 0 makes one after every step.
        seed: of dropout, at least 0.
    """

    steps: int
    steps_per_epoch: int
    optimiser: Optimiser
    precision: str
    frame_budget: int
    checkpoint_s: float
    seed: int

    def __post_init__(self) -> None:
        if min(self.steps, self.steps_per_epoch, self.frame_budget) < 1:
            raise ProbeError(
                "Wanted at least one step, one step an epoch and one position at once, "
                f"found {self.steps}, {self.steps_per_epoch} and {self.frame_budget}."
            )


@dataclass(frozen=True)
class Progress:
    """How far a training is; for whoever draws it.

    Attributes:
        step: steps that are done.
        steps: of the whole training.
        epoch: of the step that was done last, from 1.
        loss: mean over the learnt tokens of the last steps; NaN when none of them gave a finite one.
        tokens_per_s: learnt tokens a second, of all processes.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    tokens_per_s: float


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        state: the trained parameters: of the best epoch, or of the last step without validation.
        losses: float32 ``(steps,)``, mean cross entropy of a learnt token in each step.
        tokens: int64 ``(steps,)``, learnt tokens of each step.
        history: a dict an epoch: ``epoch``, ``learning_rate`` (of its last step), ``loss`` (mean over its tokens) and
            ``valid``; None for what is not finite or not there.
        best_epoch: the first one with the best validation; None without validation.
        seconds: of training and validation, over all sessions.
        skipped: steps that loss scaling skipped (fp16).
        notes: what a person should know about how it went.
    """

    state: dict[str, FloatArray]
    losses: FloatArray
    tokens: NDArray[np.int64]
    history: list[dict[str, Any]]
    best_epoch: int | None
    seconds: float
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def stored(cls, state: dict[str, FloatArray], losses: FloatArray, tokens: NDArray[np.int64]) -> Trained:
        """Return what is known of a training whose weights and losses were kept elsewhere."""
        return cls(state=state, losses=losses, tokens=tokens, history=[], best_epoch=None, seconds=0.0)


def train(
    model: Model,
    steps: Steps,
    plan: TrainPlan,
    folder: Path,
    *,
    identity: str,
    validate: Callable[[], float] | None = None,
    deadline: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train, going on from a checkpoint when there is one; return a finished training at once.

    Every process that was launched calls this alike; the first one writes, reports, and its validation counts.

    Args:
        model: what is trained; afterwards load :attr:`Trained.state`, for the model may hold any other step's.
        steps: called with (first, last), gives the batches of steps first to last - 1, counted from 0.
        plan: what decides the training.
        folder: of this training alone; see :mod:`xares_store.probes.llm.checkpoint`.
        identity: of all that decides the training; a checkpoint of another one is refused.
        validate: scores the model as it is after every epoch, higher is better; the first strictly best epoch is kept,
            and none whose score is not finite.
        deadline: moment of :func:`time.monotonic` after which no further step is begun; one step is always made.
        progress: called after every step.

    Raises:
        Paused: the deadline passed; a checkpoint was written.
        ConfigError: the device cannot compute with this precision.
        ProbeError: a loss or gradient is not finite, no epoch could be validated, one clip alone does not fit into the
            accelerator's memory, the batches ended early, or a checkpoint of another training is in the folder.
        CorruptError: the checkpoint is damaged.
        StoreError: the checkpoint cannot be written.
        KeyboardInterrupt: as it came; a checkpoint was written.
    """
    return _Training(model, steps, plan, TrainingFolder(folder, identity), validate, deadline, progress).run()


class _Training:
    def __init__(
        self,
        model: Model,
        steps: Steps,
        plan: TrainPlan,
        files: TrainingFolder,
        validate: Callable[[], float] | None,
        deadline: float | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.model, self.batches, self.plan, self.files = model, steps, plan, files
        self.validate, self.deadline, self.progress = validate, deadline, progress
        self.device = next(iter(model.trainable().values())).device
        check_precision(plan.precision, str(self.device))
        self.updates = Updates(model.trainable(), plan.optimiser, plan.precision)
        self.ranks = Ranks(self.device)
        self.gradients = Gradients(model, self.updates, self.ranks, budget=plan.frame_budget, seed=plan.seed)
        self.step = 0
        self.losses = np.full(plan.steps, np.nan, np.float32)
        self.tokens = np.zeros(plan.steps, np.int64)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, FloatArray] = {}
        self.best_epoch: int | None = None
        self.best_valid = -math.inf
        self.skipped = self.skipped_in_row = 0
        self.seconds, self.began = 0.0, time.monotonic()
        self.saved_at, self.unsaved = self.began, False
        self.pause = False
        self.clock: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)

    def run(self) -> Trained:
        if self.ranks.first:
            self.files.clean()
        done = self.files.finished()
        kept = None if done is not None else self.files.checkpoint()
        if kept is not None:
            self._restore(kept)
        if len(np.unique(self.ranks.gather([done is not None, self.step]), axis=0)) > 1:
            raise ProbeError(
                "The processes that train together found different checkpoints.",
                where=self.files.folder,
                hint="Put the store on a file system that all of them share.",
            )
        if done is not None:
            if int(done.record["step"]) != self.plan.steps:
                made = f"A training that counts as finished made {done.record['step']:,} of {self.plan.steps:,} steps."
                raise CorruptError(made, where=self.files.folder, hint="Remove this folder; training begins anew.")
            return self._trained(done.arrays, done.record)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # steps seed it; the caller's random numbers stay as they were
            try:
                self._run()
            except KeyboardInterrupt:
                self._save()
                raise
            finally:
                self.model.train(False)
        return self._finish()

    def _run(self) -> None:
        self.model.train()
        self._end_epoch()  # a process may have been killed after the last step of an epoch and before its end
        if self.step < self.plan.steps:
            batches = self.batches(self.step, self.plan.steps)
            try:
                for examples in batches:
                    self._one_step(examples)
                    self._end_epoch()
                    if self.pause and self.step < self.plan.steps:
                        self._save()
                        raise Paused(self.step, self.plan.steps, self.files.folder)
            finally:
                getattr(batches, "close", lambda: None)()  # ends the thread of a generator that reads ahead
        if self.step < self.plan.steps:
            raise ProbeError(f"Wanted batches for {self.plan.steps:,} steps, found {self.step:,}.")

    def _one_step(self, examples: Sequence[Example]) -> None:
        if self.step >= self.plan.steps:
            raise ProbeError(f"Wanted batches for {self.plan.steps:,} steps, found more.")
        now = time.monotonic()
        late = self.deadline is not None and now >= self.deadline
        due = now - self.saved_at >= self.plan.checkpoint_s
        found = self.gradients.compute(examples, self.step, [late, due])
        rate = self._rate(self.step)
        with ctrl_c_later():
            norm = self.updates.update(rate, found.factor)
            if norm is not None and not math.isfinite(norm):
                raise not_finite("gradient", self.step, examples)
            self.skipped += norm is None
            self.skipped_in_row = self.skipped_in_row + 1 if norm is None else 0
            self.losses[self.step], self.tokens[self.step] = found.loss, found.tokens
            self.step += 1
            self.unsaved = True
        if self.skipped_in_row > MAX_SKIPPED:
            raise ProbeError(
                f"{self.skipped_in_row} steps in a row gave a gradient that is not finite in fp16.",
                where=where(self.step - 1, examples),
                hint="Use --precision bf16 or fp32, or a smaller learning rate.",
            )
        self.pause, save = found.flags
        if save:
            self._save()
        self._report(found.tokens)

    def _rate(self, step: int) -> float:
        plan = self.plan
        return learning_rate(plan.optimiser, step, steps=plan.steps, steps_per_epoch=plan.steps_per_epoch)

    def _end_epoch(self) -> None:
        """Record, and validate, an epoch whose last step is done."""
        epoch, plan = len(self.history) + 1, self.plan
        own = epoch_steps(epoch, plan.steps, plan.steps_per_epoch)
        if not own or self.step < own.stop:
            return
        valid = None
        if self.validate is not None:
            self.model.train(False)
            valid = float(self.ranks.gather([self.validate()])[0, 0])
            self.model.train()
        losses, tokens = self.losses[own.start : own.stop].astype(np.float64), self.tokens[own.start : own.stop]
        with ctrl_c_later():
            if valid is not None and math.isfinite(valid) and valid > self.best_valid:
                self.best_valid, self.best_epoch, self.best = valid, epoch, self.updates.values()
            loss, score = _number(_mean(losses, tokens)), None if valid is None else _number(valid)
            self.history.append({"epoch": epoch, "learning_rate": self._rate(own[-1]), "loss": loss, "valid": score})
            self.unsaved = True
        if valid is not None:
            self._save()  # validation may take longer than many steps

    def _finish(self) -> Trained:
        if self.validate is not None and self.best_epoch is None:
            raise ProbeError(
                f"The validation of all {len(self.history)} epochs gave no finite number: no epoch can be chosen.",
                where=self.files.folder,
                hint="Look at the training losses; use a smaller learning rate.",
            )
        values = self.best if self.validate is not None else self.updates.values()
        arrays = {f"parameter/{name}": value for name, value in values.items()}
        snapshot = Snapshot(arrays | {"losses": self.losses, "tokens": self.tokens}, self._record())
        if self.ranks.first:
            self.files.finish(snapshot)
        self.ranks.gather([0.0])  # nobody leaves, and nobody reads, before the file is there
        return self._trained(snapshot.arrays, snapshot.record)

    def _trained(self, arrays: Arrays, record: Mapping[str, Any]) -> Trained:
        prefix = "parameter/"
        return Trained(
            state={name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)},
            losses=arrays["losses"],
            tokens=arrays["tokens"],
            history=record["history"],
            best_epoch=record["best_epoch"],
            seconds=record["seconds"],
            skipped=record["skipped"],
            notes=record["notes"],
        )

    def _record(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_valid": _number(self.best_valid),
            "seconds": self.seconds + time.monotonic() - self.began,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "budget": self.gradients.budget,
            "notes": self.gradients.notes,
            "versions": {"torch": torch.__version__},
        }

    def _save(self) -> None:
        if self.ranks.first and self.unsaved:
            arrays, record = self.updates.state()
            arrays |= {f"best/{name}": value for name, value in self.best.items()}
            arrays |= {"losses": self.losses[: self.step], "tokens": self.tokens[: self.step]}
            self.files.save(Snapshot(arrays, self._record() | {"updates": record}))
            self.unsaved = False
        self.saved_at = time.monotonic()

    def _restore(self, snapshot: Snapshot) -> None:
        arrays, record = snapshot.arrays, snapshot.record
        self.updates.restore(arrays, record["updates"])
        self.step = int(record["step"])
        self.losses[: self.step], self.tokens[: self.step] = arrays["losses"], arrays["tokens"]
        self.history, self.gradients.notes = list(record["history"]), list(record["notes"])
        self.best = {name.removeprefix("best/"): v for name, v in arrays.items() if name.startswith("best/")}
        self.best_epoch = record["best_epoch"]
        self.best_valid = -math.inf if record["best_valid"] is None else float(record["best_valid"])
        self.skipped, self.skipped_in_row = int(record["skipped"]), int(record["skipped_in_row"])
        self.seconds = float(record["seconds"])
        self.gradients.budget = min(self.plan.frame_budget, int(record["budget"]))
        before = record["versions"]["torch"]
        if before != torch.__version__:
            self.gradients.notes.append(
                f"Resumed at step {self.step + 1:,} with torch {torch.__version__} after {before}."
            )

    def _report(self, learnt: int) -> None:
        self.clock.append((time.monotonic(), learnt))
        if self.progress is None or not self.ranks.first:
            return
        first = max(0, self.step - WINDOW)
        span = self.clock[-1][0] - self.clock[0][0]
        self.progress(
            Progress(
                step=self.step,
                steps=self.plan.steps,
                epoch=(self.step - 1) // self.plan.steps_per_epoch + 1,
                loss=_mean(self.losses[first : self.step].astype(np.float64), self.tokens[first : self.step]),
                tokens_per_s=sum(tokens for _, tokens in list(self.clock)[1:]) / span if span > 0 else 0.0,
            )
        )


def _mean(losses: NDArray[np.float64], tokens: NDArray[np.int64]) -> float:
    """Return the mean loss of a token over steps; steps without a finite loss do not count, NaN when none has one."""
    counted = np.isfinite(losses)
    return float(np.average(losses[counted], weights=tokens[counted])) if counted.any() else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # what JSON can hold
