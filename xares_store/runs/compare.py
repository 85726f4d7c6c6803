"""Are two encoders different? Paired tests over stored per-clip predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xares_store.errors import ConfigError
from xares_store.metrics.statistics import bootstrap_interval, holm, paired_permutation_test
from xares_store.runs.features import choose_encoders, known_tasks
from xares_store.store.store import Store

# One row a test item: how often it was right over the seeds of a run group. The same folds hold the same items for
# every encoder, because splits depend on the task's definition alone; runs of another definition are a group of their own.
_PAIRS = """
with newest as (  -- scores of embeddings or probe versions that were replaced since do not count
  select run_id, task_address from runs
  qualify row_number() over (
    partition by encoder, task_address, probe, protocol, cast(settings as varchar), "where", seed
    order by started desc, run_id) = 1
), items as (
  select p.task, r.task_address as definition, p.probe, p.protocol, cast(p.settings as varchar) as settings,
         coalesce(p."where", '') as restriction, p.fold, p.split, p.clip_id, p.encoder, avg(p.correct::int) as value
  from predictions p join newest r using (run_id)
  where p.encoder in ($a, $b)
  group by all
)
select a.task, a.definition, a.probe, a.protocol, a.settings, a.restriction, a.fold, a.value as a, b.value as b
from items a join items b using (task, definition, probe, protocol, settings, restriction, fold, split, clip_id)
where a.encoder = $a and b.encoder = $b
order by a.task, a.definition, a.probe, a.protocol, a.settings, a.restriction, a.fold, a.split, a.clip_id
"""
_KEY = ("task", "definition", "probe", "protocol", "settings", "restriction")


@dataclass(frozen=True)
class Comparison:
    """One task on which two encoders were compared.

    Attributes:
        task_address: the definition of the task, ``name@fp8``.
        a, b: mean score of either encoder, over folds, 0 to 1.
        difference: ``a - b``; ``low``, ``high``: its 95 % bootstrap interval over test items.
        p: two-sided p-value of the paired permutation test; ``p_holm``: corrected for the number of rows.
        n: paired test items.
    """

    task: str
    task_address: str
    probe: str
    protocol: str
    settings: str
    where: str
    n: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


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
    known_tasks(opened, tasks)
    table = opened.sql(_PAIRS, {"a": a, "b": b}).to_pydict()
    keep = [
        (not tasks or task in tasks) and (not probes or probe in probes)
        for task, probe in zip(table["task"], table["probe"], strict=True)
    ]
    if not any(keep):
        raise ConfigError(
            f'No task has predictions of both "{a}" and "{b}" with the same probe and settings.',
            where=opened.path,
            hint="Run `xares evaluate` with the same options for both.",
        )
    # Rows are ordered by key and fold, so a group is a run of equal keys.
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in (row for row, kept in enumerate(keep) if kept):
        groups.setdefault(tuple(table[name][index] for name in _KEY), []).append(index)
    rows: list[Comparison] = []
    for (task, definition, probe, protocol, settings, restriction), members in groups.items():
        value_a, value_b = (np.asarray([table[name][i] for i in members], dtype=np.float64) for name in ("a", "b"))
        fold = np.asarray([table["fold"][i] for i in members])
        places = [np.flatnonzero(fold == name) for name in dict.fromkeys(fold)]
        mean_a, mean_b = (float(np.mean([value[place].mean() for place in places])) for value in (value_a, value_b))
        interval = bootstrap_interval(value_a - value_b, strata=fold)
        test = paired_permutation_test(value_a, value_b, strata=fold)
        rows.append(
            Comparison(
                task=task,
                task_address=definition,
                probe=probe,
                protocol=protocol,
                settings=settings,
                where=restriction,
                n=len(members),
                a=mean_a,
                b=mean_b,
                difference=mean_a - mean_b,
                low=interval.low,
                high=interval.high,
                p=test.p_value,
                p_holm=test.p_value,
            )
        )
    corrected = holm([row.p for row in rows])
    return [replace(row, p_holm=float(value)) for row, value in zip(rows, corrected, strict=True)]


def _one(store: Store, name: str) -> str:
    matches = choose_encoders(store, [name])
    if len(matches) > 1:
        raise ConfigError(
            f'"{name}" is the name of {len(matches)} encoders.',
            where=store.path,
            hint="Use one of " + ", ".join(matches),
        )
    return matches[0]
