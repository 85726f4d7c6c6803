"""``xares leaderboard`` and ``xares compare``."""

from __future__ import annotations

from pathlib import Path

import click

from xares_store.cli.common import emit, format_options, store_option

LEADERBOARD = (
    "task", "encoder", "probe", "protocol", "metric", "score", "low", "high", "n_seeds", "seed_sd", "n_test", "weight",
)  # fmt: skip
COMPARE = ("task", "probe", "protocol", "n", "a", "b", "difference", "low", "high", "p", "p_holm", "settings", "where")


@click.command()
@store_option
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this task.")
@click.option("--encoder", "encoders", multiple=True, metavar="NAME", help="Only this encoder.")
@click.option("--probe", "probes", multiple=True, type=click.Choice(["mlp", "knn"]), help="Only this probe.")
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
    if fmt == "table":  # programs get every column, people the ones that fit
        places = [columns.index(name) for name in LEADERBOARD]
        columns, rows = list(LEADERBOARD), [tuple(row[place] for place in places) for row in rows]
        same = {
            name for name in ("protocol", "metric") if len({row[columns.index(name)] for row in rows}) == 1 and rows
        }
        title = ", ".join(f"{name}: {rows[0][columns.index(name)]}" for name in ("protocol", "metric") if name in same)
        shown = [index for index, name in enumerate(columns) if name not in same]
        emit([columns[i] for i in shown], [tuple(row[i] for i in shown) for row in rows], title=title or None)
        return
    emit(columns, rows, fmt=fmt)


@click.command()
@click.argument("encoder_a")
@click.argument("encoder_b")
@store_option
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this task.")
@click.option("--probe", "probes", multiple=True, type=click.Choice(["mlp", "knn"]), help="Only this probe.")
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
    rows = [tuple(getattr(row, name) for name in COMPARE) for row in found]
    if fmt == "table":
        title = f"a = {encoder_a}, b = {encoder_b}"
        emit(COMPARE[:-2], [row[:-2] for row in rows], title=title)
        return
    emit(COMPARE, rows, fmt=fmt)
