"""Folds: which clips train, validate and test.

``strict`` keeps the three disjoint. ``published`` does what the published tables did, for comparison with them: where
the original chose the checkpoint on test clips, so does it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xares_store.errors import ProtocolError, did_you_mean
from xares_store.task import FOLD_PREFIX, POOL_SPLIT, Task

PROTOCOLS = ("strict", "published")
SEED = 42
CARVED = 8  # one part in eight of train validates: 12.5 %
POOL_FOLDS = 5

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Clips of one training: ascending indices into the clip table.

    Attributes:
        name: the fold's name; ``test`` for a task with fixed splits, ``all`` for a pool under ``published``.
        train, valid, test: indices, shape ``(clips,)``.
        knn_uses_valid: whether a probe without training also learns from the validation clips.
    """

    name: str
    train: Indices
    valid: Indices
    test: Indices
    knn_uses_valid: bool = False

    @property
    def knn_train(self) -> Indices:
        """Clips whose labels a k-NN may use.

        It chooses nothing on validation clips, so clips that were only set aside for that (the rotating fold, the
        carved part) serve as neighbours; a validation split that the task declares does not.
        """
        return np.union1d(self.train, self.valid) if self.knn_uses_valid else self.train


def make_folds(
    task: Task, protocol: str, *, split: Sequence[str], target: npt.NDArray[np.int64], group: Sequence[str]
) -> list[Fold]:
    """Divide clips into folds.

    Args:
        task: declares folds, fixed splits or one pool.
        protocol: ``strict``: with k folds, fold i tests, the next declared one (cyclic) validates and the others train;
            with fixed splits a missing validation split is carved from train (one part in eight, stratified by class,
            whole groups); a pool becomes stratified folds first. ``published``: with k folds the held-out fold
            validates too; with fixed splits the task's ``published_valid``; a pool trains, validates and tests on
            everything.
        split: name of the split of each clip in the store.
        target: class index of each clip, shape ``(clips,)``.
        group: recording or speaker of each clip (:func:`xares_store.targets.groups`).

    Returns:
        One fold for each training, in declared order. The division depends on the clips alone, not on their order in
        the table.

    Raises:
        ProtocolError: an unknown protocol or split, an empty split, too few groups to carve validation clips, or (when
            the task has a ``group_key``) a group on two sides under ``strict``.
    """
    if protocol not in PROTOCOLS:
        raise ProtocolError(
            f'Unknown protocol "{protocol}".',
            hint=did_you_mean(protocol, PROTOCOLS, listing="Use strict or published."),
        )
    names = np.asarray(split, dtype=object)
    if not len(names) == len(target) == len(group):
        raise ProtocolError(
            f"Wanted as many splits, targets and groups, found {len(names)}, {len(target)}, {len(group)}."
        )
    parts = _parts(task, names)
    strict = protocol == "strict"
    if task.data.pool is not None and not strict:
        everything = parts[POOL_SPLIT]
        return [Fold(POOL_SPLIT, everything, everything, everything)]
    if task.data.splits is not None:
        folds = [_fixed(task, parts, target, group, strict)]
    else:
        if task.data.pool is not None:
            parts = _pool_folds(task, parts[POOL_SPLIT], target, group)
        folds = _rotate(task, parts, target, group, strict)
    if strict and task.target.group_key is not None:
        for fold in folds:
            _check_groups(task, fold, group)
    return folds


