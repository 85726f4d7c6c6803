"""Are two encoders different? Paired tests over stored per-clip predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xares_store.errors import ConfigError
from xares_store.metrics.registry import metric_for, metric_names
from xares_store.metrics.statistics import Interval, PairedTest, bootstrap_interval, holm, paired_permutation_test
from xares_store.runs.features import choose_encoders, known_tasks, task_named
from xares_store.runs.paired import paired_runs
from xares_store.store.store import Store

# Scores of embeddings or probe versions that were replaced since do not count. A main metric may carry the names of
# stand-in models, "fense[...]": only equal names are compared.
_NEWEST = """
with newest as (
  select run_id, encoder, task, task_address as definition, probe, protocol, cast(settings as varchar) as settings,
         coalesce("where", '') as restriction, seed, main_metric, split_part(main_metric, '[', 1) as metric from runs
  where encoder in ($a, $b)
  qualify row_number() over (
    partition by encoder, task_address, probe, protocol, cast(settings as varchar), "where", seed
    order by started desc, run_id) = 1
)
"""
# One row a test item: its value (a hit, a squared error), as a mean over the seeds of a run group. The same folds hold
# the same items for every encoder, because splits depend on the task's definition alone; runs of another definition are
# a group of their own.
_PAIRS = """
, items as (
  select r.task, r.definition, r.probe, r.protocol, r.settings, r.restriction, r.main_metric, p.fold, p.split, p.clip_id,
         r.encoder, avg(coalesce(p.value, p.correct::int)) as value
  from predictions p join newest r using (run_id)
  where list_contains($item_metrics, r.metric)
  group by all
)
select a.task, a.definition, a.probe, a.protocol, a.settings, a.restriction, a.main_metric, a.fold, a.value as a,
       b.value as b
from items a
join items b using (task, definition, probe, protocol, settings, restriction, main_metric, fold, split, clip_id)
where a.encoder = $a and b.encoder = $b
order by a.task, a.definition, a.probe, a.protocol, a.settings, a.restriction, a.main_metric, a.fold, a.split, a.clip_id
"""
_WHOLE = """
select r.task, r.definition, r.probe, r.protocol, r.settings, r.restriction, r.main_metric, r.encoder,
       list(r.run_id order by r.seed, r.run_id) as run_ids, avg(s.value) as score
from newest r join scores s using (run_id)
where not list_contains($item_metrics, r.metric) and s.fold is null and s.metric = r.main_metric
group by all
order by all
"""
_KEY = ("task", "definition", "probe", "protocol", "settings", "restriction", "main_metric")


@dataclass(frozen=True)
class Comparison:
    """One task on which two encoders were compared.

    Attributes:
        task_address: the definition of the task, ``name@fp8``.
        metric: its main metric, as it is stored.
        a, b: score of either encoder by the task's main metric, a mean over folds and seeds.
        difference: ``a - b``; ``low``, ``high``: its 95 % bootstrap interval over test items, for metrics that are means
            over items.
        p: two-sided p-value of the paired permutation test; ``p_holm``: corrected for the number of rows. Where a metric
            is no mean over items (mAP, F1, iWER), the test swaps the two encoders' predictions of a clip. None for a metric
            whose predictions are not stored in a form that can be swapped.
        n: paired test items.
    """

    task: str
    task_address: str
    probe: str
    protocol: str
    settings: str
    where: str
    metric: str
    n: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None


def compare(
    store: str | Path | Store, encoder_a: str, encoder_b: str, *, tasks: Sequence[str] = (), probes: Sequence[str] = ()
) -> list[Comparison]:
    """Compare two encoders task by task on the predictions a store holds.

    Args:
        store: folder of the store, or an open store.
        encoder_a, encoder_b: encoder names or addresses.
        tasks, probes: restrict to these; empty means all that both encoders were evaluated on.

    Returns:
        A row a task, probe, protocol and settings that both have predictions for.

    Raises:
        ConfigError: an encoder is unknown or ambiguous, or there is nothing to compare.
        TaskError: the store has no such task.

    Reference:
        Paired sign-flip permutation test; Holm, A simple sequentially rejective multiple test procedure, 1979.

    Example:
        >>> [row.p for row in compare("my.store", "modspec", "logmel")]  # doctest: +SKIP
        [0.0003]
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    a, b = (_one(opened, name) for name in (encoder_a, encoder_b))
    if a == b:
        raise ConfigError(f'Two different encoders are needed, found "{a}" twice.', where="xares compare")
    tasks = known_tasks(opened, tasks)
    wanted = {"a": a, "b": b, "item_metrics": [name for name in metric_names() if metric_for(name).per_item]}
    rows = [*_item_rows(opened, wanted, tasks, probes), *_whole_rows(opened, wanted, tasks, probes)]
    if not rows:
        raise ConfigError(
            f'No task has predictions of both "{a}" and "{b}" with the same probe and settings.',
            where=opened.path,
            hint="Run `xares evaluate` with the same options for both.",
        )
    rows.sort(key=lambda row: (row.task, row.task_address, row.probe, row.protocol, row.settings, row.where))
    tested = [row for row in rows if row.p is not None]
    corrected = iter(holm([row.p for row in tested if row.p is not None]))
    return [row if row.p is None else replace(row, p_holm=float(next(corrected))) for row in rows]


