"""Frame targets, segments and segment F1 against the golden vectors and a slow count in exact fractions."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.errors import MetricError
from xares_store.metrics.frames import (
    count_active,
    event_segments,
    f1_from_counts,
    frame_roll,
    predicted_segments,
    published_frames,
    segment_count,
    segment_counts,
    segment_counts_published,
    segment_errors,
    segment_pool_size,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SEGMENT_F1 = json.loads((GOLDEN / "classification.json").read_text())


def test_frame_labels_as_published():
    cases = json.loads((GOLDEN / "frames.json").read_text())["frame_label_rasterisation"]
    assert len(cases) == 5
    for case in cases:
        names = list(case["active_frames"])
        keys = ("onset", "offset", "label") if case["task"] == "desed" else ("start", "end", "note")
        events = [
            (event[keys[0]], event[keys[1]], names.index(name))
            for event in case["events"]
            for name in str(event[keys[2]]).split(",")
        ]
        length_s = 10.0 if case["task"] == "desed" else max(offset for _, offset, _ in events)
        assert published_frames(length_s, case["hop_ms"]) == case["frames"]
        roll = frame_roll(
            *zip(*events, strict=True),
            n_classes=len(names),
            n_frames=case["frames"],
            hop_ms=case["hop_ms"],
            rule="published",
        )
        found = {name: np.flatnonzero(roll[:, column]).tolist() for column, name in enumerate(names)}
        assert found == case["active_frames"]
        strict = frame_roll(
            *zip(*events, strict=True), n_classes=len(names), n_frames=case["frames"], hop_ms=case["hop_ms"]
        )
        assert strict.any(axis=0).all()  # no event is lost


def test_pool_sizes():
    cases = SEGMENT_F1["segment_f1_pool_sizes"]
    assert len(cases) == 50
    for case in cases:
        assert segment_pool_size(case["segment_s"], case["hop_ms"]) == case["pool"]


def test_segment_f1_as_published():
    cases = SEGMENT_F1["segment_f1"]
    assert len(cases) == 11
    for case in cases:
        pool = segment_pool_size(case["segment_length_in_s"], case["hop_size_in_ms"])
        assert pool == case["pool"]
        clips = [
            clip
            for logits, targets in case["batches_logits_then_targets"]
            for clip in zip(logits, targets, strict=True)
        ]
        for average, expected in case["expected"].items():
            if "raises" in expected:
                with pytest.raises(MetricError):
                    segment_counts_published(clips[0][1], clips[0][0], pool)
                continue
            counts = sum(segment_counts_published(target, logits, pool) for logits, target in clips)
            one_class = np.shape(clips[0][0])[1] == 1
            found = f1_from_counts(counts, average, present_only=one_class)
            assert found == pytest.approx(expected["value"], abs=1e-9), case["name"]


TICKS = st.integers(0, 400)  # of 25 ms, up to 10 s
HOPS = st.sampled_from([10, 16, 20, 25, 40, 62.5, 64, 100, 160, 250, 320, 500, 960, 1000])
SEGMENTS = st.sampled_from(["0.1", "0.25", "0.5", "1"])


@given(onset=TICKS, length=st.integers(0, 100), hop_ms=HOPS)
def test_strict_frames_are_those_the_event_touches(onset, length, hop_ms):
    start, end, hop = Fraction(onset, 40), Fraction(onset + length, 40), Fraction(hop_ms) / 1000
    frames = math.ceil(Fraction(10) / hop)
    roll = frame_roll([float(start)], [float(end)], [0], n_classes=1, n_frames=frames, hop_ms=hop_ms)
    touched = [
        i for i in range(frames) if (i * hop < end and (i + 1) * hop > start) or i * hop <= start < (i + 1) * hop
    ]
    assert np.flatnonzero(roll).tolist() == touched


@pytest.mark.parametrize("steps", range(1, 60))
def test_times_on_a_boundary_are_not_moved_by_rounding(steps):
    roll = frame_roll([steps * 0.1], [(steps + 2) * 0.1], [0], n_classes=1, n_frames=80, hop_ms=100)
    assert np.flatnonzero(roll).tolist() == [steps, steps + 1]
    assert segment_count(steps * 0.1, 0.1) == steps


def slow_counts(events, active, hop, duration, segment):
    """The rules read literally, in fractions."""
    n_segments = math.ceil(duration / segment)
    n_frames, n_classes = active.shape
    counts = np.zeros((3, n_classes), dtype=int)
    for number in range(n_segments):
        start, end = number * segment, min((number + 1) * segment, duration)
        centres = [i for i in range(n_frames) if start <= (i + Fraction(1, 2)) * hop < end]
        if not centres:
            centres = [i for i in range(n_frames) if i * hop <= (start + end) / 2 < (i + 1) * hop]
        for label in range(n_classes):
            wanted = any(
                event_label == label
                and onset < duration
                and ((onset < (number + 1) * segment and offset > start) or start <= onset < (number + 1) * segment)
                for onset, offset, event_label in events
            )
            found = any(active[i, label] for i in centres)
            counts[0, label] += wanted and found
            counts[1, label] += found and not wanted
            counts[2, label] += wanted and not found
    return counts


@settings(max_examples=150, deadline=None)
@given(data=st.data(), hop_ms=HOPS, segment=SEGMENTS)
def test_strict_counts_equal_a_slow_count_in_fractions(data, hop_ms, segment):
    duration = Fraction(data.draw(st.integers(1, 100)), 40)
    events = [
        (Fraction(onset, 40), Fraction(onset + length, 40), label)
        for onset, length, label in data.draw(
            st.lists(st.tuples(st.integers(0, 110), st.integers(0, 60), st.integers(0, 1)), max_size=5)
        )
    ]
    hop = Fraction(hop_ms) / 1000
    n_frames = max(0, math.floor(duration / hop) + data.draw(st.integers(-1, 2)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    probabilities = rng.random((n_frames, 2))
    columns = [np.array([float(event[i]) for event in events]) for i in range(3)]
    found = segment_counts(*columns, probabilities, hop_ms=hop_ms, duration_s=float(duration), segment_s=float(segment))
    expected = slow_counts(events, probabilities > 0.5, hop, duration, Fraction(segment))
    assert found.tolist() == expected.tolist()


@given(shift=st.integers(0, 5), seed=st.integers(0, 1000))
def test_a_shift_by_whole_segments_changes_nothing(shift, seed):
    rng = np.random.default_rng(seed)
    onset, length, label = rng.random(6) * 4, rng.random(6), rng.integers(0, 3, 6)
    probabilities = rng.random((125, 3))

    def counts(offset_s, frames):
        return segment_counts(
            onset + offset_s, onset + length + offset_s, label, frames, hop_ms=40, duration_s=5 + offset_s, segment_s=1
        )

    silence = np.zeros((25 * shift, 3))
    assert counts(shift, np.vstack([silence, probabilities])).tolist() == counts(0, probabilities).tolist()


@given(seed=st.integers(0, 1000))
def test_classes_may_be_renamed_and_clips_reordered(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, (7, 3, 4))
    classes, clips = rng.permutation(4), rng.permutation(7)
    for average in ("macro", "micro"):
        assert f1_from_counts(counts[clips][:, :, classes].sum(axis=0), average) == pytest.approx(
            f1_from_counts(counts.sum(axis=0), average), abs=1e-15
        )


def test_f1_of_many_counts_at_once():
    counts = np.random.default_rng(0).integers(0, 5, (6, 3, 4))
    assert f1_from_counts(counts).tolist() == pytest.approx([f1_from_counts(row) for row in counts])
    assert f1_from_counts(np.zeros((3, 2))) == 0.0


def test_the_segment_does_not_depend_on_the_hop():
    """At a hop of 40 the published 0.1 s is 120 ms; here a hit in each tenth of a second is a hit at any hop."""
    onset = np.array([0.02, 0.43])
    for hop_ms in (10, 20, 40, 50, 100, 160):
        frames = frame_roll(onset, onset + 0.05, [0, 0], n_classes=1, n_frames=round(960 / hop_ms), hop_ms=hop_ms)
        target = event_segments(onset, onset + 0.05, [0, 0], n_classes=1, duration_s=0.96, segment_s=0.1)
        found = predicted_segments(frames, hop_ms=hop_ms, duration_s=0.96, segment_s=0.1)
        assert target.shape == found.shape == (10, 1)
        assert np.flatnonzero(target).tolist() == [0, 4]
        assert set(np.flatnonzero(target)) <= set(np.flatnonzero(found))


def test_an_event_in_the_tail_counts():
    tail = {"hop_ms": 500, "duration_s": 1.3, "segment_s": 1.0}
    assert segment_counts([1.1], [1.2], [0], [[0.0], [0.0], [0.9]], **tail).ravel().tolist() == [1, 0, 0]
    # Longer than the encoder saw: nothing is predicted there.
    assert segment_counts([1.1], [1.2], [0], [[0.9], [0.9]], **tail).ravel().tolist() == [0, 1, 1]
    # After the end of the clip, in its last segment.
    assert segment_counts([1.35], [1.4], [0], [[0.0], [0.0]], **tail).ravel().tolist() == [0, 0, 0]


def test_segment_errors_are_substitutions_insertions_and_deletions():
    assert segment_errors([[1, 1, 0]], [[0, 0, 1]]) == (2, 2)
    assert segment_errors([[0, 0, 0]], [[1, 0, 1]]) == (2, 0)


def test_what_cannot_be_counted_is_refused():
    one = {"n_classes": 1, "n_frames": 2, "hop_ms": 40}
    for onset, offset, label in [
        ([0.5], [0.4], [0]),
        ([math.nan], [0.4], [0]),
        ([0.1], [0.4], [1]),
        ([0.1], [0.4], [-1]),
        ([0.1, 0.2], [0.4], [0]),
    ]:
        with pytest.raises(MetricError):
            frame_roll(onset, offset, label, **one)
    with pytest.raises(MetricError):
        frame_roll([], [], [], n_classes=1, n_frames=2, hop_ms=0)
    grid = {"hop_ms": 40, "segment_s": 1.0}
    with pytest.raises(MetricError):
        segment_counts([], [], [], [[math.nan]], duration_s=1.0, **grid)
    with pytest.raises(MetricError):
        segment_counts([], [], [], [0.5], duration_s=1.0, **grid)
    with pytest.raises(MetricError):
        segment_counts([], [], [], [[0.5]], duration_s=0.0, **grid)
    with pytest.raises(MetricError):
        predicted_segments([True], duration_s=1.0, **grid)
    with pytest.raises(MetricError):
        count_active([[1, 0]], [[1]])
    with pytest.raises(MetricError):
        f1_from_counts([[1, 2]])
