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
HF_MIRROR_ENV = "HF_ENDPOINT"


@click.command()
@click.argument("tasks", nargs=-1, metavar="TASK...")
@click.option("--suite", "suite_names", multiple=True, metavar="SUITE", help="Every task of this suite (xares).")
@data_option
@click.option(
    "--mirror", metavar="URL", envvar=MIRROR_ENV, help=f"Address instead of https://zenodo.org [env: {MIRROR_ENV}]."
)
@click.option(
    "--hf-mirror",
    metavar="URL",
    envvar=HF_MIRROR_ENV,
    help=f"Address instead of https://huggingface.co [env: {HF_MIRROR_ENV}].",
)
@click.option("--parallel", type=click.IntRange(1, 8), default=2, show_default=True, help="Connections at once.")
@click.option(
    "--verify", is_flag=True, help="Check the checksums of files that are there already, not only their size."
)
@click.option("--replace", is_flag=True, help="Download files again that are not as published now.")
@click.option("--offline", is_flag=True, help="Make no connection; say which files belong where.")
@click.option("--dry-run", is_flag=True, help="Print files and sizes; download and write nothing.")
@format_options
def fetch(
    tasks: tuple[str, ...],
    suite_names: tuple[str, ...],
    data: Path,
    mirror: str | None,
    hf_mirror: str | None,
    parallel: int,
    verify: bool,
    replace: bool,
    offline: bool,
    dry_run: bool,
    fmt: str,
) -> int:
    """Download tasks' audio shards from Zenodo or the Hugging Face hub.

    They go to the data root. TASK is a task, a suite or the path of a task file. Only what is missing is downloaded;
    after Ctrl-C or a cut the same command goes on where it stopped. A file appears under its name when its size and
    published checksum are right. Private and gated data sets of the hub are read with HF_TOKEN or the token that `hf
    auth login` stored. Private tasks of a suite are skipped by name. Exit code 1 when other shards are still missing;
    which files belong where is said.
    """
    from xares_store.fetch import tasks as fetching
    from xares_store.runs.progress import Meter

    if not tasks and not suite_names:
        raise click.UsageError("Name a task or, with --suite, a suite, for example --suite xares.")
    if verify and not offline:
        console.print("Checking the checksums of the files that are there.", highlight=False)
    report = fetching.plan(
        [*tasks, *map(_suite, suite_names)],
        data=data,
        mirror=mirror,
        hf_mirror=hf_mirror,
        verify=verify,
        replace=replace,
        offline=offline,
    )
    if dry_run:
        short = fetching.shortages(report.files)
        _print_plan(report, data, short, fmt=fmt)
        return 0 if report.ok and not short else 1
    try:
        with Meter("fetching", total=report.to_download) as meter:
            fetching.run(report, parallel=parallel, advance=lambda amount, note: meter.advance(amount, note=note))
    except KeyboardInterrupt:
        console.print(
            f"Interrupted. What arrived is kept in {data}; run the same command again to go on where it stopped.",
            highlight=False,
        )
        return INTERRUPTED
    if fmt == "table":
        for task in _tasks(report):
            states = Counter(file.state for file in report.files if task in file.tasks)
            click.echo(f"{task}: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    else:
        _print_files(report, fmt=fmt)
    _print_messages(report)
    return 0 if report.ok else 1


def _suite(name: str) -> str:
    from xares_store.catalog import suites
    from xares_store.errors import TaskNotFoundError, did_you_mean

    if name not in suites():
        raise TaskNotFoundError(
            f'There is no suite called "{name}".',
            where="--suite",
            hint=f"{did_you_mean(name, suites())} There are: {', '.join(suites())}.".strip(),
        )
    return name


def _tasks(report: FetchReport) -> list[str]:
    return list(dict.fromkeys(task for file in report.files for task in file.tasks))


def _print_files(report: FetchReport, *, fmt: str) -> None:
    rows = [[f.task, str(f.path), f.remote.size, f.state, f.to_download] for f in report.files]
    emit(["task", "file", "bytes", "state", "to_download"], rows, fmt=fmt)


def _print_plan(report: FetchReport, data: Path, short: list[str], *, fmt: str) -> None:
    """Print files for programs and people, and sums and obstacles for people."""
    if report.files or fmt != "table":  # programs always get their list
        _print_files(report, fmt=fmt)
    for task in _tasks(report):
        files = [file for file in report.files if task in file.tasks]
        size, missing = sum(file.remote.size for file in files), sum(file.to_download for file in files)
        shared = "" if any(file.task == task for file in files) else f", the same as those of {files[0].task}"
        console.print(
            f"{task}: {len(files)} files{shared}, {_megabytes(size)}, {_megabytes(missing)} to download",
            markup=False,
            highlight=False,
        )
    _print_messages(report)
    for sentence in short:
        console.print(f"error: {sentence}", markup=False, highlight=False)
    if report.files:
        console.print(f"{_megabytes(report.to_download)} to download into {data}", markup=False, highlight=False)


def _print_messages(report: FetchReport) -> None:
    for cause, asked in report.unanswered.items():
        console.print(
            f"error: {cause}: the files of {', '.join(asked)} cannot be listed. Check the connection, or name a mirror.",
            markup=False,
            highlight=False,
        )
    for task in report.complete:
        console.print(f"{task}: all shards that its patterns name are there", markup=False, highlight=False)
    for task, message in report.skipped:
        console.print(f"skipped: {task}: {message}", markup=False, highlight=False)
    for task, message in report.problems:
        console.print(f"error: {task}: {message}", markup=False, highlight=False)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
