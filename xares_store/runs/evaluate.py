"""Phase two: train and score probes on stored embeddings, without audio and without the encoder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xares_store.catalog import load_tasks
from xares_store.device import launched_processes
from xares_store.errors import ConfigError, ProbeError, StoreError, TaskNotFoundError, XaresError
from xares_store.kinds import PROBES_OF_KIND
from xares_store.probes.probe import PROBES
from xares_store.runs.features import Features, choose_encoders, load_features, parts_digest, task_named
from xares_store.runs.llm.options import CAPTION_METRICS, LlmOptions
from xares_store.runs.outcomes import outcomes
from xares_store.runs.progress import Meter
from xares_store.runs.request import (
    MEMORY_BYTES,
    Request,
    make_request,
    probes_for,
    run_name,
    settings_for,
)
from xares_store.runs.result import EvaluateReport, Result, result_of, run_record
from xares_store.store.store import Store
from xares_store.task import Task


def evaluate(
    store: str | Path | Store,
    *,
    tasks: Sequence[str | Task] = (),
    encoders: Sequence[str] = (),
    probes: Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    k: int | None = None,
    temperature: float | None = None,
    where: str | None = None,
    protocol: str = "strict",
    device: str = "auto",
    text_encoder: str | None = None,
    tokenizer: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
    llm: LlmOptions | None = None,
    quiet: bool = True,
) -> EvaluateReport:
    """Evaluate stored embeddings, doing only what the store has no score for.

    Args:
        store: folder of the store, or an open store.
        tasks: names of tasks or suites, paths of task files, or tasks; empty means every task definition in the store.
        encoders: encoder names or addresses in the store; empty means all.
        probes: ``mlp`` (LayerNorm and a linear layer, trained), ``knn`` (cosine nearest neighbours), ``frame`` (the MLP's
            layers on every frame, for events) and ``retrieval`` (two towers, for captions). ``mlp`` stands for the
            trained probe of any such task; empty means every probe that fits a task. ``llm`` (a projector on a language
            model, for text) is trained only when it is named.
        seeds: number of seeds (counted up from 42), or the seeds themselves; for trained probes. None for 5, and 1 with llm.
        learning_rates: grid to choose from on validation clips; None for the task's own. One only for llm.
        epochs, batch_size: training length and batch; None for the task's own.
        k, temperature: neighbours and vote temperature of k-NN; None for the task's own.
        where: SQL predicate over the view ``clips``; only those clips take part, in training and test alike.
        protocol: ``strict`` (train, validation and test disjoint) or ``published`` (what published tables used).
        text_encoder: retrieval: ``scratch`` (None) or a frozen Transformers text model, by name or folder.
        tokenizer: retrieval from scratch: ``words``, or a tokenizer by name or folder; None for the protocol's own.
        memory_bytes: frame and llm probes: memory for the frames that are read ahead of training.
        llm: recipe, decoder and further options of the llm probe.
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
    request = make_request(
        probes,
        seeds,
        learning_rates,
        epochs,
        batch_size,
        k,
        temperature,
        where,
        protocol,
        device,
        text_encoder,
        tokenizer,
        memory_bytes,
        llm,
    )
    if launched_processes() > 1 and request.probes != ("llm",):
        raise ConfigError(
            f"{launched_processes()} processes were launched together, and only the probe llm is trained so.",
            where="--probe",
            hint="Run `xares evaluate` alone for the others.",
        )
    chosen = choose_encoders(target, encoders)
    if not chosen:
        raise ConfigError("The store has no embeddings.", where=target.path, hint="Run `xares embed` first.")
    report = EvaluateReport()
    chosen_tasks = _tasks(target, tasks)
    _refuse_idle_options(chosen_tasks, request)
    pairs = [(encoder, task) for task in _with_a_probe(chosen_tasks, request, report) for encoder in chosen]
    skip = _absent(target, pairs, tasks, report)
    with Meter("evaluating", total=sum(len(_stacked(task, request)) for _, task in pairs), quiet=quiet) as meter:
        for encoder, task in pairs:
            if (encoder, task.name) in skip:
                meter.advance(len(_stacked(task, request)))
                continue
            try:
                _evaluate_pair(target, encoder, task, request, report, meter)
            except XaresError as error:
                if len(pairs) == 1:
                    raise
                report.failed.append((encoder, task.name, str(error)))
    if "llm" in request.probes:
        _language_models(
            target, chosen, [pair for pair in pairs if (pair[0], pair[1].name) not in skip], request, report, quiet
        )
    if tasks and pairs and len(skip) == len(pairs):
        raise StoreError(
            "None of these tasks is embedded: " + ", ".join(dict.fromkeys(task.name for _, task in pairs)) + ".",
            where=target.path,
            hint="Run `xares embed` first; `xares store ls` lists what is there.",
        )
    if report.failed and not report.results and not report.paused:
        raise XaresError(
            f"Nothing could be evaluated. {len(report.failed)} of {len(report.failed)} combinations failed, the first one with:\n"
            + report.failed[0][2]
        )
    report.seconds = time.perf_counter() - began
    return report


