"""What a store has of a training already: the weights in its runs, and the folder of one that is under way."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from xares_store.errors import StoreError
from xares_store.probes.llm.checkpoint import CHECKPOINT, FINISHED
from xares_store.probes.llm.trainer import Trained
from xares_store.store.files import disk_errors
from xares_store.store.run import read_tensors
from xares_store.store.store import Store


@dataclass(frozen=True)
class Known:
    """A training that the store has, by a run of it.

    Attributes:
        weights: of all folds; none where there is no such run.
        folds: what was recorded of each.
    """

    weights: dict[str, np.ndarray]
    folds: list[dict[str, Any]]

    def of_fold(self, fold: str) -> dict[str, np.ndarray]:
        """Return the weights of a fold by their names in the model."""
        prefix = f"fold-{fold}."
        return {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}

    def complete(self, trained: Trained, fold: str) -> Trained:
        """Add what only the record of the run says."""
        one = next(one for one in self.folds if one["fold"] == fold)
        return replace(trained, history=one["history"], best_epoch=one["epoch"])


def stored_training(store: Store, training_id: str, seed: int) -> Known:
    """Find a training among the runs of a store, of whichever task they are."""
    rows = store.sql(
        "select run_id from runs where probe = 'llm' and seed = $seed and json_extract_string(settings, '$.training') = $training",
        {"training": training_id, "seed": seed},
    )
    for run_id in rows.column("run_id").to_pylist():
        return Known(read_tensors(store.path, run_id), store.read_run(run_id).details["folds"])
    return Known({}, [])


@contextlib.contextmanager
def training_folder(folder: Path) -> Iterator[None]:
    """Make the folder of a training and keep other processes out; a folder that nobody can go on from is removed again.

    Raises:
        StoreError: another process is in it, or it cannot be made.
    """
    with disk_errors(folder, "making the folder of the training"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock").acquire(timeout=0):
            try:
                yield
            finally:
                if not any(path.name in (CHECKPOINT, FINISHED) for path in folder.rglob("*")):
                    remove_training(folder)
    except Timeout:
        raise StoreError(
            "Another process is at this very training.",
            where=folder,
            hint="Wait for it; afterwards this command finds its scores in the store.",
        ) from None


def remove_training(folder: Path) -> None:
    """Remove the folder of a training, and the folder of all of them with the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another training is under way
        folder.parent.rmdir()
