"""Before the first byte is written: labels, keys, splits and shards of an import, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xares_store.errors import ConfigError
from xares_store.importer.columns import Roles, choose_roles
from xares_store.importer.dataset import is_dataset, read_dataset
from xares_store.importer.folder import read_folder
from xares_store.importer.manifest import read_manifest
from xares_store.importer.options import Options
from xares_store.importer.plan import Plan, PlannedClip, keyed, make_plan
from xares_store.importer.records import build_records, vocabulary
from xares_store.importer.splits import Division, given_division, make_division
from xares_store.importer.table import Table
from xares_store.importer.taskfile import task_text
from xares_store.targets import captions_of, class_indices, events_of, multi_hot, numbers, strata, transcripts
from xares_store.task import POOL_SPLIT, Task

_TARGETS: dict[str, Callable[[Task, Sequence[str], Sequence[str]], Any]] = {
    "single-label": class_indices,
    "multi-label": multi_hot,
    "events": events_of,
    "captions": captions_of,
    "regression": numbers,
    "transcript": transcripts,
}
_WITH_CLASSES = ("single-label", "multi-label", "events")


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a single sample is decoded.

    Attributes:
        options: what a person said.
        roles: which column means what.
        labels: class names in class order.
        clips: in the order of the source.
        given: the splits of the source, or None when they are to be made.
        strata: class by which each clip is spread over the splits, shape ``(clips,)``.
        notes: what a person should know.
    """

    options: Options
    roles: Roles
    labels: tuple[str, ...]
    clips: list[PlannedClip]
    given: Division | None
    strata: npt.NDArray[np.int64]
    notes: list[str]

    def division(self, joined: Sequence[Sequence[str]]) -> Division:
        """Return the given splits, or make some; clips of a joined set count as one group."""
        if self.given is not None:
            return self.given
        index_of = {label: index for index, label in enumerate(self.labels)}
        return make_division(
            self.strata,
            [frozenset(index_of[label] for label in clip.record.classes) for clip in self.clips],
            _groups(self.clips, joined),
            folds=self.options.folds,
            split=self.options.split,
            seed=self.options.seed,
        )

    def plan(self, division: Division) -> Plan:
        """Lay the clips out."""
        return make_plan(self.clips, division, self.options, task_text=self.task_text({POOL_SPLIT: ["*.tar"]}, False))

    def task_text(self, patterns: Mapping[str, Sequence[str]], folds: bool, *, inline: bool = True) -> str:
        """Return the task file for these shards."""
        return task_text(self.options, self.roles, self.labels, patterns, folds=folds, inline=inline)


def prepare(source: Path, options: Options) -> Prepared:
    """Read a source and check everything that can be checked without decoding.

    Args:
        source: folder, manifest or dataset.
        options: what a person said.

    Raises:
        ConfigError, LabelError, ProtocolError, TaskError: as :func:`xares_store.importer.imports.import_audio`.
    """
    table = read_source(source, options)
    roles = choose_roles(table, options)
    records = build_records(table, roles, options)
    labels: tuple[str, ...] = ()
    if roles.kind in _WITH_CLASSES:
        labels = vocabulary(records, table.class_names.get(roles.labels[0], ()), options)
        used = {label for record in records for label in record.classes}
        unused = [label for label in labels if label not in used]
        if unused:
            table.notes.append(f"{len(unused)} classes have no clip: {', '.join(unused[:10])}")
    clips = keyed(records)
    text = task_text(options, roles, labels, {POOL_SPLIT: ["*.tar"]}, folds=False, inline=True)
    task = Task.from_text(text, where=f"{options.name}.toml", base=None)
    texts = [clip.record.text for clip in clips]
    target = _TARGETS[roles.kind](task, texts, [f"{clip.record.where} ({clip.record.path})" for clip in clips])
    given = None if options.folds or options.split else given_division(records, roles, options)
    return Prepared(options, roles, labels, clips, given, strata(task, target), table.notes)


def read_source(source: Path, options: Options) -> Table:
    """Read a folder, a manifest or a dataset, whichever it is.

    Raises:
        ConfigError: there is no such source, or it is none of them.
    """
    if source.is_dir():
        if is_dataset(source):
            return read_dataset(source)
        return read_folder(source, options)
    if source.is_file():
        return read_manifest(source)
    raise ConfigError(
        "There is no such folder or file.",
        where=source,
        hint="Give a folder of class folders, a manifest, or a Hugging Face dataset on disk.",
    )


def _groups(clips: Sequence[PlannedClip], joined: Sequence[Sequence[str]]) -> list[str]:
    """Return the group of each clip, with the groups of joined clips made one."""
    own = {clip.key: f"group:{clip.record.group}" if clip.record.group is not None else clip.key for clip in clips}
    parent: dict[str, str] = {}

    def top(group: str) -> str:
        while group in parent:
            group = parent[group]
        return group

    for keys in joined:
        tops = sorted({top(own[key]) for key in keys})
        parent.update(dict.fromkeys(tops[1:], tops[0]))
    return [top(own[clip.key]) for clip in clips]
