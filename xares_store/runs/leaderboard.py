"""The scores in a store as rows: the view ``leaderboard``, filtered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xares_store.runs.features import choose_encoders, known_tasks
from xares_store.store.store import Store


def leaderboard_rows(
    store: str | Path | Store,
    *,
    tasks: Sequence[str] = (),
    encoders: Sequence[str] = (),
    probes: Sequence[str] = (),
    protocols: Sequence[str] = (),
) -> tuple[list[str], list[tuple[object, ...]]]:
    """Return the leaderboard of a store: columns and rows, by task and then best first.

    Args:
        store: folder of the store, or an open store.
        tasks, encoders, probes, protocols: names to keep; empty keeps all.

    Raises:
        TaskError, ConfigError: the store has no such task or encoder.

    Example:
        >>> columns, rows = leaderboard_rows("my.store", tasks=["esc50"])  # doctest: +SKIP
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    wanted = {
        "task": known_tasks(opened, tasks),
        "encoder": choose_encoders(opened, encoders) if encoders else [],
        "probe": list(probes),
        "protocol": list(protocols),
    }
    table = opened.sql(
        """
        select * from leaderboard
        where (len($task) = 0 or list_contains($task, task)) and (len($encoder) = 0 or list_contains($encoder, encoder))
          and (len($probe) = 0 or list_contains($probe, probe)) and (len($protocol) = 0 or list_contains($protocol, protocol))
        order by task, protocol, probe, score desc
        """,
        wanted,
    )
    return table.column_names, [tuple(row.values()) for row in table.to_pylist()]
