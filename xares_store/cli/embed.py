"""``xares embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from xares_store.cli.common import INTERRUPTED, console, data_option, device_option, emit, store_option

SHOWN_FAILURES = 10


@click.command()
@click.option(
    "--encoder",
    required=True,
    metavar="SPEC",
    help="enc.py[:Class], module:Class, hf:org/model, hear:module, or a name (`xares encoders`).",
)
@click.option("--encoder-arg", "encoder_args", multiple=True, metavar="KEY=VALUE", help="Argument of the constructor.")
@click.option(
    "--task",
    "--suite",
    "tasks",
    multiple=True,
    metavar="TASK",
    help="Task, suite or path of a task file [default: all with audio].",
)
@data_option
@store_option
@device_option
@click.option("--workers", type=int, default=None, help="Decoding processes [default: one a core].")
@click.option("--batch-seconds", type=float, default=None, help="Audio in a batch, in seconds [default: measured].")
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True, help="Stored frames."
)
@click.option("--dry-run", is_flag=True, help="Print clips, hours and estimated store size; write nothing.")
def embed(
    encoder: str,
    encoder_args: tuple[str, ...],
    tasks: tuple[str, ...],
    data: Path,
    store: Path,
    device: str,
    workers: int | None,
    batch_seconds: float | None,
    dtype: Literal["float16", "float32"],
    dry_run: bool,
) -> int:
    """Run an encoder once over tasks' audio and store its embeddings.

    Only what is missing is done: after an interruption the same command goes on where it stopped. Exit code 1 when a
    sample or a shard could not be embedded; what failed is listed, recorded, and loses nothing else.
    """
    from xares_store.encoders.spec import split_args
    from xares_store.runs import embed as phase_one
    from xares_store.runs.estimate import COLUMNS, estimate

    args = split_args(encoder_args)
    if dry_run:
        rows = estimate(encoder, tasks, store=store, data=data, device=device, encoder_args=args, dtype=dtype)
        emit(COLUMNS, rows, title=f"{encoder}: to embed into {store}")
        return 0
    try:
        report = phase_one.embed(
            encoder,
            tasks,
            store=store,
            data=data,
            device=device,
            workers=workers,
            batch_seconds=batch_seconds,
            dtype=dtype,
            encoder_args=args,
            quiet=False,
        )
    except phase_one.Interrupted as stop:
        console.print(
            f"Interrupted. Committed now: {stop.report.clips} clips encoded, {stop.report.parts} parts in {store}; "
            "everything committed earlier is there too.\nRun the same command again to go on where it stopped.",
            highlight=False,
        )
        return INTERRUPTED
    _print_report(report, store)
    return 0 if report.ok else 1


def _print_report(report: object, store: Path) -> None:
    from xares_store.runs.embed import EmbedReport

    assert isinstance(report, EmbedReport)
    if report.skipped_tasks:
        console.print(
            f"No audio for {len(report.skipped_tasks)} tasks, left out: "
            + ", ".join(name for name, _ in report.skipped_tasks),
            highlight=False,
        )
    speed = f", {report.audio_s / report.seconds:.0f}x real time" if report.audio_s else ""
    reused = f"; {report.reused_shards} shards were stored before" if report.reused_shards else ""
    click.echo(
        f"{report.encoder}: {report.clips} clips ({report.audio_s / 3600:.2f} h) in {report.parts} parts, "
        f"{report.seconds:.1f} s{speed}{reused}. Store: {store}"
    )
    if report.oom_splits:
        console.print(
            f"Out of memory {report.oom_splits} times: batches were halved. A smaller --batch-seconds saves the detour.",
            highlight=False,
        )
    for task, shard, message in report.broken:
        console.print(f"error: {task} {shard} was not embedded.\n{message}", markup=False, highlight=False)
    for failure in report.failures[:SHOWN_FAILURES]:
        console.print(
            f"failed: {failure.shard}/{failure.key} ({failure.kind}): {failure.reason}", markup=False, highlight=False
        )
    for task, place, message in report.bad_labels[:SHOWN_FAILURES]:
        console.print(f"label: {task} {place}: {message}", markup=False, highlight=False)
    if report.bad_labels:
        console.print(
            f"{len(report.bad_labels)} clips are stored with labels that do not fit their task; evaluating it will refuse "
            "them. Correct the labels in the shard or the task file.",
            markup=False,
            highlight=False,
        )
    if report.stored_failures:
        console.print(
            f"{report.stored_failures} samples had failed when their shards were embedded: "
            f'xares sql --store {store} "from failures"',
            markup=False,
            highlight=False,
        )
    if report.failures:
        console.print(
            f"{len(report.failures)} samples failed and are recorded; to list them: "
            f'xares sql --store {store} "from failures"',
            markup=False,
            highlight=False,
        )
