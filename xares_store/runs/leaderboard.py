"""The scores in a store as rows: the view ``leaderboard``, filtered, or a suite with its averages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from xares_store.errors import ConfigError
from xares_store.runs.aggregates import suite_report
from xares_store.runs.features import choose_encoders, known_tasks
from xares_store.store.store import Store
from xares_store.task import Task


def leaderboard_rows(
    store: str | Path | Store,
    *,
    tasks: Sequence[str] = (),
    encoders: Sequence[str] = (),
    probes: Sequence[str] = (),
    protocols: Sequence[str] = (),
    suite: str | os.PathLike[str] | Task | Sequence[str | os.PathLike[str] | Task] | None = None,
    published: bool = False,
    weights: str | Path | Mapping[str, float] | None = None,
) -> tuple[list[str], list[tuple[object, ...]]]:
    """Return the leaderboard of a store: columns and rows, by task and then best first.

    Args:
        store: folder of the store, or an open store.
        tasks, encoders, probes, protocols: names to keep; empty keeps all.
        suite: a suite, a task file, or several: return the rows of
            :meth:`~xares_store.runs.suite.SuiteReport.rows` instead, task scores and their averages.
        published: with a suite, add the printed scores of the X-ARES and XARES-LLM tables, marked with their source.
        weights: with a suite, weights of your own for one more average: a TOML file with a table ``[weights]`` of numbers
            by task, or a mapping.

    Raises:
        TaskError, ConfigError: the store has no such task or encoder, there is no such suite, or arguments exclude each
            other.

    Example:
        >>> columns, rows = leaderboard_rows("my.store", tasks=["esc50"])  # doctest: +SKIP
        >>> columns, rows = leaderboard_rows("my.store", suite="xares")    # doctest: +SKIP
    """
    if suite is not None:
        if tasks:
            raise ConfigError(
                "A suite says which tasks count; tasks cannot be given beside it.", hint="Leave one away."
            )
        report = suite_report(
            store, suite, encoders=encoders, probes=probes, protocols=protocols, published=published, weights=weights
        )
        return report.rows()
    if published:
        raise ConfigError("Published scores are shown beside those of a suite.", hint='Add suite="xares".')
    if weights is not None:
        raise ConfigError("Weights are for the average over a suite.", hint='Add suite="task1".')
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
