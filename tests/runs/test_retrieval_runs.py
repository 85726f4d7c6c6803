"""The retrieval probe as a run: crops into recordings, the text side, scores and predictions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.text_models import save_text_model
from tests.toy import CLASSES, tone, wav, write_tar
from xares_store.errors import ConfigError, ProbeError
from xares_store.kinds import METRICS_OF_KIND
from xares_store.metrics.retrieval import RetrievalRanks
from xares_store.probes import hub, towers
from xares_store.protocol import Fold
from xares_store.runs import retrieval
from xares_store.runs.embed import embed
from xares_store.runs.evaluate import evaluate
from xares_store.runs.features import Features
from xares_store.runs.request import make_request
from xares_store.runs.retrieval import retrieval_outcomes, retrieval_settings, text_side
from xares_store.store.run import PREDICTION_SCHEMA
from xares_store.store.store import Store
from xares_store.task import Task

PLACES = ("attic", "barn", "cave", "dock", "echo", "farm")
SOUNDS = ("bark", "chirp", "drum", "engine", "flute", "gong")
ALL = METRICS_OF_KIND["captions"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Towers of width 64: the same arithmetic in a moment."""
    monkeypatch.setattr(towers, "WIDTH", 64)


def make_task(main="recall_at_1", also=tuple(name for name in ALL if name != "recall_at_1")):
    return Task.from_text(
        f"""
format = 1
name = "heard"
title = "Heard"
domain = "environment"
[data.splits]
train = ["train.tar"]
valid = ["valid.tar"]
test = ["test.tar"]
[target]
kind = "captions"
[metric]
name = "{main}"
also = {list(also)!r}
""",
        where="test",
        base=None,
    )


