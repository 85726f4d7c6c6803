"""What a trained model is asked about test clips: the whole of them, as far as the decoder sees."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.runs.llm.made import (  # fmt: skip
    FakeModel,
    made,
    make_recipe,
    said,
)
from xares_store.runs.llm.writing import write_about

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def _write(model: Any, material: Any, recipe: Any, room: int | None = None) -> tuple[list[str], int]:
    counted: list[int] = []
    found, cut = write_about(model, material, material.fold.test, recipe, room=room, progress=counted.append)
    assert sum(counted) == len(found)
    return [one.text for one in found], cut


def test_test_clips_are_whole_however_training_crops_them() -> None:
    recipe = make_recipe(training={"crop_s": 0.05})
    model = FakeModel(lambda name: name.upper())
    material = made(WORDS, recipe, n_frames=[10] * 6 + [90, 30])
    assert _write(model, material, recipe) == (["ALL/C6", "ALL/C7"], 0)
    assert {one.name: len(one.frames) for one in model.written} == {"all/c6": 90, "all/c7": 30}
    assert {said(one.prompt) for one in model.written} == {"hear"}


def test_test_clips_are_cut_where_the_decoder_sees_no_more() -> None:
    recipe = make_recipe()
    model: Any = FakeModel()
    material = made(WORDS, recipe, n_frames=[10] * 6 + [90, 30])
    _, cut = _write(model, material, recipe, room=20)
    assert {one.name: len(one.frames) for one in model.written} == {"all/c6": 40, "all/c7": 30}
    assert cut == 1
    first = next(one.frames[:, 0] for one in model.written if one.name == "all/c6")
    np.testing.assert_array_equal(first, np.arange(60, 100))  # cut at the end


def test_text_is_generated_as_the_recipe_says() -> None:
    recipe = make_recipe(generation={"max_new_tokens": 3, "repetition_penalty": 1.25})
    model = FakeModel()
    _write(model, made(WORDS, recipe), recipe)
    assert model.generation
    assert all(one == {"max_new_tokens": 3, "repetition_penalty": 1.25} for one in model.generation)
