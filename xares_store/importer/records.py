"""From rows to recordings: one audio file each, with the JSON that will stand beside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

from xares_store.audio.shards import natural_key
from xares_store.errors import ConfigError, LabelError, did_you_mean
from xares_store.importer.columns import EVENT_LABEL, OFFSET, ONSET, Roles, guess
from xares_store.importer.options import Options
from xares_store.importer.table import Blob, FileBlob, Row, Table, lines, plain
from xares_store.validation import read_text

EVENTS_KEY = "events"
CAPTIONS_KEY = "captions"
GROUP_KEY = "group"
_REPEATABLE = ("events", "captions", "multi-label")  # kinds for which a file may have several rows


@dataclass(slots=True)
class Record:
    """One recording.

    Attributes:
        where: what messages call it.
        path: its path below the root of the audio, with ``/``; unique.
        blob: its bytes.
        facts: the JSON object beside it.
        classes: labels, for the kinds that have them.
        split: the cell of the split or fold column; None without one.
        group: recording or speaker; None without one.
    """

    where: str
    path: str
    blob: Blob
    facts: dict[str, Any]
    classes: tuple[str, ...] = ()
    split: Any = None
    group: str | None = None
    text: str = field(default="", repr=False)


def build_records(table: Table, roles: Roles, options: Options) -> list[Record]:
    """Make one record of each audio file.

    Args:
        table: the source.
        roles: which column means what.
        options: root of the audio, pattern of groups.

    Returns:
        Records in the order of the rows.

    Raises:
        ConfigError: files that are missing, or one file in several rows where one is wanted.
        LabelError: empty or malformed labels, splits or groups; the message names the first of them and their number.
    """
    found = _by_file(table, roles, options)
    repeated = [path for path, (rows, _) in found.items() if len(rows) > 1]
    if repeated and roles.kind not in _REPEATABLE:
        shown = [f"{path}: {', '.join(row.where for row in found[path][0][:4])}" for path in repeated]
        raise ConfigError(
            f'Wanted one row a file for the kind "{roles.kind}", found {len(repeated)} files in several:\n{lines(shown)}',
            where=table.source,
            hint="Remove the others, or say --kind multi-label (or events) if a file has several labels.",
        )
    problems: list[str] = []
    records = []
    pattern = re.compile(options.group_pattern) if options.group_pattern else None
    for path, (rows, blob) in found.items():
        try:
            records.append(_record(path, rows, blob, roles, pattern))
        except ValueError as error:
            problems.append(f"{rows[0].where} ({path}): {error}")
    if problems:
        raise LabelError(
            f"{len(problems)} files have no usable label, split or group:\n{lines(problems)}",
            where=table.source,
            hint="Correct these cells or remove the rows; --label-column, --separator and --kind say how they are read.",
        )
    return records


def vocabulary(records: Sequence[Record], declared: Sequence[str], options: Options) -> tuple[str, ...]:
    """Return the labels in class order.

    Args:
        records: their labels are the vocabulary, in natural order, unless something else declares it.
        declared: class names in the order of the source itself, possibly none.
        options: a vocabulary file goes before both.

    Raises:
        LabelError: labels that the given vocabulary does not hold, or fewer than two.
        TaskError: the vocabulary file cannot be read.
    """
    counts: dict[str, str] = {}
    for record in records:
        for label in record.classes:
            counts.setdefault(label, f"{record.where} ({record.path})")
    known: Sequence[str] = declared
    where: object = "the dataset's class names"
    if options.vocabulary is not None:
        text = read_text(options.vocabulary).replace("\r\n", "\n").removesuffix("\n")
        known, where = text.split("\n"), options.vocabulary
    if known:
        strange = [label for label in counts if label not in set(known)]
        if strange:
            raise LabelError(
                f"{len(strange)} labels are not in the vocabulary:\n"
                + lines([f"{json.dumps(label, ensure_ascii=False)}, first in {counts[label]}" for label in strange]),
                where=where,
                hint=did_you_mean(strange[0], known, listing="Add them, one a line, or correct the labels."),
            )
        return tuple(known)
    if len(counts) < 2:
        raise LabelError(
            f"Wanted at least two different labels, found {', '.join(counts) or 'none'}.",
            hint="Is the right column the label (--label-column), and the right folder the source?",
        )
    return tuple(sorted(counts, key=natural_key))


def _by_file(table: Table, roles: Roles, options: Options) -> dict[str, tuple[list[Row], Blob]]:
    """Bring the rows of each file together and find the file."""
    if all(row.blob is not None for row in table.rows):
        found: dict[str, tuple[list[Row], Blob]] = {}
        for row in table.rows:
            assert row.blob is not None
            if found.setdefault(path := str(row.values[roles.path]), ([row], row.blob))[0][0] is not row:
                raise ConfigError(f"Two files would have the same path, {path!r}.", where=row.where, hint="Rename one.")
        return found
    root = os.path.normpath((options.audio_root or table.source.parent).absolute())
    rows: dict[str, list[Row]] = {}
    problems: list[str] = []
    for row in table.rows:
        cell = row.values.get(roles.path)
        if isinstance(cell, str) and cell.strip() and "\0" not in cell:
            rows.setdefault(os.path.normpath(Path(root, cell)), []).append(row)
        else:
            problems.append(f"{row.where}: no path")
    blobs: dict[str, FileBlob] = {}
    for full, members in rows.items():
        try:
            stat = Path(full).stat()
            if not S_ISREG(stat.st_mode):
                problems.append(f"{members[0].where}: {full} is not a file")
            blobs[full] = FileBlob(Path(full), stat.st_size, stat.st_mtime_ns)
        except OSError:
            problems.append(f"{members[0].where}: {full}")
    if problems:
        raise ConfigError(
            f"{len(problems)} audio files are not there; nothing was written:\n{lines(problems)}",
            where=table.source,
            hint=f"Paths start at {root}; say --audio-root FOLDER if they start elsewhere.",
        )
    if not all(full.startswith(root + os.sep) for full in rows):
        root = os.path.commonpath([Path(full).parent for full in rows])
    return {os.path.relpath(full, root).replace(os.sep, "/"): (members, blobs[full]) for full, members in rows.items()}


def _record(path: str, rows: list[Row], blob: Blob, roles: Roles, pattern: re.Pattern[str] | None) -> Record:
    column = roles.split or roles.fold
    split = _one(rows, column) if column else None
    if column and (split is None or split == ""):
        raise ValueError(f'no value under "{column}"')
    facts, classes = _READERS[roles.kind](rows, roles)
    facts["path"] = path
    if roles.path != "path":
        facts.pop(roles.path, None)
    group = None
    if pattern is not None:
        match = pattern.search(path)
        group = match[1] if match else None
        if not group:
            raise ValueError("the group pattern does not match the path")
        facts[GROUP_KEY] = group
    elif roles.group:
        value = _one(rows, roles.group)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise ValueError(f'wanted text or a whole number as group under "{roles.group}", found {value!r}')
        facts[roles.group] = value
        group = str(value)
    return Record(rows[0].where, path, blob, facts, classes, split, group)


def _one(rows: list[Row], column: str) -> Any:
    """Return the value that all rows of a file share."""
    values = list(dict.fromkeys(json.dumps(row.values.get(column)) for row in rows))
    if len(values) > 1:
        raise ValueError(f'different values under "{column}": {values[0]} in {rows[0].where}, {values[1]} elsewhere')
    return rows[0].values.get(column)


def _text(value: Any) -> str:
    """Return one label as a vocabulary writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        raise ValueError(f"wanted a label, found the number {value} (--kind regression takes numbers)")
    if not isinstance(value, str) or not value.strip():
        raise ValueError("no label")
    if any(ord(letter) < 32 for letter in value.strip()):
        raise ValueError(f"a label holds a control character: {value!r}")
    return value.strip()


