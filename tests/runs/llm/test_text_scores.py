"""Scores of written text: against the plain metrics, with crops, several references, labels and their likelihoods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.text_models import save_text_model
from xares_store.errors import MetricError
from xares_store.metrics.cider import cider_d
from xares_store.metrics.classification import mean_average_precision
from xares_store.metrics.resampling import bootstrap_counts, bootstrap_inverse_rate, bootstrap_map, bootstrap_ratio
from xares_store.metrics.statistics import bootstrap_interval
from xares_store.metrics.strings import confusion, label_matrices, string_macro_f1, string_map
from xares_store.metrics.text import icer, iwer
from xares_store.probes.captions import CaptionModels, caption_scores, metric_label
from xares_store.protocol import Fold
from xares_store.runs.features import Features
from xares_store.runs.llm.text_scores import Likelihood, score_texts
from xares_store.runs.score import Scored
from xares_store.store.run import PREDICTION_SCHEMA
from xares_store.targets import Texts
from xares_store.task import Task

WORDS = ("rain", "wind", "bird", "dog", "engine", "bell", "door", "river")


def make_task(
    metric: str,
    also: tuple[str, ...] = (),
    *,
    kind: str = "text",
    closed: bool = False,
    separator: str = "",
    n: int = 0,
) -> Task:
    lines = ['key = "t"'] if kind == "transcript" else ['keys = ["t"]', 'prompt = "Write."', f"closed = {str(closed).lower()}"]  # fmt: skip
    lines += [f'separator = "{separator}"'] if separator else []
    names = [f'name = "{metric}"'] + ([f"also = {list(also)}"] if also else []) + ([f"n_classes = {n}"] if n else [])
    text = f"""
