"""From label JSON to targets, by kind, and to groups: made in phase two from text that was stored verbatim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xares_store.errors import LabelError
from xares_store.kinds import Captions, Events, MultiLabel, Regression, SingleLabel, Text, Transcript
from xares_store.label_json import (
    as_index,
    as_number,
    as_text,
    encodable,
    malformed,
    member,
    parse,
    show,
    unknown,
    value_of,
)
from xares_store.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class EventTable:
    """The events of one recording.

    Attributes:
        onset_s, offset_s: float64 ``(events,)``, seconds from the start of the recording.
        label: class index, int64 ``(events,)``.
    """

    onset_s: npt.NDArray[np.float64]
    offset_s: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]


def class_indices(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Turn label JSON into class indices.

    Args:
        task: says which key counts and what its value means.
        labels: the JSON text of each clip, verbatim.
        clip_ids: names of the clips, for messages; as many as ``labels``.

    Returns:
        Indices in 0..len(task.labels)-1, shape ``(clips,)``.

    Raises:
        LabelError: a label that is missing, malformed or unknown; the message names clip, key and value.

    Example:
        >>> from xares_store.catalog import load_task
        >>> class_indices(load_task("esc10"), ['{"label": 3}'], ["a"])
        array([3])
    """
    target = _target(task, SingleLabel)
    index_of = _index_of(target.labels, target.aliases)
    by_index = target.encoding == "index"

    def read(text: str, clip_id: str) -> int:
        value = value_of(text, target.key, clip_id)
        index = as_index(value, len(target.labels)) if by_index else index_of.get(as_text(value) or "")
        if index is None:
            raise unknown(task, value, clip_id)
        return index

    return np.asarray(_each(labels, clip_ids, read), dtype=np.int64)