def _language_models(
    store: Store,
    encoders: Sequence[str],
    pairs: Sequence[tuple[str, Task]],
    request: Request,
    report: EvaluateReport,
    quiet: bool,
) -> None:
    """Train and score the probe that learns several tasks together, encoder by encoder."""
    from xares_store.probes.llm.trainer import Paused
    from xares_store.runs.llm.evaluate import evaluate_llm

    budget = request.llm.time_budget_s
    deadline = None if budget is None else time.monotonic() + budget
    for encoder in encoders:
        tasks = [task for name, task in pairs if name == encoder and "llm" in probes_for(task, request)]
        if not tasks:
            continue
        try:
            evaluate_llm(store, encoder, tasks, request, report, deadline=deadline, quiet=quiet)
        except Paused as pause:
            report.paused.append(f"{encoder}: {pause}")
        except XaresError as error:
            done = {result.task for result in report.results if (result.encoder, result.probe) == (encoder, "llm")}
            named = {name for entry in report.failed if entry[0] == encoder for name in entry[1].split(", ")}
            without = [task.name for task in tasks if task.name not in done | named]
            if len({name for name, _ in pairs}) == 1 and not (report.results or report.failed):
                raise
            report.failed.append((encoder, ", ".join(without or (task.name for task in tasks)), str(error)))


def _stacked(task: Task, request: Request) -> tuple[str, ...]:
    """Return the probes that are trained task by task."""
    return tuple(probe for probe in probes_for(task, request) if probe != "llm")


def _refuse_idle_options(tasks: Sequence[Task], request: Request) -> None:
    """An option that no task asked for makes use of is a slip."""
    written = [task for task in tasks if "llm" in probes_for(task, request)]
    has_captions = any(task.target.kind == "captions" for task in tasks)
    has_closed = any(getattr(task.target, "closed", False) for task in written)
    has_judged = any(CAPTION_METRICS & set(task.metric.names) for task in written)
    for option, value, used, owners, example in (
        ("--text-encoder", request.text_encoder, has_captions, "of captions", "clotho"),
        ("--tokenizer", request.tokenizer, has_captions, "of captions", "clotho"),
        ("--score-labels", request.llm.score_labels or None, has_closed, "whose texts are labels", "llm-esc-50"),
        ("--sentence-encoder", request.llm.sentence_encoder, has_judged, "scored by fense or date", "llm-clotho"),
        ("--fluency-model", request.llm.fluency_model, has_judged, "scored by fense or date", "llm-clotho"),
    ):
        if value is not None and not used:
            raise ConfigError(
                f"This setting belongs to tasks {owners}, and none is to be evaluated.",
                where=option,
                hint=f"Leave it away, or name a task {owners}: --task {example}.",
            )


def _with_a_probe(tasks: list[Task], request: Request, report: EvaluateReport) -> list[Task]:
    """Leave out tasks that no wanted probe fits, and say so."""
    found = []
    for task in tasks:
        if probes_for(task, request):
            found.append(task)
            continue
        fitting = PROBES_OF_KIND[task.target.kind]
        reason = f"what fits {task.target.kind} labels: {', '.join(fitting)}"
        if fitting == ("llm",):
            reason = "a language model has to write its text, which is trained only when it is asked for: --probe llm"
        message = f'Task "{task.name}" is not evaluated: {reason}.'
        if len(tasks) == 1:
            raise ProbeError(message, where="--probe")
        report.notes.append(message)
    return found


