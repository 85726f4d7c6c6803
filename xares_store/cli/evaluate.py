"""``xares evaluate``."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xares_store.cli.common import (
    DURATION,
    INTERRUPTED,
    PAUSED,
    console,
    device_option,
    emit,
    format_options,
    lift,
    store_option,
)
from xares_store.device import process_rank
from xares_store.probes.probe import PROBES

if TYPE_CHECKING:
    from xares_store.runs.result import EvaluateReport, Result

TERMINATED = 128 + signal.SIGTERM
COLUMNS = (
    "encoder", "task", "probe", "protocol", "metric", "score", "low", "high", "seeds", "seed_sd", "test", "dropped", "new",
    "runs",
)  # fmt: skip


@click.command()
@click.option(
    "--probe",
    "probes",
    multiple=True,
    type=click.Choice(list(PROBES)),
    help="Probe; mlp is the trained one of any task but text; llm only by name [default: all that fit].",
)
@click.option(
    "--task", "--suite", "tasks", multiple=True, metavar="TASK",
    help="Task, suite or path of a task file [default: all stored].",
)  # fmt: skip
@click.option("--encoder", "encoders", multiple=True, metavar="NAME", help="Encoder in the store [default: all].")
@store_option
@click.option("--seeds", type=click.IntRange(min=1), default=None, help="Seeds of trained probes [default: 5; llm: 1].")
@click.option(
    "--lr", "rates", type=float, multiple=True, help="Learning rate; several are a grid chosen on validation."
)
@click.option("--epochs", type=int, default=None, help="Passes over the training clips [default: the task's].")
@click.option("--batch-size", type=int, default=None, help="Clips in a training step [default: the task's].")
@click.option("--k", type=int, default=None, help="Neighbours of k-NN [default: the task's].")
@click.option("--temperature", type=float, default=None, help="Vote temperature of k-NN [default: the task's].")
@click.option("--where", metavar="SQL", default=None, help='Only clips that match, e.g. "duration_s < 3".')
@click.option(
    "--protocol", type=click.Choice(["strict", "published"]), default="strict", show_default=True,
    help="strict: splits disjoint. published: what published tables used, for comparison with them.",
)  # fmt: skip
@click.option(
    "--text-encoder", default=None, metavar="MODEL",
    help="Retrieval: frozen text model, hub name or folder, mean over tokens (#cls at its end: the first) [default: trained from scratch].",
)  # fmt: skip
@click.option(
    "--tokenizer", default=None, metavar="NAME",
    help="Retrieval from scratch: words, or a tokenizer by hub name or folder [default: words; published: BERT's].",
)  # fmt: skip
@click.option(
    "--memory",
    "memory_mib",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="MiB of frames held at a time (frame and llm probes).",
)
@click.option(
    "--recipe",
    default=None,
    metavar="NAME",
    help="llm: recipe or path of its file [default: the published one of the task's kind].",
)
@click.option(
    "--decoder",
    default=None,
    metavar="MODEL",
    help="llm: causal language model, hub name or folder [default: the recipe's].",
)
@click.option("--max-steps", type=int, default=None, help="llm: optimiser steps [default: the recipe's].")
@click.option("--stride", type=int, default=None, help="llm: so many frames become one position of the decoder.")
@click.option(
    "--stride-mode",
    type=click.Choice(["stack", "mean"]),
    default=None,
    help="llm: how they are combined [default: the recipe's].",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default=None,
    help="llm: of training and writing [default: the recipe's].",
)
@click.option(
    "--frame-budget",
    type=int,
    default=None,
    help="llm: positions in the decoder at once; less memory, same result [default: the recipe's].",
)
@click.option(
    "--time-budget",
    "time_budget_s",
    type=DURATION,
    default=None,
    help="llm: pause training after this long, e.g. 90m; the same command goes on.",
)
@click.option("--score-labels", is_flag=True, help="llm: ask for the likelihood of each label of closed tasks too.")
@click.option(
    "--sentence-encoder",
    default=None,
    metavar="MODEL",
    help="llm: sentence encoder of FENSE and DATE, hub name or folder.",
)
@click.option(
    "--fluency-model",
    default=None,
    metavar="MODEL",
    help="llm: error checker of FENSE and DATE, folder or file; none: without.",
)
@device_option
@format_options
def evaluate(
    probes: tuple[str, ...],
    tasks: tuple[str, ...],
    encoders: tuple[str, ...],
    store: Path,
    seeds: int | None,
    rates: tuple[float, ...],
    epochs: int | None,
    batch_size: int | None,
    k: int | None,
    temperature: float | None,
    where: str | None,
    protocol: str,
    text_encoder: str | None,
    tokenizer: str | None,
    memory_mib: int,
    recipe: str | None,
    decoder: str | None,
    max_steps: int | None,
    stride: int | None,
    stride_mode: str | None,
    precision: str | None,
    frame_budget: int | None,
    time_budget_s: float | None,
    score_labels: bool,
    sentence_encoder: str | None,
    fluency_model: str | None,
    device: str,
    fmt: str,
) -> int:
    """Train and score probes on stored embeddings.

    Needs no audio and no encoder. Scores that are in the store already are not computed again. Exit code 1 when a
    combination could not be evaluated, 130 after Ctrl-C and 143 after SIGTERM, both of which keep what was trained, 75 when --time-budget ended a training before its last step: nothing is scored
    then, and the same command goes on.
    """
    from xares_store.runs import evaluate as phase_two
    from xares_store.runs.llm.options import LlmOptions

    terminated: list[int] = []
    try:
        with _terminating_like_ctrl_c(terminated):
            report = phase_two.evaluate(
                store,
                tasks=tasks,
                encoders=encoders,
                probes=probes,
                seeds=seeds,
                learning_rates=rates or None,
                epochs=epochs,
                batch_size=batch_size,
                k=k,
                temperature=temperature,
                where=where,
                protocol=protocol,
                device=device,
                text_encoder=text_encoder,
                tokenizer=tokenizer,
                memory_bytes=memory_mib << 20,
                llm=LlmOptions(
                    recipe=recipe,
                    decoder=decoder,
                    max_steps=max_steps,
                    stride=stride,
                    stride_mode=stride_mode,
                    precision=precision,
                    frame_budget=frame_budget,
                    time_budget_s=time_budget_s,
                    score_labels=score_labels,
                    sentence_encoder=sentence_encoder,
                    fluency_model=fluency_model,
                ),
                quiet=process_rank() > 0,
            )
    except KeyboardInterrupt:
        console.print("Interrupted. Finished runs are stored; the same command does only what is missing.")
        return TERMINATED if terminated else INTERRUPTED
    if process_rank() > 0:  # of several processes that train together, the first one reports
        return _code(report)
    columns, rows, title = list(COLUMNS), [list(row) for row in _rows(report)], None
    if fmt == "table":
        columns, rows = columns[:-1], [row[:-1] for row in rows]  # ids of runs are for programs
        title, columns, rows = lift(columns, rows, ("protocol", "metric", "dropped"))
    emit(columns, rows, fmt=fmt, title=title)
    for encoder, task, reason in report.failed:
        console.print(f"error: {encoder} {task} was not evaluated.\n{reason}", markup=False, highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for pause in report.paused:
        console.print(f"paused: {pause}", markup=False, highlight=False)
    return _code(report)


@contextlib.contextmanager
def _terminating_like_ctrl_c(received: list[int]) -> Iterator[None]:
    """Let SIGTERM, which job schedulers send before they kill, end a training as Ctrl-C does, with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGINT)  # held back as Ctrl-C is, where an update must not be left half done

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _code(report: EvaluateReport) -> int:
    return 1 if report.failed else PAUSED if report.paused else 0


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rows(report: EvaluateReport) -> list[tuple[object, ...]]:
    """One row for all seeds of a combination."""
    import numpy as np

    grouped: dict[tuple[str, ...], list[Result]] = {}
    for result in report.results:
        key = (result.encoder, result.task, result.probe, result.protocol, result.metric)
        grouped.setdefault(key, []).append(result)
    rows: list[tuple[object, ...]] = []
    for names, results in grouped.items():
        values = [result.value for result in results]
        rows.append(
            (
                *names,
                float(np.mean(values)),
                _mean([result.low for result in results]),
                _mean([result.high for result in results]),
                len(results),
                float(np.std(values, ddof=1)) if len(values) > 1 else None,
                results[0].n_test,
                results[0].n_dropped,
                sum(not result.reused for result in results),
                [result.run_id for result in results],
            )
        )
    return rows
