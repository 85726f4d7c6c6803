"""Text metrics against the golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.errors import MetricError
from xares_store.metrics.text import (
    cer,
    error_counts,
    error_rate,
    icer,
    iwer,
    normalise,
    string_accuracy,
    string_map,
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
    lower = error_counts([text.lower() for text in refs], [text.lower() for text in hyps])
    assert error_rate(lower) == pytest.approx(case["wer_raw_lower"]["value"], abs=1e-9)
    assert max(0.0, 1.0 - error_rate(lower)) == pytest.approx(case["iWER_xares_lowercase_only"]["value"], abs=1e-9)
    assert wer(refs, hyps) == pytest.approx(case["wer_norm"]["value"], abs=1e-9)
    assert cer(refs, hyps) == pytest.approx(case["cer_norm"]["value"], abs=1e-9)
    assert iwer(refs, hyps) == pytest.approx(case["iWER_xares_llm"]["value"], abs=1e-9)
    assert icer(refs, hyps) == pytest.approx(case["iCER_xares_llm"]["value"], abs=1e-9)


def test_a_corpus_without_reference_words_counts_insertions():
    assert wer([""], ["one two three"]) == 3.0
    assert wer([""], [""]) == 0.0


def test_counts_add_up_to_the_corpus():
    counts = error_counts(["a b", "c d e"], ["a", "c x e f"])
    assert [(count.errors, count.units) for count in counts] == [(1, 2), (2, 3)]
    assert error_rate(counts) == 0.6


@pytest.mark.parametrize("case", GOLDEN["string_accuracy"], ids=lambda case: case["name"])
def test_string_accuracy(case):
    assert string_accuracy(case["targets"], case["predictions"]) == case["expected"]


def test_uneven_input_is_refused():
    with pytest.raises(MetricError):
        wer(["a"], [])
    with pytest.raises(MetricError):
        string_accuracy([], [])


def test_string_map_as_published():
    cases = json.loads((Path(__file__).parents[1] / "golden" / "classification.json").read_text())["map_string"]
    assert len(cases) == 10
    for case in cases:
        texts, options = (case["targets"], case["predictions"]), {"n_classes": case["num_classes"], "trim": False}
        if "raises" in case["expected"]:
            with pytest.raises(MetricError):
                string_map(*texts, **options)
        else:
            assert string_map(*texts, **options) == pytest.approx(case["expected"]["value"], abs=1e-9), case["name"]


def test_string_map_trims():
    assert string_map(["a;b;", "b"], [" a ; b", "b;"], n_classes=2) == 1.0
    with pytest.raises(MetricError):
        string_map([], [], n_classes=1)
