"""The gradient of one optimiser step: a batch divided over processes and micro-batches, and memory that runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from xares_store.errors import ProbeError
from xares_store.probes.llm.batches import micro_batches
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.ranks import Ranks
from xares_store.probes.llm.updates import Updates

_NAMED = 5  # clips that a message names


class Model(Protocol):
    """What is trained; :class:`xares_store.probes.llm.model.AudioLm` is one."""

    def loss(self, examples: Sequence[Example]) -> tuple[Tensor, int]:
        """Return the cross entropy summed over learnt tokens, and their number."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""

    def positions(self, example: Example) -> int:
        """Return how many positions of the decoder a clip with its text takes."""

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on or off."""


@dataclass(frozen=True)
class Computed:
    """What :meth:`Gradients.compute` found; the gradient itself stands in :attr:`Updates.gradient`.

    Attributes:
        loss: mean cross entropy of a learnt token of the whole batch; not finite only under loss scaling.
        tokens: learnt tokens of the whole batch.
        factor: what the gradient has yet to be multiplied by.
        flags: those of the first process.
    """

    loss: float
    tokens: int
    factor: float
    flags: list[bool]


class Gradients:
    """Computes gradients; lowers the frame budget when the accelerator's memory runs out.

    Args:
        model: what is trained.
        updates: where its gradients are.
        ranks: the processes that share a batch.
        budget: positions, padding included, that pass through the decoder at once.
        seed: of dropout, at least 0.

    Attributes:
        budget: as it is now.
        notes: a sentence for every time it was lowered.
    """

    def __init__(self, model: Model, updates: Updates, ranks: Ranks, *, budget: int, seed: int) -> None:
        self.model, self.updates, self.ranks = model, updates, ranks
        self.budget, self.seed = budget, seed
        self.notes: list[str] = []

    def compute(self, examples: Sequence[Example], step: int, flags: Sequence[bool]) -> Computed:
        """Compute the gradient of a batch; every process gives the same batch and gets the same answer.

        Args:
            examples: of all processes.
            step: counted from 0; dropout is seeded from it.
            flags: what the first process has to tell the others.

        Raises:
            ProbeError: a loss is not finite (without loss scaling), there is no token to learn, or one clip alone does
                not fit into memory.
        """
        mine = self.ranks.share(sorted(examples, key=self.model.positions, reverse=True))
        # The number of learnt tokens is known only after all processes have computed; a guess that all of them can make
        # keeps the losses in range until then, and is exact where nothing but the answer and its end is learnt.
        guess = sum(len(example.target) + 1 for example in examples)
        loss, tokens, bad = self._own(mine, guess, step)
        told = self.ranks.gather([loss, tokens, len(bad), *flags])
        total = int(told[:, 1].sum())
        if total == 0:
            raise ProbeError("Wanted a token to learn in every step, found none.", where=where(step, examples))
        if told[:, 2].any() and self.updates.scaler is None:
            raise not_finite("loss", step, bad or examples)
        self.ranks.add(self.updates.gradient)
        return Computed(float(told[:, 0].sum()) / total, total, guess / total, [bool(flag) for flag in told[0, 3:]])

    def _own(self, mine: Sequence[Example], guess: int, step: int) -> tuple[float, int, list[Example]]:
        """Return loss and tokens of this process's share, and the clips whose loss is not finite."""
        while True:
            seed = np.random.SeedSequence((self.seed, step, self.ranks.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(seed[0]) >> 1)
            self.updates.gradient.zero_()
            groups = micro_batches(mine, self.model.positions, self.budget) if mine else []
            losses: list[Tensor] = []
            count = 0
            for group in groups:
                try:
                    loss, tokens = self._micro_batch(group, guess)
                except torch.OutOfMemoryError:
                    failed = group
                    break
                losses.append(loss)
                count += tokens
            else:
                values = torch.stack(losses).cpu().double().numpy() if losses else np.zeros(0)
                bad = [e for g, value in zip(groups, values, strict=True) if not np.isfinite(value) for e in g]
                return float(values.sum()), count, bad
            self._lower(failed, step)  # not inside the handler: the error keeps what was being computed alive

    def _micro_batch(self, group: Sequence[Example], guess: int) -> tuple[Tensor, int]:
        with self.updates.autocast():
            loss, tokens = self.model.loss(group)
        self.updates.backward(loss / guess)
        return loss.detach(), tokens

    def _lower(self, group: Sequence[Example], step: int) -> None:
        """Lower the budget to half of what a micro-batch that did not fit took."""
        longest, device = max(map(self.model.positions, group)), self.updates.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if len(group) == 1:
            raise ProbeError(
                f"Out of memory on {device}: one clip with its text, {longest:,} positions, does not fit.",
                where=where(step, group),
                hint="Set crop_s, a larger stride or gradient_checkpointing = true in the recipe, or use a smaller decoder.",
            )
        before, self.budget = self.budget, max(1, len(group) * longest // 2)
        self.notes.append(
            f"frame_budget was lowered from {before:,} to {self.budget:,} at step {step + 1:,}: "
            f"{len(group)} x {longest:,} positions did not fit into the memory of {device}."
        )


def not_finite(what: str, step: int, examples: Sequence[Example]) -> ProbeError:
    """Return the error about a loss or gradient that is not finite."""
    return ProbeError(
        f"The {what} of step {step + 1:,} is not finite: training diverged, or a clip's frames are broken.",
        where=where(step, examples),
        hint="Look at these clips, use a smaller learning rate, or --precision fp32.",
    )


def where(step: int, examples: Sequence[Example]) -> str:
    """Name a step, counted from 0, and its clips."""
    names = ", ".join(example.name for example in examples[:_NAMED])
    more = f" and {len(examples) - _NAMED} more" if len(examples) > _NAMED else ""
    return f"step {step + 1:,}, clips {names}{more}"
