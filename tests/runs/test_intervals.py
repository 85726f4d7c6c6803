"""Intervals are over recordings: crops scored one by one are still drawn together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.published import FACTS, make_shards
from xares_store.catalog import load_task
from xares_store.metrics.classification import pearson
from xares_store.protocol import Fold
from xares_store.runs.clip_scores import score_multilabel, score_regression
from xares_store.runs.embed import embed
from xares_store.runs.evaluate import evaluate
from xares_store.runs.features import Features
from xares_store.runs.frame_scores import interval
from xares_store.runs.score import score_run
from xares_store.store.store import Store
from xares_store.task import Task

RECORDINGS, CROPS = 60, 5


def features(target: np.ndarray) -> Features:
    """Recordings of several crops each, all of them test clips."""
    n = RECORDINGS * CROPS
    rows = np.arange(n)
    names = np.asarray([f"c{row}" for row in rows], dtype=object)
    zeros = np.zeros(n, dtype=np.int64)
    return Features(
        values=np.zeros((n, 1), np.float32), target=target, recording=rows // CROPS, split=names, clip_id=names, key=names,
        folds=[Fold("test", rows[:1], rows[1:2], rows)], cropped=True, dropped=0, start_s=zeros.astype(float),
        duration_s=zeros.astype(float), parts=(), part_of=zeros, offset=zeros, n_frames=zeros,
    )  # fmt: skip


def width(scored: object, metric: str) -> float:
    (entry,) = [one for one in scored.scores if one["metric"] == metric and one["fold"] is None]  # type: ignore[attr-defined]
    assert entry["low"] < entry["high"]
    return float(entry["high"] - entry["low"])


def test_crops_that_agree_say_no_more_than_their_recording() -> None:
    """Every crop of a recording is right or wrong alike: the interval is that of 60 items, not of 300."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(RECORDINGS) < 0.7, CROPS)
    target = np.repeat(rng.integers(0, 2, RECORDINGS), CROPS)
    shown = np.where(right, target, 1 - target)
    probabilities = np.eye(2, dtype=np.float32)[shown]
    one_by_one = score_run(features(target), [probabilities], ("a", "b"), ["accuracy"], vote=False)
    expected = 2 * 1.96 * np.sqrt(0.7 * 0.3 / RECORDINGS)
    assert one_by_one.n_test == RECORDINGS * CROPS
    assert width(one_by_one, "accuracy") == pytest.approx(expected, rel=0.15)


def test_tags_and_numbers_are_drawn_by_recording_too() -> None:
    rng = np.random.default_rng(1)
    task = load_task("fsd50k")
    hot = (rng.random((RECORDINGS, len(task.labels))) < 0.2).astype(np.uint8)
    logits = (hot + rng.standard_normal(hot.shape)).astype(np.float32)
    crops = score_multilabel(
        task, features(hot.repeat(CROPS, 0)), [logits.repeat(CROPS, 0)], vote=False, details={}, tensors=None
    )
    whole = score_multilabel(
        task, features(hot.repeat(CROPS, 0)), [logits.repeat(CROPS, 0)], vote=True, details={}, tensors=None
    )
    for metric in ("map", "micro_f1", "macro_f1"):
        assert width(crops, metric) == pytest.approx(width(whole, metric), rel=0.2), metric
    number = rng.standard_normal(RECORDINGS).astype(np.float32)
    found = (number + rng.standard_normal(RECORDINGS)).astype(np.float32)
    scored = [
        score_regression(load_task("speechocean762"), features(number.repeat(CROPS)), [found.repeat(CROPS)[:, None]], vote=vote, details={}, tensors=None)
        for vote in (False, True)
    ]  # fmt: skip
    for metric in ("mse", "mae", "pearson"):
        assert width(scored[0], metric) == pytest.approx(width(scored[1], metric), rel=0.2), metric


def test_the_interval_of_a_correlation_is_that_of_fishers_transform() -> None:
    rng = np.random.default_rng(2)
    number = rng.standard_normal(RECORDINGS).astype(np.float32)
    found = (number + rng.standard_normal(RECORDINGS)).astype(np.float32)
    task = load_task("speechocean762")
    scored = score_regression(
        task, features(number.repeat(CROPS)), [found.repeat(CROPS)[:, None]], vote=True, details={}, tensors=None
    )
    r = pearson(number, found)
    low, high = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(RECORDINGS - 3))
    assert width(scored, "pearson") == pytest.approx(high - low, rel=0.3)


def test_event_counts_of_crops_are_drawn_by_recording(tmp_path: Path) -> None:
    """The published protocol scores crops; its interval must not shrink when recordings are cut into more of them."""
    facts = {**FACTS["desed"], "crop_length_s": 0.3}
    make_shards(facts, tmp_path / "data" / "desed", clips=16)
    text = load_task("desed").to_toml().replace("[audio]\n", "[audio]\ncrop_s = 0.2\n")
    path = tmp_path / "desed.toml"
    path.write_text(text)
    assert Task.from_toml(path).audio.crop_s == 0.2
    embed("logmel", [str(path)], store=tmp_path / "s", data=tmp_path / "data", device="cpu", workers=0)
    report = evaluate(tmp_path / "s", tasks=[str(path)], protocol="published", seeds=1, epochs=2, device="cpu")
    (result,) = report.results
    store = Store.open(tmp_path / "s")
    counts = np.asarray(store.predictions(result.run_id)["counts"].to_pylist(), dtype=float)
    keys = store.predictions(result.run_id)["key"].to_pylist()
    assert len(counts) > len(set(keys)), "several crops a recording"
    assert result.low is not None
    assert result.low <= result.value


def test_the_interval_of_frame_scores_is_that_of_95_percent() -> None:
    found = interval(0.5, np.arange(1001) / 1000)
    assert (found.point, found.low, found.high) == (0.5, 0.025, 0.975)
