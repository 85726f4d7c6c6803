"""``xares tasks`` and ``xares demo-data``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from xares_store.cli.common import console, emit, format_options
from xares_store.errors import TaskError, XaresError


@click.group()
def tasks() -> None:
    """List, show and check tasks."""


@tasks.command("ls")
@click.option(
    "--domain",
    type=click.Choice(["speech", "environment", "music", "other"], case_sensitive=False),
    help="Only tasks of this domain.",
)
@format_options
def list_tasks(domain: str | None, fmt: str) -> None:
    """List the tasks that ship."""
    from xares_store.catalog import iter_shipped, suites

    members = suites()
    rows: list[list[object]] = []
    for task in iter_shipped():
        if domain is None or task.domain == domain:
            inside = " ".join(name for name, names in members.items() if task.name in names)
            target = [task.target.kind, len(task.labels) or None]
            rows.append([task.name, task.domain, *target, task.metric.name, _scheme(task), task.private, inside])
    emit(["task", "domain", "target", "classes", "metric", "evaluation", "private", "suites"], rows, fmt=fmt)


@tasks.command("show")
@click.argument("name")
@click.option("--toml", "as_toml", is_flag=True, help="Print a self-contained task file to start your own from.")
@format_options
def show_task(name: str, as_toml: bool, fmt: str) -> None:
    """Show one task: NAME is that of a shipped task or the path of a task file."""
    from xares_store.catalog import load_task
    from xares_store.measures import probe_settings

    task = load_task(name)
    if as_toml:
        click.echo(task.to_toml(), nl=False)
        return
    facts: dict[str, object] = {
        "name": task.name,
        "title": task.title,
        "description": task.description or None,
        "domain": task.domain,
        "private": "yes" if task.private else "no",
        "folder": task.folder,
        "zenodo": task.data.zenodo,
        "hf": task.data.hf,
        "evaluation": _scheme(task),
        **{f"shards of {split}": " ".join(patterns) for split, patterns in task.split_patterns().items()},
        "crop_s": task.audio.crop_s,
        "tail": task.audio.tail if task.audio.crop_s is not None else None,
        "target": _target(task),
        "prompt": getattr(task.target, "prompt", None),
        "answers": _answers(task),
        "group": task.target.group_key,
        "classes": len(task.labels) or None,
        "labels": list(task.labels) if fmt == "json" else _some(task.labels),
        "metric": task.metric.name,
        "further metrics": " ".join(task.metric.also or ()) or None,
        "segment_s": task.metric.segment_s,
        "n_classes": task.metric.n_classes,
        **{
            name: settings.model_dump(mode="json")
            for name, settings in probe_settings(task.probe, task.target.kind).items()
        },
        "published weight": task.published.weight,
        "task address": task.address,
        "audio address": task.audio_address,
    }
    if fmt == "json":
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    # As text, because one number would make the table align all values to the right.
    rows = [[key, str(value) if isinstance(value, int | float) else value] for key, value in facts.items()]
    emit(["key", "value"], rows, fmt=fmt)


@tasks.command("validate")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate_tasks(paths: tuple[Path, ...]) -> None:
    """Check task files. PATHS are files, or folders whose .toml files are all checked."""
    failed = 0
    files = [file for path in paths for file in _files(path)]
    for file in files:
        try:
            click.echo(f"{file}: valid, {_summary(file)}")
        except XaresError as error:
            failed += 1
            console.print(str(error), style="red", markup=False, highlight=False)
    if failed:
        raise TaskError(f"{failed} of {len(files)} task files do not validate.")


@tasks.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of task files, for editors."""
    click.echo(schema_text(), nl=False)


@click.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--clips", type=click.IntRange(min=20), default=480, show_default=True, help="Number of clips.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, other sounds.")
def demo_data(folder: Path, clips: int, seed: int) -> None:
    """Write a small labelled set of synthetic sounds and its task file into FOLDER."""
    from xares_store.demo import generate

    task = generate(folder, clips=clips, seed=seed)
    click.echo(task)
    console.print(f"{clips} clips. Next: xares embed --encoder logmel --task {task} --data {folder}", highlight=False)


def schema_text() -> str:
    """Return the JSON Schema of task files, as ``schema/task.schema.json`` holds it."""
    from xares_store.task import Task

    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Task.model_json_schema(),
    }
    schema["title"] = "Task file of xares-store"
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(
        file for file in path.rglob("*.toml") if file.name != "suites.toml" and file.parent.name != "recipes"
    )
    if not found:
        raise TaskError("Wanted task files, found no .toml file in the folder.", where=path)
    return found


def _summary(file: Path) -> str:
    from xares_store.task import Task

    task = Task.from_toml(file)
    classes = f", {len(task.labels)} classes" if task.labels else ""
    return f"{task.target.kind}{classes}, {_scheme(task)}, {task.address}"


def _target(task: Any) -> str:
    named = _named(getattr(task.target, "keys", None) or (task.target.key,))
    in_test = _named(getattr(task.target, "test_keys", None) or ())
    text = f"{task.target.kind}, JSON key {named}" if named else str(task.target.kind)
    return f"{text}, in test {in_test}" if in_test else text


def _named(keys: Sequence[str | None]) -> str:
    return " or ".join(f'"{key}"' for key in keys if key)


def _answers(task: Any) -> str | None:
    """Say what a language model may answer; None for targets that none writes."""
    if not hasattr(task.target, "prompt"):
        return None
    if not getattr(task.target, "closed", False):
        return "any text"
    several = task.target.separator
    return f'labels, divided by "{several}"' if several else "a label"


def _scheme(task: Any) -> str:
    if task.data.folds is not None:
        return f"{len(task.data.folds)} folds"
    if task.data.pool is not None:
        return "pool"
    return "/".join(task.split_patterns())


def _some(labels: tuple[str, ...], most: int = 12) -> str:
    return ", ".join(labels[:most]) + (", ..." if len(labels) > most else "")
