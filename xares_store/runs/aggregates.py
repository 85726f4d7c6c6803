"""A store's scores of a whole suite: per task, normalised, and averaged.

What is averaged was made alike: one encoder, one probe and version, one protocol, one change of settings. Scores that
differ in one of these are lines of their own.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xares_store.catalog import load_tasks
from xares_store.errors import ConfigError
from xares_store.probes.probe import PROBES
from xares_store.protocol import PROTOCOLS
from xares_store.runs.features import choose_encoders
from xares_store.runs.published import published_lines
from xares_store.runs.request import make_request, plain_settings, probes_for
from xares_store.runs.suite import STORE, TABLES, Line, SuiteReport, TaskScore, averages_of, normalised, scored_with
from xares_store.store.store import Store
from xares_store.task import Task

_SCORES = """
    select r.encoder, r.task, r.task_address, r.probe, r.probe_version, r.protocol, r.settings::varchar as settings,
           r.main_metric as metric, r.details->>'$.metric_version' as metric_version, r.parts_digest, avg(s.value) as score,
           avg(s.low) as low, avg(s.high) as high, count(*) as n_seeds, stddev_samp(s.value) as seed_sd,
           max(r.n_test) as n_test, max(r.n_dropped) as n_dropped, sum(r.seconds) as seconds, max(r.started) as started
    from scores s join runs r using (run_id)
    where s.fold is null and s.metric = r.main_metric and r."where" is null and list_contains($task, r.task)
      and (len($encoder) = 0 or list_contains($encoder, r.encoder))
      and (len($probe) = 0 or list_contains($probe, r.probe))
      and (len($protocol) = 0 or list_contains($protocol, r.protocol))
    group by all
    order by r.encoder, r.probe, r.protocol, started desc, r.parts_digest
