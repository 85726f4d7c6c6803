"""Find and load task files: those that ship, and any a user writes."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from xares_store.errors import TaskError, TaskNotFoundError, did_you_mean
from xares_store.recipe import Recipe
from xares_store.task import Task

_SUITES = "suites.toml"
_RECIPES = "recipes"


def data_dir(kind: Literal["tasks", "schema"]) -> Path:
    """Return the folder of shipped files: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "data" / kind
    return installed if installed.is_dir() else package.parent / kind


@cache
def _shipped() -> dict[str, Path]:
    files = sorted(data_dir("tasks").rglob("*.toml"))
    return {file.stem: file for file in files if file.name != _SUITES and file.parent.name != _RECIPES}


def task_names() -> list[str]:
    """Return the names of all shipped tasks, sorted."""
    return sorted(_shipped())


def task_path(name: str) -> Path:
    """Return the file of a shipped task.

    Raises:
        TaskNotFoundError: no task of that name ships.
    """
    try:
        return _shipped()[name]
    except KeyError:
        raise _not_found(name) from None


def iter_shipped() -> Iterator[Task]:
    """Load all shipped tasks in the order of their names."""
    for name in task_names():
        yield Task.from_toml(_shipped()[name])


@cache
def _suites() -> dict[str, tuple[str, ...]]:
    path = data_dir("tasks") / _SUITES
    with path.open("rb") as stream:
        return {name: tuple(members) for name, members in tomllib.load(stream)["suites"].items()}


def suites() -> dict[str, list[str]]:
    """Return the shipped suites: names of tasks by name of the suite.

    Example:
        >>> len(suites()["xares"])
        27
    """
    return {name: list(members) for name, members in _suites().items()}


def recipe_names() -> list[str]:
    """Return the names of all shipped recipes, sorted."""
    return sorted(file.stem for file in (data_dir("tasks") / _RECIPES).glob("*.toml"))


def load_recipe(spec: str | os.PathLike[str]) -> Recipe:
    """Load one recipe of the LLM-projector probe.

    Args:
        spec: name of a shipped recipe, or path of a ``.toml`` file.

    Raises:
        TaskNotFoundError: neither a shipped name nor a file; the message suggests near names.
        TaskError: the file does not validate.
    """
    text = os.fspath(spec)
    if text in recipe_names():
        return Recipe.from_toml(data_dir("tasks") / _RECIPES / f"{text}.toml")
    if text.endswith(".toml"):
        return Recipe.from_toml(text)
    raise TaskNotFoundError(
        f'There is no recipe called "{text}".',
        hint=did_you_mean(
            text,
            recipe_names(),
            listing="There are: " + ", ".join(recipe_names()) + "; or give the path of a .toml file.",
        ),
    )


def load_task(spec: str | os.PathLike[str]) -> Task:
    """Load one task.

    Args:
        spec: name of a shipped task, or path of a ``.toml`` file.

    Raises:
        TaskNotFoundError: neither a shipped name nor a file; the message suggests near names.
        TaskError: the file does not validate.

    Example:
        >>> load_task("esc50").title
        'ESC-50'
    """
    text = os.fspath(spec)
    if text in _shipped():
        return Task.from_toml(_shipped()[text])
    if text.endswith(".toml") or "/" in text or os.sep in text:
        return Task.from_toml(text)
    raise _not_found(text)


def load_tasks(specs: Iterable[str | os.PathLike[str] | Task]) -> list[Task]:
    """Load several tasks; a name may also be that of a suite. A task named twice is loaded once.

    Args:
        specs: names of tasks or suites, paths of task files, or tasks, which are taken as they are.

    Raises:
        TaskNotFoundError: a name is neither a task, nor a suite, nor a file.
        TaskError: a file does not validate, or two different tasks have the same name.
    """
    found: dict[str, Task] = {}
    for spec in specs:
        members: Iterable[str | Task] = (spec,) if isinstance(spec, Task) else _members(os.fspath(spec))
        for member in members:
            task = member if isinstance(member, Task) else load_task(member)
            other = found.setdefault(task.name, task)
            if other.fingerprint != task.fingerprint:
                raise TaskError(
                    f'Two different tasks are called "{task.name}": {task.address} and {other.address}.',
                    hint="Give one of them another name.",
                )
    return list(found.values())


def _members(name: str) -> tuple[str, ...]:
    return (name,) if name in _shipped() else _suites().get(name, (name,))


def _not_found(name: str) -> TaskNotFoundError:
    suggestion = did_you_mean(name, [*task_names(), *_suites()])
    return TaskNotFoundError(
        f'There is no task called "{name}".',
        hint=f"{suggestion} `xares tasks ls` lists all names; a task file of your own is given by its path, "
        f"for example ./{Path(name).name or 'mine'}.toml.".strip(),
    )
