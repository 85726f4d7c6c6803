"""One LLM-projector training from a store: frames in, a trained model out, resumed where an earlier one stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xares_store.errors import ProbeError
from xares_store.probes.hub import TextFiles
from xares_store.probes.llm.batches import BatchReader
from xares_store.probes.llm.decoder import load_decoder
from xares_store.probes.llm.model import AudioLm
from xares_store.probes.llm.selftest import check_decoder
from xares_store.probes.llm.trainer import Progress, Trained, TrainPlan, train
from xares_store.recipe import Recipe
from xares_store.runs.llm.material import Course, Material, make_course
from xares_store.runs.llm.prepare import Prepared, check_context, steps_of
from xares_store.runs.llm.selecting import make_validate
from xares_store.runs.request import Request


@dataclass(frozen=True)
class Separator:
    """The token between audio and text.

    Attributes:
        name: as the vocabulary spells it; None for none.
        id: its token id.
    """

    name: str | None
    id: int | None


def separator_of(recipe: Recipe, tokenizer: Any, *, protocol: str, spec: str) -> Separator:
    """Find the recipe's separator in a vocabulary.

    A decoder whose vocabulary has no such token separates with its end token under ``strict``; the published protocol knows
    one token only.

    Raises:
        ProbeError: the published protocol, and a decoder without the token.
    """
    if recipe.separator is None:
        return Separator(None, None)
    found = tokenizer.get_vocab().get(recipe.separator)
    if found is not None:
        return Separator(recipe.separator, int(found))
    if protocol == "published":
        raise ProbeError(
            f'The decoder\'s vocabulary has no token "{recipe.separator}", which the published recipe puts after the audio.',
            where=f"--decoder {spec}",
            hint="Use --protocol strict, which separates with the end token then.",
        )
    return Separator(str(tokenizer.eos_token), int(tokenizer.eos_token_id))


def build(
    files: TextFiles, recipe: Recipe, *, dim: int, separator: Separator, protocol: str, seed: int, device: str
) -> AudioLm:
    """Load the decoder and put an untrained projector in front of it."""
    model = AudioLm(
        load_decoder(files, device=device),
        recipe,
        dim=dim,
        separator=separator.id,
        gaps=protocol == "published",
        seed=seed,
    )
    check_decoder(model)
    return model


@dataclass(frozen=True)
class Taught:
    """What a training gave.

    Attributes:
        model: with the chosen weights.
        trained: losses, history and weights.
        course: what it learnt from.
        separator: the token after the audio.
    """

    model: AudioLm
    trained: Trained
    course: Course
    separator: Separator


def teach(
    prepared: Prepared,
    materials: Sequence[Material],
    request: Request,
    seed: int,
    folder: Path,
    *,
    identity: str,
    separator: Separator,
    device: str,
    deadline: float | None,
    progress: Callable[[Progress], None],
    known: dict[str, np.ndarray] | None = None,
) -> Taught:
    """Train a model, or go on with a training that was cut short.

    Args:
        prepared: recipe, decoder and shares.
        materials: a task each.
        request: protocol, memory and step limit.
        seed: of initial weights and order.
        folder: where checkpoints are kept.
        identity: name of the training; a checkpoint of another one is refused.
        separator: token after the audio.
        device: where it runs.
        deadline: ``time.monotonic()`` at which to stop with a checkpoint.
        progress: called after every step.
        known: weights and history of the same training from a stored run; nothing is trained then.

    Raises:
        Paused: the deadline passed; the same call goes on.
        ProbeError: the loss is no number any more, or memory does not suffice.
    """
    recipe = prepared.recipe
    model = build(
        prepared.decoder,
        recipe,
        dim=materials[0].frames.dim,
        separator=separator,
        protocol=request.protocol,
        seed=seed,
        device=device,
    )

    def room(prompt: int) -> int | None:
        return check_context(prepared, prompt)

    course = make_course(materials, prepared.shares, recipe, seed, room, gaps=request.protocol == "published")
    if known is not None:
        losses, tokens = known.pop("history.loss"), known.pop("history.tokens")
        model.load(known)
        return Taught(model, Trained.stored(known, losses, tokens), course, separator)
    reader = BatchReader(course.mixture, course.example, memory_bytes=request.memory_bytes)
    plan = TrainPlan(
        steps=steps_of(prepared, course.mixture.steps_per_epoch, request.llm.max_steps),
        steps_per_epoch=course.mixture.steps_per_epoch,
        optimiser=recipe.optimiser,
        precision=recipe.training.precision,
        frame_budget=recipe.training.frame_budget,
        checkpoint_s=recipe.training.checkpoint_s,
        seed=seed,
    )
    validate = None
    if recipe.selection is not None:
        validate = make_validate(model, materials, recipe, published=request.protocol == "published", room=room)
    trained = train(
        model,
        reader.steps,
        plan,
        folder,
        identity=identity,
        validate=validate,
        deadline=deadline,
        progress=progress,
    )
    model.load(trained.state)
    model.eval()
    return Taught(model, trained, course, separator)
