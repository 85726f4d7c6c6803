"""Phase two: train and score probes on stored embeddings, without audio and without the encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from xares_store.catalog import load_task
from xares_store.device import resolve_device, set_threads
from xares_store.errors import ConfigError, ProbeError, TaskNotFoundError, XaresError, did_you_mean
from xares_store.fingerprint import fingerprint
from xares_store.metrics.registry import metric_for
from xares_store.probes.knn import knn_predict, neighbours
from xares_store.probes.probe import PROBES
from xares_store.protocol import PROTOCOLS, Fold
from xares_store.runs.features import Features, choose_encoders, load_features, parts_digest, task_named
from xares_store.runs.progress import Meter
from xares_store.runs.provenance import describe_device, versions
from xares_store.runs.score import Scored, score_run
from xares_store.store.layout import RunManifest
from xares_store.store.store import Store
from xares_store.task import Task

PUBLISHED_RATES = (1e-3,)
FIRST_SEED = 42  # the seed of the published protocol; further seeds count up from it


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
    low: float
    high: float
    n_test: int
    n_dropped: int
    reused: bool
    settings: dict[str, Any]


@dataclass
class EvaluateReport:
    """Results of one call of `evaluate`, and what could not be evaluated.

    Attributes:
        results: one entry a run.
        skipped: (encoder, task, probe, reason) of combinations left out because nobody asked for them by name.
        failed: (encoder, task, message) of combinations that could not be evaluated.
    """

    results: list[Result] = field(default_factory=list)
    skipped: list[tuple[str, str, str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """What to evaluate with; None takes the task's own setting."""

    probes: tuple[str, ...]
    seeds: tuple[int, ...]
    protocol: str
    where: str | None
    device: str
    learning_rates: tuple[float, ...] | None
    epochs: int | None
    batch_size: int | None
    k: int | None
    temperature: float | None


def evaluate(
    store: str | Path | Store,
    *,
    tasks: Sequence[str | Task] = (),
    encoders: Sequence[str] = (),
    probes: Sequence[str] = ("mlp", "knn"),
    seeds: int | Sequence[int] = 5,
    learning_rates: Sequence[float] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    k: int | None = None,
    temperature: float | None = None,
    where: str | None = None,
    protocol: str = "strict",
    device: str = "auto",
    quiet: bool = True,
) -> EvaluateReport:
    """Evaluate stored embeddings, doing only what the store has no score for.

    Args:
        store: folder of the store, or an open store.
        tasks: task names, paths of task files, or tasks; empty means every task definition in the store.
        encoders: encoder names or addresses in the store; empty means all.
        probes: ``mlp`` (LayerNorm and a linear layer, trained) and ``knn`` (cosine nearest neighbours).
        seeds: number of seeds (counted up from 42), or the seeds themselves; for trained probes.
        learning_rates: grid to choose from on validation clips; None for the task's own.
        epochs, batch_size: training length and batch; None for the task's own.
        k, temperature: neighbours and vote temperature of k-NN; None for the task's own.
        where: SQL predicate over the view ``clips``; only those clips take part, in training and test alike.
        protocol: ``strict`` (train, validation and test disjoint) or ``published`` (what published tables used).
        device: where trained probes run: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        quiet: draw no progress bar.

    Returns:
        One result a run; every run is in the store with its per-clip predictions.

    Raises:
        XaresError: an argument cannot be used, or a combination asked for by name cannot be evaluated.

    Example:
        >>> report = evaluate("my.store", tasks=["esc50"], probes=["knn"])     # doctest: +SKIP
        >>> report.results[0].metric, report.results[0].value                   # doctest: +SKIP
        ('accuracy', 0.83)
    """
    began = time.perf_counter()
    target = store if isinstance(store, Store) else Store.open(store)
    request = _request(probes, seeds, learning_rates, epochs, batch_size, k, temperature, where, protocol, device)
    chosen = choose_encoders(target, encoders)
    if not chosen:
        raise ConfigError("The store has no embeddings.", where=target.path, hint="Run `xares embed` first.")
    report = EvaluateReport()
    pairs = [(encoder, task) for task in _tasks(target, tasks) for encoder in chosen]
    by_name = bool(tasks)
    with Meter("evaluating", total=len(pairs) * len(request.probes), quiet=quiet) as meter:
        for encoder, task in pairs:
            if not by_name and not target.parts(encoder=encoder, task=task.audio_address):
                meter.advance(len(request.probes))
                continue
            try:
                _evaluate_pair(target, encoder, task, request, report, meter)
            except XaresError as error:
                if len(pairs) == 1:
                    raise
                report.failed.append((encoder, task.name, str(error)))
    report.seconds = time.perf_counter() - began
    return report


