"""What a command asks of the LLM-projector probe, and the recipe that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from xares_store.catalog import load_recipe
from xares_store.errors import ConfigError
from xares_store.recipe import MOST_STEPS, Recipe

if TYPE_CHECKING:
    from xares_store.runs.request import Request
    from xares_store.task import Task

# What is trained where no recipe is named: the published one of the task's kind.
RECIPE_OF_KIND = {"transcript": "xares-asr", "text": "xares-llm"}
CAPTION_METRICS = frozenset(("fense", "date"))  # what a sentence encoder and an error checker are needed for
_PRECISIONS = ("fp32", "bf16", "fp16")
_COMBINE = ("stack", "mean")
# Which option a value of the recipe comes from.
_OPTION_OF: dict[tuple[str, ...], str] = {
    ("projector", "stride"): "--stride",
    ("projector", "combine"): "--stride-mode",
    ("optimiser", "learning_rate"): "--lr",
    ("training", "batch_size"): "--batch-size",
    ("training", "epochs"): "--epochs",
    ("training", "precision"): "--precision",
    ("training", "frame_budget"): "--frame-budget",
}


@dataclass(frozen=True)
class LlmOptions:
    """Options of the LLM-projector probe; None takes the recipe's own.

    Attributes:
        recipe: name of a recipe, or path of its file; None for the one of the task's kind.
        decoder: a Transformers causal language model, by hub name or folder.
        max_steps: optimiser steps of the whole training.
        stride, stride_mode: so many frames become one position, ``stack`` or ``mean``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        frame_budget: positions that pass through the decoder at once; changes memory and speed, no result.
        time_budget_s: training pauses after so many seconds.
        score_labels: ask for the likelihood of each label too.
        sentence_encoder, fluency_model: of FENSE and DATE, by hub name or folder.
    """

    recipe: str | None = None
    decoder: str | None = None
    max_steps: int | None = None
    stride: int | None = None
    stride_mode: str | None = None
    precision: str | None = None
    frame_budget: int | None = None
    time_budget_s: float | None = None
    score_labels: bool = False
    sentence_encoder: str | None = None
    fluency_model: str | None = None

    def given(self) -> list[str]:
        """Return the options that were given, as the command line spells them."""
        spelled = {
            "--recipe": self.recipe,
            "--decoder": self.decoder,
            "--max-steps": self.max_steps,
            "--stride": self.stride,
            "--stride-mode": self.stride_mode,
            "--precision": self.precision,
            "--frame-budget": self.frame_budget,
            "--time-budget": self.time_budget_s,
            "--score-labels": self.score_labels or None,
            "--sentence-encoder": self.sentence_encoder,
            "--fluency-model": self.fluency_model,
        }
        return [option for option, value in spelled.items() if value is not None]

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one of them cannot be used.
        """
        at_least: list[tuple[str, float | None, float]] = [
            ("--max-steps", self.max_steps, 1),
            ("--stride", self.stride, 1),
            ("--frame-budget", self.frame_budget, 16),
        ]
        for option, value, least in at_least:
            if value is not None and value < least:
                raise ConfigError(f"Expected at least {least:g}, found {value}.", where=option)
        if self.max_steps is not None and self.max_steps > MOST_STEPS:
            raise ConfigError(f"Expected at most {MOST_STEPS:,}, found {self.max_steps:,}.", where="--max-steps")
        for option, spec in (
            ("--recipe", self.recipe),
            ("--decoder", self.decoder),
            ("--sentence-encoder", self.sentence_encoder),
            ("--fluency-model", self.fluency_model),
        ):
            if spec is not None and not str(spec).strip():
                raise ConfigError("Expected a name or a path, found nothing.", where=option, hint="Leave it away.")
        if self.time_budget_s is not None and not 0 < self.time_budget_s < float("inf"):
            raise ConfigError(f"Expected a time above 0, found {self.time_budget_s} s.", where="--time-budget")
        for option, word, words in (
            ("--precision", self.precision, _PRECISIONS),
            ("--stride-mode", self.stride_mode, _COMBINE),
        ):
            if word is not None and word not in words:
                raise ConfigError(f'No value "{word}".', where=option, hint="There are: " + ", ".join(words) + ".")


@dataclass(frozen=True)
class Wanted:
    """A recipe with everything that a command changes in it.

    Attributes:
        recipe: as it will be trained.
        definition: fingerprint of the recipe as it was before.
        changes: what the command changes, by name; part of a run's settings.
    """

    recipe: Recipe
    definition: str
    changes: dict[str, Any]


def wanted_recipe(tasks: Sequence[Task], request: Request) -> Wanted:
    """Return the recipe that some tasks of one kind are trained with.

    Args:
        tasks: that go by the same recipe.
        request: its options replace values of the recipe.

    Raises:
        TaskError: no such recipe, or the file does not validate.
        ConfigError: an option does not fit the recipe.
    """
    options = request.llm
    recipe = load_recipe(options.recipe or RECIPE_OF_KIND[tasks[0].target.kind])
    if request.learning_rates is not None and len(request.learning_rates) > 1:
        raise ConfigError(
            "A language model is trained with one learning rate, found several.",
            where="--lr",
            hint="Run the command once for each.",
        )
    if options.stride_mode is not None and (options.stride or recipe.projector.stride) == 1:
        raise ConfigError("Nothing is combined with a stride of 1.", where="--stride-mode", hint="Add --stride 4.")
    changes: dict[str, Any] = {}

    def put(section: str, field: str, value: Any, name: str) -> None:
        if value is not None and getattr(getattr(recipe, section), field) != value:
            changes[name] = value
            raw[section][field] = value

    raw = recipe.model_dump(mode="json", exclude_none=True)
    put("projector", "stride", options.stride, "stride")
    put("projector", "combine", options.stride_mode, "stride_mode")
    rates = request.learning_rates
    put("optimiser", "learning_rate", rates[0] if rates else None, "learning_rate")
    put("training", "batch_size", request.batch_size, "batch_size")
    put("training", "precision", options.precision, "precision")
    if options.frame_budget is not None:
        raw["training"]["frame_budget"] = options.frame_budget
    if request.epochs is not None and request.epochs != recipe.training.epochs:
        changes["epochs"] = request.epochs
        raw["training"]["epochs"] = request.epochs
        raw["training"].pop("steps", None)
        raw["training"]["steps_of"] = {}
    if options.max_steps is not None:
        changes["max_steps"] = options.max_steps
    try:
        return Wanted(Recipe.model_validate(raw), recipe.fingerprint[:16], changes)
    except ValidationError as error:
        first = error.errors()[0]
        place, message = tuple(str(key) for key in first["loc"]), str(first["msg"])
        option = _OPTION_OF.get(place[:2])
        if option is None:
            raise ConfigError(f"{'.'.join(place)}: {message}.", where="--recipe") from None
        wanted = message.removeprefix("Input should be ")
        raise ConfigError(f"Expected a value {wanted}, found {first['input']}.", where=option) from None
