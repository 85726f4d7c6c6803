"""``xares store``: look into a store, verify it, remove parts of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xares_store.cli.common import console, emit, format_options, store_option
from xares_store.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from xares_store.store.store import Store


@click.group("store")
def store_group() -> None:
    """Look into a store, verify it, remove parts of it."""


def _open(path: Path) -> Store:
    from xares_store.store.store import Store

    return Store.open(path)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@store_group.command()
@store_option
@format_options
def info(store: Path, fmt: str) -> None:
    """Count what the store holds."""
    found = _open(store).info()
    if fmt == "table":
        found["bytes"] = f"{found['bytes']:,} ({_megabytes(found['bytes'])})"
    emit(["what", "value"], list(found.items()), fmt=fmt, title=f"Store {store}")


@store_group.command()
@click.argument("what", type=click.Choice(["all", "encoders", "tasks", "parts", "runs"]), default="all")
@store_option
@format_options
def ls(what: str, store: Path, fmt: str) -> None:
    """List encoders, tasks, parts or runs; without WHAT, what is embedded by encoder and task."""
    opened = _open(store)
    if what == "encoders":
        columns = ["encoder", "dim", "hop_ms", "sample_rate_hz", "spec"]
        rows: list[list[Any]] = [
            [address, *(record.get(name) for name in columns[1:])] for address, record in opened.encoders().items()
        ]
    elif what == "tasks":
        columns, rows = ["task"], [[address] for address in opened.tasks()]
    elif what == "runs":
        columns = ["run_id", "encoder", "task", "probe", "protocol", "seed", "main_metric", "started"]
        rows = [[getattr(opened.read_run(run_id), name) for name in columns] for run_id in opened.runs()]
    elif what == "parts":
        columns = ["encoder", "task", "split", "shard", "sequence", "clips", "failures", "frames", "dtype", "codec"]
        rows = []
        for part in opened.parts():
            it, counts = part.address, part.manifest.counts
            tail = [counts.clips, counts.failures, counts.frames, part.manifest.dtype, part.manifest.codec]
            rows.append([it.encoder, it.task, it.split, it.shard, it.sequence, *tail])
    else:
        columns = ["encoder", "task", "parts", "clips", "failures", "frames", "dim"]
        sums: dict[tuple[str, str, int], list[int]] = {}
        for part in opened.parts():
            counts = part.manifest.counts
            row = sums.setdefault((part.address.encoder, part.address.task, part.manifest.dim), [0, 0, 0, 0])
            for index, more in enumerate((1, counts.clips, counts.failures, counts.frames)):
                row[index] += more
        rows = [[encoder, task, *row, dim] for (encoder, task, dim), row in sums.items()]
    emit(columns, rows, fmt=fmt)


@store_group.command()
@click.option("--quick", is_flag=True, help="Compare sizes only, not checksums.")
@store_option
@format_options
def verify(quick: bool, store: Path, fmt: str) -> None:
    """Check every file of every part and run; exit with 1 when something is wrong."""
    opened = _open(store)
    problems = opened.verify(deep=not quick)
    if problems or fmt != "table":
        emit(["path", "problem"], [[problem.path, problem.what] for problem in problems], fmt=fmt)
    if problems:
        console.print(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}. Remove a damaged part or run (its folder) and make it "
            "again, or copy it from an intact store."
        )
        raise click.exceptions.Exit(1)
    if fmt == "table":
        how = "sizes compared" if quick else "all checksums match"
        click.echo(f"Intact: {len(opened.parts())} parts, {len(opened.runs())} runs, {how}.")


@store_group.command()
@store_option
def reindex(store: Path) -> None:
    """Build the index that SQL queries read anew."""
    opened = _open(store)
    opened.reindex()
    rows = opened.sql("select (select count(*) from clips), (select count(*) from runs)").to_pylist()
    clips, runs = rows[0].values()
    click.echo(f"Indexed {clips:,} clip rows and {runs:,} runs.")


@store_group.command()
@store_option
@format_options
def du(store: Path, fmt: str) -> None:
    """Say what takes how much space; ratio is against the same frames as float32."""
    rows = _open(store).du()
    columns = ["what", "encoder", "task", "parts", "clips", "frames", "bytes", "ratio"]
    shown = [[row[name] for name in columns] for row in rows]
    if fmt == "table":
        for row in shown:
            row[6] = _megabytes(row[6])
    emit(columns, shown, fmt=fmt)


@store_group.command()
@click.option("--encoder", help="Remove embeddings of this encoder (address or name).")
@click.option("--task", help="Remove embeddings of this task (address or name).")
@click.option(
    "--shard", metavar="SPLIT/NAME", help="Remove embeddings of this shard only, as `store ls parts` shows it."
)
@click.option(
    "--runs",
    type=click.Choice(["keep", "with", "only"]),
    default="keep",
    show_default=True,
    help="Scores made from them: keep them, remove them too, or remove only them.",
)
@click.option("--run", "run_ids", multiple=True, metavar="ID", help="Remove this run. May be given several times.")
@click.option("--leftovers", is_flag=True, help="Remove temporary files of processes that are gone.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
def rm(
    encoder: str | None,
    task: str | None,
    shard: str | None,
    runs: str,
    run_ids: tuple[str, ...],
    leftovers: bool,
    dry_run: bool,
    yes: bool,
    store: Path,
) -> None:
    """Remove embeddings, runs, or both; says first what goes and what was made from it."""
    opened = _open(store)
    if leftovers:
        click.echo(f"Removed {opened.sweep()} temporary files or folders.")
        if not (encoder or task or shard or run_ids):
            return
    chosen: dict[str, Any] = {"encoder": encoder, "task": task, "shard": shard, "runs": runs, "run_ids": run_ids}
    plan = opened.rm(**chosen, dry_run=True)
    if not (plan.parts or plan.runs):
        asked = " ".join(
            f"--{key} {value}" for key, value in (("encoder", encoder), ("task", task), ("shard", shard)) if value
        )
        known = [*opened.encoders(), *opened.tasks()]
        known += [name.rpartition("@")[0] for name in known]
        raise ConfigError(
            f"Nothing in the store matches {asked or 'this'}.",
            where=store,
            hint=did_you_mean(encoder or task or "", known, listing="`xares store ls` lists what is there."),
        )
    for name in [*plan.parts, *(f"runs/{run_id}" for run_id in plan.runs)]:
        click.echo(name)
    click.echo(f"{len(plan.parts)} parts and {len(plan.runs)} runs, {_megabytes(plan.bytes)}.")
    if plan.dependent:
        click.echo(
            f"{len(plan.dependent)} runs were made from these embeddings and stay; evaluating again needs another embed. "
            "--runs with removes them too."
        )
    if dry_run:
        return
    if not yes and not click.confirm("Remove?"):
        click.echo("Nothing was removed.")
        return
    opened.rm(**chosen)
    click.echo("Removed.")
