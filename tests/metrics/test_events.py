"""Event scores against the golden vectors, brute-force matching and a library's median filter."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from xares_store.errors import MetricError
from xares_store.metrics.events import (
    error_rate,
    event_counts,
    event_scores,
    event_segment_errors,
    events_from_frames,
    median_above,
)
from xares_store.metrics.frames import f1_from_counts
from xares_store.targets import EventTable

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "events_hear.json").read_text())
COLLARS = {
    "event_onset_200ms_fms": {"onset_collar_s": 0.2},
    "event_onset_50ms_fms": {"onset_collar_s": 0.05},
    "event_onset_offset_50ms_20perc_fms": {"onset_collar_s": 0.05, "offset_collar_s": 0.05},
}


def table(events, labels):
    rows = [(event["start"] / 1000, event["end"] / 1000, labels.index(event["label"])) for event in events]
    return made(rows)


def made(rows):
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return EventTable(np.array(columns[0], float), np.array(columns[1], float), np.array(columns[2], np.int64))


def test_event_scores_and_error_rate():
    cases = GOLDEN["event_cases"]
    assert len(cases) == 13
    checked = 0
    for case in cases:
        labels = case["labels"]
        # As published, a file without an entry among the predictions is not scored at all.
        files = [
            (table(case["targets_ms"][name], labels), table(found, labels))
            for name, found in case["predictions_ms"].items()
        ]
        for name, collars in COLLARS.items():
            counts = sum(event_counts(*pair, n_classes=len(labels), **collars) for pair in files)
            expected = {key: float(value) for key, value in case[name]["value"].items()}
            published = event_scores(counts, undefined=math.nan)
            found = {"f_measure": published.f1, "precision": published.precision, "recall": published.recall}
            assert found == pytest.approx(expected, abs=1e-9, nan_ok=True), (case["name"], name)
            ours = event_scores(counts)
            assert ours.f1 == pytest.approx(0.0 if math.isnan(expected["f_measure"]) else expected["f_measure"])
            assert ours.f1 == pytest.approx(f1_from_counts(counts, "micro"))
            checked += 1
        rate = error_rate([event_segment_errors(*pair, n_classes=len(labels)) for pair in files])
        assert rate == pytest.approx(case["segment_1s_er"]["value"]["error_rate"], abs=1e-9)
    assert checked == 39


def test_a_file_without_predictions_counts_its_misses():
    wanted = made([(0.0, 0.5, 0)])
    assert event_counts(wanted, made([]), n_classes=2).tolist() == [[0, 0], [0, 0], [1, 0]]
    assert event_counts(made([]), wanted, n_classes=2).tolist() == [[0, 0], [1, 0], [0, 0]]
    assert event_scores(np.zeros((3, 2), int)).f1 == 0.0
    with pytest.raises(MetricError):
        error_rate([event_segment_errors(made([]), wanted, n_classes=2)])


@pytest.mark.parametrize("step", range(1, 40))
def test_collars_are_inclusive_whatever_the_rounding(step):
    wanted = made([(step * 0.05, step * 0.05 + 0.7, 0)])
    found = made([(step * 0.05 + 0.05, step * 0.05 + 0.7 + 0.14, 0)])
    assert event_counts(wanted, found, n_classes=1, onset_collar_s=0.05, offset_collar_s=0.05)[0, 0] == 1
    late = made([(step * 0.05 + 0.051, step * 0.05 + 0.7 + 0.14, 0)])
    assert event_counts(wanted, late, n_classes=1, onset_collar_s=0.05)[0, 0] == 0


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=5),
    found=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=5),
)
def test_the_matching_is_the_largest(wanted, found):
    """Against every way of pairing; times in tenths of a second."""

    def near(a, b):
        offsets = abs(a[0] + a[1] - b[0] - b[1]) * 5 <= max(5, a[1])
        return abs(a[0] - b[0]) <= 2 and offsets

    few, many = sorted([wanted, found], key=len)
    swapped = few is not wanted
    best = max(
        sum(near(b, a) if swapped else near(a, b) for a, b in zip(few, chosen, strict=True))
        for chosen in itertools.permutations(many, len(few))
    )
    tables = [made([(start / 10, (start + length) / 10, 0) for start, length in rows]) for rows in (wanted, found)]
    counts = event_counts(*tables, n_classes=1, onset_collar_s=0.2, offset_collar_s=0.1)
    assert counts.ravel().tolist() == [best, len(found) - best, len(wanted) - best]


def test_a_chain_of_thousands_of_notes_is_matched():
    """Each prediction reaches two notes and the last one can only be matched by moving all the others."""
    n = 3000
    onset = np.arange(n) * 0.2
    found = np.append(onset[:-1] + 0.1, -0.1)
    counts = event_counts(
        made([(time, time + 0.1, 0) for time in onset]),
        made([(time, time + 0.1, 0) for time in found]),
        n_classes=1,
        onset_collar_s=0.1,
    )
    assert counts.ravel().tolist() == [n, 0, 0]


@given(seed=st.integers(0, 500), shift=st.integers(0, 20))
def test_a_shift_in_time_and_new_names_change_nothing(seed, shift):
    rng = np.random.default_rng(seed)

    def draw(n):
        onset = rng.integers(0, 200, n) / 40
        return EventTable(onset, onset + rng.integers(0, 40, n) / 40, rng.integers(0, 3, n))

    def moved(events, names):
        return EventTable(events.onset_s + shift, events.offset_s + shift, names[events.label])

    wanted, found, names = draw(6), draw(7), rng.permutation(3)
    base = event_counts(wanted, found, n_classes=3)
    assert event_counts(moved(wanted, names), moved(found, names), n_classes=3)[:, names].tolist() == base.tolist()
    errors = event_segment_errors(wanted, found, n_classes=3)
    assert event_segment_errors(moved(wanted, names), moved(found, names), n_classes=3) == errors


def test_events_from_frames_as_published():
    data = GOLDEN["event_postprocessing"]
    assert len(data["cases"]) == 6
    for case in data["cases"]:
        options = {key: case[key] for key in ("median_filter_ms", "min_duration_ms", "threshold")}
        found = events_from_frames(data["probabilities"], timestamps_ms=data["timestamps_ms"], **options)
        rows = zip(found.label.tolist(), (found.onset_s * 1000).tolist(), (found.offset_s * 1000).tolist(), strict=True)
        expected = [("xy".index(event["label"]), event["start"], event["end"]) for event in case["expected"]]
        assert [label for label, *_ in expected] == found.label.tolist()
        assert list(rows) == [pytest.approx(row) for row in expected]


def test_an_event_ends_with_its_last_frame():
    found = events_from_frames([[0.9], [0.1], [0.9]], hop_ms=200, median_filter_ms=0, min_duration_ms=200)
    assert found.onset_s.tolist() == pytest.approx([0.0, 0.4])
    assert found.offset_s.tolist() == pytest.approx([0.2, 0.6])
    assert not len(events_from_frames([[0.9], [0.1]], hop_ms=100, median_filter_ms=0).label)
    assert not len(events_from_frames(np.zeros((0, 3)), hop_ms=100).label)
    assert events_from_frames([[0.9]], timestamps_ms=[20.0], min_duration_ms=0).offset_s.tolist() == [0.02]


@given(seed=st.integers(0, 500), frames=st.integers(1, 30), width=st.integers(0, 12))
def test_the_filter_is_a_median_filter(seed, frames, width):
    values = np.random.default_rng(seed).random((frames, 2)).round(1)
    # A window wider than the recording is mirrored more than once, which both do.
    expected = (median_filter(values, size=(max(1, width), 1), mode="reflect") if width > 1 else values) > 0.5
    assert median_above(values, width, 0.5).tolist() == expected.tolist()


def test_what_cannot_be_scored_is_refused():
    one = made([(0.0, 1.0, 0)])
    for other in (
        made([(0.0, 1.0, 1)]),
        made([(math.nan, 1.0, 0)]),
        EventTable(one.onset_s, one.offset_s[:0], one.label),
    ):
        with pytest.raises(MetricError):
            event_counts(one, other, n_classes=1)
    with pytest.raises(MetricError):
        event_scores([1, 2, 3])
    for options in ({}, {"hop_ms": 10, "timestamps_ms": [0.0]}, {"timestamps_ms": [0.0, 1.0]}, {"hop_ms": 0.0}):
        with pytest.raises(MetricError):
            events_from_frames([[0.5]], **options)
    with pytest.raises(MetricError):
        events_from_frames([[math.nan]], hop_ms=10)
