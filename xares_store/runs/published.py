"""Scores printed in papers and READMEs, as lines beside those of a store.

``tasks/published_scores.csv`` is read-only data: one row a printed number with its source. Printed numbers are shown
with that source and never enter an average together with a store's own scores.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from xares_store.catalog import data_dir
from xares_store.runs.suite import Line, TaskScore, averages_of, normalised, scored_with
from xares_store.runs.weights import Weights
from xares_store.task import Task

FILE = "published_scores.csv"
# As the tables of each benchmark print them: probes, with what their settings are, and metrics.
_PROBE_NAMES: Mapping[str, Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "X-ARES": {"MLP": ("mlp", {}), "kNN": ("knn", {})},
    "XARES-LLM": {
        "LLM, task1 config": ("llm", {"mixture": "task1"}),
        "LLM, task2 config": ("llm", {"mixture": "task2"}),
    },
}
_METRIC_NAMES: Mapping[str, Mapping[str, str]] = {
    "X-ARES": {
        "accuracy": "accuracy",
        "mAP": "map",
        "segmentf1_macro": "segment_f1_macro",
        "segmentf1_micro": "segment_f1_micro",
        "recallatk_r1": "recall_at_1",
        "WER_inv": "iwer",
    },
    "XARES-LLM": {
        "Accuracy": "string_accuracy",
        "mAP": "string_map",
        "iWER": "iwer",
        "iCER": "icer",
        "FENSE": "fense",
        "DATE": "date",
    },
}
_AVERAGES = ("weighted average", "plain mean")


@dataclass(frozen=True)
class PublishedScore:
    """One printed number.

    Attributes:
        source: paper or README, with its revision where it has one.
        benchmark: ``X-ARES``, ``XARES-LLM``, ...
        probe, encoder, task, metric: as printed.
        score: as printed; X-ARES and XARES-LLM 0 to 1, others percent.
        footnote: what the reader of the number should know.
    """

    source: str
    benchmark: str
    probe: str
    encoder: str
    task: str
    metric: str
    score: float
    footnote: str


@cache
def published_scores() -> tuple[PublishedScore, ...]:
    """Return every printed number that ships, in the order of the file.

    Example:
        >>> len(published_scores())
        525
    """
    with (data_dir("tasks") / FILE).open(encoding="utf-8", newline="") as stream:
        return tuple(
            PublishedScore(
                row["source"],
                row["benchmark"],
                row["probe"],
                row["encoder"],
                row["task"],
                row["metric"],
                float(row["score"]),
                row["footnote"],
            )
            for row in csv.DictReader(stream)
        )


def published_lines(tasks: Sequence[Task], *, probes: Sequence[str] = (), weights: Weights | None = None) -> list[Line]:
    """Return the published X-ARES and XARES-LLM scores of some tasks: a line a source, probe, settings and encoder.

    A task is found by the name under which tables print it (``published.result_name`` of its file). Test sizes are not
    printed, so only the averages with published weights exist. The two tracks of XARES-LLM come from two trainings and
    are lines of their own.

    Args:
        tasks: tasks of a suite.
        probes: ``mlp``, ``knn``, ``llm``; empty means all.
        weights: of the caller's own, for one more average.

    Returns:
        Lines with at least one of the tasks, in the order of the file.

    Example:
        >>> from xares_store.catalog import load_tasks
        >>> line = published_lines(load_tasks(["xares"]), probes=["knn"])[0]
        >>> line.encoder, line.source, len(line.scores)
        ('dasheng', 'X-ARES README (161f0ef)', 20)
        >>> line = published_lines(load_tasks(["task1"]))[0]
        >>> line.encoder, line.label, round(line.averages[0].value, 4)
        ('Dasheng-Base', 'mixture: task1', 0.6141)
    """
    named = {task.published.result_name: task for task in tasks if task.published.result_name}
    found: dict[tuple[str, str, str, str], dict[str, TaskScore]] = {}
    printed: dict[tuple[str, str, str, str], list[tuple[str, float, str]]] = {}
    for row in published_scores():
        probe, _ = _PROBE_NAMES.get(row.benchmark, {}).get(row.probe, ("", {}))
        if not probe or (probes and probe not in probes):
            continue
        key = (row.source, row.benchmark, row.probe, row.encoder)
        if row.metric in _AVERAGES:
            printed.setdefault(key, []).append((row.task, row.score, row.footnote))
            continue
        task = named.get(row.task)
        if task is not None and _METRIC_NAMES[row.benchmark].get(row.metric) == task.metric.name:
            # Where a table prints two values for a task, the corrected one follows the one that it replaces.
            found.setdefault(key, {})[task.name] = _task_score(task, row)
    lines: list[Line] = []
    for key, scores in found.items():
        source, benchmark, label, encoder = key
        probe, settings = _PROBE_NAMES[benchmark][label]
        averages = averages_of(scored_with(tasks, probe), scores, weightings=("published",), weights=weights)
        lines.append(
            Line(
                source=source,
                encoder=encoder,
                probe=probe,
                protocol=None,
                settings=settings,
                scores=tuple(scores[task.name] for task in tasks if task.name in scores),
                averages=averages,
                printed=tuple(printed.get(key, ())),
            )
        )
    return lines


def _task_score(task: Task, row: PublishedScore) -> TaskScore:
    return TaskScore(
        task=task.name,
        domain=task.domain,
        metric=task.metric.name,
        score=row.score,
        normalised=normalised(task, row.score),
        published_weight=task.published.weight,
    )