def _several(value: Any, separator: str | None) -> tuple[str, ...]:
    """Return the labels in a cell: a list, a list written as JSON, or a text with a separator. None at all is allowed."""
    if isinstance(value, str) and value.lstrip().startswith("[") and separator is None:
        value = _parsed(value)
    if value is None or value == "":
        return ()
    if isinstance(value, str) and separator is not None:
        value = [part for part in value.split(separator) if part.strip()]
    return tuple(dict.fromkeys(_text(item) for item in (value if isinstance(value, list) else [value])))


def _parsed(value: str) -> Any:
    try:
        return plain(json.loads(value))
    except (ValueError, RecursionError):
        raise ValueError(f"not a JSON list: {value[:60]!r}") from None


def _single_label(rows: list[Row], roles: Roles) -> tuple[dict[str, Any], tuple[str, ...]]:
    facts = dict(rows[0].values)
    value = facts.get(roles.labels[0])
    label = _text(value)
    facts[roles.labels[0]] = label if isinstance(value, str) else value
    return facts, (label,)


def _multi_label(rows: list[Row], roles: Roles) -> tuple[dict[str, Any], tuple[str, ...]]:
    labels = tuple(
        dict.fromkeys(label for row in rows for label in _several(row.values.get(roles.labels[0]), roles.separator))
    )
    return {**_shared(rows), roles.labels[0]: list(labels)}, labels


