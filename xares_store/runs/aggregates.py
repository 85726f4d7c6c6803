"""A store's scores of a whole suite: per task, normalised, and averaged.

What is averaged was made alike: one encoder, one probe and version, one protocol, one change of settings. Scores that
differ in one of these are lines of their own.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from xares_store.catalog import load_tasks
from xares_store.errors import ConfigError
from xares_store.probes.probe import PROBES
from xares_store.runs.alike import Row, alike
from xares_store.runs.features import choose_encoders
from xares_store.runs.published import published_lines
from xares_store.runs.suite import STORE, Line, SuiteReport, TaskScore, averages_of, normalised, scored_with, table_of
from xares_store.runs.weights import Weights, read_weights
from xares_store.store.store import Store
from xares_store.task import Task

# The name of a training holds its seed, and trainings of one seed may differ in what the other tasks were: the newest
# of each seed counts.
_SCORES = """
    with found as (
        select r.encoder, r.task, r.task_address, r.probe, r.probe_version, r.protocol, r.seed, r.n_test, r.n_dropped, r.seconds,
               json_merge_patch(r.settings, '{"training": null}')::varchar as settings, r.main_metric as metric,
               r.details->>'$.metric_version' as metric_version, r.parts_digest, s.value, s.low, s.high, r.started
        from scores s join runs r using (run_id)
        where s.fold is null and s.metric = r.main_metric and r."where" is null and list_contains($task, r.task)
          and (len($encoder) = 0 or list_contains($encoder, r.encoder))
          and (len($probe) = 0 or list_contains($probe, r.probe))
          and (len($protocol) = 0 or list_contains($protocol, r.protocol))
    ), newest as (
        from found
        qualify 1 = row_number() over (
            partition by encoder, task_address, probe, probe_version, protocol, settings, metric_version, parts_digest, seed
            order by started desc
        )
    )
    select encoder, task, task_address, probe, probe_version, protocol, settings, metric, metric_version, parts_digest,
           avg(value) as score, avg(low) as low, avg(high) as high, count(*) as n_seeds, stddev_samp(value) as seed_sd,
           max(n_test) as n_test, max(n_dropped) as n_dropped, sum(seconds) as seconds, max(started) as started
    from newest
    group by all
    order by encoder, probe, protocol, started desc, parts_digest
"""


def suite_report(
    store: str | Path | Store,
    suite: str | os.PathLike[str] | Task | Sequence[str | os.PathLike[str] | Task] = "xares",
    *,
    encoders: Sequence[str] = (),
    probes: Sequence[str] = (),
    protocols: Sequence[str] = (),
    published: bool = False,
    weights: str | Path | Mapping[str, float] | None = None,
) -> SuiteReport:
    """Return per-task scores, normalised scores and averages of a suite.

    Only scores over all test clips (no ``where``) of the tasks as the suite defines them count. A line is one encoder,
    probe, protocol and change of settings; nothing is averaged across lines.

    Args:
        store: folder of the store, or an open store.
        suite: a suite, a task, a task file, or several of them.
        encoders, probes, protocols: names to keep; empty keeps all.
        published: add the printed scores of the X-ARES and XARES-LLM tables, marked with their source.
        weights: weights of your own, for one more average of every line: a TOML file with a table ``[weights]``, after
            which the average is named, or a mapping (``given``). A task without a weight does not count in it.

    Returns:
        Lines with their averages, and notes that name what is missing.

    Raises:
        TaskError: no such suite or task, or a task file does not validate.
        ConfigError: no such encoder in the store, no task was named, or the weights cannot be used.
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
    own = None if weights is None else read_weights(weights, [task.name for task in tasks])
    opened = store if isinstance(store, Store) else Store.open(store)
    wanted = {
        "task": [task.name for task in tasks],
        "encoder": choose_encoders(opened, encoders) if encoders else [],
        "probe": list(probes),
        "protocol": list(protocols),
    }
    if "mlp" in probes:  # the table of trained probes
        wanted["probe"] += [probe for probe in PROBES if table_of(probe, tasks) == "mlp"]
    notes: list[str] = []
    rows = _of_these_definitions(opened.sql(_SCORES, wanted).to_pylist(), tasks, notes)
    lines = _lines(rows, tasks, own, notes)
    if not lines:
        notes.append("The store has no score of these tasks; `xares evaluate` makes them.")
    if own is not None and (without := [task.name for task in tasks if task.name not in own.of_task]):
        notes.append(f"{own.name}: no weight for {', '.join(without)}, which do not count in its averages.")
    ours = tuple(lines)
    if published:
        printed = published_lines(tasks, probes=probes, weights=own)
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


def _lines(rows: list[Row], tasks: Sequence[Task], weights: Weights | None, notes: list[str]) -> list[Line]:
    groups: defaultdict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        probe, version = str(row["probe"]), str(row["probe_version"])
        current = probe in PROBES and version == PROBES[probe].version
        table = table_of(probe, tasks)
        groups[row["encoder"], table, row["protocol"], "" if current else version].append(row)
    named = {task.name: task for task in tasks}
    lines: list[Line] = []
    for (encoder, probe, protocol, version), members in groups.items():
        apart = {"probe_version": version} if version else {}
        for change, chosen in alike(members, named, probe, protocol, notes):
            scores = {name: _task_score(named[name], newest) for name, (newest, *_) in chosen.items()}
            line = Line(
                source=STORE,
                encoder=encoder,
                probe=probe,
                protocol=protocol,
                settings={**change, **apart},
                scores=tuple(scores[task.name] for task in tasks if task.name in scores),
                averages=averages_of(scored_with(tasks, probe), scores, weights=weights),
            )
            notes += _about_line(line, chosen)
            lines.append(line)
    return lines


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
    for task, rows in chosen.items():
        if len(rows) > 1:
            notes.append(
                f"{what}: {task} has {len(rows)} scores, over other embeddings or by another version of the metric; "
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
            what = f"{line.encoder} {line.probe}" + (f" ({line.label})" if line.label else "")
            notes.append(
                f"{what}, {line.source}: average as printed, over its own tasks: {values}"
                + (f" ({footnotes})." if footnotes else ".")
            )
    return notes
