"""Text metrics against the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.errors import MetricError
from xares_store.metrics.text import (
    ErrorCount,
    cer,
    error_counts,
    error_rate,
    icer,
    iwer,
    looks_corrupt,
    normalise,
    string_accuracy,
    wer,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["normalisation"], ids=lambda case: ascii(case["in"]))
def test_normalise(case):
    assert normalise(case["in"]) == case["strip_ascii_punct"]
    assert normalise(case["in"], keep_punctuation=True) == case["keep_punct"]


@given(st.text())
def test_normalise_leaves_no_double_space(text):
    found = normalise(text)
    assert found == " ".join(found.split())


@pytest.mark.parametrize("case", GOLDEN["wer_cer"], ids=lambda case: case["name"])
def test_error_rates(case):
    refs, hyps = case["refs"], case["hyps"]
    assert wer(refs, hyps, lowercase_only=True) == pytest.approx(case["wer_raw_lower"]["value"], abs=1e-9)
    lower = iwer(refs, hyps, lowercase_only=True)
    assert lower == pytest.approx(case["iWER_xares_lowercase_only"]["value"], abs=1e-9)
    assert wer(refs, hyps) == pytest.approx(case["wer_norm"]["value"], abs=1e-9)
    assert cer(refs, hyps) == pytest.approx(case["cer_norm"]["value"], abs=1e-9)
    assert iwer(refs, hyps) == pytest.approx(case["iWER_xares_llm"]["value"], abs=1e-9)
    assert icer(refs, hyps) == pytest.approx(case["iCER_xares_llm"]["value"], abs=1e-9)


def test_a_corpus_without_reference_words_counts_insertions():
    assert wer([""], ["one two three"]) == 3.0
    assert wer([""], [""]) == 0.0


def test_errors_are_counted_by_kind_and_add_up_to_the_corpus():
    counts = error_counts(["a b", "c d e", "", "g"], ["a", "c x e f", "h i", "g"])
    assert counts == [ErrorCount(0, 1, 0, 2), ErrorCount(1, 0, 1, 3), ErrorCount(0, 0, 2, 0), ErrorCount(0, 0, 0, 1)]
    assert [count.errors for count in counts] == [1, 2, 2, 0]
    assert error_rate(counts) == 5 / 6
    letters = error_counts(["abc d", "", "x"], ["abd", "hi", "x"], unit="character")
    assert [(count.errors, count.units) for count in letters] == [(2, 5), (2, 0), (0, 1)]


@pytest.mark.parametrize("case", GOLDEN["string_accuracy"], ids=lambda case: case["name"])
def test_string_accuracy(case):
    assert string_accuracy(case["targets"], case["predictions"]) == case["expected"]


def test_lower_case_only_leaves_all_else():
    assert normalise(" Well-Known,  e-mail ", lowercase_only=True) == "well-known,  e-mail"
    assert cer(["Ab"], ["ab,"], lowercase_only=True) == 0.5
    assert icer(["Ab"], ["ab,"], lowercase_only=True) == 0.5
    assert cer(["Ab"], ["ab,"]) == 0.0


def test_every_vector_of_text_is_read():
    """CIDEr has a module of its own, and its vectors with it."""
    assert set(GOLDEN) == {"normalisation", "wer_cer", "string_accuracy", "cider_pretokenised"}
    keys = {key for case in GOLDEN["wer_cer"] for key in case} - {"name", "refs", "hyps", "note"}
    assert keys == {"wer_raw_lower", "iWER_xares_lowercase_only", "iWER_xares_llm", "iCER_xares_llm", "wer_norm", "cer_norm"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "corrupt"),
    [
        ("a dog barks", False),
        ("", False),
        ("你好世界", False),
        ("e\u0301e\u0301e\u0301", False),  # three marks
        ("e\u0301e\u0301e\u0301e\u0301xyz", True),
        ("e\u0300e\u0300e\u0300e\u0300xyz", False),  # the first mark of the block is not counted
        ("a . b", True),  # three of five: spaces count
        ("a. b", False),  # half is not more than half
        ("...", True),
        ("ababababab", False),  # ten characters
        ("abababababa", True),
        ("abcdabcdabcd", False),
    ],
)
def test_what_looks_corrupt(text, corrupt):
    assert looks_corrupt(text) is corrupt


def test_uneven_input_is_refused():
    with pytest.raises(MetricError):
        wer(["a"], [])
    with pytest.raises(MetricError):
        string_accuracy([], [])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("don’t — stop", "dont stop"),
        ("«Ça va?» ¿Sí!", "ça va sí"),
        ("你好。世界、", "你好世界"),
        ("你 好 ok 世 界", "你好 ok 世界"),
        ("カタ カナ", "カタカナ"),
        ("100 % $5", "100 5"),
        ("  ", ""),
    ],
)
def test_every_script(text: str, plain: str) -> None:
    assert normalise(text, every_script=True) == plain


@given(st.text(alphabet="aB é-—_.,;’“”¿。、！你世界カナ３ﬁ \t$", max_size=30))
def test_every_script_is_stable(text: str) -> None:
    once = normalise(text, every_script=True)
    assert normalise(once, every_script=True) == once
