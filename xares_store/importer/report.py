"""What an import made, or would make."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xares_store.importer.examine import Examined
from xares_store.importer.plan import Plan
from xares_store.importer.table import lines


@dataclass(frozen=True)
class SplitSummary:
    """One split: clips and seconds that can be decoded, bytes of encoded audio, shards, classes and groups in it."""

    name: str
    clips: int
    seconds: float
    nbytes: int
    shards: int
    classes: int
    groups: int


@dataclass(frozen=True)
class Duplicate:
    """Files with the same audio.

    Attributes:
        files: path and split of each.
        labels: the different labels under which they stand, when they differ.
    """

    files: tuple[tuple[str, str], ...]
    labels: tuple[str, ...] = ()

    @property
    def crosses(self) -> bool:
        """Whether they are in different splits."""
        return len({split for _, split in self.files}) > 1

    def __str__(self) -> str:
        differ = f" (labels differ: {', '.join(self.labels)})" if self.labels else ""
        return " = ".join(f"{path} [{split}]" for path, split in self.files[:4]) + (
            f" and {len(self.files) - 4} more" if len(self.files) > 4 else ""
        ) + differ  # fmt: skip


@dataclass(frozen=True)
class ImportReport:
    """Result of :func:`xares_store.importer.imports.import_audio`.

    Attributes:
        task: the task file.
        name, kind: of the task.
        columns: the columns of the source by what they were taken for.
        labels: class names in class order.
        splits: in the order of the task file.
        made_splits: whether the splits were made here.
        failures: ``(path, kind, reason)`` of files that cannot be decoded.
        duplicates: files with the same audio.
        notes: what else a person should know.
        reused_shards: shards that an earlier run had written.
        dry_run: nothing was written; lengths come from the headers.
    """

    task: Path
    name: str
    kind: str
    columns: Mapping[str, str]
    labels: tuple[str, ...]
    splits: tuple[SplitSummary, ...]
    made_splits: bool
    failures: tuple[tuple[str, str, str], ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    notes: tuple[str, ...] = ()
    reused_shards: int = 0
    dry_run: bool = False

    @property
    def clips(self) -> int:
        """Number of clips that can be decoded."""
        return sum(split.clips for split in self.splits)

    @property
    def seconds(self) -> float:
        """Length of all clips."""
        return sum(split.seconds for split in self.splits)

    @property
    def nbytes(self) -> int:
        """Size of the encoded audio."""
        return sum(split.nbytes for split in self.splits)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it; paths inside are relative, so equal imports say the same."""
        content = asdict(self)
        for key in ("task", "reused_shards", "dry_run"):
            del content[key]
        content["seconds"] = round(self.seconds, 3)
        return content | {"clips": self.clips, "nbytes": self.nbytes}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], task: Path, *, reused_shards: int) -> ImportReport:
        """Read back what :meth:`as_dict` wrote."""
        return cls(
            task=task,
            name=content["name"],
            kind=content["kind"],
            columns=content["columns"],
            labels=tuple(content["labels"]),
            splits=tuple(SplitSummary(**split) for split in content["splits"]),
            made_splits=content["made_splits"],
            failures=tuple((path, kind, reason) for path, kind, reason in content["failures"]),
            duplicates=tuple(
                Duplicate(tuple((path, split) for path, split in one["files"]), tuple(one["labels"]))
                for one in content["duplicates"]
            ),
            notes=tuple(content["notes"]),
            reused_shards=reused_shards,
        )


@dataclass
class _Sum:
    clips: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    shards: int = 0
    classes: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)


def summarise(plan: Plan, facts: Mapping[str, Examined]) -> tuple[SplitSummary, ...]:
    """Add up what the splits hold; files that cannot be decoded do not count."""
    sums: dict[str, _Sum] = {}
    for shard in plan.shards:
        total = sums.setdefault(shard.split, _Sum())
        good = [clip for clip in shard.clips if facts[clip.key].kind is None]
        total.shards += bool(good)
        for clip in good:
            total.clips += 1
            total.seconds += facts[clip.key].seconds
            total.nbytes += clip.record.blob.nbytes
            total.classes.update(clip.record.classes)
            total.groups.add(clip.record.group or clip.key)
    return tuple(
        SplitSummary(name, s.clips, round(s.seconds, 3), s.nbytes, s.shards, len(s.classes), len(s.groups))
        for name, s in sums.items()
    )


def find_duplicates(plan: Plan, facts: Mapping[str, Examined]) -> tuple[list[Duplicate], list[list[str]]]:
    """Find clips with the same audio.

    Returns:
        What to report, those that cross splits first, and the keys of each set.
    """
    same: dict[str, list[tuple[str, str, str, tuple[str, ...]]]] = defaultdict(list)
    for shard in plan.shards:
        for clip in shard.clips:
            waveform = facts[clip.key].waveform
            if waveform is not None:
                same[waveform].append((clip.record.path, shard.split, clip.key, clip.record.classes))
    sets = sorted(sorted(members) for members in same.values() if len(members) > 1)
    found = []
    for members in sets:
        labels = sorted({"; ".join(classes) for *_, classes in members})
        files = tuple((path, split) for path, split, *_ in members)
        found.append(Duplicate(files, tuple(labels) if len(labels) > 1 else ()))
    found.sort(key=lambda one: not one.crosses)
    return found, [[key for _, _, key, _ in members] for members in sets]


def failures_of(plan: Plan, facts: Mapping[str, Examined]) -> list[tuple[str, str, str]]:
    """Return path, kind and reason of every file that cannot be decoded, sorted."""
    return sorted(
        (clip.record.path, found.kind, found.reason or "")
        for shard in plan.shards
        for clip in shard.clips
        if (found := facts[clip.key]).kind is not None
    )


def describe_failures(failures: Sequence[tuple[str, str, str]], *, most: int = 20) -> str:
    """Return failures one a line."""
    return lines([f"{path} ({kind}): {reason}" for path, kind, reason in failures], most=most)
