"""Which column of a source means what: as said, else by the names that people give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from xares_store.errors import ConfigError, did_you_mean
from xares_store.importer.options import NONE, Options
from xares_store.importer.table import Table

_PATH = "path file filename file_name filepath file_path audio audio_path audio_file audio_filepath wav fname slice_file_name wav_file clip"
_LABEL = "label labels class classes category categories tags tag target event_label"
_CAPTIONS = "captions caption caption_1"
_TRANSCRIPT = "transcript transcription sentence text"
_NUMBER = "score value rating mos number"
_EVENTS = "events"
_SPLIT = "split subset partition usage"
_FOLD = "fold folds cv_fold"
_GROUP = "group group_id recording recording_id speaker speaker_id spk_id session session_id"
ONSET = "onset onset_s start start_s start_time start_seconds begin"
OFFSET = "offset offset_s end end_s end_time end_seconds stop"
EVENT_LABEL = "label event_label class event tag category"

# A column of numbers is a measurement and no column of classes when it has more different values than people count in
# such steps, or one for nearly every row. Whole numbers are often codes of classes, so more has to speak for them.
_FEW_NUMBERS = 20
_MANY_WHOLE = 100
_NEARLY_ALL = 0.9
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_HUGE = 10**300  # beyond it a whole number of JSON has no float
_CODE = re.compile(r"0\d+", re.ASCII)  # 007 is a name


@dataclass(frozen=True)
class Roles:
    """Columns by what they mean.

    Attributes:
        kind: kind of the target.
        path: the column that names the file.
        labels: the column of the label, captions, number or text; several for captions.
        onset, offset: columns of events, one row each; None when a column holds lists of events.
        split, fold, group: columns, or None.
        separator: what divides several labels in one text.
    """

    kind: str
    path: str
    labels: tuple[str, ...]
    onset: str | None = None
    offset: str | None = None
    split: str | None = None
    fold: str | None = None
    group: str | None = None
    separator: str | None = None

    def describe(self) -> dict[str, str]:
        """Return column names by role, for people."""
        found = {
            "path": self.path,
            "label": ", ".join(self.labels),
            "onset": self.onset,
            "offset": self.offset,
            "split": self.split,
            "fold": self.fold,
            "group": self.group,
        }
        return {role: column for role, column in found.items() if column}


def choose_roles(table: Table, options: Options) -> Roles:
    """Decide which column means what, and with them the kind of the target.

    Args:
        table: its column names count, and a few values.
        options: what they say goes before any guess; ``none`` says that there is no such column.

    Raises:
        ConfigError: a column that is named is not there, or none can be found; the message lists the columns.
    """
    columns = table.columns
    path = _column(table, options.path_column, "--path-column", _PATH)
    if path is None:
        raise _missing(table, "names the audio files", "--path-column")
    onset = _column(table, options.onset_column, "--onset-column", ONSET)
    offset = _column(table, options.offset_column, "--offset-column", OFFSET)
    said = tuple(_column(table, name, "--label-column", "") or "" for name in options.label_columns)
    kind, labels = _kind(table, options, said, timed=onset is not None and offset is not None)
    if kind != "captions" and len(labels) > 1:
        raise ConfigError(
            f'Wanted one label column for the kind "{kind}", found {", ".join(labels)}.',
            where="--label-column",
            hint="Only captions may stand in several columns.",
        )
    if not labels:
        raise _missing(table, f'holds what the kind "{kind}" needs', "--label-column")
    split = _column(table, options.split_column, "--split-column", _SPLIT)
    fold = _column(table, options.fold_column, "--fold-column", _FOLD)
    if fold is not None and split is not None:
        # Folds by their name are folds; beside them a split that is not asked for says which part they belong to.
        split, fold = (split, None) if options.split_column or not options.fold_column else (None, fold)
        table.notes.append(f'both "{split or fold}" and another column could divide the clips; "{split or fold}" does')
    if options.folds is not None or options.split is not None:
        if options.split_column or options.fold_column:
            raise ConfigError(
                "Splits are to be made and are given in a column.",
                where="--folds or --split",
                hint="Leave one of the two out.",
            )
        if split or fold:
            table.notes.append(f'the column "{split or fold}" is not used, because splits are to be made')
        split = fold = None
    group = "group" if options.group_pattern else _column(table, options.group_column, "--group-column", _GROUP)
    timed = kind == "events" and _flat(table, labels[0])
    if timed and (onset is None or offset is None):
        raise _missing(table, "says when events start and end", "--onset-column and --offset-column")
    used = {path, *labels, split, fold, group}
    assert used - {None, "group"} <= set(columns)
    return Roles(
        kind=kind,
        path=path,
        labels=labels,
        onset=onset if timed else None,
        offset=offset if timed else None,
        split=split,
        fold=fold,
        group=group,
        separator=options.separator,
    )


def guess(columns: Iterable[str], names: str) -> str | None:
    """Return the column that is called like one of the names, the first name first, or None."""
    by_name = {column.strip().lower().replace(" ", "_").replace("-", "_"): column for column in columns}
    return next((by_name[name] for name in names.split() if name in by_name), None)


def _column(table: Table, said: str | None, option: str, names: str) -> str | None:
    if said is None:
        return guess(table.columns, names)
    if said == NONE:
        return None
    if said not in table.columns:
        raise ConfigError(
            f'There is no column "{said}".',
            where=option,
            hint=did_you_mean(said, table.columns, listing=f"Columns: {', '.join(table.columns)}."),
        )
    return said


def _kind(table: Table, options: Options, said: tuple[str, ...], *, timed: bool) -> tuple[str, tuple[str, ...]]:
    columns = table.columns
    if options.kind is not None:
        return options.kind, said or _labels_of(options.kind, columns)
    if said:
        if options.separator is not None and not timed:
            return "multi-label", said
        return _by_values(table, options, said, timed=timed), said
    if events := guess(columns, _EVENTS):
        return "events", (events,)
    if label := guess(columns, _LABEL):
        if options.separator is not None and not timed:
            return "multi-label", (label,)
        return _by_values(table, options, (label,), timed=timed), (label,)
    for kind, names in (("captions", _CAPTIONS), ("transcript", _TRANSCRIPT), ("regression", _NUMBER)):
        if guess(columns, names):
            return kind, _labels_of(kind, columns)
    raise _missing(table, "holds labels, events, captions, texts or numbers", "--label-column (and --kind)")


def _labels_of(kind: str, columns: Sequence[str]) -> tuple[str, ...]:
    if kind == "captions":
        several = tuple(name for name in columns if name.lower().startswith("caption_") and name[8:].isdigit())
        if len(several) > 1:
            return several
    names = {
        "captions": f"{_CAPTIONS} text sentence",
        "transcript": _TRANSCRIPT,
        "regression": f"{_NUMBER} label target",
        "events": f"{_EVENTS} {EVENT_LABEL}",
    }
    found = guess(columns, names.get(kind, _LABEL))
    return () if found is None else (found,)


def _by_values(table: Table, options: Options, labels: tuple[str, ...], *, timed: bool) -> str:
    """Tell the kind by the values of the label column."""
    if len(labels) > 1:
        return "captions"
    values = [row.values.get(labels[0]) for row in table.rows[:1000]]
    lists = [value for value in values if isinstance(value, list)]
    if any(isinstance(item, dict) for value in lists for item in value):
        return "events"
    if lists:
        return "multi-label"
    if timed:
        return "events"
    named = table.origin == "folder" or labels[0] in table.class_names or options.vocabulary is not None
    return "regression" if not named and _measured(table, labels[0]) else "single-label"


def _measured(table: Table, column: str) -> bool:
    """Tell whether a column holds measured numbers, not classes; if so, leave a note that says how to object."""
    cells = [row.values.get(column) for row in table.rows]
    values = [cell for cell in cells if cell is not None and cell != ""]
    if not all(map(_is_number, values)):
        return False
    different = {float(value) for value in values}
    nearly_all = 1 < len(different) >= _NEARLY_ALL * len(values)
    typed = any(isinstance(value, float) for value in values)
    if typed or any(number % 1 for number in different):
        measured = nearly_all or len(different) > _FEW_NUMBERS
    else:
        measured = nearly_all and len(different) > _MANY_WHOLE
    if measured:
        otherwise = "write them as text" if typed else "say --kind single-label"
        table.notes.append(
            f'the column "{column}" holds numbers, {len(different)} different ones in {len(values)} rows, so the kind '
            f"was guessed to be regression; if they are classes, {otherwise}"
        )
    return measured


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _DECIMAL.fullmatch(value.strip()) is not None and _CODE.fullmatch(value.strip()) is None
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE


def _flat(table: Table, column: str) -> bool:
    """Tell whether a column holds one label a row, not a list of events."""
    values: list[Any] = [row.values.get(column) for row in table.rows[:1000]]
    return not any(
        isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("[")) for value in values
    )


def _missing(table: Table, what: str, option: str) -> ConfigError:
    return ConfigError(
        f"No column was found that {what}. Columns: {', '.join(table.columns)}.",
        where=table.source,
        hint=f"Say which one with {option}.",
    )
