"""What one LLM-projector training is made of, before anything is loaded: tasks, recipe, decoder, shares and identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xares_store.errors import ConfigError, ProbeError, XaresError
from xares_store.fingerprint import fingerprint
from xares_store.probes.hub import TextFiles
from xares_store.probes.llm.decoder import DecoderShape, decoder_shape, find_decoder
from xares_store.probes.probe import PROBES
from xares_store.recipe import Recipe
from xares_store.runs.features import parts_digest
from xares_store.runs.llm.options import CAPTION_METRICS, RECIPE_OF_KIND, Wanted, wanted_recipe
from xares_store.runs.request import Request, run_name
from xares_store.store.store import Store
from xares_store.task import Task

if TYPE_CHECKING:
    from xares_store.probes.captions import CaptionModels


@dataclass(frozen=True)
class Prepared:
    """One model to train, or several alike of other folds and seeds.

    Attributes:
        encoder: address of the encoder.
        tasks: that the model learns together.
        wanted: the recipe with the command's changes.
        decoder: its files.
        shape: its sizes.
        captions: sentence encoder and error checker, where a task's metric needs them.
        shares: of each task in the mixture, adding up to 1.
        mixture: name of the mixture: of a suite whose tasks these are, the only task's, or a count with a hash.
        digests: of each task's embeddings.
    """

    encoder: str
    tasks: tuple[Task, ...]
    wanted: Wanted
    decoder: TextFiles
    shape: DecoderShape
    captions: CaptionModels | None
    shares: tuple[float, ...]
    mixture: str
    digests: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe as it is trained."""
        return self.wanted.recipe

    def training(self, request: Request) -> dict[str, Any]:
        """Return everything that decides the trained weights but fold and seed."""
        return {
            "recipe": self.recipe.name,
            "definition": self.wanted.definition,
            **self.wanted.changes,
            "decoder": decoder_name(self.decoder.spec),
            "decoder_identity": self.decoder.identity(),
            "mixture": self.mixture,
            "shares": {task.name: round(share, 9) for task, share in zip(self.tasks, self.shares, strict=True)},
            "embeddings": {task.name: digest for task, digest in zip(self.tasks, self.digests, strict=True)},
            "tasks": {task.name: task.fingerprint[:16] for task in self.tasks},
        }

    def training_id(self, request: Request) -> str:
        """Return the name of a training, whatever its seed and fold: equal weights, equal names."""
        identity = {
            **self.training(request),
            "encoder": self.encoder,
            "protocol": request.protocol,
            "where": request.where,
            "probe_version": PROBES["llm"].version,
        }
        del identity["decoder"]  # a name decides nothing
        return f"{self.recipe.name}-{fingerprint(identity)[:16]}"

    def settings(self, task: Task, request: Request) -> dict[str, Any]:
        """Return the complete settings of a task's run."""
        found = {**self.training(request), "training": self.training_id(request)}
        for name in (
            "embeddings",
            "tasks",
        ):  # said by the training's name; a joint training would repeat them in every run
            del found[name]
        if len(self.tasks) == 1:
            del found["shares"]
        if self.captions is not None and CAPTION_METRICS & set(task.metric.names):
            found["captions"] = self.captions.identity()
        if request.llm.score_labels and getattr(task.target, "closed", False):
            found["score_labels"] = True
        return found

    def run_id(self, number: int, request: Request, seed: int) -> str:
        """Return the name of the run of the ``number``-th task."""
        task = self.tasks[number]
        settings = self.settings(task, request)
        del settings["decoder"]  # as in the training's name
        return run_name(self.encoder, task, "llm", request, settings, seed, self.digests[number])


def decoder_name(spec: str) -> str:
    """Return what people call a decoder, however its folder is spelled: the folder's own name, or the one on the hub.

    Example:
        >>> decoder_name("HuggingFaceTB/SmolLM2-135M@main")
        'HuggingFaceTB/SmolLM2-135M'
    """
    path = Path(spec).expanduser()
    if not path.is_dir():
        return spec.partition("@")[0]
    folder = path.resolve()
    model = folder.parent.parent.name
    if folder.parent.name == "snapshots" and model.startswith("models--"):  # the hub's cache: named by a commit
        return model.removeprefix("models--").replace("--", "/")
    return folder.name


def prepare(
    store: Store, encoder: str, tasks: Sequence[Task], request: Request
) -> tuple[list[Prepared], list[tuple[tuple[Task, ...], XaresError]]]:
    """Sort tasks into trainings and find what those need; nothing is loaded.

    A task without fixed splits has several folds, and is trained alone whatever the recipe says.

    Returns:
        The trainings, and the tasks of those that lack something, with the reason: a task that is not completely embedded,
        a decoder or a model of the metrics that is not to be had, a question that the task does not have.

    Raises:
        ConfigError: an option does not fit.
        TaskError: there is no such recipe.
    """
    by_recipe: dict[str, list[Task]] = {}
    for task in sorted(tasks, key=lambda task: task.name):  # in whatever order they are named, it is one training
        by_recipe.setdefault(request.llm.recipe or RECIPE_OF_KIND[task.target.kind], []).append(task)
    found: list[Prepared] = []
    failed: list[tuple[tuple[Task, ...], XaresError]] = []
    for members in by_recipe.values():
        wanted = wanted_recipe(members, request)
        together = tuple(task for task in members if wanted.recipe.joint and task.data.splits is not None)
        for group in [together] * bool(together) + [(task,) for task in members if task not in together]:
            try:
                found.append(_prepare(store, encoder, group, wanted, request))
            except XaresError as error:
                failed.append((group, error))
    return found, failed


