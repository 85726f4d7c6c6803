"""``xares sql``: query the store."""

from __future__ import annotations

from pathlib import Path

import click

from xares_store.cli.common import console, emit, format_options, store_option


@click.command("sql")
@click.argument("query")
@click.option(
    "--parquet", type=click.Path(path_type=Path, dir_okay=False), help="Write the result to this Parquet file instead."
)
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Rows of a table shown; 0 for all."
)
@store_option
@format_options
def sql(query: str, parquet: Path | None, limit: int, store: Path, fmt: str) -> None:
    """Run a SQL QUERY over the store's views.

    The views are clips, embeddings, failures, scores, runs, predictions and leaderboard; "describe clips" lists columns.
    A query reads the index alone: no files, no network, no changes.

    Example: xares sql "select task, encoder, score from leaderboard"
    """
    from xares_store.store.store import Store

    table = Store.open(store).sql(query)
    if parquet is not None:
        import pyarrow.parquet as pq

        from xares_store.store.files import disk_errors

        with disk_errors(parquet.parent, f"writing {parquet.name}"):
            pq.write_table(table, parquet)
        console.print(f"Wrote {table.num_rows:,} rows to {parquet}.")
        return
    shown = table.slice(0, limit) if fmt == "table" and limit else table
    columns = [column.to_pylist() for column in shown.columns]
    rows = list(zip(*columns, strict=True)) if columns else []
    emit(shown.column_names, rows, fmt=fmt)
    if shown.num_rows < table.num_rows:
        console.print(f"{limit:,} of {table.num_rows:,} rows; --limit 0 shows all.")
