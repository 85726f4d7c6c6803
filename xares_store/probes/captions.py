"""Scores of written captions with models: FENSE and DATE, in one call.

A score made with other models than the published ones carries another name (:func:`metric_label`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xares_store.errors import ConfigError, MetricError
from xares_store.metrics.captioning import DATE_DELTA, DateKind, Release, date, fense, flags
from xares_store.probes.fluency import FLUENCY_MODEL, LONGEST, FluencyFiles, FluencyModel, find_fluency_model
from xares_store.probes.sentence import SENTENCE_ENCODER, SentenceEncoder, SentenceFiles, find_sentence_encoder

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
CaptionMetric = Literal["fense", "date"]
Rule = Literal["strict", "published"]

# The published program cut a caption that is the only one after so many tokens, and rounded its scores.
_ONLY_ONE, _DECIMALS = 64, 4


@dataclass(frozen=True)
class CaptionModels:
    """The models of FENSE and DATE: found at once, loaded when first used.

    Attributes:
        sentence: the sentence encoder.
        fluency: the error checker; None scores without one.
        device: torch device.
    """

    sentence: SentenceFiles
    fluency: FluencyFiles | None
    device: str = "cpu"

    @classmethod
    def find(
        cls, sentence_encoder: str = SENTENCE_ENCODER, fluency_model: str = FLUENCY_MODEL, *, device: str = "cpu"
    ) -> CaptionModels:
        """Find both models on this machine or on the hub; nothing is loaded.

        Args:
            sentence_encoder: as in :func:`~xares_store.probes.sentence.find_sentence_encoder`.
            fluency_model: as in :func:`~xares_store.probes.fluency.find_fluency_model`; ``none`` switches it off.
            device: where they will run.

        Raises:
            ProbeError: one is not to be had; the message names its option.
        """
        return cls(find_sentence_encoder(sentence_encoder), find_fluency_model(fluency_model), device)

    def identity(self) -> dict[str, Any]:
        """Return what decides a score: both models by their content. Part of the identity of a run."""
        fluency = None if self.fluency is None else self.fluency.identity()
        return {"sentence_encoder": self.sentence.identity(), "fluency_model": fluency}

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder, loaded."""
        return SentenceEncoder(self.sentence, device=self.device)

    @cached_property
    def checker(self) -> FluencyModel | None:
        """The error checker, loaded; None without one."""
        return None if self.fluency is None else FluencyModel(self.fluency, device=self.device)


@dataclass(frozen=True)
class CaptionScores:
    """Scores of captions.

    Attributes:
        per_clip: ``(clips,)``.
        value: score of the corpus. Strict: the mean of ``per_clip``. Published: the mean over references, rounded.
        details: what else belongs to the score: plain numbers and words, for the record of a run.
        columns: further values of each clip, ``(clips,)``: ``similarity`` before any factor for FENSE and after it for DATE,
            ``error_probability`` where there is a checker, ``discrimination`` for DATE.
    """

    per_clip: Values
    value: float
    details: dict[str, Any]
    columns: dict[str, Values] = field(default_factory=dict)


def metric_label(metric: CaptionMetric, models: CaptionModels) -> str:
    """Return the name of a score: the metric's alone only with the two published models.

    What is published is told by content; a copy of the sentence encoder in a folder only where its weights are the
    published ``pytorch_model.bin``.

    Example:
        ``fense``, or ``fense[all-MiniLM-L6-v2,no-checker]`` with stand-ins.
    """
    fluency = models.fluency
    if models.sentence.published and fluency is not None and fluency.published:
        return metric
    return f"{metric}[{models.sentence.name},{'no-checker' if fluency is None else fluency.name}]"


def caption_scores(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metric: CaptionMetric,
    models: CaptionModels,
    protocol: Rule = "strict",
    kind: DateKind = "long",
    delta: float | None = None,
    release: Release = "1.1.0",
) -> CaptionScores:
    """Score a caption of each clip against its references.

    Strict: references of a clip are taken together, a negative similarity counts 0 in DATE, nothing is rounded.
    Published (XARES-LLM with MECAT): every reference is an item of its own with a copy of the caption, so that in DATE the
    references of one clip compete and the score depends on their number; rounded to four decimals.

    Args:
        candidates: one written caption a clip; may be empty.
        references: of each clip, at least one; numbers may differ.
        metric: ``fense`` or ``date``.
        models: from :meth:`CaptionModels.find`.
        protocol: ``strict`` or ``published``.
        kind: kind of captions, which chooses the band of DATE.
        delta: the band itself, instead of ``kind``.
        release: of MECAT, for DATE as published.

    Returns:
        ``per_clip`` is -1 to 1 for FENSE, 0 to ``details["ceiling"]`` for DATE (unbounded as published, see
        :func:`~xares_store.metrics.captioning.date`).

    Raises:
        MetricError: without clips, for different numbers of clips, or a clip without references.
        ConfigError: an unknown metric or protocol.
        ProbeError: a model cannot be loaded or fails.
    """
    if metric not in ("fense", "date") or protocol not in ("strict", "published"):
        raise ConfigError(f"Wanted fense or date, strict or published; found {metric}, {protocol}.")
    clip = _clip_of_reference(candidates, references)
    flat = [text for texts in references for text in texts]
    if protocol == "published":
        written, row = [candidates[number] for number in clip], np.arange(len(clip))
    else:
        written, row = list(candidates), clip
    longest = _ONLY_ONE if protocol == "published" and len(written) == 1 else LONGEST
    checker = models.checker
    error = None if checker is None else checker.error_probability(written, longest=longest)
    factor = np.ones(len(written)) if error is None else flags(error)
    details: dict[str, Any] = {"protocol": protocol, "references": len(flat)}
    columns: dict[str, Values] = {} if error is None else {"error_probability": error}
    if metric == "fense":
        columns["similarity"] = fense(models.encoder.embed(flat), row, models.encoder.embed(written))
        scores = columns["similarity"] * factor
    else:
        named = release if protocol == "published" else None
        half = named == "1.1.0"
        band = DATE_DELTA[kind] if delta is None else delta
        encoder = models.encoder
        found = date(
            encoder.embed_weighted(flat, half=half),
            row,
            encoder.embed_weighted(written, half=half),
            factor,
            delta=band,
            release=named,
        )
        scores = found.date
        columns |= {"similarity": found.similarity, "discrimination": found.discrimination}
        details |= {"delta": band, "ceiling": found.ceiling} | ({"release": named} if named else {})
    if error is not None:
        details["flagged"] = int((_by_clip(factor, clip, len(candidates)) < 1).sum())
    value = float(scores.mean())
    return CaptionScores(
        _by_clip(scores, clip, len(candidates)),
        round(value, _DECIMALS) if protocol == "published" else value,
        details,
        {name: _by_clip(values, clip, len(candidates)) for name, values in columns.items()},
    )


def _clip_of_reference(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Rows:
    if len(candidates) != len(references) or not candidates:
        raise MetricError(
            f"Wanted one caption a clip and at least one clip, found {len(candidates)} for {len(references)}."
        )
    counts = np.array([len(texts) for texts in references])
    if not counts.all():
        raise MetricError("Wanted at least one reference, found none.", where=f"clip {np.flatnonzero(counts == 0)[0]}")
    return np.repeat(np.arange(len(candidates)), counts)


def _by_clip(values: Values, clip: Rows, clips: int) -> Values:
    """Return values of clips as they are, and values of references as the mean of each clip."""
    if len(values) == clips:
        return values
    return np.bincount(clip, weights=values, minlength=clips) / np.bincount(clip, minlength=clips)
