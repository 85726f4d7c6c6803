"""SQL that can read the tables it is given and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xares_store.errors import QueryError

if TYPE_CHECKING:
    import duckdb

VIEWS = ("clips", "embeddings", "failures", "leaderboard", "predictions", "runs", "scores")
Params = Sequence[object] | Mapping[str, object] | None

# No files, no network, no extensions, no Python variables as tables, and no way to switch any of it back on.
LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "temp_directory": "",  # DuckDB lets queries read its spill folder: have none
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}


def select_rows(clips: pa.Table, where: str) -> NDArray[np.int64]:
    """Return the row numbers, ascending, of the clips a SQL predicate selects.

    Args:
        clips: columns of the view ``clips``.
        where: e.g. ``"duration_s < 3 and label->>'category' = 'dog'"``.

    Raises:
        QueryError: not a predicate, or an unknown column.
    """
    import duckdb

    numbered = clips.append_column("_row", pa.array(np.arange(len(clips), dtype=np.int64)))
    with duckdb.connect(":memory:", config=LOCKED) as connection:
        connection.register("clips", numbered)
        # The line breaks keep a comment inside the predicate from swallowing the closing bracket.
        query = f"SELECT _row FROM clips WHERE (\n{where}\n) ORDER BY _row"  # noqa: S608 - it is SQL on purpose
        try:
            statements = connection.extract_statements(query)
            if len(statements) != 1:
                raise QueryError("Expected one SQL predicate, found several statements.", where=where)
            rows = connection.execute(statements[0]).fetchnumpy()["_row"]
        except duckdb.Error as error:
            raise query_error(error, where, clips.column_names) from error
    return np.asarray(rows, dtype=np.int64)


_QUERIES = (
    threading.Lock()
)  # DuckDB shares one instance of a file in a process: an old one must close before a new one opens


def run_query(root: Path, query: str, params: Params = None) -> pa.Table:
    """Run one statement against the index of the store ``root``; see :meth:`Store.sql`."""
    import duckdb

    from xares_store.store.index import connect

    with _QUERIES:
        for last in (False, True):
            with connect(root, rebuild=last) as connection:
                try:
                    return _fetch(connection, query, params)
                except duckdb.Error as error:
                    if last or not _index_is_broken(error):  # else it is built anew, once
                        raise query_error(error, query) from error
    raise AssertionError("unreachable")


def _index_is_broken(error: Exception) -> bool:
    """Tell errors of the file from errors of the query; damaged blocks come as a bare Error."""
    import duckdb

    kinds = (duckdb.InternalException, duckdb.IOException, duckdb.FatalException, duckdb.SerializationException)
    return isinstance(error, kinds) or type(error) is duckdb.Error


def _fetch(connection: duckdb.DuckDBPyConnection, query: str, params: Params) -> pa.Table:
    count = len(connection.extract_statements(query))
    if count != 1:
        raise QueryError(f"Expected one SQL statement, found {count}.", where=query)
    relation = connection.sql(query, params=params)
    if relation is None:
        raise QueryError("Expected a statement that returns rows.", where=query, hint="Start it with select.")
    table = relation.to_arrow_table()
    return table.cast(pa.schema([_plain_field(field) for field in table.schema]), safe=False)


def _plain_field(field: pa.Field) -> pa.Field:
    """Sums of integers come as 128-bit decimals, which few tools know: give them as numbers everybody reads."""
    if pa.types.is_decimal(field.type):
        return field.with_type(pa.int64() if field.type.scale == 0 else pa.float64())
    return field


def query_error(error: Exception, query: str, columns: Sequence[str] | None = None) -> QueryError:
    """Turn DuckDB's error into one that also lists the names that exist."""
    if columns is not None:
        hint = "Columns: " + ", ".join(columns) + "."
    else:
        hint = "Views: " + ", ".join(VIEWS) + '. `xares sql "describe clips"` lists columns.'
    return QueryError(str(error).strip(), where=query, hint=hint)
