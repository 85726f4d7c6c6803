"""Which scores of a suite were made alike, so that they may be averaged: by what a command changed in their settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from xares_store.catalog import load_recipe, recipe_names
from xares_store.fingerprint import fingerprint, short
from xares_store.probes.probe import PROBES
from xares_store.protocol import PROTOCOLS
from xares_store.runs.llm.options import CAPTION_METRICS, RECIPE_OF_KIND
from xares_store.runs.request import make_request, plain_settings, probes_for
from xares_store.task import Task

Row = dict[str, Any]
Change = dict[str, Any]
# Settings of a run of llm that a line says by other means, or that change no score of the main metric.
_SAID_OTHERWISE = ("definition", "decoder_identity", "shares", "training", "score_labels")
_LLM_ALONE = ("recipe", "decoder", "mixture", "captions", "stride", "stride_mode", "precision", "max_steps")


def alike(
    rows: list[Row], tasks: Mapping[str, Task], probe: str, protocol: str, notes: list[str]
) -> list[tuple[Change, dict[str, list[Row]]]]:
    """Sort scores by how their settings differ from the task files' and the recipes'.

    Task files differ in their settings, so what makes scores alike is the change that was asked for (``k: 3``), not the
    settings that came of it. A task whose own settings are the changed ones belongs to the change as well, and so does
    one whose probe knows no such setting.

    Args:
        rows: scores of one encoder, table and protocol, the newest first.
        tasks: of the suite, by name.
        probe: name of the table.
        protocol: of all of them.
        notes: gets a sentence for every score that does not count.

    Returns:
        Each change with the scores by task, the newest first.
    """
    own = {row["task"]: _own_settings(tasks[row["task"]], probe, protocol) for row in rows if row["probe"] != "llm"}
    newest: dict[str, str] = {}
    given = [(row, _given_settings(row, tasks[row["task"]], newest)) for row in rows]

    def base(row: Row) -> dict[str, Any]:
        return {} if row["probe"] == "llm" else own[row["task"]]

    changes: list[Change] = []
    for row, settings in given:
        change = {name: value for name, value in settings.items() if base(row).get(name) != value}
        if change not in changes:
            changes.append(change)
    # One command may change two settings, of which one task file has the first and another the second already.
    joined = [one | other for one in changes for other in changes if all(other.get(n, v) == v for n, v in one.items())]
    changes += [change for index, change in enumerate(joined) if change not in changes and change not in joined[:index]]
    members: list[tuple[Change, set[int]]] = [
        (
            change,
            {
                index
                for index, (row, settings) in enumerate(given)
                if settings == base(row) | _known_to(row, tasks[row["task"]], change)
            },
        )
        for change in changes
    ]
    for index in sorted(set(range(len(rows))).difference(*(indices for _, indices in members))):
        row = rows[index]
        notes.append(
            f"{row['encoder']} {probe} {protocol}: a score of {row['task']} does not count, its settings are not those of this "
            f"version of the probe: {row['settings']}. Evaluate it again."
        )
    found: list[tuple[Change, dict[str, list[Row]]]] = []
    seen: list[set[int]] = []
    for change, indices in members:
        if not indices or indices in seen or any(indices < other for _, other in members):
            continue
        seen.append(indices)
        by_task: dict[str, list[Row]] = {}
        for index in sorted(indices):  # in the order of the query: the newest first
            by_task.setdefault(rows[index]["task"], []).append(rows[index])
        found.append((change, by_task))
    return sorted(found, key=lambda one: (len(one[0]), str(one[0])))


def _own_settings(task: Task, probe: str, protocol: str) -> dict[str, Any]:
    if probe not in PROBES or protocol not in PROTOCOLS:  # a store of a newer version
        return {}
    request = make_request([probe], 1, None, None, None, None, None, None, protocol, device="cpu")
    fitting = probes_for(task, request)
    return plain_settings(task, fitting[0], request) if fitting else {}


def _given_settings(row: Row, task: Task, newest: dict[str, str]) -> dict[str, Any]:
    """Return a score's settings; the text side that is its protocol's own is no change."""
    settings: dict[str, Any] = json.loads(row["settings"])
    if row["probe"] == "retrieval":
        settings.pop("loss", None)
        if settings.get("text", {}).get("own"):
            del settings["text"]
    return _llm_change(settings, task, str(row["metric"]), newest) if row["probe"] == "llm" else settings


def _llm_change(settings: dict[str, Any], task: Task, metric: str, newest: dict[str, str]) -> Change:
    """Return what a training of a language model changed: its settings but for what the recipe says.

    Args:
        settings: of the run.
        task: that was scored.
        metric: as the score is called: with the names of models in brackets where they are stand-ins.
        newest: digest of each model by what it is called, as the newest score has it; filled here. Scores of other
            files under the same name are lines of their own.
    """
    change = {name: value for name, value in settings.items() if name not in _SAID_OTHERWISE}
    if "learning_rate" in change:  # as the other probes spell it
        change["learning_rates"] = [change.pop("learning_rate")]
    recipe, definition = str(settings.get("recipe")), str(settings.get("definition"))
    shipped = load_recipe(recipe) if recipe in recipe_names() else None
    if shipped is None or not shipped.fingerprint.startswith(definition):
        change["recipe"] = f"{recipe}@{short(definition)}"
    elif recipe == RECIPE_OF_KIND.get(task.target.kind):
        del change["recipe"]
    if shipped is not None and change.get("decoder") == shipped.decoder:
        del change["decoder"]
    mixture = settings.get("mixture")
    if mixture == task.name:  # trained alone
        del change["mixture"]
    elif shipped is None or mixture not in shipped.mixtures:
        change["mixture"] = f"{mixture} ({short(fingerprint(settings.get('shares') or {}))})"
    stand_ins = metric.partition("[")[2].removesuffix("]")
    change.pop("captions", None)
    if stand_ins:
        change["captions"] = stand_ins
    models = {
        "decoder": (settings.get("decoder"), "decoder_identity"),
        "captions": (stand_ins or "published", "captions"),
    }
    for key, (name, identity) in models.items():
        if identity in settings:
            digest = short(fingerprint(settings[identity]))
            if newest.setdefault(f"{key} {name}", digest) != digest:
                change[key] = f"{name}@{digest}"
    return change


def _known_to(row: Row, task: Task, change: Change) -> Change:
    """Return the part of a change that means something to the probe of a score."""
    if row["probe"] != "llm":
        return {name: value for name, value in change.items() if name not in _LLM_ALONE}
    if CAPTION_METRICS & set(task.metric.names):
        return change
    return {name: value for name, value in change.items() if name != "captions"}