format = 1
name = "made"
title = "Made"
domain = "speech"
[data]
folds = {{ 0 = ["a.tar"], 1 = ["b.tar"] }}
[target]
kind = "{kind}"
{chr(10).join(lines)}
[metric]
{chr(10).join(names)}
"""
    return Task.from_text(text, where="made.toml", base=None)


def make_features(references: list[tuple[str, ...]], *, folds: int = 1, crops: int = 1) -> Features:
    """Recordings with these references, in folds of as many; crops of a recording stand apart, the last one first."""
    recording = np.repeat(np.arange(len(references)), crops)
    crop = np.tile(np.arange(crops), len(references))
    order = np.lexsort((recording, -crop))
    recording, crop = recording[order], crop[order]
    n, rows = len(recording), np.arange(len(recording))
    key = np.array([f"r{number:03d}" for number in recording], dtype=object)
    half = np.minimum(recording * folds // len(references), folds - 1)
    return Features(
        values=np.zeros((n, 2), np.float32),
        target=[Texts(("never a reference",), references[number]) for number in recording],
        recording=recording,
        split=np.full(n, "all", dtype=object),
        clip_id=np.array([f"{name}#{number:04d}" for name, number in zip(key, crop, strict=True)], dtype=object),
        key=key,
        folds=[Fold(str(number), rows[:1], rows[:1], np.flatnonzero(half == number)) for number in range(folds)],
        cropped=crops > 1,
        dropped=0,
        start_s=crop * 5.0,
        duration_s=np.full(n, 5.0),
        parts=(),
        part_of=rows,
        offset=rows,
        n_frames=rows,
    )


def score(
    task: Task, features: Features, written: list[str] | dict[str, str], *, protocol: str = "strict", **options: Any
) -> Scored:
    """Score texts given in the order of the clips, or by clip id."""
    ids = features.clip_id.tolist()
    by_row = written if isinstance(written, list) else [written[name] for name in ids]
    texts = [[by_row[row] for row in fold.test] for fold in features.folds]
    return score_texts(task, features, texts, protocol=protocol, captions=None, **options)


def overall(scored: Scored) -> dict[str, dict[str, Any]]:
    return {entry["metric"]: entry for entry in scored.scores if entry["fold"] is None}


def per_fold(scored: Scored, name: str) -> list[float]:
    return [entry["value"] for entry in scored.scores if entry["metric"] == name and entry["fold"] is not None]


def column(scored: Scored, name: str) -> list[Any]:
    found: list[Any] = scored.predictions[name].to_pylist()
    return found


def sentences(n: int, seed: int, spoil: float = 0.0) -> list[str]:
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 100)
    found = []
    for _ in range(n):
        words = rng.choice(WORDS, rng.integers(2, 7)).tolist()
        found.append(" ".join(word if other.random() >= spoil else str(other.choice(["", "x", f"{word} y"])) for word in words))  # fmt: skip
    return found


@pytest.mark.parametrize(("main", "unit"), [("iwer", "word"), ("icer", "character")])
def test_error_rates_are_those_of_the_folds_with_errors_by_kind(main: str, unit: str) -> None:
    import jiwer

    wanted, written = sentences(30, 0), sentences(30, 0, spoil=0.3)
    features = make_features([(text.title() + ".",) for text in wanted], folds=2)
    other = "icer" if main == "iwer" else "iwer"
    found = score(make_task(main, (other,)), features, written)
    halves = [slice(0, 15), slice(15, 30)]
    for name, function in (("iwer", iwer), ("icer", icer)):
        values = [function(wanted[half], written[half]) for half in halves]
        assert per_fold(found, name) == pytest.approx(values)
        assert overall(found)[name]["value"] == pytest.approx(np.mean(values))
        assert overall(found)[name]["n"] == found.n_test == 30
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    each = [process(wanted[row], " ".join(written[row].split())) for row in range(30)]
    for name in ("substitutions", "deletions", "insertions"):
        assert column(found, name) == [getattr(one, name) for one in each]
    assert any(column(found, "substitutions"))
    assert any(column(found, "insertions"))
    units = [len(text.split()) if unit == "word" else len(text) for text in wanted]
    assert column(found, "reference_units") == units
    errors = np.sum([column(found, name) for name in ("substitutions", "deletions", "insertions")], axis=0)
    expected = bootstrap_inverse_rate(errors, units, strata=np.repeat([0, 1], 15))
    mean = overall(found)[main]
    assert (mean["value"], mean["low"], mean["high"]) == pytest.approx((expected.point, expected.low, expected.high))
    assert mean["low"] < mean["value"] < mean["high"]
    assert set(column(found, "value")) == {None}
    assert column(found, "correct") == [
        " ".join(text.split()) == one for text, one in zip(written, wanted, strict=True)
    ]
    assert column(found, "prediction") == written
    assert column(found, "target") == [text.title() + "." for text in wanted]
    assert found.predictions.schema.equals(PREDICTION_SCHEMA)
    assert found.main_metric is None
    assert found.details["text"]["empty_hypotheses"] == sum(not text.split() for text in written)


def test_the_reference_with_the_fewest_errors_counts_and_all_of_them_when_published() -> None:
    references = [("a b c d", "x b", "x c"), ("one two",), ("no", "yes it is")]
    written = ["x y", "one two three", "yes"]
    task = make_task("iwer", ("string_accuracy",))
    found = score(task, make_features(references), written)
    assert column(found, "reference_units") == [2, 2, 1]
    assert column(found, "substitutions") == [1, 0, 1]
    assert column(found, "insertions") == [0, 1, 0]
    assert overall(found)["iwer"]["value"] == pytest.approx(1 - 3 / 5)
    assert column(found, "target") == ["a b c d | x b | x c", "one two", "no | yes it is"]
    published = score(task, make_features(references), written, protocol="published")
    pairs = [(reference, text) for own, text in zip(references, written, strict=True) for reference in own]
    assert overall(published)["iwer"]["value"] == pytest.approx(iwer(*zip(*pairs, strict=True)))
    assert column(published, "reference_units") == [8, 2, 4]
    assert overall(published)["iwer"]["n"] == 3
    assert found.details["text"]["n_references"] == published.details["text"]["n_references"] == 6


def test_any_reference_is_right_and_each_by_itself_when_published() -> None:
    references = [("Yes", "yes it is"), ("no",), ("three", "3", "III"), ("no",)]
    written = ["yes!", "No", "3", "yes"]
    task = make_task("string_accuracy", closed=True)
    found = score(task, make_features(references), written)
    assert column(found, "correct") == [True, True, True, False]
    assert column(found, "value") == [1.0, 1.0, 1.0, 0.0]
    mean = overall(found)["string_accuracy"]
    expected = bootstrap_interval([1.0, 1.0, 1.0, 0.0])
    assert (mean["value"], mean["low"], mean["high"]) == (expected.point, expected.low, expected.high)
    published = score(task, make_features(references), written, protocol="published")
    assert column(published, "correct") == [True, True, True, False]
    assert column(published, "value") == pytest.approx([1 / 2, 1.0, 1 / 3, 0.0])
    mean = overall(published)["string_accuracy"]
    expected = bootstrap_ratio([1, 1, 1, 0], [2, 1, 3, 1])
    assert (mean["value"], mean["low"], mean["high"]) == pytest.approx((3 / 7, expected.low, expected.high))


def test_crops_are_joined_in_the_order_of_time() -> None:
    features = make_features([("one two three",), ("你好世界。再见",), ("four",)], crops=3)
    written = {
        "r000#0000": "one ", "r000#0001": " two", "r000#0002": "three",
        "r001#0000": "你好", "r001#0001": "世界。", "r001#0002": "再见",
        "r002#0000": "", "r002#0001": "four", "r002#0002": "",
    }  # fmt: skip
    found = score(make_task("icer", ("iwer",)), features, written)
    assert column(found, "prediction") == ["one two three", "你好世界。再见", "four"]
    assert column(found, "clip_id") == column(found, "key") == ["r000", "r001", "r002"]
    assert overall(found)["icer"]["value"] == 1.0
    assert found.n_test == 3
    alone = score(make_task("icer", ("iwer",)), features, written, protocol="published")
    assert alone.n_test == 9
    assert sorted(column(alone, "clip_id")) == sorted(written)
    assert overall(alone)["icer"]["value"] < 0.5


def test_labels_of_crops_vote() -> None:
    features = make_features([("dog",), ("cat",), ("bird",)], crops=3)
    written = {
        "r000#0000": "cat", "r000#0001": "Dog!", "r000#0002": "dog",
        "r001#0000": "Cat", "r001#0001": "dog", "r001#0002": "bird",  # a tie: the first in time
        "r002#0000": "dog", "r002#0001": "bird", "r002#0002": "bird",
    }  # fmt: skip
    found = score(make_task("string_accuracy", closed=True), features, written)
    assert column(found, "prediction") == ["Dog!", "Cat", "bird"]
    assert column(found, "correct") == [True, True, True]
    joined = score(make_task("string_accuracy"), features, written)
    assert column(joined, "prediction") == ["cat Dog! dog", "Cat dog bird", "dog bird bird"]
    several = make_task("string_map", closed=True, separator=";", n=3)
    features = make_features([("dog;cat",)], crops=3)
    found = score(several, features, {"r000#0000": "bird", "r000#0001": "dog; cat", "r000#0002": "Cat;dog"})
    assert column(found, "prediction") == ["dog; cat"]
    assert column(found, "correct") == [True]


def test_crops_of_a_recording_are_drawn_together_when_published() -> None:
    """Every crop is right or wrong as its recording is: the interval is that of so many recordings."""
    wanted = ["dog" if number % 3 else "cat" for number in range(40)]
    features = make_features([(text,) for text in wanted], crops=4)
    written = ["dog"] * 160
    names = ("string_accuracy", "iwer", "string_map")
    alone = score(make_task(names[0], names[1:], closed=True, n=2), features, written, protocol="published")
    whole = score(make_task(names[0], names[1:], closed=True, n=2), make_features([(text,) for text in wanted]), ["dog"] * 40)  # fmt: skip
    for name in names:
        one, other = overall(alone)[name], overall(whole)[name]
        assert (one["n"], other["n"]) == (160, 40)
        assert one["high"] - one["low"] == pytest.approx(other["high"] - other["low"], rel=0.15)
        assert one["value"] == pytest.approx(other["value"])


def labels(n: int, seed: int, names: tuple[str, ...] = WORDS[:4]) -> list[str]:
    rng = np.random.default_rng(seed)
    return [";".join(name for name in names if rng.random() < 0.4) for _ in range(n)]


def test_labels_are_scored_as_the_plain_metrics_do() -> None:
    wanted, written = labels(60, 0), labels(60, 1, WORDS[:5])
    half = [text if number % 2 else other.replace(";", " ; ") for number, (text, other) in enumerate(zip(written, wanted, strict=True))]  # fmt: skip
    task = make_task("string_map", ("string_macro_f1", "string_accuracy"), closed=True, separator=";", n=8)
    found = score(task, make_features([(text,) if text else () for text in wanted], folds=2), half)
    assert found.n_test == 60  # a clip without a label is an item
    sides = [slice(0, 30), slice(30, 60)]
    for name, function in (("string_map", string_map), ("string_macro_f1", string_macro_f1)):
        values = [function(wanted[side], half[side], n_classes=8) for side in sides]
        assert per_fold(found, name) == pytest.approx(values)
    hot, hit = label_matrices(wanted, half)
    fold = np.repeat([0, 1], 30)
    expected = bootstrap_map(hot, hit, strata=fold)
    scores = overall(found)
    assert (scores["string_map"]["low"], scores["string_map"]["high"]) == pytest.approx((expected.low / 2, expected.high / 2))  # fmt: skip
    expected = bootstrap_counts(confusion(hot, hit), strata=fold)
    assert (scores["string_macro_f1"]["low"], scores["string_macro_f1"]["high"]) == pytest.approx((expected.low / 2, expected.high / 2))  # fmt: skip
    same = [set(a.split(";")) - {""} == {x.strip() for x in b.split(";")} - {""} for a, b in zip(wanted, half, strict=True)]  # fmt: skip
    assert column(found, "correct") == same
    assert scores["string_accuracy"]["value"] == pytest.approx(np.mean(same))
    assert column(found, "target") == wanted
    assert set(column(found, "value")) == {None}


def test_white_space_around_labels_counts_when_published() -> None:
    task = make_task("string_map", ("string_macro_f1",), closed=True, separator=";", n=2)
    features = make_features([("aa;bb",), ("bb",), ()])
    written = ["aa; bb", "bb", "aa"]
    assert overall(score(task, features, written))["string_macro_f1"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    published = score(task, features, written, protocol="published")
    assert published.n_test == 2  # nothing under the key is no sample there
    assert published.details["text"]["clips_dropped"] == 1
    for name, function in (("string_map", string_map), ("string_macro_f1", string_macro_f1)):
        expected = function(["aa;bb", "bb"], written[:2], n_classes=2, trim=False)
        assert overall(published)[name]["value"] == pytest.approx(expected)


def test_no_label_anywhere_is_zero_without_an_interval() -> None:
    task = make_task("string_map", ("string_macro_f1",), closed=True, separator=";", n=2)
    for entry in score(task, make_features([(), ()]), ["aa", ""]).scores:
        assert (entry["value"], entry["low"], entry["high"]) == (0.0, None, None)


def test_corrupt_references_are_left_out_when_published_alone() -> None:
    references = [("a dog", "[- - -]"), ("...",), ("a cat",), ()]
    task = make_task("iwer")
    written = ["a dog", "...", "a cat", "a bird"]
    strict = score(task, make_features(references), written)
    assert strict.details["text"]["corrupt_references_dropped"] == 0
    assert strict.details["text"]["clips_dropped"] == 1  # nothing to compare with
    assert column(strict, "key") == ["r000", "r001", "r002"]
    published = score(task, make_features(references), written, protocol="published")
    assert published.details["text"]["corrupt_references_dropped"] == 2
    assert published.details["text"]["clips_dropped"] == 2
    assert column(published, "key") == ["r000", "r002"]
    assert column(published, "target") == ["a dog", "a cat"]
    assert published.details["text"]["n_references"] == 2
    transcript = make_task("iwer", kind="transcript")
    kept = score(transcript, make_features(references[:3]), written[:3], protocol="published")
    assert kept.n_test == 3  # X-ARES had no such filter
    with pytest.raises(MetricError, match="reference text"):
        score(task, make_features([("...",)]), ["a"], protocol="published")


def test_published_transcripts_are_only_made_lower_case() -> None:
    features, written = make_features([("Well-known facts",), ("Yes",)]), ["well known facts.", "YES"]
    task = make_task("iwer", kind="transcript")
    assert overall(score(task, features, written))["iwer"]["value"] == 1.0
    published = score(task, features, written, protocol="published")
    assert overall(published)["iwer"]["value"] == pytest.approx(
        iwer(["Well-known facts", "Yes"], written, lowercase_only=True)
    )
    assert overall(published)["iwer"]["value"] == 0.0
    assert column(published, "correct") == [False, True]
    assert [one.details["text"]["normaliser"] for one in (score(task, features, written), published)] == ["2", "lower case"]  # fmt: skip
    other = score(make_task("iwer"), features, written, protocol="published")
    assert overall(other)["iwer"]["value"] == 1.0  # XARES-LLM normalised


def test_punctuation_and_spaces_of_chinese_are_no_errors_under_strict() -> None:
    features, written = make_features([("你好。 世界、",)]), ["你 好世界"]
    task = make_task("icer", kind="text")
    strict, published = score(task, features, written), score(task, features, written, protocol="published")
    assert overall(strict)["icer"]["value"] == 1.0
    assert overall(published)["icer"]["value"] == pytest.approx(1 - 4 / 7)
    assert [one.details["text"]["normaliser"] for one in (strict, published)] == ["2", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> CaptionModels:
    """A small sentence encoder with random weights, and no error checker."""
    return CaptionModels.find(str(save_text_model(tmp_path_factory.mktemp("models") / "small")), "none")


REFERENCES = [("a dog barks", "dogs bark"), ("rain falls", "the rain"), ("wind", "a storm")]
WRITTEN = ["a dog barks", "rain rain", ""]


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_captions_are_scored_with_all_references(models: CaptionModels, protocol: str) -> None:
    task, features = make_task("fense", ("date", "cider")), make_features(REFERENCES)
    found = score_texts(task, features, [WRITTEN], protocol=protocol, captions=models)
    labels = [metric_label("fense", models), metric_label("date", models)]
    assert found.main_metric == labels[0] != "fense"
    assert list(overall(found)) == [*labels, "cider"]
    for name, label in zip(("fense", "date"), labels, strict=True):
        expected = caption_scores(WRITTEN, REFERENCES, metric=name, models=models, protocol=protocol)  # type: ignore[arg-type]
        mean = overall(found)[label]
        assert mean["value"] == expected.value
        assert mean["low"] < mean["value"] < mean["high"]
        assert found.details["text"]["captions"]["folds"][label] == [expected.details]
        if name == "fense":
            assert column(found, "value") == pytest.approx(expected.per_clip.tolist())
            interval = bootstrap_interval(expected.per_clip)
            assert (mean["low"], mean["high"]) == pytest.approx((interval.low, interval.high))
    assert overall(found)["cider"]["value"] == pytest.approx(cider_d(REFERENCES, WRITTEN).mean())
    assert found.details["text"]["captions"]["models"] == models.identity()
    assert found.details["text"]["empty_hypotheses"] == 1
    assert column(found, "correct") == [True, False, False]
    assert column(found, "target")[0] == "a dog barks | dogs bark"


def test_a_clip_with_more_references_weighs_more_when_published(models: CaptionModels) -> None:
    references = [("a dog barks", "dogs bark", "a dog"), ("rain falls",)]
    written = ["a dog barks", "wind"]
    task, features = make_task("fense", ("cider",)), make_features(references)
    strict = score_texts(task, features, [written], protocol="strict", captions=models)
    published = score_texts(task, features, [written], protocol="published", captions=models)
    first, second = column(strict, "value")
    label = metric_label("fense", models)
    assert column(published, "value") == pytest.approx([first, second])
    assert overall(strict)[label]["value"] == pytest.approx((first + second) / 2)
    mean = overall(published)[label]
    assert mean["value"] == pytest.approx((3 * first + second) / 4, abs=1e-4)
    interval = bootstrap_ratio([3 * first, second], [3, 1])
    assert (mean["low"], mean["high"]) == pytest.approx((interval.low, interval.high))
    assert overall(published)["cider"]["value"] == overall(strict)["cider"]["value"]


def test_captions_need_models_and_cider_needs_none() -> None:
    features = make_features(REFERENCES)
    with pytest.raises(MetricError, match="sentence encoder"):
        score(make_task("cider", ("date",)), features, WRITTEN)
    found = score(make_task("cider"), features, WRITTEN)
    assert column(found, "value") == pytest.approx(cider_d(REFERENCES, WRITTEN).tolist())
    assert found.main_metric is None
    assert "captions" not in found.details["text"]


def test_the_likeliest_label_is_an_answer() -> None:
    features = make_features([("Dog", "hound"), ("cat",), ("bird",), ("fish",)], folds=2)
    names = ("dog", "cat", "bird")
    chances = np.log(np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]]))
    task = make_task("string_accuracy", closed=True)
    found = score(task, features, [""] * 4, likelihood=Likelihood(names, [chances[:2], chances[2:]]))
    assert overall(found)["likelihood_accuracy"]["value"] == 0.5
    assert per_fold(found, "likelihood_accuracy") == [0.5, 0.5]
    assert overall(found)["string_accuracy"]["value"] == 0.0
    np.testing.assert_allclose(column(found, "scores"), chances, rtol=1e-6)
    assert found.details["text"]["likelihood"] == {"labels": list(names), "unlisted_references": 2}  # hound, fish
    assert overall(found)["likelihood_accuracy"]["low"] is not None
    assert column(found, "value") == [0.0] * 4  # of the main metric
    published = score(task, features, [""] * 4, likelihood=Likelihood(names, [chances[:2], chances[2:]]), protocol="published")  # fmt: skip
    assert per_fold(published, "likelihood_accuracy") == pytest.approx([1 / 3, 1 / 2])


def test_likelihoods_of_labels_rank_clips() -> None:
    rng = np.random.default_rng(0)
    wanted = labels(40, 3)
    hot = np.array([[name in text.split(";") for name in (*WORDS[:4], "never")] for text in wanted])
    ranked = hot + rng.standard_normal(hot.shape) - 30
    task = make_task("string_map", closed=True, separator=";", n=9)
    names = tuple(name.upper() for name in (*WORDS[:4], "never"))
    found = score(task, make_features([(text,) for text in wanted], folds=2), ["rain"] * 40, likelihood=Likelihood(names, [ranked[:20], ranked[20:]]))  # fmt: skip
    values = [mean_average_precision(hot[side], ranked[side]) for side in (slice(0, 20), slice(20, 40))]
    assert per_fold(found, "likelihood_map") == pytest.approx(values)
    expected = bootstrap_map(hot, ranked, strata=np.repeat([0, 1], 20))
    mean = overall(found)["likelihood_map"]
    assert (mean["low"], mean["high"]) == pytest.approx((expected.low, expected.high))
    assert found.details["text"]["likelihood"]["unlisted_references"] == 0


def test_likelihoods_of_crops_are_averaged() -> None:
    features = make_features([("dog",), ("cat",)], crops=2)
    by_id = {"r000#0000": [0.0, -1.0], "r000#0001": [-9.0, -1.0], "r001#0000": [0.0, -1.0], "r001#0001": [0.0, -3.0]}
    rows = np.array([by_id[name] for name in features.clip_id])
    task = make_task("string_accuracy", closed=True)
    found = score(task, features, ["dog"] * 4, likelihood=Likelihood(("cat", "dog"), [rows]))
    assert column(found, "scores") == [[-4.5, -1.0], [0.0, -2.0]]
    assert overall(found)["likelihood_accuracy"]["value"] == 1.0


def test_what_does_not_fit_is_refused() -> None:
    features = make_features([("dog",), ("cat",)])
    task = make_task("string_accuracy", closed=True)
    with pytest.raises(MetricError, match="2 test clips, found 1"):
        score_texts(task, features, [["dog"]], protocol="strict", captions=None)
    for wrong in (np.zeros((2, 3)), np.zeros((1, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(MetricError, match="log-likelihoods"):
            score(task, features, ["dog", "cat"], likelihood=Likelihood(("dog", "cat"), [wrong]))
    with pytest.raises(MetricError, match="separator"):
        score(make_task("string_map", closed=True, separator="-", n=2), features, ["dog", "cat"])
    with pytest.raises(MetricError, match="reference text"):
        score(task, replace(features, target=[Texts((), ())] * 2), ["dog", "cat"])


def test_details_and_tensors_are_kept() -> None:
    tensors = {"projector.weight": np.ones(2, np.float32)}
    found = score(make_task("iwer"), make_features([("dog",)]), [""], details={"folds": [1]}, tensors=tensors)
    assert found.details["folds"] == [1]
    assert found.details["text"] == {
        "normaliser": "2",
        "n_references": 1,
        "empty_hypotheses": 1,
        "corrupt_references_dropped": 0,
        "clips_dropped": 0,
    }
    assert found.tensors is tensors