def _absent(
    store: Store, pairs: list[tuple[str, Task]], specs: Sequence[str | Task], report: EvaluateReport
) -> set[tuple[str, str]]:
    """Return what is passed over because it is not embedded, and name it: all of it without a wish, a suite's members."""
    named = {spec.name if isinstance(spec, Task) else Path(spec).stem for spec in specs}
    absent: dict[str, list[Task]] = {}
    for encoder, task in pairs:
        if task.name not in named and not store.parts(encoder=encoder, task=task.audio_address):
            absent.setdefault(encoder, []).append(task)
    if specs:
        for encoder, tasks in absent.items():
            private = [task.name for task in tasks if task.private]
            public = [task.name for task in tasks if not task.private]
            for names, what in ((public, "not embedded"), (private, "private and not embedded")):
                if names:
                    report.notes.append(f'"{encoder}": {what}, left out: {", ".join(names)}.')
    return {(encoder, task.name) for encoder, tasks in absent.items() for task in tasks}


def _tasks(store: Store, specs: Sequence[str | Task]) -> list[Task]:
    """Return the tasks named (a file, a shipped task or suite, or one the store carries), or all the store carries."""
    if not specs:
        return [task_named(store, address) for address in sorted(store.tasks())]
    found: list[Task] = []
    for spec in specs:
        try:
            found += load_tasks([spec])
        except TaskNotFoundError:
            if isinstance(spec, str) and spec.endswith(".toml"):
                raise
            found.append(task_named(store, str(spec)))
    return list({task.fingerprint: task for task in found}.values())


def _evaluate_pair(
    store: Store, encoder: str, task: Task, request: Request, report: EvaluateReport, meter: Meter
) -> None:
    if not _stacked(task, request):
        return
    digest = parts_digest(store, encoder, task)
    features: Features | None = None
    for probe in _stacked(task, request):
        settings = settings_for(task, probe, request)
        missing: dict[int | None, str] = {}
        for seed in request.seeds_of(probe):
            run_id = run_name(encoder, task, probe, request, settings, seed, digest)
            if store.has_run(run_id):
                report.results.append(result_of(store.read_run(run_id), reused=True))
            else:
                missing[seed] = run_id
        if missing:
            if features is None:
                features = load_features(store, encoder, task, protocol=request.protocol, where=request.where)
                store.put_task(task.address, task.to_toml())
            report.results += _run_probe(
                store, encoder, task, probe, request, settings, missing, digest, features, meter
            )
            smallest = min(len(fold.knn_train) for fold in features.folds)
            if probe == "knn" and smallest < settings["k"]:
                report.notes.append(
                    f"{encoder} {task.name} knn: {settings['k']} neighbours were asked for, but only {smallest} clips "
                    "have a say; all of them voted."
                )
        if not (missing and PROBES[probe].seeded):  # training has counted itself, epoch by epoch
            meter.advance(1, note=f"{encoder} {task.name} {probe}")


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
    meter: Meter,
) -> list[Result]:
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    vote = request.protocol == "strict" and features.cropped

    def trained(done: int, total: int) -> None:
        meter.advance(1 / total, note=f"{encoder} {task.name} {probe}: epoch {done} of {total}")

    scored, device = outcomes(task, probe, request, settings, list(missing), features, vote, trained)
    seconds = time.perf_counter() - began
    results: list[Result] = []
    for seed, run_id in missing.items():
        one = scored[seed]
        run = run_record(
            encoder,
            task,
            probe,
            request,
            settings,
            seed,
            digest,
            one,
            n_dropped=features.dropped,
            started=started,
            seconds=seconds / len(missing),
            device=device,
        )
        store.write_run(run_id, run, one.predictions, one.tensors)
        results.append(result_of(store.read_run(run_id), reused=False))
    return results
