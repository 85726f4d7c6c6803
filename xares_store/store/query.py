"""SQL that can read the tables it is given and nothing else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def select_rows(clips: pa.Table, where: str) -> NDArray[np.int64]:
    """Return the row numbers, ascending, of the clips a SQL predicate selects.

    Args:
        clips: columns of the view ``clips``.
        where: e.g. ``"duration_s < 3 and label->>'category' = 'dog'"``.

    Raises:
        QueryError: not a predicate, or an unknown column.
    """
    import duckdb

    if not where.strip():
        raise QueryError("Expected a SQL predicate, found nothing.", hint='For example "duration_s < 3".')
    _refuse_undecodable(where)
    numbered = readable(clips).append_column("_row", pa.array(np.arange(len(clips), dtype=np.int64)))
    with duckdb.connect(":memory:", config=LOCKED) as connection:
        connection.register("clips", numbered)
        # The line breaks keep a comment inside the predicate from swallowing the closing bracket.
        query = f"SELECT _row FROM clips WHERE (\n{where}\n) ORDER BY _row"  # noqa: S608 - it is SQL on purpose
        try:
            statements = connection.extract_statements(query)
            if len(statements) != 1:
                raise QueryError("Expected one SQL predicate, found several statements.", where=where)
            rows, again = (connection.execute(query).fetchnumpy()["_row"] for _ in range(2))
        except duckdb.Error as error:
            raise query_error(error, where, clips.column_names) from error
    if not np.array_equal(rows, again):
        raise QueryError(
            "The predicate selects other clips each time, so that nothing made from it could be repeated.",
            where=where,
            hint="Instead of random(), say hash(clip_id) % 10 < 9.",
        )
    return np.asarray(rows, dtype=np.int64)


def readable(clips: pa.Table) -> pa.Table:
    """Return clip rows whose label JSON SQL can read: half of a surrogate pair, which Python lets pass, becomes ``?``.

    One such label would make every query fail that looks at labels.
    """
    place = clips.column_names.index("label")
    column = clips.column(place)
    if not any(data and _SURROGATE.search(data) for chunk in column.chunks for data in chunk.buffers()[2:]):
        return clips
    labels = pa.array([_whole(text) for text in column.to_pylist()], pa.string())
    return clips.set_column(place, "label", labels)


def _whole(label: str) -> str:
    if not _SURROGATE.search(label.encode()):
        return label
    try:
        return json.dumps(json.loads(label), ensure_ascii=False).encode("utf-8", "replace").decode()
    except (ValueError, RecursionError):  # no JSON: the view shows it as text
        return label


def _refuse_undecodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QueryError(
            f"The SQL is not UTF-8 text (character {error.start}).", hint="Type the query in a UTF-8 terminal."
        ) from None


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
    _refuse_undecodable(query)
    count = len(connection.extract_statements(query))
    if count != 1:
        raise QueryError(f"Expected one SQL statement, found {count}.", where=query)
    relation = connection.sql(query, params=params)
    if relation is None:
        raise QueryError("Expected a statement that returns rows.", where=query, hint="Start it with select.")
    with ThreadPoolExecutor(max_workers=1) as pool:
        answer = pool.submit(relation.to_arrow_table)
        try:
            table = answer.result()
        except KeyboardInterrupt:  # DuckDB looks for Ctrl-C nowhere while it works
            connection.interrupt()
            raise
    return pa.table([_plain(column) for column in table.columns], names=_distinct(table.column_names))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Sums of integers come as 128-bit decimals, which few tools know: give them as numbers everybody reads."""
    if not pa.types.is_decimal(column.type):
        return column
    if column.type.scale == 0:
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # beyond 64 bits
            pass
    return column.cast(pa.float64())


def _distinct(names: Sequence[str]) -> list[str]:
    """Number repeated names, as DuckDB does inside a query: a row as a dictionary would lose all but the last."""
    found: dict[str, None] = {}
    for name in names:
        new, count = name, 0
        while new in found:
            count += 1
            new = f"{name}_{count}"
        found[new] = None
    return list(found)


def query_error(error: Exception, query: str, columns: Sequence[str] | None = None) -> QueryError:
    """Turn DuckDB's error into one that also lists the names that exist."""
    if columns is not None:
        hint = "Columns: " + ", ".join(columns) + "."
    else:
        hint = "Views: " + ", ".join(VIEWS) + '. `xares sql "describe clips"` lists columns.'
    return QueryError(str(error).strip(), where=query, hint=hint)
