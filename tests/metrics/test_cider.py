"""CIDEr-D against the golden vectors, and what must not change it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.errors import MetricError
from xares_store.metrics.cider import caption_words, cider_d

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "golden" / "text.json").read_text())
captions = st.lists(st.sampled_from(["a", "dog", "bird", "rain", "barks", "sings", "falls"]), max_size=7).map(" ".join)
corpora = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=1, max_size=5)


def test_every_vector_of_text_is_named_in_a_test() -> None:
    users = [text for path in TESTS.rglob("test_*.py") if "text.json" in (text := path.read_text())]
    assert GOLDEN
    for name in GOLDEN:
        assert any(f'GOLDEN["{name}"]' in text for text in users), name


@pytest.mark.parametrize("case", GOLDEN["cider_pretokenised"], ids=lambda case: case["name"])
def test_as_the_reference(case) -> None:
    found = cider_d(case["refs"], case["hyps"], words_of=str.split)
    np.testing.assert_allclose(found, case["per_clip"], rtol=0, atol=1e-9)
    assert found.mean() == pytest.approx(case["corpus"], abs=1e-9)
    for key in ("aac_metrics_corpus", "aac_metrics_per_clip"):  # a second implementation, where it was run
        if key in case:
            np.testing.assert_allclose(found if "clip" in key else found.mean(), case[key], rtol=0, atol=1e-9)


def test_words_are_compared_without_case_and_punctuation() -> None:
    references = [["A dog barks."], ["Rain, on a roof"]]
    assert caption_words("Well-known, IT'S “here”!") == ["well", "known", "its", "“here”"]
    np.testing.assert_array_equal(
        cider_d(references, ["a DOG barks!", "rain on a -- roof"]),
        cider_d(references, ["A dog barks.", "Rain, on a roof"]),
    )
    assert cider_d(references, ["a DOG barks!", "rain"], words_of=str.split)[0] == 0


@given(corpora, st.randoms())
def test_order_of_clips_and_references_does_not_matter(corpus, rng: random.Random) -> None:
    plain = cider_d([refs for _, refs in corpus], [text for text, _ in corpus])
    order = rng.sample(range(len(corpus)), len(corpus))
    shuffled = cider_d([rng.sample(corpus[i][1], len(corpus[i][1])) for i in order], [corpus[i][0] for i in order])
    np.testing.assert_allclose(shuffled, plain[order], atol=1e-12)


@given(corpora)
def test_references_that_are_given_twice_change_nothing(corpus) -> None:
    plain = cider_d([refs for _, refs in corpus], [text for text, _ in corpus])
    twice = cider_d([refs + refs for _, refs in corpus], [text for text, _ in corpus])
    np.testing.assert_allclose(twice, plain, atol=1e-12)
    assert ((plain >= 0) & (plain <= 10 + 1e-9)).all()


def test_a_corpus_that_cannot_be_scored_is_refused() -> None:
    for target, prediction in (([], []), ([["a"]], []), ([["a"], ["b"]], ["a"])):
        with pytest.raises(MetricError, match="one caption a clip"):
            cider_d(target, prediction)
    with pytest.raises(MetricError, match="at least one reference") as error:
        cider_d([["a"], []], ["a", "b"])
    assert error.value.where == "clip 1"
