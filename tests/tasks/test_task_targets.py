"""Label JSON to class indices and groups."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.catalog import load_task
from xares_store.errors import LabelError
from xares_store.targets import class_indices, groups
from xares_store.task import Task


def one(task: Task, text: str) -> int:
    return int(class_indices(task, [text], ["clip7"])[0])


@given(indices=st.lists(st.integers(0, 49), max_size=60), indent=st.sampled_from([None, 1]))
def test_indices_survive(indices: list[int], indent: int | None) -> None:
    by_index, by_label = load_task("esc50"), load_task("fluentspeechcommands")
    names = [f"clip{row}" for row in range(len(indices))]
    texts = [json.dumps({"x": row, "label": index}, indent=indent) for row, index in enumerate(indices)]
    found = class_indices(by_index, texts, names)
    assert found.dtype == np.int64
    assert found.tolist() == indices
    texts = [
        json.dumps({"transcription": by_label.labels[index]}) for index in indices
    ]  # escapes the apostrophe U+2019
    assert class_indices(by_label, texts, names).tolist() == indices


def test_numbers_and_truth_values_stand_for_lines_of_a_vocabulary() -> None:
    task = load_task("libricount")
    assert one(task, '{"num_speakers": 10}') == 10
    assert one(task, '{"num_speakers": "10"}') == 10
    broadcast = load_task("subway_broadcast")
    assert [one(broadcast, f'{{"broadcasting": {value}}}') for value in ("0", "1", "true", "false", '"1"')] == [
        0,
        1,
        1,
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("urbansound8k", '{"soundevent": "sirens"}', ['"sirens"', "10 labels", 'Did you mean "siren"', '"soundevent"']),
        ("urbansound8k", '{"soundevent": "qqq"}', ['"qqq"', "Known labels: air_conditioner, car_horn"]),
        ("urbansound8k", '{"soundevent": ""}', ['Unknown label ""']),
        ("urbansound8k", '{"soundevents": "siren"}', ['Wanted the key "soundevent"', 'Did you mean "soundevents"']),
        ("urbansound8k", "{}", ["no keys"]),
        ("urbansound8k", '{"soundevent": ["siren"]}', ["Wanted one label", '["siren"]']),
        ("urbansound8k", '{"soundevent": null}', ["Wanted one label", "null"]),
        ("urbansound8k", '{"soundevent": 1.5}', ["Wanted one label", "1.5"]),
        ("urbansound8k", '{"soundevent": "' + "x" * 500 + '"}', ["xxx..."]),
        ("urbansound8k", "[1]", ["JSON object", "[1]"]),
        ("urbansound8k", "{", ["not valid JSON"]),
        ("urbansound8k", "[" * 100_000, ["not valid JSON"]),
        ("esc50", '{"label": 50}', ["from 0 to 49", "found 50"]),
        ("esc50", '{"label": -1}', ["from 0 to 49", "found -1"]),
        ("esc50", '{"label": "dog"}', ["from 0 to 49", '"dog"', "encoding"]),
        ("esc50", '{"label": 1.0}', ["Wanted one label", "1.0"]),
        ("esc50", '{"label": "٣"}', ["from 0 to 49"]),
        ("librispeechmalefemale", '{"gender": "m"}', ['"m"']),
    ],
)
def test_refused_with_clip_key_and_value(name: str, text: str, expected: list[str]) -> None:
    with pytest.raises(LabelError) as caught:
        one(load_task(name), text)
    for part in ["clip clip7", *expected]:
        assert part in str(caught.value)


def test_groups_are_recordings_unless_the_task_says(make_task: Callable[..., Task]) -> None:
    texts = ['{"g": "x"}', '{"g": 3}', '{"g": "3"}']
    assert groups(make_task(), texts, ["k0", "k1", "k2"]) == ["k0", "k1", "k2"]
    grouped = make_task(target='group_key = "g"')
    assert groups(grouped, texts, ["k0", "k1", "k2"]) == ["x", "3", "3"]
    for bad in ('{"label": 1}', '{"g": null}', '{"g": [1]}', "x"):
        with pytest.raises(LabelError) as caught:
            groups(grouped, [bad], ["k9"])
        assert "clip k9" in str(caught.value)


def test_lengths_must_agree(make_task: Callable[..., Task]) -> None:
    with pytest.raises(ValueError, match="shorter"):
        class_indices(make_task(), ['{"label": "a"}'] * 2, ["clip"])
