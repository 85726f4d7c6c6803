"""The frame probe end to end: stores in which the frames carry the events, at many hops and under both protocols."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xares_store.clip import Clip
from xares_store.errors import MetricError
from xares_store.metrics.frames import frame_roll
from xares_store.runs import frame_scores
from xares_store.runs.evaluate import evaluate
from xares_store.runs.frame_scores import FrameScorer, MainScore, resample, value_of
from xares_store.store import PartAddress, Source, Store
from xares_store.store.layout import RunManifest
from xares_store.targets import EventTable
from xares_store.task import Task

LABELS = ("dog", "cat", "speech")
SPLITS = ("train", "valid", "test")
Event = dict[str, Any]

TASK = """
format = 1
name = "sounds"
title = "Sounds"
domain = "environment"
[data.splits]
train = ["train*.tar"]
valid = ["valid*.tar"]
test = ["test*.tar"]
{audio}
[target]
kind = "events"
labels = ["dog", "cat", "speech"]
{target}
[metric]
name = "{metric}"
{also}
{segment}
[probe.frame]
epochs = 8
batch_size = 2
learning_rates = [0.03, 0.1]
"""
ALSO = ("segment_f1_macro", "segment_f1_micro", "segment_error_rate", "frame_map", "event_f1", "onset_f1")


def make_task(
    metric: str = "segment_f1_macro",
    also: Sequence[str] = ALSO,
    segment_s: float | None = 1.0,
    audio: str = "",
    target: str = "",
) -> Task:
    others = [name for name in also if name != metric]
    text = TASK.format(
        metric=metric,
        audio=audio,
        target=target,
        also=f"also = {json.dumps(others)}" if others else "",
        segment="" if segment_s is None else f"segment_s = {segment_s}",
    )
    return Task.from_text(text, where="sounds.toml", base=None)


def some_events(rng: np.random.Generator, seconds: float) -> list[Event]:
    """Two events a label, apart and at least 0.3 s long."""
    found = []
    for label in LABELS:
        for half in range(2):
            onset = half * seconds / 2 + rng.uniform(0, seconds / 8)
            found.append({"onset": onset, "offset": onset + rng.uniform(0.3, seconds / 4), "label": label})
    return found


def frames_of(events: list[Event], n_frames: int, hop_ms: float, start_s: float, rng: np.random.Generator) -> Any:
    """Frames in which each class has a column that is high while it sounds and one that is high while it does not."""
    heard = [event for event in events if event["offset"] > start_s]
    roll = frame_roll(
        [max(0.0, event["onset"] - start_s) for event in heard],
        [event["offset"] - start_s for event in heard],
        [LABELS.index(event["label"]) for event in heard],
        n_classes=len(LABELS),
        n_frames=n_frames,
        hop_ms=hop_ms,
    )
    return (np.hstack([roll, 1 - roll]) * 4 + rng.standard_normal((n_frames, 6)) * 0.3).astype(np.float32)


def fill_store(
    path: Path,
    task: Task,
    hop_ms: float,
    *,
    clips: int = 12,
    seconds: float = 4.0,
    crops: int = 1,
    events: Any = None,
    labels_of: Any = None,
    prefix: str = "",
) -> Store:
    """Embed generated recordings; ``events(rng, seconds)`` gives those of one, ``labels_of`` what its JSON says."""
    store = Store.create(path)
    rng = np.random.default_rng(5)
    store.put_encoder("enc@00000000", {"spec": "enc", "dim": 6, "hop_ms": hop_ms, "sample_rate_hz": 16000})
    store.put_task(task.address, task.to_toml())
    for split in SPLITS:
        address = PartAddress("enc@00000000", task.audio_address, prefix + split, f"{split}0")
        writer = store.part_writer(address, dim=6, hop_ms=hop_ms, sample_rate_hz=16000, dtype="float32")
        for number in range(clips):
            truth = (events or some_events)(rng, seconds)
            label = json.dumps((labels_of or (lambda rng, truth: truth))(rng, truth))
            for crop in range(crops):
                start, length = crop * seconds / crops, seconds / crops
                frames = frames_of(truth, int(np.ceil(length * 1000 / hop_ms - 1e-6)), hop_ms, start, rng)
                name = f"{split}{number}"
                clip_id = name if crops == 1 else f"{name}#{crop:04d}"
                writer.add(Clip(clip_id, name, crop, start, length, label), frames, frames.mean(axis=0))
        source = Source(f"{split}0", f"{SPLITS.index(split):064x}", 1000)
        writer.commit(source, final=True, first_sample=0, n_samples=clips, timing={}, versions={})
    return store


def run(store: Store, task: Task, **options: Any) -> RunManifest:
    (result,) = evaluate(store, tasks=[task], seeds=[1], device="cpu", **options).results
    return store.read_run(result.run_id)


def values(run: RunManifest) -> dict[str, float]:
    return {score.metric: score.value for score in run.scores if score.fold is None}


@pytest.mark.parametrize("hop_ms", [20, 40, 100, 160, 500])
def test_frames_that_carry_the_answer_score_near_one_at_any_hop(tmp_path: Path, hop_ms: float) -> None:
    task = make_task()
    found = run(fill_store(tmp_path / "s", task, hop_ms), task)
    scores = values(found)
    assert tuple(scores) == ALSO
    # A frame of 160 or 500 ms is marked for an event that only touches it, so segments and onsets blur.
    assert scores["segment_f1_macro"] > 0.95
    assert scores["segment_f1_micro"] > 0.95
    assert scores["segment_error_rate"] < 0.1
    assert scores["frame_map"] > 0.99
    assert scores["event_f1"] > (0.9 if hop_ms < 500 else 0.3)
    assert scores["onset_f1"] > (0.9 if hop_ms <= 40 else 0.1)
    assert found.n_test == 12
    for score in found.scores:
        if score.metric == "frame_map":
            assert (score.low, score.high) == (None, None)
        else:
            assert score.low is not None
            assert score.high is not None
            assert score.low <= score.value <= score.high
    assert found.details["events"]["hop_ms"] == hop_ms
    assert found.details["events"]["rule"] == "strict"
    (fold,) = found.details["folds"]
    assert fold["valid"] > 0.95
    assert len(fold["history"]) == 2
    assert len(fold["history"][0]["valid"]) == 8


def test_permuted_labels_give_chance(tmp_path: Path) -> None:
    def other_labels(rng: np.random.Generator, truth: list[Event]) -> list[Event]:
        return [{"onset": t, "offset": t + 1.0, "label": label} for label in LABELS for t in [rng.uniform(0, 3)]]

    task = make_task(also=("frame_map", "event_f1"))
    found = values(run(fill_store(tmp_path / "s", task, 40, clips=20, labels_of=other_labels), task))
    assert found["frame_map"] < 0.5  # a quarter of all frames is active
    assert found["event_f1"] < 0.5


def full(rng: np.random.Generator, seconds: float) -> list[Event]:
    """Dogs all the time, a cat of 20 ms between two frames of 40 ms, speech in the tail of 0.3 s."""
    return [
        {"onset": 0.0, "offset": seconds, "label": "dog"},
        {"onset": 0.05, "offset": 0.07, "label": "cat"},
        {"onset": 3.05, "offset": 3.25, "label": "speech"},
    ]


def counts_of(store: Store, found: RunManifest) -> np.ndarray:
    """Counts per item: (items, 3, classes)."""
    table = store.predictions(found.run_id)
    return np.array(table["counts"].to_pylist()).reshape(len(table), 3, 3)


def test_strict_measures_time_and_published_counts_frames(tmp_path: Path) -> None:
    task = make_task("segment_f1_micro", also=(), segment_s=0.1)
    store = fill_store(tmp_path / "s", task, 40, clips=6, seconds=3.3, events=full)
    strict, published = run(store, task), run(store, task, protocol="published", learning_rates=[0.1])
    wanted = counts_of(store, strict)[:, [0, 2]].sum(axis=1)  # hits and misses
    assert (wanted == [33, 1, 3]).all()  # 3.3 s are 33 segments of 100 ms; 3.05 to 3.25 s touches three of them
    old = counts_of(store, published)[:, [0, 2]].sum(axis=1)
    assert (old[:, 0] == 27).all()  # 83 frames are 27 segments of 120 ms, the last 80 ms are dropped
    assert (old[:, 1] == 0).all()  # the 20 ms event has no frame
    assert published.details["events"]["segment_frames"] == 3
    assert strict.details["events"]["segment_s"] == 0.1
    assert values(strict)["segment_f1_micro"] > 0.95


def test_the_tail_counts_in_strict_and_is_dropped_as_published(tmp_path: Path) -> None:
    task = make_task(also=())
    store = fill_store(tmp_path / "s", task, 40, clips=6, seconds=3.3, events=full)
    strict, published = run(store, task), run(store, task, protocol="published", learning_rates=[0.1])
    assert (counts_of(store, strict)[:, [0, 2]].sum(axis=1) == [4, 1, 1]).all()
    assert (counts_of(store, published)[:, [0, 2]].sum(axis=1) == [3, 0, 0]).all()
    assert (counts_of(store, strict)[:, 1:, [0, 2]] == 0).all()  # and the dog and the speech are found, nowhere else


def test_published_length_and_clips_without_a_whole_segment(tmp_path: Path) -> None:
    task = make_task(also=(), target="published_length_s = 2.0")
    store = fill_store(tmp_path / "s", task, 40, clips=4, seconds=3.3, events=full)
    published = run(store, task, protocol="published", learning_rates=[0.1])
    assert (counts_of(store, published)[:, [0, 2]].sum(axis=1)[:, 0] == 2).all()
    short = make_task(also=(), segment_s=5.0)
    found = run(store, short, protocol="published", learning_rates=[0.1])
    assert found.details["events"]["clips_without_a_segment"] == 4
    assert counts_of(store, found).sum() == 0


def test_crops_of_a_recording_are_one_item_in_strict(tmp_path: Path) -> None:
    task = make_task(audio="[audio]\ncrop_s = 2.0")
    store = fill_store(tmp_path / "s", task, 40, crops=2)
    strict, published = run(store, task), run(store, task, protocol="published", learning_rates=[0.1])
    assert (strict.n_test, published.n_test) == (12, 24)
    table = store.predictions(strict.run_id)
    assert table["clip_id"].to_pylist() == [f"test{number}" for number in range(12)]
    assert store.predictions(published.run_id)["clip_id"].to_pylist()[:2] == ["test0#0000", "test0#0001"]
    assert values(strict)["event_f1"] > 0.9
    assert values(strict)["segment_f1_macro"] > 0.95
    for target, prediction in zip(table["target"].to_pylist(), table["prediction"].to_pylist(), strict=True):
        wanted, found = json.loads(target), json.loads(prediction)
        assert len(wanted) == 6
        assert max(event["onset"] for event in wanted) > 2.0  # times of the recording
        for event in wanted:
            near = [e for e in found if e["label"] == event["label"] and abs(e["onset"] - event["onset"]) < 0.1]
            assert near
        assert found == sorted(found, key=lambda event: event["onset"])


def test_folds_are_trained_apart_and_averaged(tmp_path: Path) -> None:
    text = TASK.replace("[data.splits]", "[data.folds]").replace("segment}", "segment}\nsegment_s = 1.0")
    task = Task.from_text(
        text.format(metric="segment_f1_macro", also='also = ["frame_map"]', segment="", audio="", target=""),
        where="sounds.toml",
        base=None,
    )
    found = run(fill_store(tmp_path / "s", task, 40, prefix="fold-"), task)
    assert [fold["fold"] for fold in found.details["folds"]] == list(SPLITS)
    for metric in task.metric.names:
        overall, *each = [score for score in found.scores if score.metric == metric]
        assert [score.fold for score in each] == list(SPLITS)
        assert overall.value == pytest.approx(np.mean([score.value for score in each]))
        assert (overall.n, {score.n for score in each}) == (36, {12})
        assert overall.value > 0.9


@pytest.mark.parametrize("metric", ALSO)
def test_every_metric_can_choose_the_checkpoint(tmp_path: Path, metric: str) -> None:
    task = make_task(metric, also=(), segment_s=1.0 if metric.startswith("segment") else None)
    store = fill_store(tmp_path / "s", task, 100, clips=4)
    found = run(store, task)
    (fold,) = found.details["folds"]
    best = min if metric == "segment_error_rate" else max
    every = [value for row in fold["history"] for value in row["valid"]]
    assert fold["valid"] == best(every)
    assert all(value >= 0 for value in every)
    table = store.predictions(found.run_id)
    assert (table["counts"].null_count == 0) == (metric not in ("segment_error_rate", "frame_map"))
    assert len(json.loads(table["prediction"][0].as_py())) >= 1


def test_validation_clips_without_events_cannot_choose_by_error_rate(tmp_path: Path) -> None:
    calls = iter(range(12))

    def events(rng: np.random.Generator, seconds: float) -> list[Event]:
        return [] if 4 <= next(calls) < 8 else some_events(rng, seconds)

    task = make_task("segment_error_rate", also=())
    store = fill_store(tmp_path / "s", task, 100, clips=4, events=events)
    with pytest.raises(MetricError, match="among the validation clips"):
        run(store, task)


def test_memory_and_company_change_no_score(tmp_path: Path) -> None:
    task = make_task()
    first, second = (fill_store(tmp_path / name, task, 40) for name in "ab")
    rich = evaluate(first, tasks=[task], seeds=[1, 2], device="cpu", memory_bytes=1 << 30).results
    poor = evaluate(second, tasks=[task], seeds=[2], device="cpu", memory_bytes=1 << 20).results
    assert rich[1].run_id == poor[0].run_id
    one, other = first.read_run(rich[1].run_id), second.read_run(poor[0].run_id)
    assert values(one) == pytest.approx(values(other), abs=1e-6)
    assert one.details["folds"][0]["epoch"] == other.details["folds"][0]["epoch"]


# What the scorer makes of one clip


def scorer(events: list[tuple[float, float, int]], **changes: Any) -> FrameScorer:
    table = EventTable(
        *(np.array([event[i] for event in events], float) for i in range(2)),
        np.array([event[2] for event in events], np.int64),
    )
    options = {"start_s": 0.0, "duration_s": 10.0, "n_frames": 250, "hop_ms": 40.0, "n_classes": 2, **changes}
    per_clip = [np.array([options.pop(name)]) for name in ("start_s", "duration_s", "n_frames")]
    return FrameScorer([table], *per_clip, **{"segment_s": 1.0, **options})


def test_events_are_cut_to_the_crop() -> None:
    events = [(0.0, 1.0, 0), (1.5, 2.5, 1), (2.0, 2.0, 0), (3.9, 9.0, 1), (4.0, 5.0, 0)]
    found = scorer(events, start_s=2.0, duration_s=2.0, n_frames=50).events(0)
    assert found.onset_s.tolist() == pytest.approx([0.0, 0.0, 1.9])
    assert found.offset_s.tolist() == pytest.approx([0.5, 0.0, 2.0])
    assert found.label.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "case",
    json.loads((Path(__file__).parents[1] / "golden" / "frames.json").read_text())["frame_label_rasterisation"],
    ids=lambda case: f"{case['task']}-{case['hop_ms']}",
)
def test_published_rolls_are_cut_or_filled_to_the_frames_of_the_embedding(case: Any) -> None:
    names = list(case["active_frames"])
    events = [
        (event.get("onset", event.get("start")), event.get("offset", event.get("end")), names.index(name))
        for event in case["events"]
        for name in str(event.get("label", event.get("note"))).split(",")
    ]
    length = 10.0 if case["task"] == "desed" else None
    for n_frames in (case["frames"], case["frames"] + 5, case["frames"] - 3):
        roll = scorer(
            events, n_classes=len(names), hop_ms=float(case["hop_ms"]), n_frames=n_frames, duration_s=10.0,
            rule="published", published_length_s=length,
        ).roll(0)  # fmt: skip
        assert roll.shape == (n_frames, len(names))
        for name, column in zip(names, roll.T, strict=True):
            wanted = [frame for frame in case["active_frames"][name] if frame < n_frames]
            assert np.flatnonzero(column).tolist() == wanted


def test_labels_are_cut_or_zero_filled_to_the_embedding_frames() -> None:
    case = json.loads((Path(__file__).parents[1] / "golden" / "probes.json").read_text())["frame_label_alignment"]
    for labelled, wanted in ((7, "labels_7_frames_become"), (3, "labels_3_frames_become")):
        one = scorer(
            [(0.0, 1.0, 0)], hop_ms=100.0, n_frames=case["embedding_frames"], rule="published",
            published_length_s=labelled / 10,
        )  # fmt: skip
        assert one.roll(0)[:, 0].tolist() == case[wanted]


def test_models_are_counted_each_for_itself() -> None:
    one = scorer([(0.2, 1.4, 0), (3.0, 3.5, 1), (5.0, 5.02, 1)])
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((250, 4, 2)).astype(np.float32).cumsum(axis=0)
    kinds = sorted(set(frame_scores.COUNTED.values()))
    for rule in ("strict", "published"):
        one.rule = rule  # type: ignore[assignment]
        together = one.counts(kinds, 0, logits)
        for model in range(4):
            alone = one.counts(kinds, 0, logits[:, model : model + 1])
            for kind in kinds:
                assert together[kind][model].tolist() == alone[kind][0].tolist()
    assert set(together) == set(kinds)
    assert one.counts(["errors"], 0, logits)["errors"].tolist() == together["errors"].tolist()


def test_main_score_turns_errors_around_and_sums_clips() -> None:
    one = scorer([(0.2, 1.4, 0), (3.0, 3.5, 1)])
    logits = np.where(one.roll(0)[:, None, :] > 0, 5.0, -5.0).astype(np.float32)
    both = np.concatenate([logits, -logits], axis=1)
    for metric in ALSO:
        score = MainScore(one, metric, 2)
        score.add(0, both)
        score.add(0, both)
        good, bad = score.values()
        assert good == (-0.0 if metric == "segment_error_rate" else 1.0)
        assert bad < good


def test_intervals_resample_items_and_agree_with_one_item_repeated() -> None:
    counts = {"segments": np.tile(np.array([3, 1, 1, 0, 2, 1]), (5, 2, 1)), "errors": np.tile([1, 4], (5, 2, 1))}
    found = resample(["segment_f1_macro", "segment_f1_micro", "segment_error_rate"], counts, seed=0)
    assert found["segment_f1_macro"].shape == (2, 10_000)
    assert np.ptp(found["segment_f1_macro"]) < 1e-12
    assert found["segment_error_rate"] == pytest.approx(0.25)
    rng = np.random.default_rng(1)
    mixed = {"event_f1": rng.integers(0, 4, (40, 1, 6))}
    drawn = resample(["event_f1"], mixed, seed=0)["event_f1"][0]
    point = float(value_of("event_f1", mixed["event_f1"][:, 0].sum(axis=0)))
    assert abs(drawn.mean() - point) < 0.01
    assert drawn.std() > 0.01


def test_a_metric_without_anything_to_find_is_named() -> None:
    with pytest.raises(MetricError, match="segment_error_rate is undefined"):
        frame_scores.defined("segment_error_rate", float(value_of("segment_error_rate", np.array([3, 0]))), "1")
    assert value_of("event_f1", np.zeros(6)) == 0.0
