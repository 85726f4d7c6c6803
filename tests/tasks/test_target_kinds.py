"""Label JSON of every kind becomes targets, or an error that names clip, key and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xares_store.errors import LabelError, TaskError
from xares_store.targets import captions_of, class_indices, events_of, multi_hot, numbers, strata, transcripts
from xares_store.task import Task

HEAD = """
format = 1
name = "mine"
title = "Mine"
domain = "other"
data = { splits = { train = ["a*.tar"], test = ["b*.tar"] } }
"""
METRIC = {
    "single-label": 'name = "accuracy"',
    "multi-label": 'name = "map"\nalso = ["auroc"]',
    "events": 'name = "segment_f1_macro"\nsegment_s = 1.0',
    "captions": 'name = "recall_at_1"',
    "regression": 'name = "mse"\nworst = 1.0',
    "transcript": 'name = "iwer"',
}


def make(kind: str, target: str = "", metric: str | None = None) -> Task:
    text = f'{HEAD}[target]\nkind = "{kind}"\n{target}\n[metric]\n{METRIC[kind] if metric is None else metric}\n'
    return Task.from_text(text, where="mine.toml", base=None)


TAGS = make("multi-label", 'key = "tags"\nlabels = ["a", "b", "c d"]\nseparator = ";"')
LIST = make("multi-label", 'key = "tags"\nlabels = ["a", "b", "7"]\naliases = { A = "a" }\nignore = ["x"]')
EVENTS = make("events", 'labels = ["dog", "60"]\nseparator = ","\nignore = ["hum"]')
NOTES = make(
    "events", 'key = "notes"\nlabels = ["dog", "60"]\nonset_key = "start"\noffset_key = "end"\nlabel_key = "note"'
)


def test_labels_in_one_text_and_in_a_list() -> None:
    found = multi_hot(TAGS, ['{"tags": "c d; a"}', '{"tags": ""}', '{"tags": ["b"]}'], ["1", "2", "3"])
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    found = multi_hot(LIST, ['{"tags": ["A", 7, "x"]}', '{"tags": []}', '{"tags": "b"}'], ["1", "2", "3"])
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_an_alias_stands_for_a_label() -> None:
    task = make("single-label", 'key = "k"\nlabels = ["a", "b"]\naliases = { "a " = "a" }')
    assert class_indices(task, ['{"k": "a "}', '{"k": "b"}'], ["1", "2"]).tolist() == [0, 1]


def test_events_of_a_list_and_under_a_key() -> None:
    text = json.dumps([
        {"onset": -0.5, "offset": 1, "label": "dog,60"},
        {"onset": 2.5, "offset": 2.5, "label": "hum"},
        {"onset": -5, "offset": -1, "label": "dog"},
        {"onset": "3", "offset": "4.5", "label": 60},
    ])  # fmt: skip
    (table,) = events_of(EVENTS, [text], ["1"])
    assert table.onset_s.tolist() == [0.0, 0.0, 3.0]
    assert table.offset_s.tolist() == [1.0, 1.0, 4.5]
    assert table.label.tolist() == [0, 1, 1]
    first, second = events_of(NOTES, ['{"notes": []}', '{"notes": [{"start": 1, "end": 2, "note": 60}]}'], ["1", "2"])
    assert len(first.label) == 0
    assert first.label.dtype == np.int64
    assert second.label.tolist() == [1]


def test_captions_numbers_and_transcripts() -> None:
    everything = make("captions")
    assert captions_of(everything, ['{"caption_1": "a dog", "caption_2": "barks"}'], ["1"]) == [("a dog", "barks")]
    grouped = make("captions", 'group_key = "speaker"')
    assert captions_of(grouped, ['{"a": "a dog", "speaker": "bob"}'], ["1"]) == [("a dog",)]
    keyed = make("captions", 'key = "text"')
    assert captions_of(keyed, ['{"text": "a dog", "n": 1}', '{"text": ["x", "y"]}'], ["1", "2"]) == [
        ("a dog",),
        ("x", "y"),
    ]
    found = numbers(make("regression", 'key = "n"'), ['{"n": 2}', '{"n": "2.5"}'], ["1", "2"])
    assert (found.tolist(), found.dtype) == ([2.0, 2.5], np.float32)
    assert transcripts(make("transcript", 'key = "t"'), ['{"t": "HELLO"}'], ["1"]) == ["HELLO"]


@pytest.mark.parametrize(
    ("task", "read", "text", "expected"),
    [
        (TAGS, multi_hot, '{"tags": "a;z"}', ['Unknown label "z"', "clip c1", '"tags"']),
        (LIST, multi_hot, '{"tags": [["a"]]}', ["Wanted labels as text", "c1"]),
        (LIST, multi_hot, '{"tag": "a"}', ['the key "tags"', 'Did you mean "tag"']),
        (EVENTS, events_of, '{"onset": 1}', ["a list of events", "c1"]),
        (EVENTS, events_of, "[3]", ["an event as a JSON object"]),
        (EVENTS, events_of, '[{"onset": 1, "offset": 2}]', ['the key "label"']),
        (EVENTS, events_of, '[{"onset": 2, "offset": 1, "label": "dog"}]', ["a later offset", "[2, 1]"]),
        (EVENTS, events_of, '[{"onset": NaN, "offset": 1, "label": "dog"}]', ["onset"]),
        (EVENTS, events_of, '[{"onset": 0, "offset": 1, "label": "cat"}]', ['Unknown label "cat"', '"label"']),
        (make("captions"), captions_of, "{}", ["one or more captions"]),
        (make("captions"), captions_of, '{"a": " "}', ["captions as text"]),
        (make("regression", 'key = "n"'), numbers, '{"n": true}', ["a number", "true"]),
        (make("regression", 'key = "n"'), numbers, '{"n": "high"}', ["a number", '"high"']),
        (make("regression", 'key = "n"'), numbers, f'{{"n": 1{"0" * 400}}}', ["a number", "c1"]),
        (make("regression", 'key = "n"'), numbers, '{"n": 1e39}', ["a number", "1e+39"]),
        (EVENTS, events_of, f'[{{"onset": 0, "offset": 1{"0" * 400}, "label": "dog"}}]', ["a later offset"]),
        (make("transcript", 'key = "t"'), transcripts, '{"t": 3}', ["a text"]),
    ],
)
def test_what_does_not_fit_is_named(task: Task, read: Callable[..., Any], text: str, expected: list[str]) -> None:
    with pytest.raises(LabelError) as caught:
        read(task, [text], ["c1"])
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "target", "metric", "expected"),
    [
        ("events", 'labels = ["a", "b"]', 'name = "segment_f1_macro"', "metric.segment_s: a segment metric needs"),
        (
            "multi-label",
            'key = "k"\nlabels = ["a", "b"]',
            'name = "map"\nsegment_s = 1.0',
            "belongs to segment metrics",
        ),
        ("regression", 'key = "k"', 'name = "mse"', "metric.worst"),
        ("regression", 'key = "k"', 'name = "pearson"\nworst = 2.0', "metric.worst: pearson has bounds"),
        ("captions", "", 'name = "median_rank"', "cannot be averaged"),
        ("captions", "", 'name = "recall_at_1"\nalso = ["accuracy"]', 'metric.also: "accuracy" does not fit'),
        ("captions", "", 'name = "recall_at_1"\nalso = ["recall_at_1"]', "named twice"),
        ("captions", 'keys = "k"', None, "target.keys: unknown key"),
        ("regression", "", None, "target.key: missing"),
        ("multi-label", 'key = "k"\nlabels = ["a", "b"]\nignore = ["a"]', None, "ignore: 'a' is a label"),
        ("multi-label", 'key = "k"\nlabels = ["a", "b"]\naliases = { c = "d" }', None, "'d', which is no label"),
        ("multi-label", 'key = "k"\nlabels = ["a", "b"]\naliases = { a = "b" }', None, "'a' is a label itself"),
    ],
)
def test_task_files_that_contradict_themselves(kind: str, target: str, metric: str | None, expected: str) -> None:
    with pytest.raises(TaskError) as caught:
        make(kind, target, metric)
    assert expected in str(caught.value)


def test_a_probe_of_another_kind_is_refused() -> None:
    with pytest.raises(TaskError, match=r'probe.frame does not fit target.kind "regression"'):
        make("regression", 'key = "k"', 'name = "mse"\nworst = 1.0\n[probe.frame]\nepochs = 3')


def test_strata_follow_the_rarest_label_and_the_range_of_numbers() -> None:
    hot = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 0]], dtype=np.uint8)
    assert strata(TAGS, hot).tolist() == [1, 0, 3, 2, 1]
    tables = events_of(EVENTS, ["[]", '[{"onset": 0, "offset": 1, "label": "dog"}]'], ["1", "2"])
    assert strata(EVENTS, tables).tolist() == [2, 0]
    assert strata(make("regression", 'key = "n"'), np.array([0.0, 5.0, 10.0], dtype=np.float32)).tolist() == [0, 5, 9]
    assert strata(make("captions"), [("a",), ("b",)]).tolist() == [0, 0]


@pytest.mark.parametrize("task", [TAGS, LIST, EVENTS, NOTES, make("captions"), make("regression", 'key = "n"')])
def test_every_kind_survives_being_written_as_toml(task: Task) -> None:
    again = Task.from_text(task.to_toml(), where="again", base=None)
    assert again.fingerprint == task.fingerprint
