"""How a task is measured: its metrics and the settings of the probes, as tables of a task file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from xares_store.kinds import PROBES_OF_KIND, Seconds, Table

Count = Annotated[int, Strict()]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]


class Metric(Table):
    """The main metric, which enters leaderboards and averages, and further ones that are stored beside it."""

    name: str = Field(min_length=1)
    also: tuple[str, ...] | None = Field(default=None, min_length=1, description="Further metrics, stored with it.")
    segment_s: Seconds | None = Field(default=None, description="Length of a segment, for segment metrics.")
    worst: Annotated[float, Strict(), Field(allow_inf_nan=False)] | None = Field(
        default=None, description="Value that counts as 0 in averages, for metrics without a bound of their own."
    )

    n_classes: Count | None = Field(
        default=None, ge=2, le=100_000, description="Classes that string_map and string_macro_f1 are the mean over."
    )

    date_kind: Literal["long", "short", "speech", "music", "sound", "environment"] | None = Field(
        default=None, description="Kind of captions, by which date says what is similar; long when left out."
    )

    @property
    def names(self) -> tuple[str, ...]:
        """All metrics, the main one first."""
        return (self.name, *(self.also or ()))


class Mlp(Table):
    """Settings of the MLP probe (LayerNorm and one linear layer)."""

    epochs: Count = Field(default=10, ge=1, le=10_000)
    batch_size: Count = Field(default=32, ge=1, le=1_000_000)
    learning_rates: tuple[Positive, ...] = Field(
        default=(1e-3,), min_length=1, max_length=100, description="Tried all; the best on validation clips is kept."
    )


class Knn(Table):
    """Settings of the k-nearest-neighbour probe."""

    k: Count = Field(default=10, ge=1, le=10_000)
    temperature: Positive = 0.07


class Frame(Mlp):
    """Settings of the frame probe: the MLP's layers on every frame; a batch is so many clips."""

    positive_weight: Positive | None = Field(
        default=None, description="How much an active frame counts in the loss; 1 when left out."
    )


class Retrieval(Mlp):
    """Settings of the retrieval probe; a batch is so many pairs of clip and caption."""


class Probes(Table):
    """Settings of the probes."""

    mlp: Mlp = Mlp()
    knn: Knn = Knn()
    frame: Frame | None = None
    retrieval: Retrieval | None = None


def probe_settings(probes: Probes, kind: str) -> dict[str, Mlp | Knn]:
    """Return the settings of the probes that fit a kind of target, the task's own or the defaults, by probe.

    The settings of ``llm`` are a recipe and stand in no task file.

    Example:
        >>> list(probe_settings(Probes(), "events"))
        ['frame']
    """
    everything: dict[str, Mlp | Knn] = {
        "mlp": probes.mlp,
        "knn": probes.knn,
        "frame": probes.frame or Frame(),
        "retrieval": probes.retrieval or Retrieval(),
    }
    return {name: everything[name] for name in PROBES_OF_KIND[kind] if name in everything}
