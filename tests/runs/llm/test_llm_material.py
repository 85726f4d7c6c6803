"""What is learnt: which clips, which of their texts, with which prompt, and how much of their audio."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runs.llm.made import LABELS, made, make_features, make_recipe, make_task, renamed, rows, said
from xares_store.errors import LabelError, ProbeError, ProtocolError
from xares_store.probes.llm.batches import BatchReader
from xares_store.protocol import Fold
from xares_store.recipe import Recipe
from xares_store.runs.llm.answers import answers_of
from xares_store.runs.llm.material import make_course
from xares_store.targets import Texts

SELECTING = {"selection": {"clips": 2}}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


@pytest.mark.parametrize("carved", [True, False])
@pytest.mark.parametrize("selecting", [True, False])
def test_validation_clips_train_only_where_they_were_set_aside_and_nothing_is_selected(
    carved: bool, selecting: bool
) -> None:
    recipe = make_recipe(**(SELECTING if selecting else {}))
    fold = Fold("test", rows(0, 1, 2), rows(3, 4), rows(5, 6, 7), knn_uses_valid=carved)
    material = made(WORDS, recipe, fold=fold)
    learnt = [0, 1, 2, 3, 4] if carved and not selecting else [0, 1, 2]
    assert material.rows.tolist() == learnt
    assert [said(material.texts[number]) for number in range(len(material.texts))] == WORDS[: len(learnt)]
    assert material.n_texts.tolist() == [1] * len(learnt)
    assert material.first.tolist() == [*learnt, *[-1] * (8 - len(learnt))]


@pytest.mark.parametrize("text_filter", [True, False])
def test_corrupt_training_texts_are_left_out_where_the_recipe_says_so(text_filter: bool) -> None:
    texts: list[Texts | str] = [Texts(("[- - -]", "dog"), ("dog",)), Texts(("!!!",), ("a",)), "cat", "bird", "x", "y"]
    fold = Fold("test", rows(0, 1, 2, 3), rows(), rows(4, 5))
    material = made(texts, make_recipe(training={"text_filter": text_filter}), fold=fold)
    found = [said(material.texts[number]) for number in range(len(material.texts))]
    if text_filter:
        assert (material.rows.tolist(), material.filtered) == ([0, 2, 3], 2)
        assert found == ["dog", "cat", "bird"]
    else:
        assert (material.rows.tolist(), material.filtered) == ([0, 1, 2, 3], 0)
        assert found == ["[- - -]", "dog", "!!!", "cat", "bird"]
        assert said(material.example(0, 1, np.zeros((1, 3))).target) == "dog"


@pytest.mark.parametrize("asks", [True, False])
def test_examples_and_questions_hold_the_prompt_where_the_recipe_asks(asks: bool) -> None:
    material = made(WORDS, make_recipe(prompt=asks))
    example, question = (
        material.example(1, 0, np.zeros((2, 3), np.float16)),
        material.question(7, np.zeros((2, 3), np.float16)),
    )
    assert said(example.prompt) == said(question.prompt) == ("hear" if asks else "")
    assert (said(example.target), question.target) == ("two", ())
    assert (example.name, question.name) == ("all/c1", "all/c7")
    assert example.frames.dtype == np.float32


def _learnt(recipe: Recipe, room: int | None, n_frames: int = 40) -> int:
    """The longest stretch that a training reads."""
    material = made(WORDS, recipe, n_frames=n_frames)
    course = make_course([material], [1.0], recipe, 0, lambda prompt: None if room is None else room)
    reader = BatchReader(course.mixture, course.example, memory_bytes=1 << 20)
    found = {len(example.frames) for batch in reader.steps(0, 8) for example in batch}
    (longest,) = course.crop_frames
    assert found == {n_frames if longest is None else min(n_frames, longest)}
    return max(found)


def test_training_crops_and_the_context_limit_what_is_learnt_at_once() -> None:
    assert _learnt(make_recipe(), None) == 40
    assert _learnt(make_recipe(training={"crop_s": 0.15}), None) == 15  # of 10 ms
    assert _learnt(make_recipe(), 6) == 12  # two frames a position
    assert _learnt(make_recipe(training={"crop_s": 0.15}), 6) == 12
    assert _learnt(make_recipe(training={"crop_s": 0.05}), 6) == 5
    assert _learnt(make_recipe(training={"crop_s": 0.001}), None) == 1


SEVERAL = LABELS + '\nseparator = ";"'
OPEN = 'kind = "text"\nkeys = ["t"]\nprompt = "hear"'


def test_a_test_clip_without_a_label_is_allowed_where_there_may_be_several() -> None:
    nothing = Texts((), ())
    fold = Fold("test", rows(0, 1), rows(2), rows(3, 4))
    texts: list[Texts | str] = ["a", "b", nothing, nothing, "a"]
    for recipe in (make_recipe(), make_recipe(**SELECTING)):
        made(texts, recipe, task=make_task("string_accuracy", target=SEVERAL), fold=fold)
    for target in (LABELS, OPEN):
        with pytest.raises(LabelError, match="all/c3"):
            made(texts, make_recipe(), task=make_task("string_accuracy", target=target), fold=fold)
    untaught = Fold("test", rows(0, 2), rows(), rows(3))
    with pytest.raises(LabelError, match="all/c2"):  # nothing to learn from
        made(texts, make_recipe(), task=make_task("string_accuracy", target=SEVERAL), fold=untaught)


@pytest.mark.parametrize(("protocol", "items", "dropped"), [("strict", 2, 0), ("published", 1, 1)])
def test_a_clip_without_a_label_is_right_when_nothing_is_written(protocol: str, items: int, dropped: int) -> None:
    fold = Fold("test", rows(0), rows(0), rows(1, 2))
    features = make_features(["a", Texts((), ()), "a"], [fold])
    found = answers_of(make_task("string_accuracy", target=SEVERAL), features, fold, ["", "a"], protocol=protocol)
    assert (len(found.rows), found.n_dropped, found.n_corrupt) == (items, dropped, 0)
    assert found.hits().tolist() == [1.0] * items


def test_no_training_text_is_left() -> None:
    fold = Fold("test", rows(0, 1), rows(), rows(2, 3))
    with pytest.raises(ProtocolError, match=r"2 look corrupt(.|\n)*next: .*target.keys.*text_filter"):
        made(["!!!", "[--", "a", "b"], make_recipe(training={"text_filter": True}), fold=fold)


def _crops(gaps: bool, texts: dict[str, int], prompts: bool = True) -> dict[str, int | None]:
    """Crops of tasks whose longest training text has so many letters; the context has 50 places, 7 of them for answers."""
    recipe = make_recipe(prompt=prompts)
    found = [
        renamed(made(["a" * length] * 8, recipe, n_frames=200), name) for name, length in texts.items()
    ]  # fmt: skip
    course = make_course(found, [1.0] * len(found), recipe, 0, lambda prompt: 50 - 7 - prompt, gaps=gaps)
    return dict(zip(texts, course.crop_frames, strict=True))


def test_a_text_longer_than_answers_takes_its_place_from_the_audio() -> None:
    assert _crops(False, {"short": 3, "long": 27}) == {"short": 2 * (43 - 4), "long": 2 * (43 - 4 - 20)}
    # Published: the audio of one clip stands beside the text of another.
    assert _crops(True, {"short": 3, "long": 27}) == {"short": 2 * (43 - 4 - 20), "long": 2 * (43 - 4 - 20)}
    assert _crops(True, {"short": 3}) == {"short": 2 * (43 - 4)}


def test_a_text_that_leaves_no_room_is_named() -> None:
    def room(prompt: int) -> int:
        if prompt > 40:
            raise ProbeError("No room.")
        return 43 - prompt

    texts: list[Texts | str] = ["a", Texts(("b", "c"), ("b",)), Texts(("d", "x" * 100_000), ("d",)), "e", "f", "g", "h", "i"]  # fmt: skip
    recipe = make_recipe()
    with pytest.raises(ProbeError) as caught:
        make_course([made(texts, recipe)], [1.0], recipe, 0, room)
    message = str(caught.value)
    assert "100000 tokens" in message
    assert "clip all/c2, task made" in message
    for remedy in ("--where", "text_filter", "decoder with a longer context"):
        assert remedy in message
    with pytest.raises(ProbeError, match=r"^No room"):
        make_course([made(texts[3:] * 2, recipe)], [1.0], recipe, 0, lambda prompt: room(prompt + 40))
