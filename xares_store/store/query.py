"""SQL that can read the tables it is given and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xares_store.errors import QueryError

if TYPE_CHECKING:
    import duckdb

Params = Sequence[object] | Mapping[str, object] | None

# No files, no network, no extensions, no Python variables as tables, and no way to switch any of it back on.
LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
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


def query_error(error: duckdb.Error, query: str, names: Sequence[str]) -> QueryError:
    """Turn DuckDB's error into one that also lists the names that exist."""
    return QueryError(str(error).strip(), where=query, hint="Columns: " + ", ".join(names) + ".")
