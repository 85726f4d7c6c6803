"""The arithmetic of FENSE and DATE against the golden vectors; the models are tested with the probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_store.errors import MetricError
from xares_store.metrics import captioning
from xares_store.metrics.captioning import DATE_DELTA, date, date_ceiling, fense, flags, tfidf_weights

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "captioning.json").read_text())
TAILS: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["date_tail_synthetic"]}
RELEASES = {"head": "mecat_git_head", "1.1.0": "mecat_pypi_1.1.0"}


def numbers(values: Any) -> np.ndarray:
    return np.array([float(value) for value in values])


def tail(case: dict[str, Any], **options: Any) -> captioning.DateScores:
    references = np.array(case["ref_embeddings_NxRxd"])
    clips, per_clip, dim = references.shape
    clip = np.repeat(np.arange(clips), per_clip)
    options = {"delta": case["delta"], **options}
    return date(references.reshape(-1, dim), clip, case["cand_embeddings_Nxd"], case["penalty"], **options)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", TAILS)
def test_date_as_the_published_releases(name: str, release: Any) -> None:
    expected = TAILS[name][RELEASES[release]]["value"]
    found = tail(TAILS[name], release=release)
    for key in ("similarity", "discrimination", "date"):
        np.testing.assert_allclose(getattr(found, key), numbers(expected[key]), rtol=1e-6, atol=1e-6)
        reported = float(expected["reported"][key])
        assert round(getattr(found, key).mean(), 4) == pytest.approx(reported, rel=1e-6, abs=1e-6, nan_ok=True)
    assert found.value == pytest.approx(found.date.mean(), nan_ok=True)


@pytest.mark.parametrize("name", TAILS)
def test_strict_date_differs_only_where_the_published_one_breaks(name: str) -> None:
    expected = TAILS[name]["mecat_git_head"]["value"]
    found = tail(TAILS[name])
    assert np.isfinite(found.date).all()
    assert ((found.date >= 0) & (found.date <= found.ceiling + 1e-12)).all()
    usable = numbers(expected["similarity"]) > 0
    np.testing.assert_allclose(found.date[usable], numbers(expected["date"])[usable], rtol=1e-6, atol=1e-6)
    assert (found.date[~usable] == 0).all()


def test_the_ceiling_is_reached_by_perfect_captions() -> None:
    for clips in (1, 2, 7):
        found = date(np.eye(clips), range(clips), np.eye(clips))
        assert found.value == pytest.approx(found.ceiling)
        assert found.ceiling == date_ceiling(clips)
    assert date_ceiling(5) == pytest.approx(0.8889, abs=1e-4)


def test_the_band_is_half_of_delta_and_includes_its_edge() -> None:
    references, captions = [[1.0, 0.0], [0.75, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
    assert date(references, [0, 1], captions, delta=0.5).discrimination[0] == 0.0
    assert date(references, [0, 1], captions, delta=0.49).discrimination[0] == 0.5
    assert DATE_DELTA == {
        "long": 0.1703, "short": 0.1772, "speech": 0.2078, "music": 0.1566, "sound": 0.1988, "environment": 0.215
    }  # fmt: skip


def test_weights_of_tokens_as_the_published_releases() -> None:
    case = GOLDEN["date_tfidf_weights"]
    table = np.zeros((103, 5))
    for row, values in case["embedding_table_rows"].items():
        table[int(row)] = values
    special = {"pad": case["special"]["pad"], "start": case["special"]["cls"], "end": case["special"]["sep"]}
    unpadded = [[token for token in sentence if token] for sentence in case["token_ids"]]
    found = tfidf_weights(unpadded, table, **special)
    for weights, expected in zip(found, case["expected_git_head_float32_unpadded"]["value"], strict=True):
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    half = tfidf_weights(case["token_ids"], table, half=True, **special)
    for weights, expected in zip(half, case["expected_pypi_1.1.0_float16_padded"]["value"], strict=True):
        np.testing.assert_allclose(weights, expected, atol=1.01 * 2**-11)  # one step of half precision
    assert any(
        (weights != plain).any() for weights, plain in zip(half, found, strict=False) if len(weights) == len(plain)
    )


def test_weights_do_not_depend_on_blocks_and_count_equal_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(40, 6))
    sentences = [[1, *rng.integers(3, 40, size=rng.integers(0, 9)).tolist(), 2] for _ in range(30)] * 2
    options = {"pad": 0, "start": 1, "end": 2}
    whole = tfidf_weights(sentences, table, **options)
    for weights, brute in zip(whole, _brute_force(sentences, table), strict=True):
        np.testing.assert_allclose(weights, brute)
    monkeypatch.setattr(captioning, "_BLOCK", 1)
    for weights, blocked in zip(whole, tfidf_weights(sentences, table, **options), strict=True):
        np.testing.assert_allclose(weights, blocked)
    once = tfidf_weights([*sentences[:30], sentences[0]], table, **options)
    assert any(not np.allclose(weights, other) for weights, other in zip(whole[:30], once[:30], strict=True))


def _brute_force(sentences: list[list[int]], table: np.ndarray) -> list[np.ndarray]:
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    squared = (unit @ unit.T) ** 2
    found = []
    for sentence in sentences:
        words = sentence[1:-1]
        values = []
        for word in words:
            df = sum(min(1.0, sum(squared[word, other] for other in one[1:-1])) for one in sentences)
            tf = sum(squared[word, other] for other in words)
            values.append(tf * (np.log((len(sentences) + 1) / (df + 1)) + 1))
        scaled = np.array(values) / np.mean(values) if values else np.ones(1)
        found.append(np.array([scaled.max(), *(scaled if values else ()), scaled.min()]))
    return found


def test_a_word_without_a_vector_weighs_nothing() -> None:
    table = np.eye(6)
    table[5] = 0
    assert tfidf_weights([[1, 3, 5, 2], [1, 5, 2]], table, pad=0, start=1, end=2)[0].tolist() == [2, 2, 0, 0]
    assert tfidf_weights([[1, 3, 5, 2], [1, 5, 2]], table, pad=0, start=1, end=2)[1].tolist() == [1, 1, 1]
    with pytest.raises(MetricError, match=r"0 to 5, found 3 to 6"):
        tfidf_weights([[1, 3, 6, 2]], table, pad=0, start=1, end=2)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors of references, their clips, captions, and factors."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    clips = draw(st.integers(1, 6))
    clip = np.concatenate([np.arange(clips), rng.integers(0, clips, size=draw(st.integers(0, 6)))])
    references, captions = rng.normal(size=(len(clip), 4)), rng.normal(size=(clips, 4))
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (references, captions)]
    return unit[0], clip, unit[1], rng.choice([0.1, 1.0], size=clips)


@given(corpora(), st.integers(0, 2**32))
def test_order_of_clips_and_references_does_not_matter(corpus: Any, seed: int) -> None:
    references, clip, captions, factor = corpus
    rng = np.random.default_rng(seed)
    order, rows = rng.permutation(len(captions)), rng.permutation(len(clip))
    moved = (references[rows], np.argsort(order)[clip[rows]], captions[order], factor[order])
    np.testing.assert_allclose(fense(*moved), fense(*corpus)[order], atol=1e-12)
    np.testing.assert_allclose(date(*moved).date, date(*corpus).date[order], atol=1e-12)


@given(corpora())
def test_references_that_are_given_twice_change_nothing(corpus: Any) -> None:
    references, clip, captions, factor = corpus
    twice = (np.concatenate([references, references]), np.concatenate([clip, clip]), captions, factor)
    np.testing.assert_allclose(fense(*twice), fense(*corpus), atol=1e-12)
    np.testing.assert_allclose(date(*twice).date, date(*corpus).date, atol=1e-12)


@given(corpora())
def test_strict_scores_stay_in_range(corpus: Any) -> None:
    assert (np.abs(fense(*corpus)) <= 1 + 1e-12).all()
    found = date(*corpus)
    assert ((found.date >= 0) & (found.date <= found.ceiling + 1e-12)).all()
    assert ((found.discrimination >= 0) & (found.discrimination <= 1 - 1 / len(found.date) + 1e-12)).all()


def test_a_flag_needs_more_than_nine_tenths() -> None:
    assert flags([0.0, 0.9, np.nextafter(0.9, 1), 1.0]).tolist() == [1.0, 1.0, 0.1, 0.1]
    for wrong in ([1.1], [-0.1], [np.nan]):
        with pytest.raises(MetricError, match="0 to 1"):
            flags(wrong)


def test_what_cannot_be_scored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = [[1.0, 0.0]]
    for target, clip, prediction, message in (
        ([], [], np.zeros((0, 2)), "at least one clip"),
        (one, [0], [1.0, 0.0], "at least one clip"),
        (one, [0], [[1.0]], "reference vectors"),
        (one, [0, 0], one, "reference vectors"),
        (one, [1], one, "clips 0 to 0"),
        (one, [0], one * 2, "at least one reference"),
    ):
        for metric in (fense, date):
            with pytest.raises(MetricError, match=message):
                metric(target, clip, prediction)
    with pytest.raises(MetricError, match="same number of references"):
        date(one * 3, [0, 0, 1], one * 2, release="head")
    assert date(one * 3, [0, 0, 1], one * 2).value == 0
    whole = tail(TAILS["random_6"])
    monkeypatch.setattr(captioning, "_BLOCK", 1)
    np.testing.assert_allclose(tail(TAILS["random_6"]).date, whole.date)
