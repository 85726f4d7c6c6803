"""``xares recipes``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xares_store.cli.common import console, emit, format_options
from xares_store.errors import TaskError, XaresError

if TYPE_CHECKING:
    from xares_store.recipe import Recipe

LS = ("recipe", "decoder", "projector", "lora", "optimiser", "length", "models", "mixtures")


@click.group()
def recipes() -> None:
    """List, show and check recipes of the LLM-projector probe."""


@recipes.command("ls")
@format_options
def list_recipes(fmt: str) -> None:
    """List the recipes that ship."""
    from xares_store.catalog import load_recipe, recipe_names

    rows = [_row(load_recipe(name)) for name in recipe_names()]
    emit(LS, rows, fmt=fmt)


@recipes.command("show")
@click.argument("name")
@click.option("--toml", "as_toml", is_flag=True, help="Print a whole recipe file to start your own from.")
@format_options
def show_recipe(name: str, as_toml: bool, fmt: str) -> None:
    """Show one recipe: NAME is that of a shipped recipe or the path of a recipe file.

    The shares of a mixture add up to 1; the settings it is made of stand in the file.
    """
    from xares_store.catalog import load_recipe

    if as_toml and fmt != "table":
        raise click.UsageError(f"--toml and --{fmt} are two formats; give one of them.")
    recipe = load_recipe(name)
    content = recipe.model_dump(mode="json", exclude_none=True)
    if as_toml:
        import tomli_w

        click.echo(tomli_w.dumps(content), nl=False)
        return
    content["mixtures"] = {
        mixture: {"steps": own.steps, "shares": own.shares()} for mixture, own in recipe.mixtures.items()
    }
    content["fingerprint"] = recipe.fingerprint
    if fmt == "json":
        click.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    # As text, because one number would make the table align all values to the right.
    rows = [
        [key, f"{value:.6f}" if ".shares." in key else str(value) if isinstance(value, int | float) else value]
        for key, value in _flat(content)
    ]
    emit(["key", "value"], rows, fmt=fmt)


@recipes.command("validate")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate_recipes(paths: tuple[Path, ...]) -> None:
    """Check recipe files. PATHS are files, or folders whose .toml files are all checked."""
    from xares_store.recipe import Recipe

    failed = 0
    files = [file for path in paths for file in _files(path)]
    for file in files:
        try:
            recipe = Recipe.from_toml(file)
            click.echo(f"{file}: valid, {recipe.decoder}, {_length(recipe)}, {recipe.name}@{recipe.fingerprint[:8]}")
        except XaresError as error:
            failed += 1
            console.print(str(error), style="red", markup=False, highlight=False)
    if failed:
        raise TaskError(f"{failed} of {len(files)} recipe files do not validate.")


@recipes.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of recipe files, for editors."""
    click.echo(schema_text(), nl=False)


def schema_text() -> str:
    """Return the JSON Schema of recipe files, as ``schema/recipe.schema.json`` holds it."""
    from xares_store.recipe import Recipe

    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
    }
    schema["title"] = "Recipe file of xares-store"
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _row(recipe: Recipe) -> list[object]:
    projector, lora, optimiser = recipe.projector, recipe.lora, recipe.optimiser
    stride = f", {projector.combine} {projector.stride}" if projector.stride > 1 else ""
    return [
        recipe.name,
        recipe.decoder,
        projector.kind + stride,
        None if lora is None else f"r {lora.r}, alpha {lora.alpha}",
        f"{optimiser.name} {optimiser.learning_rate:g}",
        _length(recipe),
        "one for all tasks" if recipe.joint else "one a task",
        " ".join(recipe.mixtures) or None,
    ]


def _length(recipe: Recipe) -> str:
    training = recipe.training
    return f"{training.epochs} epochs" if training.epochs is not None else f"{training.steps} steps"


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found.append((prefix + key, value))
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.toml"))
    if not found:
        raise TaskError("Wanted recipe files, found no .toml file in the folder.", where=path)
    return found
