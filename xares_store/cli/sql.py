"""``xares sql``: query the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xares_store.cli.common import console, emit, format_options, store_option

if TYPE_CHECKING:
    import pyarrow as pa


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
        _write_parquet(table, parquet)
        console.print(f"Wrote {table.num_rows:,} rows to {parquet}.")
        return
    shown = table.slice(0, limit) if fmt == "table" and limit else table
    columns = [column.to_pylist() for column in shown.columns]
    rows = list(zip(*columns, strict=True)) if columns else []
    emit(shown.column_names, rows, fmt=fmt)
    if shown.num_rows < table.num_rows:
        console.print(f"{limit:,} of {table.num_rows:,} rows; --limit 0 shows all.")


def _write_parquet(table: pa.Table, path: Path) -> None:
    """Write a whole file or leave what was there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from xares_store.errors import ConfigError, QueryError
    from xares_store.store.files import temporary_name

    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent} to write to.", where=f"--parquet {path}")
    temporary = path.with_name(temporary_name())
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise QueryError(
            f"Parquet cannot hold the result ({error}).", where=f"--parquet {path}", hint="Cast the column to varchar."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"The result cannot be written: {os.strerror(error.errno) if error.errno else error}.",
            where=f"--parquet {path}",
            hint="Choose another folder.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
