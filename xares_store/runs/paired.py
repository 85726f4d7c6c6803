"""Paired tests for metrics that are no mean over items: two encoders' predictions are swapped clip by clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from xares_store.metrics import classification
from xares_store.metrics.statistics import PairedTest
from xares_store.metrics.strings import confusion, label_matrices
from xares_store.metrics.swaps import paired_swap_counts, paired_swap_map, paired_swap_rates, paired_swap_test
from xares_store.runs.score import JOINED
from xares_store.store.store import Store
from xares_store.task import Task

# Metrics of predicted classes that are computed anew for every pattern of swaps.
_OF_CLASSES: dict[str, Callable[[Any, Any], float]] = {
    "macro_accuracy": classification.macro_accuracy,
    "macro_f1": classification.macro_f1,
}
_OF_NUMBERS: dict[str, Callable[[Any, Any], float]] = {"pearson": classification.pearson}


def paired_runs(
    store: Store, task: Task, metric: str, runs_a: Sequence[str], runs_b: Sequence[str]
) -> tuple[int, PairedTest | None]:
    """Test whether two encoders' scores differ, swapping what they predicted for a clip, with all its seeds at once.

    Args:
        store: holds the runs.
        task: says the classes.
        metric: the main metric of the runs, no mean over items.
        runs_a, runs_b: the runs of either encoder, one a seed, in the order of the seeds.

    Returns:
        The number of paired items, and the test; None for a metric whose predictions are not stored in a form that can
        be swapped.
    """
    seeds = min(len(runs_a), len(runs_b))
    tables = [[_by_item(store.predictions(run)) for run in runs[:seeds]] for runs in (runs_a, runs_b)]
    items = sorted(set.intersection(*(set(rows) for side in tables for rows, _ in side)))
    if not items:
        return 0, None
    groups = np.tile(np.arange(len(items)), seeds)
    if metric in ("segment_f1_macro", "segment_f1_micro"):
        a, b = (np.sum([_lists(rows, table, items, "counts") for rows, table in side], axis=0) for side in tables)
        shape = (len(items), 3, len(task.labels))
        average: Literal["macro", "micro"] = "macro" if metric.endswith("macro") else "micro"
        return len(items), paired_swap_counts(a.reshape(shape), b.reshape(shape), average)
    if metric in ("iwer", "icer"):
        a, b = (np.concatenate([_error_counts(rows, table, items) for rows, table in side]) for side in tables)
        trained = np.repeat(np.arange(seeds), len(items))  # the score is a mean over folds and seeds
        strata = [f"{seed}/{fold}" for seed, (fold, *_) in zip(trained, items * seeds, strict=True)]
        return len(items), paired_swap_rates(a, b, strata=strata, groups=groups)
    if metric in ("string_map", "string_macro_f1"):
        published = store.read_run(runs_a[0]).protocol == "published"
        return len(items), _written_labels(task, metric, tables, items, trim=not published)
    if task.target.kind == "multi-label":
        if metric != "map" or any(";" in label for label in task.labels):  # several labels are divided by it
            return len(items), None
        first_rows, first = tables[0][0]
        target = np.tile(_multi_hot(task, first, [first_rows[item] for item in items]), (seeds, 1))
        a, b = (np.concatenate([_lists(rows, table, items, "scores") for rows, table in side]) for side in tables)
        return len(items), paired_swap_map(target, a, b, groups=groups)
    function = _OF_NUMBERS.get(metric) or _OF_CLASSES.get(metric)
    if function is None:
        return len(items), None
    index = {label: position for position, label in enumerate(task.labels)}
    read: Callable[[str], float] = float if metric in _OF_NUMBERS else index.__getitem__
    columns = [
        np.concatenate([[read(table[name][rows[item]].as_py()) for item in items] for rows, table in side])
        for side, name in ((tables[0], "target"), (tables[0], "prediction"), (tables[1], "prediction"))
    ]
    wanted, one, other = columns

    def difference(swapped: np.ndarray) -> float:
        return function(wanted, np.where(swapped, other, one)) - function(wanted, np.where(swapped, one, other))

    return len(items), paired_swap_test(difference, len(groups), groups=groups)


_Item = tuple[str, str, str]
_Table = tuple[dict[_Item, int], pa.Table]


def _by_item(table: pa.Table) -> _Table:
    names = zip(*(table[name].to_pylist() for name in ("fold", "split", "clip_id")), strict=True)
    return {item: row for row, item in enumerate(names)}, table


def _lists(rows: dict[_Item, int], table: pa.Table, items: Sequence[_Item], column: str) -> np.ndarray:
    """Return a list column of these items as one array (items, values)."""
    chosen = table[column].combine_chunks().take(pa.array([rows[item] for item in items]))
    return np.asarray(chosen.flatten().to_numpy()).reshape(len(items), -1)


def _error_counts(rows: dict[_Item, int], table: pa.Table, items: Sequence[_Item]) -> np.ndarray:
    """Return errors and reference units of these items, ``(items, 2)``."""
    chosen = table.take(pa.array([rows[item] for item in items]))
    kinds = [chosen[name].to_numpy() for name in ("substitutions", "deletions", "insertions")]
    return np.stack([np.sum(kinds, axis=0), chosen["reference_units"].to_numpy()], axis=1)


def _written_labels(
    task: Task, metric: str, tables: Sequence[Sequence[_Table]], items: Sequence[_Item], *, trim: bool
) -> PairedTest | None:
    """Swap the labels that two language models wrote; the references of an item are swapped together."""
    wanted: list[str] = []
    written: tuple[list[str], list[str]] = ([], [])
    groups: list[int] = []
    for both in zip(*tables, strict=True):
        (rows, first), _ = both
        target = first["target"].to_pylist()
        predictions = [table["prediction"].to_pylist() for _, table in both]
        for number, item in enumerate(items):
            references = target[rows[item]].split(JOINED)
            wanted += references
            groups += [number] * len(references)
            for side, (places, _), texts in zip(written, both, predictions, strict=True):
                side += [texts[places[item]]] * len(references)
    separator = getattr(task.target, "separator", None) or ";"
    (hot, a), (_, b) = (label_matrices(wanted, side, separator=separator, trim=trim) for side in written)
    if not hot.shape[1]:
        return None
    if metric == "string_map":
        test = paired_swap_map(hot, a, b, groups=groups)
    else:
        test = paired_swap_counts(confusion(hot, a), confusion(hot, b), "macro", groups=groups)
    # Labels that do not occur add 0 to the mean over classes.
    return replace(test, difference=test.difference * hot.shape[1] / (task.metric.n_classes or hot.shape[1]))


def _multi_hot(task: Task, table: pa.Table, rows: Sequence[int]) -> np.ndarray:
    index = {label: position for position, label in enumerate(task.labels)}
    found = np.zeros((len(rows), len(index)), dtype=np.uint8)
    for position, text in enumerate(table["target"].take(pa.array(rows)).to_pylist()):
        found[position, [index[label] for label in text.split(";") if label]] = 1
    return found
