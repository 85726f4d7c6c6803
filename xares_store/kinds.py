"""Kinds of target: what the JSON beside a clip says, and which metrics and probes fit it.

A task file's ``[target]`` table is one of these frozen values, chosen by its ``kind``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StrictBool, model_validator

_DIRECTIONS = ("", "a2t_", "t2a_")
_RANK_METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_10", "median_rank", "mean_rank")

METRICS_OF_KIND: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "single-label": ("accuracy", "macro_accuracy", "macro_f1"),
        "multi-label": ("map", "map_present", "macro_f1", "micro_f1", "auroc", "d_prime"),
        "events": (
            "segment_f1_macro",
            "segment_f1_micro",
            "segment_error_rate",
            "frame_map",
            "event_f1",
            "onset_f1",
        ),
        "captions": tuple(direction + name for name in _RANK_METRICS for direction in _DIRECTIONS),
        "regression": ("mse", "mae", "pearson"),
        "transcript": ("iwer", "icer"),
        "text": ("string_accuracy", "string_map", "string_macro_f1", "iwer", "icer", "fense", "date", "cider"),
    }
)
# Metrics that no range can be said of: reported beside a main metric, never averaged over tasks.
UNBOUNDED = frozenset({"d_prime", *(d + name for d in _DIRECTIONS for name in ("median_rank", "mean_rank"))})
# The first probe is the one that is trained.
PROBES_OF_KIND: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "single-label": ("mlp", "knn"),
        "multi-label": ("mlp",),
        "events": ("frame",),
        "captions": ("retrieval",),
        "regression": ("mlp",),
        "transcript": ("llm",),
        "text": ("llm",),
    }
)


def file_name(name: str) -> str:
    """Return a plain file name as it is.

    Raises:
        ValueError: it has a folder, a leading dot or unusual characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"wanted a plain file name, found {name!r}")
    return name


Key = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]


class Table(BaseModel):
    """A table of a task file: frozen, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Target(Table):
    group_key: Key | None = Field(
        default=None, description="JSON key of the recording or speaker; splits never divide a group."
    )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in class order; none for kinds without classes."""
        return ()


class _Labelled(_Target):
    vocabulary: Annotated[str, AfterValidator(file_name)] | None = Field(
        default=None,
        description="Text file, one label a line, beside the task file or in ../vocabularies. Line = class index.",
    )
    labels: tuple[str, ...] = Field(default=(), description="The labels themselves, instead of a vocabulary file.")
    aliases: dict[str, str] | None = Field(
        default=None, min_length=1, description="Spellings in the JSON that stand for a label: { spelling = label }."
    )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in class order."""
        return self.labels

    @model_validator(mode="after")
    def _usable_labels(self) -> _Labelled:
        if self.vocabulary is not None:
            raise ValueError("vocabulary and labels are both given" if self.labels else "vocabulary was not read")
        if len(self.labels) < 2:
            raise ValueError(f"wanted a vocabulary file or at least 2 labels, found {len(self.labels)} labels")
        first: dict[str, int] = {}
        for index, label in enumerate(self.labels):
            if not label or label != label.strip() or any(ord(letter) < 32 for letter in label):
                raise ValueError(f"label {index} is empty or has white space around it: {label!r}")
            if label in first:
                raise ValueError(f"duplicate label {label!r}: classes {first[label]} and {index}")
            first[label] = index
        for spelling, label in (self.aliases or {}).items():
            if label not in first:
                raise ValueError(f"aliases: {spelling!r} stands for {label!r}, which is no label")
            if spelling in first:
                raise ValueError(f"aliases: {spelling!r} is a label itself")
        return self


class SingleLabel(_Labelled):
    """One class out of a vocabulary for every clip."""

    kind: Literal["single-label"]
    key: Key = Field(description="Key in the clip's JSON.")
    encoding: Literal["label", "index"] = Field(
        default="label", description="Whether the JSON value is a line of the vocabulary or the class index."
    )


class _Several(_Labelled):
    separator: Key | None = Field(
        default=None, description="What divides several labels in one text; left out, a text is one label."
    )
    ignore: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Labels in the JSON that are no class of the task and are passed over."
    )

    @model_validator(mode="after")
    def _ignorable(self) -> _Several:
        both = sorted(set(self.ignore or ()) & (set(self.labels) | set(self.aliases or ())))
        if both:
            raise ValueError(f"ignore: {both[0]!r} is a label or an alias of the task")
        return self


class MultiLabel(_Several):
    """Any number of classes for every clip: a list, or a text divided by ``separator``."""

    kind: Literal["multi-label"]
    key: Key = Field(description="Key in the clip's JSON.")


class Events(_Several):
    """Labelled stretches of time, in seconds from the start of the recording."""

    kind: Literal["events"]
    key: Key | None = Field(
        default=None, description="Key of the list of events; left out, the clip's JSON is the list itself."
    )
    onset_key: Key = "onset"
    offset_key: Key = "offset"
    label_key: Key = "label"
    published_length_s: Seconds | None = Field(
        default=None, description="Under the published protocol, events after this time do not count."
    )


class Captions(_Target):
    """One or more sentences that describe the clip."""

    kind: Literal["captions"]
    key: Key | None = Field(
        default=None, description="Key of a caption or a list of captions; left out, every value of the JSON is one."
    )


class Regression(_Target):
    """A number for every clip."""

    kind: Literal["regression"]
    key: Key = Field(description="Key in the clip's JSON.")


class Transcript(_Target):
    """What is said in the clip."""

    kind: Literal["transcript"]
    key: Key = Field(description="Key in the clip's JSON.")
    prompt: Key | None = Field(default=None, description="What a language model is asked, by recipes that ask.")


class Text(_Target):
    """What a language model is to write about the clip: a label, several labels, a transcript or a caption."""

    kind: Literal["text"]
    keys: Annotated[tuple[Key, ...], Field(min_length=1)] = Field(
        description="Keys in the clip's JSON, tried in order; the first that holds something counts. A list is several texts."
    )
    test_keys: Annotated[tuple[Key, ...], Field(min_length=1)] | None = Field(
        default=None, description="Keys for test clips; those of `keys` when left out."
    )
    prompt: Key = Field(description="What a language model is asked.")
    closed: StrictBool = Field(
        default=False,
        description="Whether the answer is one of a few labels, so that each label's likelihood can be asked.",
    )
    separator: Key | None = Field(default=None, description="What divides several labels in one text.")

    @model_validator(mode="after")
    def _labels_are_closed(self) -> Text:
        if self.separator is not None and not self.closed:
            raise ValueError("separator belongs to closed = true: a caption is one text")
        return self


Target = Annotated[
    SingleLabel | MultiLabel | Events | Captions | Regression | Transcript | Text, Field(discriminator="kind")
]
