"""``xares fetch``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xares_store.cli.common import INTERRUPTED, console, data_option, emit, format_options

if TYPE_CHECKING:
    from xares_store.fetch.tasks import FetchReport

MIRROR_ENV = "XARES_ZENODO"


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@data_option
@click.option(
    "--mirror", metavar="URL", envvar=MIRROR_ENV, help=f"Address instead of https://zenodo.org [env: {MIRROR_ENV}]."
)
@click.option("--parallel", type=click.IntRange(1, 8), default=2, show_default=True, help="Connections at once.")
@click.option("--verify", is_flag=True, help="Check the MD5 of files that are there already, not only their size.")
@click.option("--replace", is_flag=True, help="Download files again that are there and not as published.")
@click.option("--offline", is_flag=True, help="Make no connection; say which files belong where.")
@click.option("--dry-run", is_flag=True, help="Print files and sizes; download and write nothing.")
@format_options
def fetch(
    tasks: tuple[str, ...],
    data: Path,
    mirror: str | None,
    parallel: int,
    verify: bool,
    replace: bool,
    offline: bool,
    dry_run: bool,
    fmt: str,
) -> int:
    """Download the audio shards of tasks from Zenodo into the data root.

    TASK is a task, a suite or the path of a task file. Only what is missing is downloaded; after Ctrl-C or a cut the
    same command goes on where it stopped. A file appears under its name when its size and its published MD5 are right.
    Exit code 1 when shards of a task are still missing; which files belong where is said, task by task.
    """
    from xares_store.fetch import tasks as fetching
    from xares_store.runs.progress import Meter

    if verify and not offline:
        console.print("Checking the MD5 of the files that are there.", highlight=False)
    report = fetching.plan(tasks, data=data, mirror=mirror, verify=verify, replace=replace, offline=offline)
    if not dry_run:
        try:
            with Meter("fetching", total=report.to_download) as meter:
                fetching.run(report, parallel=parallel, advance=lambda amount, note: meter.advance(amount, note=note))
        except KeyboardInterrupt:
            console.print(
                f"Interrupted. What arrived is kept in {data}; run the same command again to go on where it stopped.",
                highlight=False,
            )
            return INTERRUPTED
    _print_report(report, data, dry_run=dry_run, fmt=fmt)
    return 0 if report.ok else 1


def _print_report(report: FetchReport, data: Path, *, dry_run: bool, fmt: str) -> None:
    if dry_run or fmt != "table":
        rows = [[f.task, f.path, f.remote.size, f.state, f.to_download] for f in report.files]
        emit(["task", "file", "bytes", "state", "to_download"], [[*map(_text, row)] for row in rows], fmt=fmt)
    else:
        for task in dict.fromkeys(file.task for file in report.files):
            states = Counter(file.state for file in report.files if file.task == task)
            click.echo(f"{task}: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    for task in report.complete:
        console.print(f"{task}: all shards that its patterns name are there", markup=False, highlight=False)
    for task, message in report.problems:
        console.print(f"error: {task}: {message}", markup=False, highlight=False)
    if dry_run:
        console.print(f"{report.to_download / 1e6:,.1f} MB to download into {data}", highlight=False)


def _text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
