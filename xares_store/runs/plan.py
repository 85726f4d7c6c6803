"""Which tasks and shards phase one works on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xares_store.audio.shards import Shard, find_shards
from xares_store.catalog import iter_shipped, load_tasks
from xares_store.errors import ShardError
from xares_store.task import Task


def select_tasks(
    specs: Sequence[str | Task], data: Path
) -> tuple[list[tuple[Task, list[Shard]]], list[tuple[str, str]]]:
    """Load the tasks and find their shards.

    Args:
        specs: names of tasks or suites, paths of task files, or tasks. Empty: every shipped task whose shards are in the data root.
        data: the data root.

    Returns:
        Pairs of task and shards, and pairs (name, reason) of tasks left out: only private tasks of a suite are, when
        something was asked for.

    Raises:
        TaskError: a task is unknown, does not validate, or shares its name with another one.
        ShardError: a task asked for has no shards, or no shipped task has any.
    """
    named = {spec.name if isinstance(spec, Task) else Path(spec).stem for spec in specs}
    found: list[tuple[Task, list[Shard]]] = []
    left_out: list[tuple[str, str]] = []
    missing: list[tuple[Task, ShardError]] = []
    for task in load_tasks(specs) if specs else iter_shipped():
        try:
            found.append((task, _flat(find_shards(task, data))))
        except ShardError as error:
            if specs and not (task.private and task.name not in named):
                missing.append((task, error))
                continue
            left_out.append((task.name, error.message))
    if len(missing) == 1:
        raise missing[0][1]
    if missing:
        names = [task.name for task, _ in missing]
        raise ShardError(
            f"No audio shards of {len(names)} tasks: {', '.join(names)}.",
            where=data,
            hint=f"Get them with `xares fetch {' '.join(names[:3])}{' ...' if len(names) > 3 else ''} --data {data}`, or name "
            "no task: everything whose audio is there is embedded then.",
        )
    if not found:
        raise ShardError(
            "No task has audio shards in the data root.",
            where=data,
            hint="Point --data or XARES_DATA_HOME at the folder that holds one folder a task, or name a task file: "
            "--task path/to/task.toml.",
        )
    return found, left_out


def _flat(shards: Mapping[str, Iterable[Shard]]) -> list[Shard]:
    return [shard for group in shards.values() for shard in group]