def _request(
    probes: Sequence[str],
    seeds: int | Sequence[int],
    learning_rates: Sequence[float] | None,
    epochs: int | None,
    batch_size: int | None,
    k: int | None,
    temperature: float | None,
    where: str | None,
    protocol: str,
    device: str,
) -> Request:
    for probe in probes:
        if probe not in PROBES:
            raise ConfigError(
                f'No probe "{probe}".',
                where="--probe",
                hint=did_you_mean(probe, PROBES, listing="There are: " + ", ".join(PROBES)),
            )
    if protocol not in PROTOCOLS:
        raise ConfigError(f'No protocol "{protocol}".', where="--protocol", hint="There are: " + ", ".join(PROTOCOLS))
    numbers = tuple(range(FIRST_SEED, FIRST_SEED + seeds)) if isinstance(seeds, int) else tuple(dict.fromkeys(seeds))
    if not numbers:
        raise ConfigError(f"At least one seed is needed, found {seeds}.", where="--seeds")
    limits: list[tuple[str, Sequence[float] | None]] = [
        ("--lr", learning_rates),
        ("--epochs", None if epochs is None else [epochs]),
        ("--batch-size", None if batch_size is None else [batch_size]),
        ("--k", None if k is None else [k]),
        ("--temperature", None if temperature is None else [temperature]),
    ]
    for option, values in limits:
        if values is not None and not all(0 < value < float("inf") for value in values):
            raise ConfigError(f"Expected a number above 0, found {', '.join(map(str, values))}.", where=option)
    rates = tuple(dict.fromkeys(float(rate) for rate in learning_rates)) if learning_rates else None
    return Request(
        tuple(dict.fromkeys(probes)), numbers, protocol, where, device, rates, epochs, batch_size, k, temperature
    )


def _tasks(store: Store, specs: Sequence[str | Task]) -> list[Task]:
    """Return the tasks named (a file, a shipped task, or one the store carries), or all that the store carries."""
    if not specs:
        return [task_named(store, address) for address in sorted(store.tasks())]
    found: list[Task] = []
    for spec in specs:
        if isinstance(spec, Task):
            found.append(spec)
            continue
        try:
            found.append(load_task(spec))
        except TaskNotFoundError:
            if spec.endswith(".toml"):
                raise
            found.append(task_named(store, spec))
    return found


def _settings(task: Task, probe: str, request: Request) -> dict[str, Any]:
    """Return the probe's complete settings: part of the run's identity."""
    if probe == "mlp":
        mlp = task.probe.mlp
        # Published tables used one rate for every task; a grid chosen on their validation = test would flatter.
        rates = mlp.learning_rates if request.protocol == "strict" else PUBLISHED_RATES
        return {
            "epochs": request.epochs or mlp.epochs,
            "batch_size": request.batch_size or mlp.batch_size,
            "learning_rates": list(request.learning_rates or rates),
        }
    knn = task.probe.knn
    if knn is None:
        raise ProbeError(f'Task "{task.name}" has no k-NN settings.', where=task.name, hint="Add a [probe.knn] table.")
    return {
        "k": request.k or knn.k,
        "temperature": request.temperature or knn.temperature,
        "variant": "cosine" if request.protocol == "strict" else "published",
    }


def _evaluate_pair(
    store: Store, encoder: str, task: Task, request: Request, report: EvaluateReport, meter: Meter
) -> None:
    digest = parts_digest(store, encoder, task)
    features: Features | None = None
    for probe in request.probes:
        settings = _settings(task, probe, request)
        missing: dict[int | None, str] = {}
        for seed in request.seeds if PROBES[probe].seeded else (None,):
            run_id = _run_id(encoder, task, probe, request, settings, seed, digest)
            if store.has_run(run_id):
                report.results.append(_result(store.read_run(run_id), reused=True))
            else:
                missing[seed] = run_id
        if missing:
            if features is None:
                features = load_features(store, encoder, task, protocol=request.protocol, where=request.where)
                store.put_task(task.address, task.to_toml())
            report.results += _run_probe(store, encoder, task, probe, request, settings, missing, digest, features)
        meter.advance(1, note=f"{encoder} {task.name} {probe}")


