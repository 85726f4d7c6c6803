"""FENSE and DATE of written captions, with models: against the golden vectors and by what must not change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.probes.caption_models import EndsBadly, StubbedModels, packed_encoder, tiny_checker, tiny_encoder
from tests.text_models import save_text_model
from xares_store.errors import ConfigError, MetricError, ProbeError
from xares_store.metrics.captioning import date_ceiling
from xares_store.probes.captions import CaptionModels, CaptionScores, caption_scores, metric_label
from xares_store.probes.fluency import FluencyFiles
from xares_store.probes.hub import TextFiles
from xares_store.probes.sentence import SentenceFiles

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "golden" / "captioning.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["corpus_cases"]}
TEXTS = ("candidates", "references")


@pytest.fixture(scope="module")
def real() -> StubbedModels:
    """Real weights of a small sentence encoder, and the error checker of the vectors."""
    assert "and, the, a" in GOLDEN["error_checker_stub"]
    assert GOLDEN["tolerance"].startswith("1e-4")
    return StubbedModels(packed_encoder(), None, stub=EndsBadly())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> StubbedModels:
    return StubbedModels(tiny_encoder(tmp_path_factory.mktemp("encoder")), None, stub=EndsBadly())


def test_every_vector_is_named_in_a_test() -> None:
    users = [text for path in TESTS.rglob("test_*.py") if "captioning.json" in (text := path.read_text())]
    assert GOLDEN
    for name in GOLDEN:
        assert any(f'GOLDEN["{name}"]' in text for text in users), name


def test_the_checker_of_the_vectors() -> None:
    found = EndsBadly().error_probability(["a dog and", "a dog", ""], longest=1)
    assert found.tolist() == [0.9933, 0.0067, 0.0067]


@pytest.mark.parametrize("name", CASES)
def test_fense_as_the_reference(name: str, real: StubbedModels) -> None:
    texts = [CASES[name][key] for key in TEXTS]
    found = caption_scores(*texts, metric="fense", models=real)
    for version in ("mecat_git_head_fense", "mecat_pypi_1.1.0_fense"):
        expected = CASES[name][version]["value"]
        np.testing.assert_allclose(found.per_clip, expected["similarity"], atol=1e-5)
        assert round(found.value, 4) == expected["reported_rounded_4"]
    assert found.value == found.per_clip.mean()
    assert found.details["flagged"] == sum(text.endswith(" and") for text in texts[0])
    if len({len(refs) for refs in texts[1]}) == 1:  # with equal numbers, a row for every reference changes nothing
        published = caption_scores(*texts, metric="fense", models=real, protocol="published")
        assert published.value == expected["reported_rounded_4"]
        np.testing.assert_allclose(published.per_clip, found.per_clip, atol=1e-7)


ONE_REFERENCE = [name for name, case in CASES.items() if all(len(refs) == 1 for refs in case["references"])]


@pytest.mark.parametrize(("release", "key"), [("head", "mecat_git_head_date"), ("1.1.0", "mecat_pypi_1.1.0_date")])
@pytest.mark.parametrize("name", ONE_REFERENCE)
def test_date_as_published(name: str, release: Any, key: str, real: StubbedModels) -> None:
    expected = CASES[name][key]["value"]
    texts = [CASES[name][key] for key in TEXTS]
    found = caption_scores(*texts, metric="date", models=real, protocol="published", release=release)
    for column, values in (*found.columns.items(), ("date", found.per_clip)):
        if column in expected:
            np.testing.assert_allclose(values, expected[column], atol=1e-4)
    assert found.value == pytest.approx(expected["reported_rounded_4"], abs=1e-7)  # float32
    assert found.details["release"] == release


@pytest.mark.parametrize("name", CASES)
def test_strict_date_is_that_of_grouped_references(name: str, real: StubbedModels) -> None:
    expected = CASES[name]["mecat_git_head_date"]["value"]
    found = caption_scores(*(CASES[name][key] for key in TEXTS), metric="date", models=real)
    assert min(expected["similarity"]) > 0, "nothing to clamp in these"
    for column, values in (*found.columns.items(), ("date", found.per_clip)):
        if column in expected:
            np.testing.assert_allclose(values, expected[column], atol=1e-5)
    assert found.value == pytest.approx(expected["reported_rounded_4"], abs=6e-5)
    assert found.details["ceiling"] == date_ceiling(len(found.per_clip))
    assert found.value <= found.details["ceiling"] + 1e-12


def test_published_references_compete_with_each_other(real: StubbedModels) -> None:
    rows, grouped = CASES["references_expanded_to_rows"], CASES["five_clips_two_refs"]
    assert rows["candidates"][::2] == grouped["candidates"]
    found = caption_scores(*(grouped[key] for key in TEXTS), metric="date", models=real, protocol="published")
    expected = rows["mecat_pypi_1.1.0_date"]["value"]
    assert found.value == expected["reported_rounded_4"]
    np.testing.assert_allclose(found.per_clip, np.reshape(expected["date"], (-1, 2)).mean(axis=1), atol=1e-4)
    assert found.details["references"] == 10


def test_the_original_program(real: StubbedModels) -> None:
    case = CASES["five_clips_two_refs"]
    for expected in GOLDEN["fense_original_repository"]:
        clips = {"five_clips": [0, 1, 2, 3, 4], "two_clips": [0, 1], "thirty_five_clips": [0, 1, 2, 3, 4] * 7}
        texts = [[case[key][clip] for clip in clips[expected["name"]]] for key in TEXTS]
        found = caption_scores(*texts, metric="fense", models=real)
        single = [score["value"] for score in expected["sentence_scores"]]
        np.testing.assert_allclose(found.per_clip[: len(single)], single, atol=1e-5)
        assert found.columns["similarity"].mean() == pytest.approx(expected["corpus_no_penalty"]["value"], abs=1e-5)
        if len(texts[0]) > 32:  # up to 32 captions it took all outputs of the checker for the last one
            assert found.value == pytest.approx(expected["corpus_with_penalty"]["value"], abs=1e-5)
        else:
            assert found.value == pytest.approx(np.mean(single), abs=1e-5)


def test_as_xares_llm(real: StubbedModels) -> None:
    case = GOLDEN["xares_llm_wrapper"]
    references = [[text] for text in case["references_first_only"]]
    for metric, expected in case["result"].items():
        found = caption_scores(case["candidates"], references, metric=metric, models=real, protocol="published")
        assert found.value == expected["value"] == expected["xares_llm_lookup"]["value"]


def score(models: CaptionModels, candidates: Any, references: Any, **options: Any) -> CaptionScores:
    return caption_scores(candidates, references, models=models, **{"metric": "fense", **options})


CAPTIONS = ["a dog barks", "loud rain falls and", "", "a bird sings"]
REFERENCES = [["the dog barks"], ["rain falls", "soft rain", "the loud rain"], ["a bird"], ["birds sing", "bird sings"]]


@pytest.mark.parametrize("metric", ["fense", "date"])
@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_order_of_clips_and_references_does_not_matter(metric: str, protocol: str, tiny: StubbedModels) -> None:
    options = {"metric": metric, "protocol": protocol}
    plain = score(tiny, CAPTIONS, REFERENCES, **options)
    moved = score(tiny, CAPTIONS[::-1], [texts[::-1] for texts in REFERENCES[::-1]], **options)
    np.testing.assert_allclose(moved.per_clip[::-1], plain.per_clip, atol=1e-6)
    assert moved.value == pytest.approx(plain.value, abs=1e-6)
    assert set(plain.columns) == {"similarity", "error_probability"} | (
        {"discrimination"} if metric == "date" else set()
    )
    assert all(len(values) == len(CAPTIONS) for values in plain.columns.values())


def test_fense_does_not_know_other_clips_and_double_references(tiny: StubbedModels) -> None:
    plain = score(tiny, CAPTIONS, REFERENCES)
    alone = [score(tiny, [text], [refs]).value for text, refs in zip(CAPTIONS, REFERENCES, strict=True)]
    np.testing.assert_allclose(alone, plain.per_clip, atol=1e-6)
    np.testing.assert_allclose(score(tiny, CAPTIONS, [r + r for r in REFERENCES]).per_clip, plain.per_clip, atol=1e-6)
    published = score(tiny, CAPTIONS, REFERENCES, protocol="published")
    np.testing.assert_allclose(published.per_clip, plain.per_clip, atol=1e-6)
    assert published.details["flagged"] == plain.details["flagged"] == 1  # clips, not their references
    weights = [len(texts) for texts in REFERENCES]
    assert published.value == round(float(np.average(plain.per_clip, weights=weights)), 4)


def test_a_caption_that_is_the_only_one_was_cut_earlier(tiny: StubbedModels) -> None:
    tiny.stub.longest.clear()
    for protocol in ("strict", "published"):
        score(tiny, CAPTIONS[:1], REFERENCES[:1], protocol=protocol)
        score(tiny, CAPTIONS[1:2], REFERENCES[1:2], protocol=protocol)
    assert tiny.stub.longest == [256, 256, 64, 256]


def test_the_band_is_chosen_by_kind_or_given(tiny: StubbedModels) -> None:
    options = {"metric": "date"}
    assert score(tiny, CAPTIONS, REFERENCES, **options).details["delta"] == 0.1703
    assert score(tiny, CAPTIONS, REFERENCES, kind="music", **options).details["delta"] == 0.1566
    found = [score(tiny, CAPTIONS, REFERENCES, delta=delta, **options) for delta in (0.0, 4.0)]
    assert [one.details["delta"] for one in found] == [0.0, 4.0]
    assert found[0].value > found[1].value == 0.0


def test_only_the_two_published_models_give_the_name_alone(
    tiny: StubbedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tiny.sentence.name
    weights = tmp_path / "checker.ckpt"
    weights.write_bytes(b"weights")
    checker = FluencyFiles(str(weights), (weights,), TextFiles("t", tmp_path))
    assert metric_label("fense", tiny) == f"fense[{own},no-checker]"
    assert metric_label("date", CaptionModels(tiny.sentence, checker)) == f"date[{own},{checker.name}]"
    monkeypatch.setattr(FluencyFiles, "published", True)
    assert metric_label("fense", CaptionModels(tiny.sentence, checker)) == f"fense[{own},{checker.name}]"
    monkeypatch.setattr(SentenceFiles, "published", True)
    assert metric_label("fense", CaptionModels(tiny.sentence, checker)) == "fense"
    assert metric_label("fense", CaptionModels(tiny.sentence, None)) == f"fense[{own},no-checker]"


def test_models_are_found_without_loading_and_their_content_is_their_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = save_text_model(tmp_path / "encoder")
    checker = tmp_path / "checker" / "checker.ckpt"
    torch.save(tiny_checker(checker.parent), checker)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", None)
        patch.setattr(torch.nn.Module, "load_state_dict", None)
        models = CaptionModels.find(str(encoder), str(checker))
        identity = models.identity()
        without = CaptionModels.find(str(encoder), "none")
    assert json.loads(json.dumps(identity)) == identity
    assert without.identity() == {**identity, "fluency_model": None}
    assert models.encoder is models.encoder
    assert models.checker is models.checker
    assert without.checker is None
    found = score(models, CAPTIONS, REFERENCES)
    np.testing.assert_allclose(found.columns["similarity"], score(without, CAPTIONS, REFERENCES).per_clip)
    assert "flagged" not in score(without, CAPTIONS, REFERENCES).details
    factor = np.where(found.columns["error_probability"] > 0.9, 0.1, 1.0)
    np.testing.assert_allclose(found.per_clip, found.columns["similarity"] * factor)
    for names, option in ((("./nowhere", "none"), "--sentence-encoder"), ((str(encoder), "./x"), "--fluency-model")):
        with pytest.raises(ProbeError, match=option):
            CaptionModels.find(*names)


def test_what_cannot_be_scored_is_refused(tiny: StubbedModels) -> None:
    for candidates, references in (([], []), (["a"], []), ([], [["a"]])):
        with pytest.raises(MetricError, match="one caption a clip"):
            score(tiny, candidates, references)
    with pytest.raises(MetricError, match="at least one reference"):
        score(tiny, ["a", "b"], [["a"], []])
    with pytest.raises(ConfigError, match="fense or date"):
        score(tiny, ["a"], [["a"]], metric="cider")
    with pytest.raises(ConfigError, match="strict or published"):
        score(tiny, ["a"], [["a"]], protocol="other")
