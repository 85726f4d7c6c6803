"""The choice of an epoch: by which clips, by what is written about them, and by which score."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runs.llm.made import LABELS, FakeModel, made, make_recipe, make_task, names, renamed, rows
from xares_store.errors import ProbeError
from xares_store.protocol import Fold
from xares_store.runs.llm.selecting import make_validate, selection_metric
from xares_store.targets import Texts

RECIPE = make_recipe(selection={"clips": 3})
WORDS = [f"word {number} of {number}" for number in range(16)]  # 8 train, 4 validate, 4 test


def _score(model: Any, materials: Any, *, published: bool = False, room: int | None = None) -> float:
    return make_validate(model, materials, RECIPE, published=published, room=lambda prompt: room)()


@pytest.mark.parametrize("published", [False, True])
def test_validation_clips_choose_and_no_test_clip(published: bool) -> None:
    material = made(WORDS, RECIPE)
    model = FakeModel()
    validate = make_validate(model, [material], RECIPE, published=published, room=lambda prompt: None)  # type: ignore[arg-type]
    validate()
    valid, test = ({f"c{row}" for row in side.tolist()} for side in (material.fold.valid, material.fold.test))
    seen = names([*model.written, *model.forced])
    assert seen
    assert seen.isdisjoint(test)
    assert seen <= valid
    assert len(seen) == (4 if published else 3)  # published: all of them
    before = seen, len(model.written) + len(model.forced)
    validate()
    assert (names([*model.written, *model.forced]), (len(model.written) + len(model.forced)) // 2) == before


def test_strict_chooses_by_what_is_written_and_published_by_what_is_likely_given_the_reference() -> None:
    material = made(WORDS, RECIPE)
    strict, published = FakeModel(), FakeModel()
    _score(strict, [material])
    assert (len(strict.written), strict.forced) == (3, [])
    assert all(one.target == () for one in strict.written)
    _score(published, [material], published=True)
    assert (published.written, len(published.forced)) == ([], 4)
    assert {one.name: one.target for one in published.forced} == {
        f"all/c{row}": tuple(map(ord, WORDS[row])) for row in material.fold.valid.tolist()
    }


@pytest.mark.parametrize(
    ("metric", "target", "named", "value"),
    [
        ("iwer", 'kind = "transcript"\nkey = "t"', "iwer", 2 / 3),
        ("icer", 'kind = "transcript"\nkey = "t"', "icer", 9 / 11),
        ("string_accuracy", LABELS, "string_accuracy", 0.0),
        ("fense", 'kind = "text"\nkeys = ["t"]\nprompt = "hear"', "icer", 9 / 11),
    ],
)
def test_the_metric_of_the_task_chooses(metric: str, target: str, named: str, value: float) -> None:
    material = made(["one two six"] * 16, make_recipe(prompt=False, selection={"clips": 3}), task=make_task(metric, target=target))  # fmt: skip
    assert selection_metric(material) == named
    found = _score(FakeModel(lambda name: "one two sax" if named != "icer" else "one two sa"), [material])
    assert found == pytest.approx(value)


def test_all_tasks_choose_alike() -> None:
    good, bad = (renamed(made(["one"] * 16, RECIPE), name) for name in ("good", "bad"))
    model = FakeModel(lambda name: "one" if "good" in name else "two")
    assert _score(model, [good, bad]) == _score(model, [bad, good]) == pytest.approx(0.5)
    assert _score(model, [good]) == 1.0
    assert _score(model, [bad]) == 0.0


def test_transcripts_are_compared_as_those_of_test_clips_are() -> None:
    """Strict knows the punctuation of every script; the published tables only made texts lower case."""
    material = made(["你好，世界。"] * 16, RECIPE, task=make_task("icer"))
    assert _score(FakeModel(lambda name: "你好世界"), [material]) == 1.0
    material = made(["One, two"] * 16, RECIPE)
    assert _score(FakeModel(lambda name: "one two"), [material]) == 1.0
    assert _score(FakeModel(lambda name: "one two"), [material], published=True) == pytest.approx(0.5)


@pytest.mark.parametrize(("metric", "target"), [("iwer", 'kind = "text"\nkeys = ["t"]\nprompt = "hear"'), ("string_accuracy", LABELS)])  # fmt: skip
def test_the_best_reference_counts_and_each_by_itself_when_published(metric: str, target: str) -> None:
    texts = [Texts(("learn",), ("never", "dog bark", "sing", "bark sing"))] * 16
    material = made(texts, RECIPE, task=make_task(metric, target=target))
    assert _score(FakeModel(lambda name: "dog bark"), [material]) == 1.0
    assert _score(FakeModel(lambda name: "sing"), [material]) == 1.0
    model = FakeModel(lambda name: "dog bark")
    found = _score(model, [material], published=True)
    # What is said is cut to the reference's length: "dog b", "dog bark", "dog ", "dog bark".
    assert found == pytest.approx(1 / 4 if metric == "string_accuracy" else 1 - (2 + 0 + 1 + 2) / 6)
    assert len(model.forced) == 16
    assert {"".join(map(chr, one.target)) for one in model.forced} == set(texts[0].test)


def test_labels_in_another_order_and_no_label_are_right() -> None:
    target = LABELS + '\nseparator = ";"'
    labels = [Texts(("a;b",), ("a;b",) if row % 2 else ()) for row in range(16)]
    fold = Fold("test", rows(*range(8)), rows(8, 9, 10, 11), rows(12, 13))
    material = made(labels, make_recipe(selection={"clips": 4}), task=make_task("string_accuracy", target=target), fold=fold)  # fmt: skip
    recipe = make_recipe(selection={"clips": 4})
    model: Any = FakeModel(lambda name: "B; a" if int(name[-1]) % 2 else " ; ")
    assert make_validate(model, [material], recipe, published=False, room=lambda prompt: None)() == 1.0
    model = FakeModel(lambda name: "a;b")
    assert make_validate(model, [material], recipe, published=False, room=lambda prompt: None)() == 0.5
    model = FakeModel(lambda name: "a;b")
    assert make_validate(model, [material], recipe, published=True, room=lambda prompt: None)() == 1.0
    assert names(model.forced) == {"c9", "c11"}  # published: clips without a label are left out


def test_published_does_not_separate_with_the_end_token() -> None:
    material = made(WORDS, RECIPE)
    with pytest.raises(ProbeError, match=r"end token(.|\n)*--decoder made(.|\n)*--protocol strict"):
        _score(FakeModel(separator=0), [material], published=True)
    _score(FakeModel(separator=0), [material])
    _score(FakeModel(separator=1), [material], published=True)


def test_references_longer_than_answers_leave_room_for_themselves() -> None:
    """The context has 7 tokens for an answer; a reference of 17 takes 10 positions of the audio."""
    material = made(["a" * 17] * 16, RECIPE, n_frames=100)
    model: Any = FakeModel()
    make_validate(model, [material], RECIPE, published=True, room=lambda prompt: 34 - prompt)()
    assert {len(one.frames) for one in model.forced} == {2 * (34 - len("hear") - 10)}
