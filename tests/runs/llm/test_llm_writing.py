"""What a trained model is asked about test clips: the whole of them, as far as the decoder sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runs.llm.made import LABELS, FakeModel, made, make_features, make_recipe, make_task, rows, said, tokenizer
from xares_store.errors import ProbeError
from xares_store.protocol import Fold
from xares_store.runs.llm.material import make_material
from xares_store.runs.llm.writing import label_likelihoods, labels_of, write_about
from xares_store.targets import Texts

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


def _labels(texts: list[Texts | str], folds: list[Fold], *, published: bool = False, separator: str = "", **recipe: Any) -> tuple[str, ...]:  # fmt: skip
    made_recipe = make_recipe(**recipe)
    target = LABELS + (f'\nseparator = "{separator}"' if separator else "")
    task = make_task("string_accuracy", target=target)
    material = make_material(task, make_features(texts, folds), folds[0], made_recipe, tokenizer)
    model: Any = FakeModel(recipe=made_recipe, gaps=published)
    found = labels_of(material, model)
    assert [said(ids) for ids in found.tokens] == list(found.names)
    return found.names


def test_labels_that_are_scored_as_one_are_one() -> None:
    fold = [Fold("test", rows(0, 1, 2, 3, 4), rows(), rows(5))]
    texts: list[Texts | str] = ["猫。", "猫", "Dog!", "dog", "it's a", "never heard"]
    assert _labels(texts, fold) == ("Dog!", "it's a", "猫。")
    assert _labels(texts, fold, published=True) == ("Dog!", "it's a", "猫", "猫。")
    # Where a text may hold several labels, punctuation inside one counts.
    several: list[Texts | str] = ["Dog!; dog", "dog ;cat;", "CAT", "x", "x", "bird"]
    assert _labels(several, fold, separator=";") == ("Dog!", "cat", "dog", "x")


def test_labels_are_those_of_training_clips_of_any_fold() -> None:
    texts: list[Texts | str] = ["one", "two", "three", "four", "five", "six"]
    folds = [Fold("a", rows(0, 1), rows(2), rows(3)), Fold("b", rows(1, 3), rows(4), rows(5))]
    assert _labels(texts, folds) == ("four", "one", "two")
    carved = [Fold("a", rows(0, 1), rows(2), rows(3, 4, 5), knn_uses_valid=True)]
    assert _labels(texts, carved) == ("one", "three", "two")
    assert _labels(texts, carved, selection={"clips": 1}) == ("one", "two")


def test_a_label_longer_than_answers_takes_its_place_from_the_audio() -> None:
    """Answers have 7 tokens."""
    recipe = make_recipe()
    labels = ["a", "b" * 7, "c" * 12, "d"]
    for names_, frames in ((labels[:2] * 4, 40), (labels * 2, 30)):
        model: Any = FakeModel(recipe=recipe)
        material = made(names_, recipe, task=make_task("string_accuracy", target=LABELS), n_frames=100)
        found = label_likelihoods(
            model, material, material.fold.test, labels_of(material, model), recipe, room=20, progress=lambda _: None
        )
        assert found.shape == (2, len(set(names_)))
        assert {len(one.frames) for one in model.scored} == {frames}
    with pytest.raises(ProbeError, match=r"label of 12 tokens(.|\n)*cccccccccccc(.|\n)*task made(.|\n)*longer context"):
        label_likelihoods(
            model, material, material.fold.test, labels_of(material, model), recipe, room=5, progress=lambda _: None
        )
