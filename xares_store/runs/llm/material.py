"""Training and test clips of an LLM-projector training: which texts count, their tokens, and where the frames are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xares_store.errors import LabelError, ProbeError, ProtocolError
from xares_store.kinds import Text
from xares_store.metrics.text import looks_corrupt
from xares_store.probes.llm.decoder import Tokens, encode
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.mixture import Draw, Mixture, Source
from xares_store.protocol import Fold
from xares_store.recipe import Recipe
from xares_store.runs.features import Features
from xares_store.store.stream import FrameSource
from xares_store.task import Task

_SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True)
class Material:
    """One task in one fold of a training.

    Attributes:
        task, features, fold: what it is.
        frames: the stored frames.
        prompt: token ids of what is asked.
        rows: training clips that have a text, int64 ``(clips,)``.
        first: place of each clip's first text among ``texts``, int64 ``(all clips,)``; -1 without one.
        texts: tokens of all training texts.
        n_texts: texts of each of ``rows``, int64.
        filtered: training texts that were left out because they look corrupt.
    """

    task: Task
    features: Features
    fold: Fold
    frames: FrameSource
    prompt: tuple[int, ...]
    rows: NDArray[np.int64]
    first: NDArray[np.int64]
    texts: Tokens
    n_texts: NDArray[np.int64]
    filtered: int

    def name(self, row: int) -> str:
        """Return what messages call a clip."""
        return f"{self.features.split[row]}/{self.features.clip_id[row]}"

    def example(self, row: int, text: int, frames: NDArray[Any], number: int = 0) -> Example:
        """Return a clip with one of its training texts; ``number`` is that of the draw."""
        target = self.texts[int(self.first[row]) + text]
        return Example(np.asarray(frames, np.float32), self.prompt, target, self.name(row), number)

    def question(self, row: int, frames: NDArray[Any]) -> Example:
        """Return a clip that something is to be written about."""
        return Example(np.asarray(frames, np.float32), self.prompt, (), self.name(row))


def training_rows(fold: Fold, recipe: Recipe) -> NDArray[np.int64]:
    """Return the clips that train: without a selection on validation clips, those that were only set aside for one too."""
    return fold.knn_train if recipe.selection is None else fold.train


def make_material(task: Task, features: Features, fold: Fold, recipe: Recipe, tokenizer: Any) -> Material:
    """Choose and tokenise a task's training texts.

    Raises:
        LabelError: a training clip has no text, or a test clip where answers are not several labels.
        ProtocolError: no training text is left.
    """
    texts: list[str] = []
    rows: list[int] = []
    counts: list[int] = []
    first = np.full(len(features.clip_id), -1, np.int64)
    filtered = 0
    for row in training_rows(fold, recipe).tolist():
        own = features.target[row].train
        _some_text(task, features, row, own, _keys(task, test=False))
        kept = [text for text in own if not (recipe.training.text_filter and looks_corrupt(text))]
        filtered += len(own) - len(kept)
        if kept:
            first[row] = len(texts)
            rows.append(row)
            counts.append(len(kept))
            texts += kept
    if getattr(task.target, "separator", None) is None:  # of several labels, none is an answer too
        for row in np.concatenate([fold.test, fold.valid if recipe.selection else fold.test[:0]]).tolist():
            _some_text(task, features, row, features.target[row].test, _keys(task, test=True))
    if not rows:
        raise ProtocolError(
            f'No training text of task "{task.name}" is left: {filtered} look corrupt and were left out.',
            where=f"fold {fold.name}",
            hint="Correct target.keys in the task file, or use a recipe with training.text_filter = false.",
        )
    asked = getattr(task.target, "prompt", None) if recipe.prompt else None
    return Material(
        task=task,
        features=features,
        fold=fold,
        frames=FrameSource(features.parts, features.part_of, features.offset, features.n_frames),
        prompt=encode(tokenizer, [asked])[0] if asked else (),
        rows=np.asarray(rows, np.int64),
        first=first,
        texts=encode(tokenizer, texts),
        n_texts=np.asarray(counts, np.int64),
        filtered=filtered,
    )


def _keys(task: Task, *, test: bool) -> tuple[str, ...]:
    target = task.target
    if not isinstance(target, Text):
        return ()
    return (target.test_keys or target.keys) if test else target.keys


def _some_text(task: Task, features: Features, row: int, texts: Sequence[str], keys: Sequence[str]) -> None:
    if not texts:
        raise LabelError(
            f"Wanted a text under one of the keys {', '.join(keys)}, found none.",
            where=f"clip {features.split[row]}/{features.clip_id[row]}, task {task.name}",
            hint="Correct target.keys in the task file, or leave the clip out with --where.",
        )


@dataclass(frozen=True)
class Course:
    """The training clips of all tasks in the order in which they are learnt.

    Attributes:
        materials: a task each.
        mixture: who is drawn when.
        crop_frames: longest stretch of each task's clips that is learnt at once; None for whole clips.
    """

    materials: Sequence[Material]
    mixture: Mixture
    crop_frames: Sequence[int | None] = field(default_factory=list)

    def example(self, draw: Draw, frames: NDArray[Any]) -> Example:
        """Return what a draw stands for."""
        return self.materials[draw.task].example(draw.row, draw.text, frames, draw.number)


def make_course(
    materials: Sequence[Material],
    shares: Sequence[float],
    recipe: Recipe,
    seed: int,
    room: Callable[[int], int | None],
    *,
    gaps: bool = False,
) -> Course:
    """Mix the training clips of several tasks.

    Args:
        materials: a task each.
        shares: of each task.
        recipe: batch size, bucket and crop.
        seed: of the order.
        room: most audio positions beside a prompt of so many tokens; None without a limit.
        gaps: the published layout: in a batch the most audio of one clip stands before the most text of another, of
            whatever task.

    Raises:
        ProbeError: a training text leaves no room for audio.
    """
    rooms = [_room_beside_texts(one, recipe, room) for one in materials]
    limits = [limit for limit in rooms if limit is not None]
    if gaps and limits:
        rooms = [min(limits)] * len(rooms)
    crops = [crop_frames(one, recipe, limit) for one, limit in zip(materials, rooms, strict=True)]
    sources = [
        Source(frames=one.frames, rows=one.rows, n_texts=one.n_texts, crop_frames=crop)
        for one, crop in zip(materials, crops, strict=True)
    ]
    training = recipe.training
    mixture = Mixture(sources, shares, batch_size=training.batch_size, bucket=training.bucket, seed=seed)
    return Course(materials, mixture, crops)


def _room_beside_texts(material: Material, recipe: Recipe, room: Callable[[int], int | None]) -> int | None:
    """Return the most audio positions beside prompt and longest training text; None without a limit."""
    limit = room(len(material.prompt))  # prompt and answer that do not fit are an error of their own
    more = longer_than_written(material.texts.longest, recipe)
    if limit is None or not more:
        return limit
    try:
        return room(len(material.prompt) + more)
    except ProbeError:
        longest = int(np.diff(material.texts.offset).argmax())
        row = int(material.rows[np.cumsum(material.n_texts).searchsorted(longest, side="right")])
        raise ProbeError(
            f"A training text of {material.texts.longest} tokens leaves no room for audio in the decoder's context.",
            where=f"clip {material.name(row)}, task {material.task.name}",
            hint="Leave the clip out with --where, use a recipe with training.text_filter = true if the text is corrupt, "
            "or a decoder with a longer context.",
        ) from None


def shortened(text: str) -> str:
    """Return the start of a text, for messages."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def longer_than_written(tokens: int, recipe: Recipe) -> int:
    """Return how many tokens of a text go beyond those that the context has room for anyhow."""
    return max(0, tokens - recipe.generation.max_new_tokens)


def crop_frames(material: Material, recipe: Recipe, room: int | None) -> int | None:
    """Return the longest stretch of frames that is learnt at once; None for any length."""
    limits = [] if room is None else [room * recipe.projector.stride]
    if recipe.training.crop_s is not None:
        limits.append(max(1, round(recipe.training.crop_s * 1000 / material.frames.hop_ms)))
    return min(limits) if limits else None