"""
Row = dict[str, Any]


def suite_report(
    store: str | Path | Store,
    suite: str | os.PathLike[str] | Task | Sequence[str | os.PathLike[str] | Task] = "xares",
    *,
    encoders: Sequence[str] = (),
    probes: Sequence[str] = (),
    protocols: Sequence[str] = (),
    published: bool = False,
) -> SuiteReport:
    """Return per-task scores, normalised scores and averages of a suite.

    Only scores over all test clips (no ``where``) of the tasks as the suite defines them count. A line is one encoder,
    probe, protocol and change of settings; nothing is averaged across lines.

    Args:
        store: folder of the store, or an open store.
        suite: a suite, a task, a task file, or several of them.
        encoders, probes, protocols: names to keep; empty keeps all.
        published: add the printed scores of the X-ARES tables, marked with their source.

    Returns:
        Lines with their averages, and notes that name what is missing.

    Raises:
        TaskError: no such suite or task, or a task file does not validate.
        ConfigError: no such encoder in the store, or no task was named.
        StoreError: there is no such store.

    Example:
        >>> report = suite_report("my.store", "xares", probes=["knn"])          # doctest: +SKIP
        >>> average = report.lines[0].averages[0]                               # doctest: +SKIP
        >>> average.value, average.weights, average.partial, average.missing    # doctest: +SKIP
        (0.71, 'test-size', True, ('voxceleb1',))
    """
    specs = [suite] if isinstance(suite, str | os.PathLike | Task) else list(suite)
    tasks = load_tasks(specs)
    if not tasks:
        raise ConfigError("Expected at least one suite or task, found none.", hint="Name one, for example xares.")
    opened = store if isinstance(store, Store) else Store.open(store)
    wanted = {
        "task": [task.name for task in tasks],
        "encoder": choose_encoders(opened, encoders) if encoders else [],
        "probe": list(probes),
        "protocol": list(protocols),
    }
    if "mlp" in probes:  # the table of trained probes
        wanted["probe"] += [probe for probe in PROBES if TABLES.get(probe) == "mlp"]
    notes: list[str] = []
    rows = _of_these_definitions(opened.sql(_SCORES, wanted).to_pylist(), tasks, notes)
    lines = _lines(rows, tasks, notes)
    if not lines:
        notes.append("The store has no score of these tasks; `xares evaluate` makes them.")
    ours = tuple(lines)
    if published:
        printed = published_lines(tasks, probes=probes)
        lines += _beside(ours, printed)
        notes += _about_published(printed)
    name = ", ".join(spec.name if isinstance(spec, Task) else Path(spec).stem for spec in specs)
    return SuiteReport(name, tuple(tasks), tuple(lines), notes)


def _of_these_definitions(rows: list[Row], tasks: Sequence[Task], notes: list[str]) -> list[Row]:
    """Keep scores of the tasks as the suite defines them; name the others."""
    address = {task.name: task.address for task in tasks}
    others: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["task_address"] != address[row["task"]]:
            others[row["task"]].add(row["task_address"])
    for task, found in others.items():
        notes.append(
            f"{task}: scores of another definition ({', '.join(sorted(found))}) do not count; this suite means "
            f"{address[task]}. Evaluate it again."
        )
    return [row for row in rows if row["task_address"] == address[row["task"]]]


def _lines(rows: list[Row], tasks: Sequence[Task], notes: list[str]) -> list[Line]:
    groups: defaultdict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        probe, version = str(row["probe"]), str(row["probe_version"])
        current = probe in PROBES and version == PROBES[probe].version
        groups[row["encoder"], TABLES.get(probe) or probe, row["protocol"], "" if current else version].append(row)
    named = {task.name: task for task in tasks}
    lines: list[Line] = []
    for (encoder, probe, protocol, version), members in groups.items():
        apart = {"probe_version": version} if version else {}
        for change, chosen in _alike(members, named, probe, protocol, notes):
            scores = {name: _task_score(named[name], alike[0]) for name, alike in chosen.items()}
            line = Line(
                source=STORE,
                encoder=encoder,
                probe=probe,
                protocol=protocol,
                settings={**change, **apart},
                scores=tuple(scores[task.name] for task in tasks if task.name in scores),
                averages=averages_of(scored_with(tasks, probe), scores),
            )
            notes += _about_line(line, chosen)
            lines.append(line)
    return lines


def _alike(
    rows: list[Row], tasks: Mapping[str, Task], probe: str, protocol: str, notes: list[str]
) -> list[tuple[dict[str, Any], dict[str, list[Row]]]]:
    """Sort scores by how their settings differ from the task files'.

    Task files differ in their settings, so what makes scores alike is the change that was asked for (``k: 3``), not the
    settings that came of it. A task whose own settings are the changed ones belongs to the change as well.

    Returns:
        Each change with the scores by task, the newest first.
    """
    own = {name: _own_settings(task, probe, protocol) for name, task in tasks.items()}
    given = [(row, _given_settings(row)) for row in rows]
    changes: list[dict[str, Any]] = []
    for row, settings in given:
        change = {name: value for name, value in settings.items() if own[row["task"]].get(name) != value}
        if change not in changes:
            changes.append(change)
    # One command may change two settings, of which one task file has the first and another the second already.
    joined = [one | other for one in changes for other in changes if all(other.get(n, v) == v for n, v in one.items())]
    changes += [change for index, change in enumerate(joined) if change not in changes and change not in joined[:index]]
    members: list[tuple[dict[str, Any], set[int]]] = [
        (change, {index for index, (row, settings) in enumerate(given) if settings == own[row["task"]] | change})
        for change in changes
    ]
    for index in sorted(set(range(len(rows))).difference(*(indices for _, indices in members))):
        row = rows[index]
        notes.append(
            f"{row['encoder']} {probe} {protocol}: a score of {row['task']} does not count, its settings are not those of this "
            f"version of the probe: {row['settings']}. Evaluate it again."
        )
    found: list[tuple[dict[str, Any], dict[str, list[Row]]]] = []
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


def _given_settings(row: Row) -> dict[str, Any]:
    """Return a score's settings; the text side that is its protocol's own is no change."""
    settings: dict[str, Any] = json.loads(row["settings"])
    if row["probe"] == "retrieval":
        settings.pop("loss", None)
        if settings.get("text", {}).get("own"):
            del settings["text"]
    return settings


def _task_score(task: Task, row: Row) -> TaskScore:
    return TaskScore(
        task=task.name,
        domain=task.domain,
        metric=row["metric"],
        score=row["score"],
        normalised=normalised(task, row["score"]),
        low=row["low"],
        high=row["high"],
        n_seeds=row["n_seeds"],
        seed_sd=row["seed_sd"],
        n_test=row["n_test"],
        n_dropped=row["n_dropped"],
        published_weight=task.published.weight,
        seconds=row["seconds"],
        started=row["started"],
        dataset_revision=task.fingerprint,
    )


def _about_line(line: Line, chosen: Mapping[str, list[Row]]) -> list[str]:
    what = f"{line.encoder} {line.probe} {line.protocol}" + (f" ({line.label})" if line.label else "")
    notes = []
    overall = line.averages[0]
    if overall.partial:
        notes.append(
            f"{what}: partial averages, {overall.n_tasks} of {overall.of_tasks} tasks. Missing: {', '.join(overall.missing)}."
        )
    unweighted = [score.task for score in line.scores if score.published_weight is None]
    if unweighted:
        notes.append(
            f"{what}: no published weight for {', '.join(unweighted)}; the average with published weights is partial."
        )
    for task, alike in chosen.items():
        if len(alike) > 1:
            notes.append(
                f"{what}: {task} has {len(alike)} scores, over other embeddings or by another version of the metric; "
                "the newest counts."
            )
    seeds = {score.n_seeds or 0 for score in line.scores}
    if len(seeds) > 1:
        notes.append(f"{what}: tasks have {min(seeds)} to {max(seeds)} seeds.")
    return notes


def _beside(ours: Sequence[Line], printed: Sequence[Line]) -> list[Line]:
    """Order printed lines so that those of an encoder that the store has come first."""
    mine = {re.split(r"[^a-z0-9]", line.encoder.lower())[0] for line in ours}
    return sorted(printed, key=lambda line: line.encoder.lower() not in mine)


def _about_published(printed: Sequence[Line]) -> list[str]:
    notes = [
        f"published: as printed in {source}, not measured here; the rules were those of --protocol published, and test sizes "
        "are not printed."
        for source in dict.fromkeys(line.source for line in printed)
    ]
    for line in printed:
        if line.printed:
            values = ", ".join(
                f"{value:.3f} {name.partition('(')[2].rstrip(')') or name}" for name, value, _ in line.printed
            )
            footnotes = "; ".join(dict.fromkeys(footnote for *_, footnote in line.printed if footnote))
            notes.append(
                f"{line.encoder} {line.probe}, {line.source}: weighted average as printed, over its own tasks: {values}"
                + (f" ({footnotes})." if footnotes else ".")
            )
    return notes
