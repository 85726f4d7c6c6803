"""What an evaluation returns, and what every run of it records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xares_store.probes.probe import PROBES
from xares_store.runs.provenance import versions
from xares_store.runs.request import Request, metric_versions
from xares_store.runs.score import Scored
from xares_store.store.layout import RunManifest
from xares_store.task import Task


@dataclass(frozen=True)
class Result:
    """One run: what was asked and what came out.

    Attributes:
        run_id: folder name of the run in the store.
        value, low, high: main metric over all folds with its 95 % bootstrap interval over test clips.
        n_test: scored test items.
        n_dropped: samples to test that have no embedding: recorded failures.
        reused: the score was in the store already.
        settings: probe settings, including the learning rates tried.
    """

    run_id: str
    encoder: str
    task: str
    probe: str
    protocol: str
    seed: int | None
    metric: str
    value: float
    low: float | None
    high: float | None
    n_test: int
    n_dropped: int
    reused: bool
    settings: dict[str, Any]


@dataclass
class EvaluateReport:
    """Results of one call of `evaluate`, and what could not be evaluated.

    Attributes:
        results: one entry a run.
        notes: what a reader of the scores should know, in sentences.
        failed: (encoder, task, message) of combinations that could not be evaluated.
        paused: trainings that the time budget ended; the same call goes on with them.
    """

    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_record(
    encoder: str,
    task: Task,
    probe: str,
    request: Request,
    settings: Mapping[str, Any],
    seed: int | None,
    digest: str,
    scored: Scored,
    *,
    n_dropped: int,
    started: str,
    seconds: float,
    device: str,
) -> dict[str, Any]:
    """Return the fields of ``run.json``: what was asked, what with, and what came out.

    Args:
        encoder, task, probe, request, settings, seed: what was asked.
        digest: of the embeddings that were used.
        scored: what came out.
        n_dropped: samples to test that have no embedding.
        started, seconds: when, and for how long.
        device: on what.
    """
    return {
        "encoder": encoder,
        "task": task.name,
        "task_address": task.address,
        "audio_address": task.audio_address,
        "probe": probe,
        "probe_version": PROBES[probe].version,
        "protocol": request.protocol,
        "seed": seed,
        "settings": dict(settings),
        "where": request.where,
        "parts_digest": digest,
        "started": started,
        "seconds": round(seconds, 4),
        "device": device,
        "versions": versions(),
        "n_test": scored.n_test,
        "n_dropped": n_dropped,
        "weight": weight_of(task, request.protocol, scored.n_test),
        "main_metric": scored.main_metric or task.metric.name,
        "scores": scored.scores,
        "details": {"metric_version": metric_versions(task), **scored.details},
    }


def weight_of(task: Task, protocol: str, n_test: int) -> float:
    """Return counted test items, or under the published protocol the hand-set weight of the published tables."""
    published = task.published.weight if task.published is not None else None
    return float(published) if protocol == "published" and published is not None else float(n_test)


def result_of(run: RunManifest, *, reused: bool) -> Result:
    """Return what a stored run says, as evaluations return it."""
    main = next(score for score in run.scores if score.metric == run.main_metric and score.fold is None)
    return Result(
        run_id=run.run_id,
        encoder=run.encoder,
        task=run.task,
        probe=run.probe,
        protocol=run.protocol,
        seed=run.seed,
        metric=run.main_metric,
        value=main.value,
        low=main.low,
        high=main.high,
        n_test=run.n_test,
        n_dropped=run.n_dropped,
        reused=reused,
        settings=run.settings,
    )
