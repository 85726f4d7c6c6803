"""Splits: those of the source, checked; or made, stratified and by whole groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xares_store.audio.shards import natural_key
from xares_store.errors import ConfigError, LabelError, ProtocolError
from xares_store.importer.columns import Roles
from xares_store.importer.names import fold_value, split_name
from xares_store.importer.options import FOLDS, Options
from xares_store.importer.records import Record
from xares_store.importer.table import lines
from xares_store.protocol import stratified_groups
from xares_store.task import SPLITS

_MAX_PARTS = 200


@dataclass(frozen=True)
class Division:
    """Which split every clip belongs to.

    Attributes:
        folds: whether the splits are folds, not train, valid and test.
        names: the splits, in the order of the task file.
        of: the split of each record.
        made: whether they were made here.
    """

    folds: bool
    names: tuple[str, ...]
    of: tuple[str, ...]
    made: bool


def given_division(records: Sequence[Record], roles: Roles, options: Options) -> Division | None:
    """Read the splits or folds of the source.

    Returns:
        The division; None when there is none, that is no column for it or one value only.

    Raises:
        LabelError: cells that name no split or fold.
        ConfigError: no train or no test among them.
        ProtocolError: a group (recording, speaker) is in two of them.
    """
    column = roles.split or roles.fold
    if column is None or len({str(record.split) for record in records}) < 2:
        return None
    as_splits = [split_name(str(record.split), options.split_as) for record in records]
    is_fold = roles.fold is not None
    if not is_fold and not any(as_splits) and all(str(record.split).strip().isdecimal() for record in records):
        is_fold = True
    names = [fold_value(record.split) for record in records] if is_fold else as_splits
    unknown = Counter(str(record.split) for record, name in zip(records, names, strict=True) if name is None)
    if unknown:
        raise LabelError(
            f'{unknown.total()} rows have no split that is known under "{column}": '
            + ", ".join(f'"{value}" ({count})' for value, count in unknown.most_common(10)),
            hint="Say what they are, for example --split-as extra=train, "
            f"name the column of folds with --fold-column, or make splits with --{'folds' if is_fold else 'split'}.",
        )
    of = tuple(name for name in names if name is not None)
    used = set(of)
    if is_fold:
        order = tuple(sorted(used, key=natural_key))
    else:
        order = tuple(name for name in SPLITS if name in used)
        absent = [name for name in ("train", "test") if name not in used]
        if absent:
            raise ConfigError(
                f"Wanted the splits train and test, found {' and '.join(order)}.",
                where=f'column "{column}"',
                hint=f"Say which split is {absent[0]}, for example --split-as "
                f'"{next(str(record.split) for record in records)}={absent[0]}".',
            )
    if len(order) < 2:
        return None
    refuse_leaks(records, of)
    return Division(is_fold, order, of, made=False)


def refuse_leaks(records: Sequence[Record], of: Sequence[str]) -> None:
    """Refuse a group that is in two splits.

    Raises:
        ProtocolError: names the first groups, each with two of its files.
    """
    first: dict[str, tuple[str, Record]] = {}
    leaks: dict[str, str] = {}
    for record, split in zip(records, of, strict=True):
        if record.group is None:
            continue
        other_split, other = first.setdefault(record.group, (split, record))
        if other_split != split and record.group not in leaks:
            leaks[record.group] = f'"{record.group}": {other.path} in {other_split}, {record.path} in {split}'
    if leaks:
        raise ProtocolError(
            f"{len(leaks)} groups (recordings, speakers) are in two splits, so that test clips would not be new:\n"
            + lines(list(leaks.values())),
            hint="Correct the splits, have new ones made (--folds 5), or say --group-column none if this is no group.",
        )


def make_division(
    strata: npt.NDArray[np.int64],
    classes: Sequence[frozenset[int]],
    groups: Sequence[str],
    *,
    folds: int | None,
    split: tuple[float, float, float] | None,
    seed: int,
) -> Division:
    """Make splits: every class in all of them where it has enough groups, and no group in two.

    Args:
        strata: class of each clip that is to be spread evenly, shape ``(clips,)``.
        classes: all classes of each clip.
        groups: group of each clip; a clip of its own has a group of its own.
        folds: number of folds; 5 when neither this nor ``split`` is given.
        split: shares of train, valid and test.
        seed: another seed, other splits; the order of the clips never matters.

    Raises:
        ProtocolError: fewer groups than splits.
    """
    if split is None:
        shares = {str(number): 1 for number in range(1, (folds or FOLDS) + 1)}
    else:
        shares = {name: count for name, count in zip(SPLITS, _whole(split), strict=True) if count}
    # Small parts of equal size are dealt, so many to a split as its share wants. The test split comes first, because
    # the first part gets the first group of every class.
    deal_order = list(shares) if split is None else sorted(shares, key=lambda name: -SPLITS.index(name))
    seeded = [f"{seed}:{group}" for group in groups]
    n_parts = sum(shares.values())
    if len(set(groups)) < len(shares):
        raise ProtocolError(
            f"Wanted at least {len(shares)} groups to make {len(shares)} splits, found {len(set(groups))}.",
            hint="Make fewer (--folds), or say --group-column none if the groups are none.",
        )
    dealt = stratified_groups(np.arange(len(groups), dtype=np.int64), strata, seeded, n_parts)
    part_owner = [name for name in deal_order for _ in range(shares[name])]
    owner = {group: part_owner[part] for part, members in enumerate(dealt) for group in members}
    _spread(owner, seeded, classes, list(shares))
    return Division(split is None, tuple(shares), tuple(owner[group] for group in seeded), made=True)


def _whole(split: Sequence[float]) -> list[int]:
    """Return the fewest equal parts that stand for the shares, to a half percent."""
    for total in range(2, _MAX_PARTS):
        counts = [round(share * total) for share in split]
        if sum(counts) == total and all(abs(count / total - share) < 0.005 for count, share in zip(counts, split, strict=True)) and all(count or not share for count, share in zip(counts, split, strict=True)):  # fmt: skip
            return counts
    return [max(1, round(share * _MAX_PARTS)) if share else 0 for share in split]


def _spread(
    owner: dict[str, str], groups: Sequence[str], classes: Sequence[frozenset[int]], splits: Sequence[str]
) -> None:
    """Move single groups so that no split is empty or lacks a class that another one can spare.

    Dealing balances counts; a class with few groups may still miss a split. A group moves only if its old split keeps
    every class that it had.
    """
    content: dict[str, set[int]] = defaultdict(set)
    size: Counter[str] = Counter()
    for group, labels in zip(groups, classes, strict=True):
        content[group] |= labels
        size[group] += 1
    with_class: dict[int, list[str]] = defaultdict(list)
    for group in sorted(content, key=lambda name: (size[name], name)):
        for label in content[group]:
            with_class[label].append(group)
    held: Mapping[str, Counter[int]] = {name: Counter() for name in splits}
    n_groups: Counter[str] = Counter(owner.values())
    for group, inside in content.items():
        held[owner[group]].update(inside)

    def move(candidates: Sequence[str], wanting: str) -> None:
        for group in candidates:
            giving = owner[group]
            if giving != wanting and n_groups[giving] > 1 and all(held[giving][label] > 1 for label in content[group]):
                held[giving].subtract(content[group])
                held[wanting].update(content[group])
                n_groups.update({giving: -1, wanting: 1})
                owner[group] = wanting
                return

    for label in sorted(with_class, key=lambda one: (len(with_class[one]), one)):
        # What cannot be learnt cannot be tested, and what cannot be tested need not be learnt.
        for wanting in splits if "test" not in splits else ("train", "test", *(name for name in splits if name == "valid")):  # fmt: skip
            if not held[wanting][label]:
                move(with_class[label], wanting)
    everything = sorted(content, key=lambda name: (size[name], name))
    for wanting in splits:
        if not n_groups[wanting]:
            move(everything, wanting)
            if not n_groups[wanting]:  # rather a class missing elsewhere than a split without clips
                largest = max(splits, key=lambda name: n_groups[name])
                group = next(name for name in everything if owner[name] == largest)
                held[largest].subtract(content[group])
                held[wanting].update(content[group])
                n_groups.update({largest: -1, wanting: 1})
                owner[group] = wanting