def _prepare(store: Store, encoder: str, tasks: tuple[Task, ...], wanted: Wanted, request: Request) -> Prepared:
    recipe = wanted.recipe
    digests = tuple(parts_digest(store, encoder, task) for task in tasks)
    if recipe.prompt:
        for task in tasks:
            if getattr(task.target, "prompt", None) is None:
                raise ConfigError(
                    f'Recipe "{recipe.name}" asks a question, and task "{task.name}" has none.',
                    where=f"target.prompt of {task.name}",
                    hint='Write one into the task file: prompt = "Transcribe the speech.", or use --recipe xares-asr.',
                )
    files = find_decoder(request.llm.decoder or recipe.decoder)
    shape = decoder_shape(files)
    captions: CaptionModels | None = None
    if any(CAPTION_METRICS & set(task.metric.names) for task in tasks):
        from xares_store.probes.captions import CaptionModels

        given = {"sentence_encoder": request.llm.sentence_encoder, "fluency_model": request.llm.fluency_model}
        captions = CaptionModels.find(**{name: spec for name, spec in given.items() if spec is not None})
    name, shares = mixture_of(recipe, tasks)
    if wanted.changes.get("max_steps") == planned_steps(recipe, tasks) is not None:
        wanted = replace(wanted, changes={key: value for key, value in wanted.changes.items() if key != "max_steps"})
    return Prepared(encoder, tasks, wanted, files, shape, captions, shares, name, digests)


def mixture_of(recipe: Recipe, tasks: Sequence[Task]) -> tuple[str, tuple[float, ...]]:
    """Return the name of a mixture and the share of each task.

    Where the recipe has a mixture of just these tasks, its shares; of some of them, its shares in proportion; otherwise
    all tasks weigh the same.

    Example:
        >>> from xares_store.catalog import load_recipe, load_task
        >>> mixture_of(load_recipe("xares-llm"), [load_task("llm-clotho"), load_task("llm-mecat")])
        ('2 of task2', (0.25, 0.75))
    """
    names = [task.name for task in tasks]
    if len(names) == 1:
        return names[0], (1.0,)
    title = _mixture_with(recipe, names)
    if title is not None:
        shares = recipe.mixtures[title].shares()
        total = sum(shares[name] for name in names)
        title = title if len(names) == len(shares) else f"{len(names)} of {title}"
        return title, tuple(shares[name] / total for name in names)
    return f"{len(names)} tasks {fingerprint({'tasks': sorted(names)})[:8]}", (1.0 / len(names),) * len(names)


def _mixture_with(recipe: Recipe, names: Sequence[str]) -> str | None:
    """Return the smallest mixture that has these tasks."""
    sizes = {
        title: len(mixture.shares())
        for title, mixture in recipe.mixtures.items()
        if set(names) <= set(mixture.shares())
    }
    return min(sizes, key=sizes.__getitem__, default=None)


def planned_steps(recipe: Recipe, tasks: Sequence[Task]) -> int | None:
    """Return how many optimiser steps a recipe wants for some tasks; None where it counts epochs.

    A part of a mixture is trained for as long as the whole: every one of its tasks is drawn at least as often.

    Example:
        >>> from xares_store.catalog import load_recipe, load_task
        >>> planned_steps(load_recipe("xares-llm"), [load_task("llm-clotho"), load_task("llm-mecat")])
        100000
    """
    training = recipe.training
    if training.steps is None:
        return None
    if len(tasks) == 1:
        return training.steps_of.get(tasks[0].name, training.steps)
    title = _mixture_with(recipe, [task.name for task in tasks])
    return (recipe.mixtures[title].steps if title is not None else None) or training.steps


def steps_of(prepared: Prepared, steps_per_epoch: int, max_steps: int | None) -> int:
    """Return how many optimiser steps a training takes.

    Args:
        prepared: its recipe says epochs, or steps, which a mixture or a single task may have of its own.
        steps_per_epoch: batches in which every training text comes once.
        max_steps: what the command asks for; it may cut epochs short, and never adds to them.
    """
    planned = planned_steps(prepared.recipe, prepared.tasks)
    if planned is not None:
        return planned if max_steps is None else max_steps
    assert prepared.recipe.training.epochs is not None
    whole = prepared.recipe.training.epochs * steps_per_epoch
    return whole if max_steps is None else min(whole, max_steps)


def check_context(prepared: Prepared, prompt: int) -> int | None:
    """Return the most audio positions that leave room for prompt and answer; None for a decoder without a limit.

    Raises:
        ProbeError: there is no room for any audio.
    """
    return audio_room(prepared.shape, prepared.recipe, prompt, spec=prepared.decoder.spec)


def audio_room(shape: DecoderShape, recipe: Recipe, prompt: int, *, spec: str) -> int | None:
    """Return the same of a decoder's sizes, a recipe and the decoder's name; errors as in :func:`check_context`."""
    context = shape.context
    if context is None:
        return None
    room = context - prompt - recipe.generation.max_new_tokens - 2
    if room < 1:
        raise ProbeError(
            f"The decoder sees {context} positions, and prompt and answer may take {context - room}.",
            where=f"--decoder {spec}",
            hint="Use a decoder with a longer context, or a recipe with fewer max_new_tokens.",
        )
    return room
