"""A model of a few hundred numbers that can be trained as the audio language model is, and batches that follow from the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.trainer import Trained, TrainPlan, train
from xares_store.recipe import Optimiser

DIM, WIDTH, TOKENS = 6, 16, 9
LINEAR = Optimiser(
    name="adamw", learning_rate=0.05, weight_decay=0.1, schedule="linear", warmup_steps=3, max_grad_norm=0.5
)
COSINE = Optimiser(name="adam", learning_rate=0.02, schedule="cosine-epochs")


class Toy(nn.Module):
    """Predicts an answer's tokens from the mean frame and their places.

    Args:
        dropout: of the hidden layer.
        room: positions, padding included, that fit into its memory.
        separators: further tokens that are learnt before each answer.
    """

    def __init__(self, *, dropout: float = 0.0, room: float = float("inf"), seed: int = 0, separators: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.projector = nn.Linear(DIM, WIDTH)
        self.places = nn.Embedding(16, WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        self.room, self.separators = room, separators
        self.seen: list[list[str]] = []

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def positions(self, example: Example) -> int:
        return len(example.frames) + len(example.prompt) + len(example.target) + 1

    def loss(self, examples: Sequence[Example]) -> tuple[Tensor, int]:
        self.seen.append([example.name for example in examples])
        if len(examples) * max(map(self.positions, examples)) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        losses = []
        for example in examples:
            hidden = torch.tanh(self.projector(torch.from_numpy(example.frames)).mean(dim=0))
            answer = [*[1] * self.separators, *example.target, 0]
            logits = self.head(self.dropout(hidden + self.places(torch.arange(len(answer)))))
            wanted = torch.tensor(answer)
            losses.append(nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"))
        return torch.stack(losses).sum(), sum(self.separators + len(example.target) + 1 for example in examples)


def batch(step: int) -> list[Example]:
    """Return 1 to 6 clips of 1 to 12 frames; what they say follows from their frames."""
    random = np.random.default_rng(step)
    examples = []
    for number in range(int(random.integers(1, 7))):
        kind = int(random.integers(1, TOKENS))
        frames = random.normal(size=(int(random.integers(1, 13)), DIM)).astype(np.float32)
        frames[:, kind % DIM] += 3
        examples.append(Example(frames, (1,), (kind,) * int(random.integers(1, 4)), f"train/{step}-{number}"))
    return examples


def batches(first: int, last: int) -> Iterator[list[Example]]:
    return (batch(step) for step in range(first, last))


def make_plan(**changes: Any) -> TrainPlan:
    values: dict[str, Any] = {
        "steps": 20,
        "steps_per_epoch": 6,
        "optimiser": LINEAR,
        "precision": "fp32",
        "frame_budget": 20,
        "checkpoint_s": 1000.0,
        "seed": 3,
    }
    return TrainPlan(**values | changes)


def score(model: Toy) -> Callable[[], float]:
    """Return a validation that follows from the parameters alone and does not rise for ever."""

    def validate() -> float:
        assert not model.training
        values = torch.cat([value.detach().flatten() for value in model.trainable().values()])
        return float(torch.sin(100 * values.double()).sum())

    return validate


def run(folder: Path, model: Toy | None = None, **options: Any) -> Trained:
    plan = {key: options.pop(key) for key in list(options) if key in TrainPlan.__dataclass_fields__}
    return train(model or Toy(), options.pop("batches", batches), make_plan(**plan), folder, identity="id", **options)


def differences(one: Trained, other: Trained) -> list[str]:
    """Name what differs between two results, bit for bit; the time they took may."""
    odd = [name for name in ("losses", "tokens") if getattr(one, name).tobytes() != getattr(other, name).tobytes()]
    odd += [name for name in ("history", "best_epoch", "skipped") if getattr(one, name) != getattr(other, name)]
    odd += sorted(set(one.state) ^ set(other.state))
    return odd + [name for name in one.state if one.state[name].tobytes() != other.state[name].tobytes()]
