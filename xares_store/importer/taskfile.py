"""The task file of an import: settings that fit the kind of target, validated before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from xares_store.importer.columns import Roles
from xares_store.importer.options import Options
from xares_store.importer.records import CAPTIONS_KEY, EVENTS_KEY, GROUP_KEY
from xares_store.task import POOL_SPLIT, Task

INLINED = 100  # labels; more go into a file beside the task file
_LEARNING_RATES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
_METRICS: dict[str, dict[str, Any]] = {
    "single-label": {"name": "accuracy", "also": ["macro_accuracy", "macro_f1"]},
    "multi-label": {"name": "map", "also": ["macro_f1", "micro_f1", "auroc"]},
    "events": {"name": "segment_f1_macro", "segment_s": 1.0, "also": ["segment_f1_micro", "event_f1", "onset_f1", "frame_map"]},
    "captions": {"name": "recall_at_1", "also": ["recall_at_5", "recall_at_10", "map_at_10"]},
    "regression": {"name": "pearson", "also": ["mse", "mae"]},
    "transcript": {"name": "iwer", "also": ["icer"]},
}  # fmt: skip
_PROBES: dict[str, dict[str, Any]] = {
    "single-label": {"mlp": {"epochs": 20, "learning_rates": _LEARNING_RATES}},
    "multi-label": {"mlp": {"epochs": 20, "learning_rates": _LEARNING_RATES}},
    "regression": {"mlp": {"epochs": 20, "learning_rates": _LEARNING_RATES}},
    "events": {"frame": {"epochs": 20, "batch_size": 16, "learning_rates": [1e-3, 1e-2]}},
    "captions": {"retrieval": {"epochs": 20}},
    "transcript": {},
}


def task_text(
    options: Options,
    roles: Roles,
    labels: Sequence[str],
    patterns: Mapping[str, Sequence[str]],
    *,
    folds: bool,
    inline: bool,
) -> str:
    """Return the text of the task file.

    Args:
        options: name, title, domain, crop.
        roles: kind and keys of the target.
        labels: class names in class order; empty for kinds without classes.
        patterns: shard patterns by split or fold; or by ``all`` for a set that is not divided yet.
        folds: whether the splits are folds.
        inline: write the labels into the file, however many they are.

    Raises:
        TaskError: it would not validate; the message names the keys.
    """
    target: dict[str, Any] = {"kind": roles.kind, "key": _key(roles)}
    if labels:
        file = vocabulary_file(options, labels)
        target |= {"labels": list(labels)} if inline or file is None else {"vocabulary": file}
    group = GROUP_KEY if options.group_pattern else roles.group
    if group is not None:
        target["group_key"] = group
    scheme = "pool" if POOL_SPLIT in patterns else "folds" if folds else "splits"
    data: dict[str, Any] = {name: list(group) for name, group in patterns.items()}
    content: dict[str, Any] = {
        "format": 1,
        "name": options.name,
        "title": options.title or options.name,
        "domain": options.domain,
        **({"description": options.description} if options.description else {}),
        "data": {"folder": options.name, scheme: data[POOL_SPLIT] if scheme == "pool" else data},
        **({"audio": {"crop_s": float(options.crop_s)}} if options.crop_s is not None else {}),
        "target": target,
        "metric": _METRICS[roles.kind],
        **({"probe": _PROBES[roles.kind]} if _PROBES[roles.kind] else {}),
    }
    text = tomli_w.dumps(content)
    if "labels" in target or not labels:
        Task.from_text(text, where=f"{options.name}.toml", base=None)
    return text


def vocabulary_file(options: Options, labels: Sequence[str]) -> str | None:
    """Return the name of the file that holds the labels, or None when they stand in the task file."""
    return f"{options.name}-labels.txt" if len(labels) > INLINED else None


def _key(roles: Roles) -> str:
    return {"events": EVENTS_KEY, "captions": CAPTIONS_KEY}.get(roles.kind, roles.labels[0])