def make_features(n=90, crops=1, dim=16, seed=0, folds=1):
    """Recordings of two attributes each, in crops; captions name both. The crops of a recording differ in length."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(2, 6, dim))
    place, sound = rng.integers(0, 6, n), rng.integers(0, 6, n)
    recording = np.repeat(np.arange(n), crops)
    n_frames = rng.integers(1, 9, len(recording)).astype(np.int64)
    values = codes[0, place[recording]] + codes[1, sound[recording]]
    values += rng.normal(size=values.shape) * (0.1 if crops == 1 else 2.0)
    if crops > 1:  # only the mean over all frames of a recording says what it is
        for row in range(n):
            mine = recording == row
            wrong = np.average(values[mine], axis=0, weights=n_frames[mine])
            values[mine] += codes[0, place[row]] + codes[1, sound[row]] - wrong
    captions = [
        (f"A {SOUNDS[s]} in the {PLACES[p]}.", f"In a {PLACES[p]}: {SOUNDS[s]}, {SOUNDS[s]}") for p, s in zip(place, sound, strict=True)
    ]  # fmt: skip
    order = rng.permutation(len(recording))  # crops of a recording need not be neighbours
    recording, values, n_frames = recording[order], values[order], n_frames[order]
    split = np.array(["train", "train", "valid", "test"], dtype=object)[recording * 4 // n]
    key = np.array([f"r{row:03d}" for row in recording], dtype=object)
    part = {name: np.flatnonzero(split == name) for name in ("train", "valid", "test")}
    fold = Fold("test", part["train"], part["valid"], part["test"])
    return Features(
        values=values.astype(np.float32),
        target=[captions[row] for row in recording],
        recording=recording,
        split=split,
        clip_id=np.array([f"{name}#{row:04d}" for row, name in enumerate(key)], dtype=object),
        key=key,
        folds=[fold] if folds == 1 else [fold, Fold("again", part["train"], part["test"], part["valid"])],
        cropped=crops > 1,
        dropped=0,
        start_s=np.zeros(len(recording)),
        duration_s=np.ones(len(recording)),
        parts=(),
        part_of=np.zeros(len(recording), np.int64),
        offset=np.zeros(len(recording), np.int64),
        n_frames=n_frames,
    )


def make_settings(task, request, **changed):
    settings = {"epochs": 12, "batch_size": 32, "learning_rates": [3e-3]}
    return {**settings, **retrieval_settings(task, request), **changed}


def request_for(protocol="strict", **options):
    return make_request(["retrieval"], 1, None, None, None, None, None, None, protocol, "cpu", **options)


def run(features, request=None, task=None, seeds=(42,), progress=lambda *_: None, **changed):
    task, request = task or make_task(), request or request_for()
    found, _ = retrieval_outcomes(task, request, make_settings(task, request, **changed), seeds, features, progress)
    return found


def value_of(scored, metric, fold=None):
    return next(row["value"] for row in scored.scores if row["metric"] == metric and row["fold"] == fold)


def test_every_metric_is_scored_and_predictions_fit_the_scores():
    features = make_features()
    seen = []
    found = run(features, seeds=(42, 43), progress=lambda done, total: seen.append((done, total)))
    assert list(found) == [42, 43]
    assert seen == [(done, 24) for done in range(1, 25)]
    scored = found[42]
    assert [(row["metric"], row["fold"]) for row in scored.scores] == [
        (name, fold) for name in ["recall_at_1", *(n for n in ALL if n != "recall_at_1")] for fold in (None, "test")
    ]
    assert value_of(scored, "recall_at_10") > 0.8
    assert value_of(found[43], "recall_at_10") > 0.8
    for name in ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_10", "median_rank", "mean_rank"):
        both = [value_of(scored, direction + name) for direction in ("a2t_", "t2a_")]
        assert value_of(scored, name) == pytest.approx(np.mean(both))
    for row in scored.scores:
        assert row["n"] == scored.n_test == len(features.folds[0].test)
        if row["low"] is not None:
            assert row["low"] <= row["value"] <= row["high"]
        assert (row["low"] is None) == row["metric"].endswith("rank")
    table = scored.predictions
    assert set(table.column_names) == set(PREDICTION_SCHEMA.names)
    assert np.mean(table["value"].to_pylist()) == pytest.approx(value_of(scored, "recall_at_1"))
    assert np.mean(table["correct"].to_pylist()) == pytest.approx(value_of(scored, "a2t_recall_at_1"))
    for target, prediction, correct in zip(*(table[name].to_pylist() for name in ("target", "prediction", "correct")), strict=True):  # fmt: skip
        assert prediction in target.split(" | ") or not correct
    rows = features.folds[0].test
    assert table["clip_id"].to_pylist() == features.clip_id[rows].tolist()
    assert table["target"].to_pylist() == [" | ".join(features.target[row]) for row in rows]
    fold = scored.details["folds"][0]
    assert fold["valid"] == max(fold["history"][0]["valid"])
    assert fold["epoch"] == fold["history"][0]["valid"].index(fold["valid"]) + 1
    assert scored.tensors["fold-test.text.table"].shape == (len(scored.tensors["fold-test.text.token_ids"]), 64)


def test_captions_of_other_clips_are_no_better_than_chance():
    features = make_features()
    order = np.random.default_rng(1).permutation(len(features.target))
    shuffled = replace(features, target=[features.target[row] for row in order])
    assert value_of(run(shuffled)[42], "recall_at_1") < 0.25


def test_crops_of_a_recording_are_one_item_under_strict_and_several_under_published(tmp_path):
    features = make_features(crops=3)
    strict = run(features)[42]
    assert strict.n_test == len(np.unique(features.recording[features.folds[0].test]))
    assert sorted(strict.predictions["clip_id"].to_pylist()) == sorted(set(features.key[features.folds[0].test]))
    assert value_of(strict, "recall_at_10") > 0.8
    request = request_for("published", tokenizer="words")
    assert run(features, request)[42].n_test == len(features.folds[0].test)


def test_a_recording_is_the_mean_over_all_its_frames():
    features = make_features(crops=3)
    items = retrieval._Items.of(features, whole=True)
    for item in (0, 17):
        mine = features.recording == item
        expected = np.average(features.values[mine].astype(np.float64), axis=0, weights=features.n_frames[mine])
        np.testing.assert_allclose(items.values[item], expected, rtol=1e-5, atol=1e-6)
        assert items.captions[2 * item] == features.target[np.flatnonzero(mine)[0]][0]


def test_the_mean_over_folds_is_the_score_of_the_task():
    found = run(make_features(folds=2))[42]
    folds = [value_of(found, "recall_at_1", fold) for fold in ("test", "again")]
    assert value_of(found, "recall_at_1") == pytest.approx(np.mean(folds))
    assert set(found.predictions["fold"].to_pylist()) == {"test", "again"}
    assert {name.partition(".")[0] for name in found.tensors} == {"fold-test", "fold-again"}


def test_a_metric_that_is_better_when_lower_chooses_the_lowest():
    task = make_task()
    lower = task.model_copy(update={"metric": task.metric.model_copy(update={"name": "mean_rank", "also": None})})
    found = run(make_features(), task=lower)[42]
    history = found.details["folds"][0]["history"][0]["valid"]
    assert found.details["folds"][0]["valid"] == min(history) >= 1
    assert found.predictions["value"].null_count == len(found.predictions)


def test_answers_agree_with_pessimistic_ranks():
    class Result:
        audio = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
        text = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)

    clip = np.array([0, 1, 1])
    tied = RetrievalRanks(np.array([2, 3, 1]), np.array([1, 2, 1]), clip, 2)
    assert retrieval._answers(Result, clip, tied) == [1, 2]  # the first clip's own caption is tied with a wrong one


def test_words_come_from_training_captions_alone():
    features = make_features()
    test = set(features.folds[0].test.tolist())
    odd = [("zebra zebra", "zebra") if row in test else captions for row, captions in enumerate(features.target)]
    words = run(replace(features, target=odd), epochs=1)[42].tensors["fold-test.text.words"].tobytes().decode()
    assert words.split("\n") == ["[UNK]", "a", *sorted({*PLACES, *SOUNDS, "in", "the"})]


def test_a_pretrained_tokenizer_and_a_frozen_model_learn_too(tmp_path):
    words = [*PLACES, *SOUNDS, "a", "in", "the", ".", ":", ","]
    folder = save_text_model(tmp_path / "bert", words)
    features = make_features()
    by_tokens = run(features, request_for("published", tokenizer=str(folder)))[42]
    assert value_of(by_tokens, "recall_at_10") > 0.8
    by_vectors = run(features, request_for(text_encoder=str(folder)))[42]
    assert value_of(by_vectors, "recall_at_10") > 0.7
    assert "fold-test.text.table" not in by_vectors.tensors
    assert by_vectors.details["text"] == {"encoder": str(folder), "tokenizer": None}


def test_a_frozen_model_embeds_the_captions_of_a_task_once(tmp_path, monkeypatch):
    folder = save_text_model(tmp_path / "bert")
    calls = []
    from xares_store.probes import text

    plain = text.embed_captions
    monkeypatch.setattr(text, "embed_captions", lambda *args, **options: calls.append(1) or plain(*args, **options))
    features, request = make_features(folds=2), request_for(text_encoder=str(folder))
    for _ in range(2):  # as for two audio encoders
        run(features, request, seeds=(42, 43), epochs=1)
    assert calls == [1]


def test_every_text_side_has_an_identity_of_its_own(tmp_path):
    task = make_task()
    one, other = save_text_model(tmp_path / "one"), save_text_model(tmp_path / "other", seed=1)
    wishes = [
        {},
        {"tokenizer": str(one)},
        {"text_encoder": str(one)},
        {"text_encoder": f"{one}#cls"},
        {"text_encoder": str(other)},
    ]
    settings = [retrieval_settings(task, request_for(**wish)) for wish in wishes]
    settings.append(retrieval_settings(task, request_for("published", tokenizer="words")))
    assert len({repr(one) for one in settings}) == len(settings)
    assert retrieval_settings(task, request_for(text_encoder=f"{one}#mean")) == settings[2]
    assert retrieval_settings(task, request_for(text_encoder="scratch", tokenizer="words")) == settings[0]
    assert settings[0]["loss"] == "multi-positive"
    assert settings[-1]["loss"] == "published"
    assert str(tmp_path) not in repr(settings)


def test_published_wants_the_published_tokenizer_and_never_falls_back(monkeypatch):
    def nothing(spec, weights, option, extras):
        raise ProbeError(f"offline: {spec}", where=option)

    monkeypatch.setattr(hub, "_from_hub", nothing)
    with pytest.raises(ProbeError, match=r"(?s)offline: google-bert/bert-base-uncased.*--tokenizer"):
        retrieval_settings(make_task(), request_for("published"))
    assert text_side(None, None, "strict").files is None


def test_a_frozen_model_takes_no_other_tokenizer(tmp_path):
    with pytest.raises(ConfigError, match="its own tokenizer"):
        text_side(str(tmp_path), "words", "strict")


def test_from_shards_to_a_stored_run(tmp_path, encoder_file):
    rng = np.random.default_rng(0)
    for split, count in (("train", 18), ("valid", 6), ("test", 6)):
        members = []
        for index in range(count):
            kind = CLASSES[index % 3]
            members.append((f"c{index:02d}.wav", wav(tone(kind, 0.3, 16000, rng))))
            captions = {f"caption_{number}": f"a {kind} number {number}" for number in range(1, 6)}
            members.append((f"c{index:02d}.json", json.dumps(captions).encode()))
        write_tar(tmp_path / "data" / "heard" / f"{split}.tar", members)
    task, store = make_task(), tmp_path / "my.store"
    embed(str(encoder_file), [task], store=store, data=tmp_path / "data", workers=0)
    asked = {"tasks": [task], "probes": ["mlp"], "seeds": 2, "epochs": 4, "learning_rates": [3e-3], "device": "cpu"}
    first = evaluate(store, **asked).results
    assert [(one.probe, one.metric, one.n_test, one.reused) for one in first] == [("retrieval", "recall_at_1", 6, False)] * 2  # fmt: skip
    assert all(one.reused for one in evaluate(store, **asked).results)
    bert = save_text_model(tmp_path / "bert")
    other = evaluate(store, **asked, text_encoder=str(bert)).results
    assert not {one.run_id for one in other} & {one.run_id for one in first}
    predictions = Store.open(store).predictions(first[0].run_id)
    assert predictions["value"].null_count == 0
    assert np.mean(predictions["value"].to_pylist()) == pytest.approx(first[0].value)
