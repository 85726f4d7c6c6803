"""``xares leaderboard`` and ``xares compare``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xares_store.cli.common import console, emit, format_options, lift, paper_options, store_option
from xares_store.probes.probe import PROBES

if TYPE_CHECKING:
    from xares_store.runs.suite import Line, SuiteReport

LEADERBOARD = (
    "task", "encoder", "probe", "protocol", "metric", "score", "low", "high", "n_seeds", "seed_sd", "n_test", "weight",
)  # fmt: skip
COMPARE = (
    "task", "probe", "protocol", "n", "a", "b", "difference", "low", "high", "p", "p_holm", "settings", "where",
    "task_address",
)  # fmt: skip
PAPER = ("table", "markdown", "latex")  # formats that people read
# What makes another row besides the probe's settings.
_APART = ("where", "task_address", "probe_version", "metric_version", "parts_digest")


@click.command()
@store_option
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this task.")
@click.option("--encoder", "encoders", multiple=True, metavar="NAME", help="Only this encoder.")
@click.option("--probe", "probes", multiple=True, type=click.Choice(list(PROBES)), help="Only this probe.")
@click.option("--protocol", type=click.Choice(["strict", "published"]), default=None, help="Only this protocol.")
@click.option(
    "--suite", multiple=True, metavar="SUITE", help="Average over this suite (xares, task1, task2) or task file."
)
@click.option(
    "--published", is_flag=True, help="With --suite: printed scores of X-ARES and XARES-LLM tables beside ours."
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="With --suite: one more average, with your weights: a table [weights], task = number.",
)
@click.option(
    "--mteb", type=click.Path(path_type=Path), metavar="DIR", help="With --suite: MTEB-shaped JSON files into DIR."
)
@paper_options
def leaderboard(
    store: Path,
    tasks: tuple[str, ...],
    encoders: tuple[str, ...],
    probes: tuple[str, ...],
    protocol: str | None,
    suite: tuple[str, ...],
    published: bool,
    weights: Path | None,
    mteb: Path | None,
    fmt: str,
) -> None:
    """Show the scores in a store, best first.

    One row an encoder, task, probe, protocol and settings. low and high are the 95 % interval over test clips, seed_sd
    is the spread over seeds: two different things. Protocols are never mixed.

    With --suite: tasks as rows, encoders as columns, and below them the averages of normalised scores (0 worst, 1
    best), weighted by counted test items, by the constants of the published tables and by --weights. Each probe, protocol and change
    of settings has a table of its own. Missing tasks are named, and an average without them is partial. --csv and
    --json give one long table of everything.
    """
    protocols = (protocol,) if protocol else ()
    if suite:
        if tasks:
            raise click.UsageError("--suite says which tasks count; leave --task away.")
        from xares_store.runs.aggregates import suite_report
        from xares_store.runs.mteb import write_mteb

        report = suite_report(
            store, suite, encoders=encoders, probes=probes, protocols=protocols, published=published, weights=weights
        )
        _emit_suite(report, fmt)
        if mteb is not None:
            files = write_mteb(report, mteb)
            console.print(f"Wrote {len(files)} results to {mteb}.", markup=False, highlight=False)
        return
    for option, given in (("--published", published), ("--weights", weights is not None), ("--mteb", mteb is not None)):
        if given:
            raise click.UsageError(f"{option} needs --suite, for example --suite xares.")
    from xares_store.runs.leaderboard import leaderboard_rows

    columns, rows = leaderboard_rows(store, tasks=tasks, encoders=encoders, probes=probes, protocols=protocols)
    if fmt in PAPER:  # programs get every column, people the ones that fit and tell rows apart
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        _emit_short(records, LEADERBOARD, None, ("task", "encoder"), fmt)
        return
    emit(columns, rows, fmt=fmt)


def _emit_suite(report: SuiteReport, fmt: str) -> None:
    """Print a suite: tables and notes for people, one long table for programs (notes go to standard error)."""
    if fmt not in PAPER:
        columns, rows = report.rows()
        emit(columns, rows, fmt=fmt)
        for note in report.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        return
    groups: defaultdict[tuple[str, str | None, str], list[Line]] = defaultdict(list)
    ours = [line for line in report.lines if line.protocol]
    for line in ours:
        groups[line.probe, line.protocol, line.label].append(line)
    for line in report.lines:
        if not line.protocol:
            mine = [key for key in groups if key[0] == line.probe and key[1]] or [(line.probe, None, "")]
            for key in mine:
                groups[key].append(line)
    for (probe, protocol, label), lines in groups.items():
        title = f"{report.suite}, probe: {probe}, protocol: {protocol or 'published, as printed'}"
        _emit_wide(report, lines, title + (f", {label}" if label else ""), fmt)
        click.echo()
    mark = {"latex": "% ", "markdown": "* "}.get(fmt, "note: ")
    for note in report.notes:
        click.echo(mark + note)


def _emit_wide(report: SuiteReport, lines: Sequence[Line], title: str, fmt: str) -> None:
    heads = [line.encoder if line.protocol else f"{line.encoder} (published: {_printed_in(line)})" for line in lines]
    scores = [{score.task: score.score for score in line.scores} for line in lines]
    rows: list[list[object]] = [
        [task.name, task.domain, task.metric.name, *(found.get(task.name) for found in scores)] for task in report.tasks
    ]
    averages = [{(one.scope, one.weights): one for one in line.averages} for line in lines]
    for scope, weights in dict.fromkeys(key for found in averages for key in found):
        cells: list[object] = []
        for found in averages:
            one = found.get((scope, weights))
            if one is None or one.value is None or not one.partial:
                cells.append(None if one is None else one.value)
            else:
                cells.append(f"{one.value:.4f} (partial, {one.n_tasks} of {one.of_tasks})")
        rows.append([f"average, {weights} weights", scope, "normalised", *cells])
    emit(["task", "domain", "metric", *heads], rows, fmt=fmt, title=title)


def _printed_in(line: Line) -> str:
    source = line.source.partition("(")[0].partition(",")[0].strip()
    return f"{source}, {line.label}" if line.label else source


def _emit_short(
    records: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    title: str | None,
    apart: tuple[str, ...],
    fmt: str = "table",
) -> None:
    """Print some columns; where rows agree in ``apart``, probe and protocol, also how their settings differ."""
    groups: defaultdict[tuple[object, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in (*apart, "probe", "protocol"))].append(record)
    notes: dict[int, str] = {}
    for members in groups.values():
        settings = [
            {
                **json.loads(record["settings"]),
                **{name: record[name] for name in _APART if record.get(name)},
            }
            for record in members
        ]
        differing = [
            name
            for name in dict.fromkeys(n for one in settings for n in one)
            if len({str(one.get(name)) for one in settings}) > 1
        ]
        for record, one in zip(members, settings, strict=True):
            notes[id(record)] = ", ".join(f"{name}: {one[name]}" for name in differing if name in one)
    shown = [*columns, "settings"] if any(notes.values()) else list(columns)
    rows = [[notes[id(record)] if name == "settings" else record[name] for name in shown] for record in records]
    same, shown, rows = lift(shown, rows, ("protocol", "metric") if "metric" in shown else ("protocol",))
    emit(shown, rows, fmt=fmt, title=", ".join(filter(None, (title, same))) or None)


@click.command()
@click.argument("encoder_a")
@click.argument("encoder_b")
@store_option
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this task.")
@click.option("--probe", "probes", multiple=True, type=click.Choice(list(PROBES)), help="Only this probe.")
@format_options
def compare(
    encoder_a: str, encoder_b: str, store: Path, tasks: tuple[str, ...], probes: tuple[str, ...], fmt: str
) -> None:
    """Test whether two encoders differ, task by task.

    A paired permutation test over the stored per-clip predictions; p_holm is corrected for the number of rows.
    difference is ENCODER_A minus ENCODER_B, low and high its 95 % interval.
    """
    from xares_store.runs.compare import compare as compare_encoders

    found = compare_encoders(store, encoder_a, encoder_b, tasks=tasks, probes=probes)
    if fmt == "table":
        records = [{name: getattr(row, name) for name in COMPARE} for row in found]
        title = f"a = {encoder_a}, b = {encoder_b}"
        _emit_short(records, COMPARE[: COMPARE.index("settings")], title, ("task",))
        return
    emit(COMPARE, [tuple(getattr(row, name) for name in COMPARE) for row in found], fmt=fmt)