def _run_id(
    encoder: str, task: Task, probe: str, request: Request, settings: dict[str, Any], seed: int | None, digest: str
) -> str:
    identity = {
        "parts": digest,
        "encoder": encoder,
        "task": task.fingerprint,
        "probe": probe,
        "probe_version": PROBES[probe].version,
        "protocol": request.protocol,
        "settings": settings,
        "where": request.where,
        "seed": seed,
    }
    tail = "" if seed is None else f"-s{seed}"
    return f"{task.name}-{probe}-{request.protocol}{tail}-{fingerprint(identity)[:16]}"


def _run_probe(
    store: Store,
    encoder: str,
    task: Task,
    probe: str,
    request: Request,
    settings: dict[str, Any],
    missing: dict[int | None, str],
    digest: str,
    features: Features,
) -> list[Result]:
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    vote = request.protocol == "strict" and features.cropped
    scored, device = _outcomes(task, probe, request, settings, list(missing), features, vote)
    seconds = time.perf_counter() - began
    results: list[Result] = []
    for seed, run_id in missing.items():
        one = scored[seed]
        run: dict[str, Any] = {
            "encoder": encoder,
            "task": task.name,
            "task_address": task.address,
            "audio_address": task.audio_address,
            "probe": probe,
            "probe_version": PROBES[probe].version,
            "protocol": request.protocol,
            "seed": seed,
            "settings": settings,
            "where": request.where,
            "parts_digest": digest,
            "started": started,
            "seconds": round(seconds / len(missing), 4),
            "device": device,
            "versions": versions(),
            "n_test": one.n_test,
            "n_dropped": features.dropped,
            "weight": _weight(task, request.protocol, one.n_test),
            "main_metric": task.metric.name,
            "scores": one.scores,
            "details": one.details,
        }
        store.write_run(run_id, run, one.predictions, one.tensors)
        results.append(_result(store.read_run(run_id), reused=False))
    return results


def _weight(task: Task, protocol: str, n_test: int) -> float:
    """Return counted test items, or under the published protocol the hand-set weight of the published tables."""
    published = task.published.weight if task.published is not None else None
    return float(published) if protocol == "published" and published is not None else float(n_test)


def _outcomes(
    task: Task,
    probe: str,
    request: Request,
    settings: dict[str, Any],
    seeds: list[int | None],
    features: Features,
    vote: bool,
) -> tuple[dict[int | None, Scored], str]:
    """Train or look up, for all seeds at once, and score each."""
    metric = metric_for(task.metric.name)
    score: Callable[..., Scored] = lambda probabilities, **more: score_run(  # noqa: E731
        features, probabilities, task.labels, metric, vote=vote, **more
    )
    if probe == "knn":
        probabilities = [
            knn_predict(features.values, features.target, len(task.labels), fold.knn_train, fold.test, **settings)
            for fold in features.folds
        ]
        details = {
            "folds": [
                {"fold": f.name, "neighbours": neighbours(len(f.knn_train), settings["k"])} for f in features.folds
            ]
        }
        return {None: score(probabilities, details=details)}, describe_device("cpu")
    return _train(task, request, settings, [seed for seed in seeds if seed is not None], features, vote, score)


def _train(
    task: Task,
    request: Request,
    settings: dict[str, Any],
    seeds: list[int],
    features: Features,
    vote: bool,
    score: Callable[..., Scored],
) -> tuple[dict[int | None, Scored], str]:
    from xares_store.probes.mlp import MlpJob, MlpSettings, train_mlp

    device = resolve_device(request.device)
    set_threads()

    def job(fold: Fold, seed: int) -> MlpJob:
        return MlpJob(fold=fold.name, train=fold.train, valid=fold.valid, test=fold.test, seed=seed)

    outcome = train_mlp(
        features.values,
        features.target,
        len(task.labels),
        [job(fold, seed) for seed in seeds for fold in features.folds],
        MlpSettings(
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            learning_rates=tuple(settings["learning_rates"]),
        ),
        device=device,
        recordings=features.recording if vote else None,
    )
    found: dict[int | None, Scored] = {}
    for seed in seeds:
        mine = {result.fold: result for result in outcome if result.seed == seed}
        ordered = [mine[fold.name] for fold in features.folds]
        found[seed] = score(
            [result.probabilities for result in ordered],
            details={
                "folds": [
                    {
                        "fold": result.fold,
                        "learning_rate": result.learning_rate,
                        "epoch": result.best_epoch,
                        "valid": float(result.valid_score),
                        "history": result.history,
                    }
                    for result in ordered
                ]
            },
            tensors={
                f"fold-{result.fold}.{name}": np.asarray(value, dtype=np.float32)
                for result in ordered
                for name, value in result.state.items()
            },
        )
    return found, describe_device(device)


def _result(run: RunManifest, *, reused: bool) -> Result:
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
