"""The k-fold splits of HEAR: fold i tests, the next one validates, the others train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from xares_store.protocol import make_folds
from xares_store.task import FOLD_PREFIX, Task

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "events_hear.json").read_text())


def test_the_folds_are_those_of_hear(make_task: Callable[..., Task]) -> None:
    case = GOLDEN["kfold_splits_hear"]
    assert len(case["expected"]) == 4
    # There folds are sorted by name; here their order is declared.
    names = sorted(case["folds"])
    task = make_task(data="folds = { " + ", ".join(f'{name} = ["{name}.tar"]' for name in names) + " }")
    split = [f"{FOLD_PREFIX}{name}" for name in case["folds"] for _ in range(3)]
    folds = make_folds(
        task,
        "strict",
        split=split,
        target=np.arange(len(split), dtype=np.int64) % 3,
        group=[str(row) for row in range(len(split))],
    )
    parts = [
        {
            part: sorted({split[row].removeprefix(FOLD_PREFIX) for row in getattr(fold, part)})
            for part in ("train", "valid", "test")
        }
        for fold in folds
    ]
    assert parts == [{part: sorted(rows) for part, rows in expected.items()} for expected in case["expected"]]
