"""Weights of one's own for the average over a suite: those of a challenge's committee, or of a paper."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xares_store.errors import ConfigError, TaskError, did_you_mean
from xares_store.validation import read_text

TABLE = "weights"
GIVEN = "given"
OPTION = "--weights"
_TAKEN = ("test-size", "published")


@dataclass(frozen=True)
class Weights:
    """How much each task counts in an average.

    Attributes:
        name: by which the average is called.
        of_task: 0 or more, by name of the task.
    """

    name: str
    of_task: Mapping[str, float]


def read_weights(source: str | os.PathLike[str] | Mapping[str, float], tasks: Sequence[str]) -> Weights:
    """Read weights and check them against the tasks of a suite.

    Args:
        source: a TOML file with one table, ``[weights]``, of numbers by task; its stem is the name. Or a mapping, whose
            name is ``given``.
        tasks: names of the tasks of the suite; not each needs a weight.

    Raises:
        ConfigError: the file cannot be read or has something else, a task is none of the suite, a weight is no number
            of at least 0, or no weight is above 0.

    Example:
        >>> read_weights({"llm-mecat": 3, "llm-clotho": 1}, ["llm-clotho", "llm-mecat"]).of_task
        {'llm-mecat': 3.0, 'llm-clotho': 1.0}
    """
    if isinstance(source, Mapping):
        name, where, found = GIVEN, OPTION, dict(source)
    else:
        path = Path(source)
        name, where, found = path.stem, str(path), _table(path)
    if name in _TAKEN:
        raise ConfigError(
            f'"{name}" is the name of an average that is there already.',
            where=where,
            hint="Give the file another name.",
        )
    for task, weight in found.items():
        if task not in tasks:
            raise ConfigError(
                f'"{task}" is no task of this suite.',
                where=where,
                hint=did_you_mean(task, tasks, listing="Its tasks: " + ", ".join(tasks) + "."),
            )
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise ConfigError(f"Wanted a weight of at least 0 for {task}, found {weight!r}.", where=where)
    if not any(found.values()):
        raise ConfigError("Wanted at least one weight above 0, found none.", where=where)
    return Weights(name, {task: float(weight) for task, weight in found.items()})


def _table(path: Path) -> dict[str, float]:
    try:
        content = tomllib.loads(read_text(path))
    except TaskError as error:
        raise ConfigError(error.message, where=OPTION) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"Not valid TOML: {error}.", where=path) from None
    table = content.get(TABLE)
    if set(content) != {TABLE} or not isinstance(table, dict):
        raise ConfigError(
            f"Wanted one table called [{TABLE}], found {', '.join(content) or 'nothing'}.",
            where=path,
            hint=f"Write [{TABLE}] and below it a line a task, for example llm-mecat = 3.0.",
        )
    return table
