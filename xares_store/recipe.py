"""What an LLM-projector training is: a frozen value read from one TOML file, with a content hash.

A recipe says which decoder writes, what lies between the stored frames and the decoder, how a sequence is laid out, how
long and how fast training goes, and how text is generated. It holds no code and no paths: the decoder is a name that a
command may replace.

    >>> from xares_store.catalog import load_recipe
    >>> recipe = load_recipe("xares-llm")
    >>> recipe.decoder, recipe.lora.r, recipe.training.batch_size
    ('HuggingFaceTB/SmolLM2-135M', 8, 4)
"""

from __future__ import annotations

import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict, StrictBool, ValidationError, model_validator

from xares_store import fingerprint as _hash
from xares_store.errors import TaskError, TaskNotFoundError
from xares_store.kinds import Key, Seconds, Table
from xares_store.measures import Count, Positive
from xares_store.validation import problems, read_text

FORMAT = 1
MOST_STEPS = 100_000_000

Fraction = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)]
Amount = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Steps = Annotated[int, Strict(), Field(ge=1, le=MOST_STEPS)]
Share = Annotated[float, Strict(), Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Shards = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
TaskName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", max_length=64)]


class Projector(Table):
    """What maps frames into the decoder's embedding space."""

    kind: Literal["linear", "swiglu"]
    stride: Count = Field(default=1, ge=1, le=64, description="Frames that become one position of the decoder.")
    combine: Literal["stack", "mean"] = Field(
        default="stack", description="Whether those frames are laid side by side or averaged."
    )


class Lora(Table):
    """Low-rank adaptation of all linear layers of the decoder but its head (Hu et al., 2021, arXiv 2106.09685)."""

    r: Count = Field(ge=1, le=1024)
    alpha: Count = Field(ge=1)
    dropout: Fraction = 0.0


class Optimiser(Table):
    """Adam or AdamW, and how the learning rate runs.

    ``cosine-epochs`` sets the rate at the start of epoch e of E to ``lr - 0.45 lr (1 - cos(pi (e - 1) / E))``; ``linear``
    warms up over ``warmup_steps`` and falls to 0 at the last step.
    """

    name: Literal["adam", "adamw"]
    learning_rate: Annotated[float, Strict(), Field(gt=0, le=100, allow_inf_nan=False)]
    weight_decay: Amount = 0.0
    schedule: Literal["cosine-epochs", "linear"]
    warmup_steps: Count = Field(default=0, ge=0, le=MOST_STEPS)
    max_grad_norm: Positive | None = None


class Training(Table):
    """How long training goes and what a step is. Exactly one of ``epochs`` and ``steps`` is given."""

    batch_size: Count = Field(ge=1, le=100_000, description="Clips in an optimiser step.")
    epochs: Count | None = Field(default=None, ge=1, le=10_000)
    steps: Steps | None = None
    steps_of: dict[TaskName, Steps] = Field(
        default_factory=dict, description="Steps of a training on one task alone, where they differ."
    )
    crop_s: Seconds | None = Field(
        default=None, description="Longer clips are cut at random to this, in training only."
    )
    bucket: Count = Field(default=32, ge=1, le=10_000, description="Batches whose clips are sorted by length together.")
    frame_budget: Count = Field(
        default=4096,
        ge=16,
        le=100_000_000,
        description="Positions, padding included, that pass through the decoder at once; a batch of more is divided and its gradients are added up.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: StrictBool = False
    checkpoint_s: Seconds = Field(default=60.0, description="Seconds between checkpoints.")
    text_filter: StrictBool = Field(default=False, description="Leave out training texts that look corrupt.")

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("wanted exactly one of epochs and steps")
        return self


class Selection(Table):
    """Choice of a checkpoint on validation clips after every epoch; left out, the last step is scored."""

    clips: Count = Field(ge=1, description="Validation clips that are written out, the same ones every time.")


class Generation(Table):
    """How text is written: always the most likely token, so that it is deterministic."""

    max_new_tokens: Count = Field(ge=1, le=100_000)
    repetition_penalty: Positive = Field(default=1.0, description="Over generated tokens only.")


class Mixture(Table):
    """Shares of the tasks of a joint training.

    A task's share is its ``probability``, or its ``shards`` over ``all_shards``, divided by the sum over all tasks.
    """

    steps: Steps | None = None
    probability: dict[TaskName, Share] = Field(default_factory=dict)
    shards: dict[TaskName, Shards] = Field(default_factory=dict)
    all_shards: Shards | None = None

    @model_validator(mode="after")
    def _complete(self) -> Mixture:
        if set(self.probability) & set(self.shards):
            raise ValueError("a task has a probability and shards")
        if bool(self.shards) != (self.all_shards is not None):
            raise ValueError("shards and all_shards belong together")
        if not self.probability and not self.shards:
            raise ValueError("wanted at least one task")
        return self

    def shares(self) -> dict[str, float]:
        """Return the share of each task; they add up to 1.

        Example:
            >>> Mixture(probability={"a": 3.0, "b": 1.0}).shares()
            {'a': 0.75, 'b': 0.25}
        """
        weight = dict(self.probability)
        weight |= {name: count / (self.all_shards or 1) for name, count in self.shards.items()}
        total = sum(weight.values())
        return {name: value / total for name, value in weight.items()}


class Recipe(Table):
    """One way to train and score a projector on a language model. Read one with :meth:`from_toml`."""

    format: Literal[1]
    name: TaskName
    title: str = Field(min_length=1)
    description: str = ""
    decoder: str = Field(min_length=1, description="Default decoder: a Transformers causal language model.")
    joint: StrictBool = Field(description="One model for all tasks of a command, or one a task.")
    separator: Key | None = Field(default=None, description="Token between the frames and the text; it is learnt too.")
    prompt: StrictBool = Field(description="Whether the task's prompt stands between the frames and the answer.")
    projector: Projector
    lora: Lora | None = None
    optimiser: Optimiser
    training: Training
    selection: Selection | None = None
    generation: Generation
    mixtures: dict[TaskName, Mixture] = Field(default_factory=dict)

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read and validate a recipe.

        Raises:
            TaskNotFoundError: there is no such file.
            TaskError: the file does not validate; the message names the file and every wrong key.
        """
        path = Path(path)
        try:
            raw = tomllib.loads(read_text(path))
        except TaskNotFoundError as error:
            raise TaskNotFoundError(error.message, hint="`xares recipes ls` lists the recipes that ship.") from None
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise TaskError(f"{path}: not valid TOML: {error}.", hint="See https://toml.io for the syntax.") from None
        try:
            recipe = cls.model_validate(raw)
        except ValidationError as error:
            raise TaskError(
                "\n".join(f"{path}: {problem}" for problem in problems(error, cls)),
                hint="The recipes that ship are models to look at: `xares recipes show xares-llm`.",
            ) from None
        if recipe.name != path.stem:
            raise TaskError(
                f'{path}: name: wanted "{path.stem}" (the file is called {path.name}), found "{recipe.name}".',
                hint="Rename the file or the recipe.",
            )
        return recipe

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of the whole definition (64 hexadecimal digits)."""
        return _hash.fingerprint(self.model_dump(mode="json", exclude_none=True))

    def __hash__(self) -> int:
        return hash(self.fingerprint)
