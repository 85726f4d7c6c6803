"""From label JSON to targets: class indices and groups, made in phase two from text that was stored verbatim."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xares_store.errors import LabelError, did_you_mean
from xares_store.task import Task


def class_indices(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Turn label JSON into class indices.

    Args:
        task: says which key counts and what its value means.
        labels: the JSON text of each clip, verbatim.
        clip_ids: names of the clips, for messages; as many as ``labels``.

    Returns:
        Indices in 0..len(task.labels)-1, shape ``(clips,)``.

    Raises:
        LabelError: a label that is missing, malformed or unknown; the message names clip, key and value.

    Example:
        >>> from xares_store.catalog import load_task
        >>> class_indices(load_task("esc10"), ['{"label": 3}'], ["a"])
        array([3])
    """
    index_of = {label: index for index, label in enumerate(task.labels)}
    by_index = task.target.encoding == "index"
    key = task.target.key
    indices = np.empty(len(labels), dtype=np.int64)
    seen: dict[str, int] = {}  # crops of one recording repeat its text
    for row, (text, clip_id) in enumerate(zip(labels, clip_ids, strict=True)):
        index = seen.get(text)
        if index is None:
            value = _value(text, key, clip_id)
            index = _index(value, len(index_of)) if by_index else index_of.get(_text(value) or "")
            if index is None:
                raise _unknown(task, value, clip_id)
            seen[text] = index
        indices[row] = index
    return indices


def groups(task: Task, labels: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return what must not be divided between train, validation and test.

    Args:
        task: its ``target.group_key`` names the recording or speaker in the JSON.
        labels: the JSON text of each clip, verbatim.
        keys: the recording key of each clip: its group when the task has no ``group_key``.

    Raises:
        LabelError: the group key is missing from a clip's JSON, or is neither text nor a number.
    """
    key = task.target.group_key
    if key is None:
        return list(keys)
    found: list[str] = []
    for text, clip_id in zip(labels, keys, strict=True):
        value = _value(text, key, clip_id)
        group = _text(value)
        if group is None:
            raise LabelError(
                f'Wanted text or a whole number under "{key}" to group clips by, found {_show(value)}.',
                where=f"clip {clip_id}, task {task.name}",
                hint="Correct target.group_key in the task file.",
            )
        found.append(group)
    return found


def _value(text: str, key: str, clip_id: str) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabelError(
            f"The clip's label is not valid JSON: {error}.", where=f"clip {clip_id}", hint="Repair the audio shard."
        ) from None
    if not isinstance(content, dict):
        raise LabelError(f"Wanted a JSON object beside the audio, found {_show(content)}.", where=f"clip {clip_id}")
    try:
        return content[key]
    except KeyError:
        known = sorted(content)
        raise LabelError(
            f'Wanted the key "{key}" in the clip\'s JSON, found {", ".join(known) or "no keys"}.',
            where=f"clip {clip_id}",
            hint=did_you_mean(key, known, listing="Correct target.key (or group_key) in the task file."),
        ) from None


def _text(value: Any) -> str | None:
    """Return a value as a vocabulary writes it, or None when it cannot stand for one class."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else None


def _index(value: Any, n_classes: int) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    return int(value) if isinstance(value, int) and 0 <= value < n_classes else None


def _unknown(task: Task, value: Any, clip_id: str) -> LabelError:
    where = f'clip {clip_id}, key "{task.target.key}", task {task.name}'
    if isinstance(value, list | dict | float) or value is None:
        return LabelError(
            f"Wanted one label for the clip, found {_show(value)}.",
            where=where,
            hint="A single-label task needs text or a whole number there.",
        )
    if task.target.encoding == "index":
        return LabelError(
            f"Wanted a class index from 0 to {len(task.labels) - 1}, found {_show(value)}.",
            where=where,
            hint='Say target.encoding = "label" in the task file if the JSON holds the label itself.',
        )
    listing = f"Known labels: {', '.join(task.labels[:10])}{', ...' if len(task.labels) > 10 else ''}."
    return LabelError(
        f"Unknown label {_show(value)}: it is none of the task's {len(task.labels)} labels.",
        where=where,
        hint=did_you_mean(str(value), task.labels, listing=listing),
    )


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
