"""The choice of an epoch: by which clips, by what is written about them, and by which score."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runs.llm.made import LABELS, FakeModel, made, make_recipe, make_task, names, renamed
from xares_store.runs.llm.selecting import make_validate, selection_metric

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