def _item_rows(store: Store, wanted: dict[str, Any], tasks: Sequence[str], probes: Sequence[str]) -> list[Comparison]:
    """Compare what is a mean over items."""
    table = store.sql(_NEWEST + _PAIRS, wanted).to_pydict()
    # Rows are ordered by key and fold, so a group is a run of equal keys.
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, (task, probe) in enumerate(zip(table["task"], table["probe"], strict=True)):
        if (not tasks or task in tasks) and (not probes or probe in probes):
            groups.setdefault(tuple(table[name][index] for name in _KEY), []).append(index)
    rows: list[Comparison] = []
    for key, members in groups.items():
        value_a, value_b = (np.asarray([table[name][i] for i in members], dtype=np.float64) for name in ("a", "b"))
        fold = np.asarray([table["fold"][i] for i in members])
        places = [np.flatnonzero(fold == name) for name in dict.fromkeys(fold)]
        mean_a, mean_b = (float(np.mean([value[place].mean() for place in places])) for value in (value_a, value_b))
        interval = bootstrap_interval(value_a - value_b, strata=fold)
        test = paired_permutation_test(value_a, value_b, strata=fold)
        rows.append(_row(key, len(members), mean_a, mean_b, interval, test))
    return rows


def _whole_rows(store: Store, wanted: dict[str, Any], tasks: Sequence[str], probes: Sequence[str]) -> list[Comparison]:
    """Compare what has to be computed over all items at once."""
    sides: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in store.sql(_NEWEST + _WHOLE, wanted).to_pylist():
        if (not tasks or row["task"] in tasks) and (not probes or row["probe"] in probes):
            sides.setdefault(tuple(row[name] for name in _KEY), {})[row["encoder"]] = row
    rows: list[Comparison] = []
    for key, found in sides.items():
        if len(found) < 2:
            continue
        a, b = found[wanted["a"]], found[wanted["b"]]
        n, test = paired_runs(store, task_named(store, key[1]), a["main_metric"], a["run_ids"], b["run_ids"])
        rows.append(_row(key, n, a["score"], b["score"], None, test))
    return rows


def _row(
    key: tuple[str, ...], n: int, a: float, b: float, interval: Interval | None, test: PairedTest | None
) -> Comparison:
    task, definition, probe, protocol, settings, restriction, metric = key
    p = None if test is None else test.p_value
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return Comparison(task, definition, probe, protocol, settings, restriction, metric, n, a, b, a - b, low, high, p, p)


def _one(store: Store, name: str) -> str:
    matches = choose_encoders(store, [name])
    if len(matches) > 1:
        raise ConfigError(
            f'"{name}" is the name of {len(matches)} encoders.',
            where=store.path,
            hint="Use one of " + ", ".join(matches),
        )
    return matches[0]
