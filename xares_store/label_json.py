"""Reading the JSON beside a clip: values by key, as a vocabulary writes them, and errors that name clip, key and value."""

from __future__ import annotations

import json
import math
from typing import Any

from xares_store.errors import LabelError, did_you_mean
from xares_store.kinds import SingleLabel
from xares_store.task import Task


def parse(text: str, clip_id: str) -> Any:
    """Return what a clip's JSON text says.

    Raises:
        LabelError: it is not valid JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabelError(
            f"The clip's label is not valid JSON: {error}.", where=f"clip {clip_id}", hint="Repair the audio shard."
        ) from None


def value_of(text: str, key: str, clip_id: str) -> Any:
    """Return the value under a key of a clip's JSON object.

    Raises:
        LabelError: it is no object, or has no such key.
    """
    content = parse(text, clip_id)
    if not isinstance(content, dict):
        raise LabelError(f"Wanted a JSON object beside the audio, found {show(content)}.", where=f"clip {clip_id}")
    return member(content, key, clip_id)


def member(content: dict[str, Any], key: str, clip_id: str) -> Any:
    """Return the value under a key.

    Raises:
        LabelError: there is no such key; the message lists those there are.
    """
    try:
        return content[key]
    except KeyError:
        known = sorted(content)
        raise LabelError(
            f'Wanted the key "{key}" in the clip\'s JSON, found {", ".join(known) or "no keys"}.',
            where=f"clip {clip_id}",
            hint=did_you_mean(key, known, listing="Correct target.key (or group_key) in the task file."),
        ) from None


def as_number(value: Any) -> float | None:
    """Return a finite number, also one written as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def malformed(wanted: str, found: Any, task: Task, clip_id: str, key: str | None) -> LabelError:
    """Make the error for a value of the wrong shape."""
    return LabelError(
        f"Wanted {wanted}, found {show(found)}.",
        where=f"clip {clip_id}, " + (f'key "{key}", ' if key is not None else "") + f"task {task.name}",
        hint="Correct the JSON beside the audio, or [target] in the task file.",
    )


def encodable(text: str, task: Task, clip_id: str, key: str) -> str:
    """Return a text that can be written down: JSON may hold halves of characters (``"\\ud83d"``), which cannot.

    Raises:
        LabelError: it holds one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LabelError(
            f"Wanted text, found half of a character at place {error.start}: {text[error.start]!a}.",
            where=f'clip {clip_id}, key "{key}", task {task.name}',
            hint="Correct the JSON beside the audio: an escaped character outside the basic plane takes two escapes.",
        ) from None
    return text


def as_text(value: Any) -> str | None:
    """Return a value as a vocabulary writes it, or None when it cannot stand for one class."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else None


def as_index(value: Any, n_classes: int) -> int | None:
    """Return a class index, also one written as text, or None when it is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    return int(value) if isinstance(value, int) and 0 <= value < n_classes else None


def unknown(task: Task, value: Any, clip_id: str, key: str | None = None) -> LabelError:
    """Make the error for a label that the task does not have."""
    target = task.target
    named = key if key is not None else getattr(target, "key", None)
    where = f'clip {clip_id}, key "{named}", task {task.name}'
    if isinstance(value, list | dict | float) or value is None:
        return LabelError(
            f"Wanted one label for the clip, found {show(value)}.",
            where=where,
            hint="A single-label task needs text or a whole number there.",
        )
    if isinstance(target, SingleLabel) and target.encoding == "index":
        return LabelError(
            f"Wanted a class index from 0 to {len(task.labels) - 1}, found {show(value)}.",
            where=where,
            hint='Say target.encoding = "label" in the task file if the JSON holds the label itself.',
        )
    listing = f"Known labels: {', '.join(task.labels[:10])}{', ...' if len(task.labels) > 10 else ''}."
    return LabelError(
        f"Unknown label {show(value)}: it is none of the task's {len(task.labels)} labels.",
        where=where,
        hint=did_you_mean(str(value), task.labels, listing=listing),
    )


def show(value: Any) -> str:
    """Return a value as JSON, cut to 80 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
