"""``xares evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xares_store.cli.common import INTERRUPTED, console, device_option, emit, format_options, lift, store_option
from xares_store.probes.probe import PROBES

if TYPE_CHECKING:
    from xares_store.runs.result import EvaluateReport, Result

COLUMNS = (
    "encoder", "task", "probe", "protocol", "metric", "score", "low", "high", "seeds", "seed_sd", "test", "dropped", "new",
)  # fmt: skip


@click.command()
@click.option(
    "--probe",
    "probes",
    multiple=True,
    type=click.Choice(list(PROBES)),
    help="Probe; mlp is the trained one of any task [default: all that fit].",
)
@click.option(
    "--task", "--suite", "tasks", multiple=True, metavar="TASK",
    help="Task, suite or path of a task file [default: all stored].",
)  # fmt: skip
@click.option("--encoder", "encoders", multiple=True, metavar="NAME", help="Encoder in the store [default: all].")
@store_option
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Seeds of trained probes.")
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
    help="MiB of frames held at a time (frame probe).",
)
@device_option
@format_options
def evaluate(
    probes: tuple[str, ...],
    tasks: tuple[str, ...],
    encoders: tuple[str, ...],
    store: Path,
    seeds: int,
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
    device: str,
    fmt: str,
) -> int:
    """Train and score probes on stored embeddings.

    Needs no audio and no encoder. Scores that are in the store already are not computed again. Exit code 1 when a
    combination could not be evaluated.
    """
    from xares_store.runs import evaluate as phase_two

    try:
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
            quiet=False,
        )
    except KeyboardInterrupt:
        console.print("Interrupted. Finished runs are stored; the same command does only the missing ones.")
        return INTERRUPTED
    columns, rows, title = list(COLUMNS), [list(row) for row in _rows(report)], None
    if fmt == "table":
        title, columns, rows = lift(columns, rows, ("protocol", "metric", "dropped"))
    emit(columns, rows, fmt=fmt, title=title)
    for encoder, task, reason in report.failed:
        console.print(f"error: {encoder} {task} was not evaluated.\n{reason}", markup=False, highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    return 1 if report.failed else 0


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
            )
        )
    return rows
