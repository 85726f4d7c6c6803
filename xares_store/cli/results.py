"""``xares leaderboard`` and ``xares compare``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from xares_store.cli.common import emit, format_options, lift, store_option
from xares_store.probes.probe import PROBES

LEADERBOARD = (
    "task", "encoder", "probe", "protocol", "metric", "score", "low", "high", "n_seeds", "seed_sd", "n_test", "weight",
)  # fmt: skip
COMPARE = (
    "task", "probe", "protocol", "n", "a", "b", "difference", "low", "high", "p", "p_holm", "settings", "where",
    "task_address",
)  # fmt: skip
# What makes another row besides the probe's settings.
_APART = ("where", "task_address", "probe_version", "metric_version", "parts_digest")


@click.command()
@store_option
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this task.")
@click.option("--encoder", "encoders", multiple=True, metavar="NAME", help="Only this encoder.")
@click.option("--probe", "probes", multiple=True, type=click.Choice(list(PROBES)), help="Only this probe.")
@click.option("--protocol", type=click.Choice(["strict", "published"]), default=None, help="Only this protocol.")
@format_options
def leaderboard(
    store: Path,
    tasks: tuple[str, ...],
    encoders: tuple[str, ...],
    probes: tuple[str, ...],
    protocol: str | None,
    fmt: str,
) -> None:
    """Show the scores in a store, best first.

    One row an encoder, task, probe, protocol and settings. low and high are the 95 % interval over test clips, seed_sd
    is the spread over seeds: two different things. Protocols are never mixed.
    """
    from xares_store.runs.leaderboard import leaderboard_rows

    columns, rows = leaderboard_rows(
        store, tasks=tasks, encoders=encoders, probes=probes, protocols=(protocol,) if protocol else ()
    )
    if fmt == "table":  # programs get every column, people the ones that fit and tell rows apart
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        _emit_short(records, LEADERBOARD, None, ("task", "encoder"))
        return
    emit(columns, rows, fmt=fmt)


def _emit_short(
    records: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str | None, apart: tuple[str, ...]
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
    emit(shown, rows, title=", ".join(filter(None, (title, same))) or None)


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