def stratified_groups(
    rows: Indices, target: npt.NDArray[np.int64], group: Sequence[str], n_parts: int
) -> list[list[str]]:
    """Deal whole groups into parts with about equal counts of each class.

    Groups are taken largest first, equal ones in the order of a hash of their name, and each goes to the part that has
    fewest clips of its classes so far. So the result depends on names, sizes and classes only: not on the order of the
    table, a random generator or a library's version.

    Args:
        rows: clips to deal.
        target: class index of every clip of the table.
        group: group of every clip of the table.
        n_parts: number of parts.

    Returns:
        Names of the groups of each part; parts are empty when there are fewer groups than parts.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row, label in zip(rows.tolist(), target[rows].tolist(), strict=True):
        counts[group[row]][label] += 1
    order = sorted(counts, key=lambda name: (-counts[name].total(), _hash(name)))
    totals = [0] * n_parts
    filled: dict[int, list[int]] = {}
    dealt: list[list[str]] = [[] for _ in range(n_parts)]
    for name in order:
        content = counts[name]
        columns = [filled.setdefault(label, [0] * n_parts) for label in content]
        best = min(range(n_parts), key=lambda part: (sum(column[part] for column in columns), totals[part], part))
        for label, count in content.items():
            filled[label][best] += count
        totals[best] += content.total()
        dealt[best].append(name)
    return dealt


def _hash(name: str) -> bytes:
    return hashlib.sha256(f"{SEED}:{name}".encode()).digest()


def _parts(task: Task, names: npt.NDArray[np.object_]) -> dict[str, Indices]:
    declared = task.split_patterns()
    unknown = sorted(set(names.tolist()) - declared.keys())
    if unknown:
        raise ProtocolError(
            f'The clips hold a split "{unknown[0]}" that the task does not declare.',
            where=f"task {task.name}",
            hint=f"Declared: {', '.join(declared)}. Were the clips embedded with another task definition?",
        )
    parts = {name: np.flatnonzero(names == name).astype(np.int64) for name in declared}
    for name, rows in parts.items():
        if not len(rows):
            raise ProtocolError(
                f'The split "{name}" has no clips.',
                where=f"task {task.name}",
                hint="Embed all of the task's shards, or choose the clips with a wider --where.",
            )
    return parts


def _fixed(
    task: Task, parts: dict[str, Indices], target: npt.NDArray[np.int64], group: Sequence[str], strict: bool
) -> Fold:
    published = task.data.published_valid
    if not strict and published is not None:
        return Fold("test", parts["train"], parts[published], parts["test"])
    if "valid" in parts:
        return Fold("test", parts["train"], parts["valid"], parts["test"])
    train, valid = _carve(task, parts["train"], target, group)
    return Fold("test", train, valid, parts["test"], knn_uses_valid=True)


def _rotate(
    task: Task, parts: dict[str, Indices], target: npt.NDArray[np.int64], group: Sequence[str], strict: bool
) -> list[Fold]:
    order = list(parts)
    folds = []
    for position, held_out in enumerate(order):
        name = held_out.removeprefix(FOLD_PREFIX)
        following = order[(position + 1) % len(order)]
        if not strict:
            folds.append(Fold(name, _join(parts, set(order) - {held_out}), parts[held_out], parts[held_out]))
        elif len(order) > 2:
            train = _join(parts, set(order) - {held_out, following})
            folds.append(Fold(name, train, parts[following], parts[held_out], knn_uses_valid=True))
        else:  # two folds: nothing would be left to train on
            train, valid = _carve(task, parts[following], target, group)
            folds.append(Fold(name, train, valid, parts[held_out], knn_uses_valid=True))
    return folds


def _pool_folds(task: Task, rows: Indices, target: npt.NDArray[np.int64], group: Sequence[str]) -> dict[str, Indices]:
    n_folds = task.data.pool_folds or POOL_FOLDS
    dealt = stratified_groups(rows, target, group, n_folds)
    if not all(dealt):
        raise ProtocolError(
            f"Wanted at least {n_folds} groups to make {n_folds} folds of the pool, found {sum(map(len, dealt))}.",
            where=f"task {task.name}",
            hint="Lower data.pool_folds, correct target.group_key, or choose the clips with a wider --where.",
        )
    return {f"{FOLD_PREFIX}{number}": _rows_of(rows, group, names) for number, names in enumerate(dealt, start=1)}


def _carve(task: Task, rows: Indices, target: npt.NDArray[np.int64], group: Sequence[str]) -> tuple[Indices, Indices]:
    """Divide training clips into train and validation."""
    valid_names, *others = stratified_groups(rows, target, group, CARVED)
    train = _rows_of(rows, group, (name for part in others for name in part))
    valid = _rows_of(rows, group, valid_names)
    # A class that only validation clips have could not be learnt: its groups go back.
    orphans = set(target[valid].tolist()) - set(target[train].tolist())
    if orphans:
        back = {group[row] for row in valid.tolist() if int(target[row]) in orphans}
        valid = _rows_of(rows, group, (name for name in valid_names if name not in back))
        train = np.setdiff1d(rows, valid)
    if not len(valid) or not len(train):
        n_groups, n_classes = len({group[row] for row in rows.tolist()}), len(set(target[rows].tolist()))
        raise ProtocolError(
            f"Too few groups to carve a validation split from train: found {n_groups} groups over {n_classes} classes.",
            where=f"task {task.name}",
            hint="Declare a validation split (data.splits.valid), or correct target.group_key.",
        )
    return train, valid


def _rows_of(rows: Indices, group: Sequence[str], names: Iterable[str]) -> Indices:
    wanted = set(names)
    return np.array([row for row in rows.tolist() if group[row] in wanted], dtype=np.int64)


def _join(parts: dict[str, Indices], names: Iterable[str]) -> Indices:
    return np.sort(np.concatenate([parts[name] for name in names]))


def _check_groups(task: Task, fold: Fold, group: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for side in ("train", "valid", "test"):
        for name in {group[row] for row in getattr(fold, side).tolist()}:
            other = seen.setdefault(name, side)
            if other != side:
                raise ProtocolError(
                    f'The group "{name}" ({task.target.group_key}) is in {other} and in {side} of fold {fold.name}.',
                    where=f"task {task.name}",
                    hint="Correct the folds or target.group_key; --protocol published does not demand it.",
                )