def _events(rows: list[Row], roles: Roles) -> tuple[dict[str, Any], tuple[str, ...]]:
    events: list[dict[str, Any]] = []
    column = roles.labels[0]
    classes: dict[str, None] = {}
    if roles.onset and roles.offset:
        cells = [(row.values.get(roles.onset), row.values.get(roles.offset), row.values.get(column)) for row in rows]
    else:
        cells = [cell for row in rows for cell in _listed(row.values.get(column))]
    for onset, offset, label in cells:
        if all(cell is None or cell == "" for cell in (onset, offset, label)):
            continue  # how manifests write a file without events
        names = _several(label, roles.separator)
        if not names:
            raise ValueError("an event without a label")
        start_s, end_s = _seconds(onset), _seconds(offset)
        if end_s < start_s:
            raise ValueError(f"an event ends at {end_s} s, before it starts at {start_s} s")
        events += [{"onset": start_s, "offset": end_s, "label": name} for name in names]
        classes |= dict.fromkeys(names)
    events.sort(key=lambda event: (event["onset"], event["offset"], event["label"]))
    facts = {key: value for key, value in _shared(rows).items() if key not in (roles.onset, roles.offset, column)}
    return {**facts, EVENTS_KEY: events}, tuple(classes)


def _listed(value: Any) -> Iterable[tuple[Any, Any, Any]]:
    """Return onset, offset and label of each event in a cell."""
    if isinstance(value, str) and value.strip():
        value = _parsed(value)
    if value is None or value == "":
        return
    if not isinstance(value, list):
        raise ValueError(f"wanted a list of events, found {value!r}")
    for event in value:
        if not isinstance(event, dict):
            raise ValueError(f"wanted an event as an object with onset, offset and label, found {event!r}")
        names = [guess(event, known) for known in (ONSET, OFFSET, EVENT_LABEL)]
        if None in names:
            raise ValueError(f"wanted an event with onset, offset and label, found {', '.join(event)}")
        yield tuple(event[name] for name in names if name is not None)


def _seconds(value: Any) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError(f"a time before the start: {number} s")
    return number


def _number(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError(f"wanted a number, found {value!r}")
    return number


def _captions(rows: list[Row], roles: Roles) -> tuple[dict[str, Any], tuple[str, ...]]:
    captions: dict[str, None] = {}
    for row in rows:
        for column in roles.labels:
            value = row.values.get(column)
            if isinstance(value, str) and value.lstrip().startswith('["'):
                value = _parsed(value)
            for caption in value if isinstance(value, list) else [value]:
                if isinstance(caption, str) and caption.strip():
                    captions[caption.strip()] = None
                elif caption not in (None, ""):
                    raise ValueError(f"wanted a caption as text, found {caption!r}")
    if not captions:
        raise ValueError("no caption")
    facts = {key: value for key, value in _shared(rows).items() if key not in roles.labels}
    return {**facts, CAPTIONS_KEY: list(captions)}, ()


def _regression(rows: list[Row], roles: Roles) -> tuple[dict[str, Any], tuple[str, ...]]:
    return {**rows[0].values, roles.labels[0]: _number(rows[0].values.get(roles.labels[0]))}, ()


def _transcript(rows: list[Row], roles: Roles) -> tuple[dict[str, Any], tuple[str, ...]]:
    value = rows[0].values.get(roles.labels[0])
    if not isinstance(value, str):
        raise ValueError(f"wanted a text, found {value!r}")
    return {**rows[0].values, roles.labels[0]: value.strip()}, ()


def _shared(rows: list[Row]) -> dict[str, Any]:
    """Return the values that all rows of a file have in common."""
    first, *others = rows
    return {key: value for key, value in first.values.items() if all(row.values.get(key) == value for row in others)}


_READERS: dict[str, Callable[[list[Row], Roles], tuple[dict[str, Any], tuple[str, ...]]]] = {
    "single-label": _single_label,
    "multi-label": _multi_label,
    "events": _events,
    "captions": _captions,
    "regression": _regression,
    "transcript": _transcript,
}
