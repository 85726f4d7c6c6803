"""A suite's scores as lines: one encoder, probe, protocol and settings each, with its averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from xares_store.kinds import PROBES_OF_KIND
from xares_store.metrics.aggregate import normalised_score, weighted_average
from xares_store.metrics.registry import metric_for
from xares_store.runs.weights import Weights
from xares_store.task import Task

DOMAINS = ("speech", "environment", "music", "other")
WEIGHTINGS = ("test-size", "published")
STORE = "store"
COLUMNS = (
    "kind", "name", "domain", "encoder", "probe", "protocol", "settings", "source", "weights", "metric", "score",
    "normalised", "low", "high", "n_seeds", "seed_sd", "n_test", "n_dropped", "published_weight", "n_tasks", "of_tasks",
    "partial", "missing", "footnote",
)  # fmt: skip


@dataclass(frozen=True)
class TaskScore:
    """The score of one task.

    Attributes:
        task, domain, metric: names.
        score: mean over seeds of the main metric.
        normalised: the same from 0 (worst) to 1 (best); what averages are made of.
        low, high: 95 % interval over test clips; None for a printed score.
        n_seeds, seed_sd: seeds and the standard deviation over them.
        n_test, n_dropped: scored test items, and samples that have no embedding.
        published_weight: hand-set weight of the published tables; None when the task file has none.
        seconds, started, dataset_revision: time of all seeds, start of the newest, fingerprint of the task definition.
    """

    task: str
    domain: str
    metric: str
    score: float
    normalised: float
    low: float | None = None
    high: float | None = None
    n_seeds: int | None = None
    seed_sd: float | None = None
    n_test: int | None = None
    n_dropped: int | None = None
    published_weight: float | None = None
    seconds: float | None = None
    started: str | None = None
    dataset_revision: str | None = None


@dataclass(frozen=True)
class Average:
    """A weighted average of normalised scores.

    Attributes:
        scope: ``all`` or a domain.
        weights: ``test-size`` (counted test items), ``published`` (constants of the published tables), or the name of
            weights of the caller's own.
        value: None when no task counts.
        n_tasks, of_tasks: tasks that count, and tasks of the scope.
        missing: names of the tasks that do not count.
    """

    scope: str
    weights: str
    value: float | None
    n_tasks: int
    of_tasks: int
    missing: tuple[str, ...]

    @property
    def partial(self) -> bool:
        """Whether a task of the scope is missing."""
        return bool(self.missing)


@dataclass(frozen=True)
class Line:
    """Everything one encoder scored with one probe, protocol and settings.

    Attributes:
        source: ``store``, or where the numbers were printed.
        encoder: address in the store, or the name as printed.
        probe: name of the probe.
        protocol: ``strict`` or ``published``; None for printed numbers.
        settings: how the probe's settings differ from those of the task files.
        scores: a score a task, in the order of the suite.
        averages: over all tasks, then by domain, each with every weighting.
        printed: averages as printed: (name, value, footnote).
    """

    source: str
    encoder: str
    probe: str
    protocol: str | None
    settings: Mapping[str, Any]
    scores: tuple[TaskScore, ...]
    averages: tuple[Average, ...]
    printed: tuple[tuple[str, float, str], ...] = ()

    @property
    def label(self) -> str:
        """The settings in words; empty for those of the task files."""
        return ", ".join(f"{name}: {value}" for name, value in self.settings.items())


@dataclass(frozen=True)
class SuiteReport:
    """What :func:`~xares_store.runs.aggregates.suite_report` found.

    Attributes:
        suite: name of the suite, or the names given.
        tasks: its tasks, in order.
        lines: lines of the store, then published ones.
        notes: what a reader of the numbers should know, in sentences.
    """

    suite: str
    tasks: tuple[Task, ...]
    lines: tuple[Line, ...]
    notes: list[str] = field(default_factory=list)

    def rows(self) -> tuple[list[str], list[tuple[object, ...]]]:
        """Return everything as one long table: columns, and a row a task score (``kind`` task), a computed average
        (average) and an average as printed (printed).
        """
        records = [record for line in self.lines for record in _records(line)]
        return list(COLUMNS), [tuple(record.get(name) for name in COLUMNS) for record in records]


def _records(line: Line) -> list[dict[str, object]]:
    same: dict[str, object] = {
        "encoder": line.encoder,
        "probe": line.probe,
        "protocol": line.protocol,
        "settings": dict(line.settings),
        "source": line.source,
    }
    records: list[dict[str, object]] = [
        {**same, **asdict(score), "kind": "task", "name": score.task} for score in line.scores
    ]
    records += [
        {
            **same,
            "kind": "average",
            "name": average.scope,
            "domain": None if average.scope == "all" else average.scope,
            "weights": average.weights,
            "normalised": average.value,
            "n_tasks": average.n_tasks,
            "of_tasks": average.of_tasks,
            "partial": average.partial,
            "missing": list(average.missing),
        }
        for average in line.averages
    ]
    records += [
        {**same, "kind": "printed", "name": name, "weights": "published", "normalised": value, "footnote": footnote}
        for name, value, footnote in line.printed
    ]
    return records


def table_of(probe: str, tasks: Sequence[Task]) -> str:
    """Return the name of the table in which a probe's scores of a suite stand.

    As in the published tables: the trained probe of any kind of task stands in the one called ``mlp``, and ``llm`` has
    a table of its own where all tasks are for it.

    Example:
        >>> from xares_store.catalog import load_tasks
        >>> table_of("llm", load_tasks(["xares"])), table_of("llm", load_tasks(["task1"]))
        ('mlp', 'llm')
    """
    if probe in ("mlp", "frame", "retrieval"):
        return "mlp"
    others = any(PROBES_OF_KIND[task.target.kind][0] != "llm" for task in tasks)
    return "mlp" if probe == "llm" and others else probe


def scored_with(tasks: Sequence[Task], probe: str) -> list[Task]:
    """Return the tasks that a line of this probe can have scores of.

    A line of ``knn`` leaves out tasks without single labels and those that the published tables have no k-NN of.
    """
    if probe != "knn":
        return list(tasks)
    return [task for task in tasks if "knn" in PROBES_OF_KIND[task.target.kind] and task.published.knn is not False]


def normalised(task: Task, score: float) -> float:
    """Map a score of the task's main metric to 0 (worst) to 1 (best).

    Where the task file has to say the worst value (an error has no bound), anything beyond it counts as 0.

    Example:
        >>> from xares_store.catalog import load_task
        >>> normalised(load_task("speechocean762"), 4.0)  # a squared error of 100 counts as 0
        0.96
    """
    metric = metric_for(task.metric.name)
    if task.metric.worst is None:
        return normalised_score(score, worst=metric.worst, best=metric.best)
    return max(0.0, normalised_score(score, worst=task.metric.worst, best=metric.best))


def averages_of(
    tasks: Sequence[Task],
    scores: Mapping[str, TaskScore],
    *,
    weightings: Sequence[str] = WEIGHTINGS,
    weights: Weights | None = None,
) -> tuple[Average, ...]:
    """Average normalised scores over all tasks and over each domain.

    Args:
        tasks: every task of the suite, also those without a score.
        scores: by name of the task.
        weightings: ``test-size``, ``published`` or both. A task without a weight does not count and is missing.
        weights: of the caller's own, for one more weighting.

    Returns:
        For each scope (``all``, then the domains that the suite has) one average a weighting.
    """
    scopes = {"all": list(tasks)} | {
        domain: members for domain in DOMAINS if (members := [task for task in tasks if task.domain == domain])
    }
    found: list[Average] = []
    named = [*weightings, *([] if weights is None else [weights.name])]
    for scope, members in scopes.items():
        for name in named:
            weighted = {
                task.name: (scores[task.name].normalised, weight)
                for task in members
                if task.name in scores and (weight := _weight(scores[task.name], name, weights)) is not None
            }
            value = weighted_average([v for v, _ in weighted.values()], [w for _, w in weighted.values()])
            found.append(
                Average(
                    scope=scope,
                    weights=name,
                    value=value if any(weight for _, weight in weighted.values()) else None,
                    n_tasks=len(weighted),
                    of_tasks=len(members),
                    missing=tuple(task.name for task in members if task.name not in weighted),
                )
            )
    return tuple(found)


def _weight(score: TaskScore, name: str, own: Weights | None) -> float | None:
    if name in WEIGHTINGS:
        return score.n_test if name == "test-size" else score.published_weight
    return None if own is None else own.of_task.get(score.task)