def multi_hot(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Turn label JSON into a row of zeros and ones a clip; a clip without labels is all zeros.

    Args:
        task, labels, clip_ids: as in :func:`class_indices`, for a ``multi-label`` task.

    Returns:
        ``(clips, classes)``.

    Raises:
        LabelError: as :func:`class_indices`.
    """
    target = _target(task, MultiLabel)
    index_of = _index_of(target.labels, target.aliases)
    result = np.zeros((len(labels), len(target.labels)), dtype=np.uint8)

    def read(text: str, clip_id: str) -> list[int]:
        value = value_of(text, target.key, clip_id)
        return _classes(task, target, index_of, value, clip_id, target.key)

    for row, classes in enumerate(_each(labels, clip_ids, read)):
        result[row, classes] = 1
    return result


def events_of(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> list[EventTable]:
    """Turn label JSON into the events of each clip's recording.

    An event with several labels becomes one event a label. Events that start before 0 are cut there, and those that are
    over by then left out.

    Args:
        task, labels, clip_ids: as in :func:`class_indices`, for an ``events`` task.

    Raises:
        LabelError: as :func:`class_indices`; also for an event without times, or one that ends before it starts.
    """
    target = _target(task, Events)
    index_of = _index_of(target.labels, target.aliases)

    def read(text: str, clip_id: str) -> EventTable:
        found = parse(text, clip_id) if target.key is None else value_of(text, target.key, clip_id)
        if not isinstance(found, list):
            raise malformed("a list of events", found, task, clip_id, target.key)
        onsets: list[float] = []
        offsets: list[float] = []
        classes: list[int] = []
        for event in found:
            if not isinstance(event, dict):
                raise malformed("an event as a JSON object", event, task, clip_id, target.key)
            onset, offset, label = (
                member(event, key, clip_id) for key in (target.onset_key, target.offset_key, target.label_key)
            )
            times = as_number(onset), as_number(offset)
            if times[0] is None or times[1] is None or times[1] < times[0]:
                raise malformed("an onset and a later offset in seconds", [onset, offset], task, clip_id, target.key)
            if times[0] < 0 and times[1] <= 0:
                continue
            for index in _classes(task, target, index_of, label, clip_id, target.label_key):
                onsets.append(max(0.0, times[0]))
                offsets.append(max(0.0, times[1]))
                classes.append(index)
        return EventTable(np.asarray(onsets), np.asarray(offsets), np.asarray(classes, dtype=np.int64))

    return _each(labels, clip_ids, read)


def captions_of(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the captions of each clip, at least one.

    Args:
        task, labels, clip_ids: as in :func:`class_indices`, for a ``captions`` task.

    Raises:
        LabelError: a clip has no caption, or something that is no text.
    """
    target = _target(task, Captions)

    def read(text: str, clip_id: str) -> tuple[str, ...]:
        if target.key is None:
            content = parse(text, clip_id)
            found: Any = content
            if isinstance(content, dict):
                found = [value for key, value in content.items() if key != target.group_key]
        else:
            found = value_of(text, target.key, clip_id)
        sentences = [found] if isinstance(found, str) else found
        if not isinstance(sentences, list) or not sentences:
            raise malformed("one or more captions", found, task, clip_id, target.key)
        for sentence in sentences:
            if not isinstance(sentence, str) or not sentence.strip():
                raise malformed("captions as text", sentence, task, clip_id, target.key)
        return tuple(sentences)

    return _each(labels, clip_ids, read)


def numbers(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the number of each clip.

    Args:
        task, labels, clip_ids: as in :func:`class_indices`, for a ``regression`` task.

    Returns:
        ``(clips,)``.

    Raises:
        LabelError: a value that is missing or no finite number.
    """
    target = _target(task, Regression)

    def read(text: str, clip_id: str) -> float:
        value = value_of(text, target.key, clip_id)
        number = as_number(value)
        if number is None or abs(number) > float(np.finfo(np.float32).max):
            raise malformed("a number", value, task, clip_id, target.key)
        return number

    return np.asarray(_each(labels, clip_ids, read), dtype=np.float32)


def transcripts(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> list[str]:
    """Return what is said in each clip.

    Args:
        task, labels, clip_ids: as in :func:`class_indices`, for a ``transcript`` task.

    Raises:
        LabelError: a value that is missing, no text, or text that cannot be encoded.
    """
    target = _target(task, Transcript)

    def read(text: str, clip_id: str) -> str:
        value = value_of(text, target.key, clip_id)
        if not isinstance(value, str):
            raise malformed("a text", value, task, clip_id, target.key)
        return encodable(value, task, clip_id, target.key)

    return _each(labels, clip_ids, read)


@dataclass(frozen=True)
class Texts:
    """What may be written about a clip; empty where its JSON has nothing under the keys that count.

    Attributes:
        train: texts to learn from.
        test: texts that a hypothesis is compared with.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]


def texts_of(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> list[Texts]:
    """Return what may be written about each clip.

    The first key that holds something counts: a text, a number, or a list of them. A list is several texts, or with a
    ``separator`` several labels of one text.

    Args:
        task, labels, clip_ids: as in :func:`class_indices`, for a ``text`` task, or a ``transcript`` task, where both
            are the transcript.

    Raises:
        LabelError: the JSON is no object, or a value is neither text nor number, or text that cannot be encoded.
    """
    if isinstance(task.target, Transcript):
        return [Texts((text,), (text,)) for text in transcripts(task, labels, clip_ids)]
    target = _target(task, Text)

    def read(text: str, clip_id: str) -> Texts:
        content = parse(text, clip_id)
        if not isinstance(content, dict):
            raise malformed("a JSON object", content, task, clip_id, target.keys[0])
        train = _first_text(task, target, target.keys, content, clip_id)
        return Texts(
            train, train if target.test_keys is None else _first_text(task, target, target.test_keys, content, clip_id)
        )

    return _each(labels, clip_ids, read)


def _first_text(
    task: Task, target: Text, keys: Sequence[str], content: Mapping[str, Any], clip_id: str
) -> tuple[str, ...]:
    for key in keys:
        value = content.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        texts: list[str] = []
        for item in items:
            number = None if isinstance(item, bool) else as_number(item)
            if not isinstance(item, str) and number is None:
                raise malformed("text or a number", item, task, clip_id, key)
            texts.append(encodable(item, task, clip_id, key) if isinstance(item, str) else str(item))
        texts = [text for text in texts if text.strip()]
        if texts:
            return (target.separator.join(texts),) if target.separator is not None else tuple(texts)
    return ()


def read_target(task: Task, labels: Sequence[str], clip_ids: Sequence[str]) -> Any:
    """Turn label JSON into targets of the task's kind, with the function of that kind.

    Raises:
        LabelError: a label does not fit the task.
    """
    return _READERS[task.target.kind](task, labels, clip_ids)


_READERS: Mapping[str, Callable[[Task, Sequence[str], Sequence[str]], Any]] = {
    "single-label": class_indices,
    "multi-label": multi_hot,
    "events": events_of,
    "captions": captions_of,
    "regression": numbers,
    "transcript": texts_of,
    "text": texts_of,
}


def strata(task: Task, target: Any) -> npt.NDArray[np.int64]:
    """Return a class for every clip by which splits are stratified, shape ``(clips,)``.

    Args:
        task: says the kind.
        target: what the function of that kind returned.

    The class itself; the rarest label of a clip with several, or of its events, one class more for none; one of ten
    equal ranges of a number; a single class for texts.
    """
    kind = task.target.kind
    if kind == "single-label":
        return np.asarray(target, dtype=np.int64)
    if kind in ("multi-label", "events"):
        present = np.asarray(target) if kind == "multi-label" else _present(target, len(task.labels))
        rank = np.argsort(np.argsort(present.sum(axis=0), kind="stable"), kind="stable")  # 0: the rarest
        order = np.where(present > 0, rank, len(rank))
        return np.asarray(np.where(present.any(axis=1), order.argmin(axis=1), len(rank)), dtype=np.int64)
    if kind == "regression":
        low, high = float(np.min(target)), float(np.max(target))
        return np.minimum(9, (np.asarray(target) - low) / ((high - low) or 1.0) * 10).astype(np.int64)
    return np.zeros(len(target), dtype=np.int64)


def _present(tables: Sequence[EventTable], n_classes: int) -> npt.NDArray[np.uint8]:
    present = np.zeros((len(tables), n_classes), dtype=np.uint8)
    for row, table in enumerate(tables):
        present[row, table.label] = 1
    return present


def groups(task: Task, labels: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return what must not be divided between train, validation and test.

    Args:
        task: its ``target.group_key`` names the recording or speaker in the JSON.
        labels: the JSON text of each clip, verbatim.
        keys: the recording key of each clip: its group when the task has no ``group_key``.

    Raises:
        LabelError: the group key is missing from a clip's JSON, or is neither text nor a number.
    """
    key = task.target.group_key
    if key is None:
        return list(keys)
    found: list[str] = []
    for text, clip_id in zip(labels, keys, strict=True):
        value = value_of(text, key, clip_id)
        group = as_text(value)
        if group is None:
            raise LabelError(
                f'Wanted text or a whole number under "{key}" to group clips by, found {show(value)}.',
                where=f"clip {clip_id}, task {task.name}",
                hint="Correct target.group_key in the task file.",
            )
        found.append(group)
    return found


def _target(task: Task, kind: type[T]) -> T:
    if not isinstance(task.target, kind):
        raise TypeError(f"task {task.name} is of kind {task.target.kind}")
    return task.target


def _index_of(labels: Sequence[str], aliases: Mapping[str, str] | None) -> dict[str, int]:
    index_of = {label: index for index, label in enumerate(labels)}
    return index_of | {spelling: index_of[label] for spelling, label in (aliases or {}).items()}


def _each(labels: Sequence[str], clip_ids: Sequence[str], read: Callable[[str, str], T]) -> list[T]:
    """Read every clip's JSON; crops of one recording repeat its text, which is read once."""
    seen: dict[str, T] = {}
    found: list[T] = []
    for text, clip_id in zip(labels, clip_ids, strict=True):
        if text not in seen:
            seen[text] = read(text, clip_id)
        found.append(seen[text])
    return found


def _classes(
    task: Task, target: MultiLabel | Events, index_of: Mapping[str, int], value: Any, clip_id: str, key: str
) -> list[int]:
    """Return the classes that a value with any number of labels names."""
    names: list[str | None]
    if isinstance(value, list):
        names = [as_text(item) for item in value]
    elif isinstance(value, str) and target.separator is not None:
        names = [part.strip() for part in value.split(target.separator) if part.strip()]
    else:
        names = [as_text(value)]
    found: list[int] = []
    for position, name in enumerate(names):
        if name is None:
            raise malformed("labels as text", value, task, clip_id, key)
        if name in (target.ignore or ()):
            continue
        if name not in index_of:
            raise unknown(task, value[position] if isinstance(value, list) else name, clip_id, key)
        found.append(index_of[name])
    return found
