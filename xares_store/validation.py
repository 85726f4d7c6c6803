"""Reading of task files, and validation errors as sentences that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from xares_store.errors import TaskError, TaskNotFoundError, did_you_mean
from xares_store.kinds import METRICS_OF_KIND

MAX_BYTES = 16 << 20  # bounded, because a path may name anything

Location = tuple[int | str, ...]
KINDS = frozenset(METRICS_OF_KIND)


def read_text(path: Path) -> str:
    """Read a task file or vocabulary.

    Raises:
        TaskNotFoundError: there is no such file.
        TaskError: it cannot be read, is not UTF-8, or is larger than 16 MiB.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TaskError(f"{path}: larger than {MAX_BYTES >> 20} MiB.", hint="Is this a task file?")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise TaskNotFoundError(
            f"{path}: there is no such file.", hint="`xares tasks ls` lists the tasks that ship."
        ) from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text (byte {error.start}).", hint="Save it as UTF-8.") from None
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}.") from None


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Say every problem as ``key: what was wanted, what was found``.

    Args:
        error: what validating against ``model`` raised.
        model: the outermost model; its fields give the suggestions for unknown keys.
    """
    items: list[Any] = list(error.errors(include_url=False))
    # A container with a wrong item is reported as too short as well; the item says it better.
    causes = [item for item in items if not any(_inside(other["loc"], item["loc"]) for other in items)]
    return [_problem(item, model) for item in causes]


def _known_keys(location: Location, root: type[BaseModel]) -> list[str]:
    models: list[Any] = [root]
    for part in location:
        if len(models) > 1:  # a union: the location names the member by its kind
            models = [model for model in models if part in get_args(model.model_fields["kind"].annotation)]
            continue
        field = models[0].model_fields.get(part) if models else None
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return list(models[0].model_fields) if len(models) == 1 else []


def _inside(inner: Location, outer: Location) -> bool:
    return len(outer) < len(inner) and inner[: len(outer)] == outer and outer != ()


def _problem(item: Any, model: type[BaseModel]) -> str:
    """Turn one pydantic error into a sentence."""
    location = tuple(part for part in item["loc"] if part != "[key]")
    # pydantic puts the kind of a union's member into the location; the file has no such level.
    key = ".".join(
        str(part)
        for index, part in enumerate(location)
        if not (index == 1 and location[0] == "target" and part in KINDS)
    )
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "union_tag_invalid":
        found = str(item["ctx"]["tag"])
        return f'{key}.kind: no such kind "{found}". {did_you_mean(found, sorted(KINDS), listing="Kinds: " + ", ".join(METRICS_OF_KIND) + ".")}'
    if item["type"] == "union_tag_not_found":
        return f"{key}.kind: missing. Kinds: {', '.join(METRICS_OF_KIND)}."
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], model)
        listing = f"Known keys: {', '.join(known)}." if known else ""
        return f"{key}: unknown key. {did_you_mean(str(location[-1]), known, listing=listing)}"
    if item["type"] == "missing":
        return f"{key}: missing."
    if item["type"] == "value_error":
        return f"{key}: {message}." if key else f"{message}."
    found = repr(item.get("input"))
    return f"{key}: {message[0].lower()}{message[1:]}, found {found if len(found) < 80 else found[:77] + '...'}."
