from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.store.conftest import address, make_frames, put_part
from xares_store.clip import Clip, Failure
from xares_store.errors import ClashError, StoreError
from xares_store.store import PartAddress, Source, Store
from xares_store.store.files import TMP_PREFIX

values32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
CLIP = Clip("a", "a", 0, 0.0, 0.1, "{}")


@st.composite
def clips_of_one_part(draw: st.DrawFn) -> tuple[int, list[np.ndarray]]:
    dim = draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, 9), max_size=5))
    # Few distinct scales make all branches likely: fits, overflows float16, flushes to zero.
    elements = st.one_of(values32, st.sampled_from([0.0, -0.0, 1.0, 1e-9, 65504.0, 65520.0, 3e38, 1e-45]))
    return dim, [draw(hnp.arrays(np.float32, (length, dim), elements=elements)) for length in lengths]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=clips_of_one_part(), dtype=st.sampled_from(["float16", "float32"]))
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, content: tuple, dtype: str) -> None:
    dim, frames = content
    store = Store.create(tmp_path_factory.mktemp("s") / "s")
    with np.errstate(over="ignore"):  # the mean of values near 3e38; such a clip is refused
        means = [values.mean(axis=0) for values in frames]
    kept = [values for values, mean in zip(frames, means, strict=True) if np.isfinite(mean).all()]
    put_part(store, dim=dim, frames=kept, failures=0 if kept else 1, dtype=dtype)
    part = Store.open(store.path).parts()[0]
    wanted = np.concatenate([np.empty((0, dim), np.float32), *kept])
    found = part.frames()
    assert found.dtype == part.manifest.dtype
    assert found.shape == wanted.shape
    if part.manifest.dtype == "float32":
        np.testing.assert_array_equal(found, wanted)
    else:
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, wanted.astype(np.float16))
        for row, values in enumerate(kept):
            loss = np.linalg.norm(values.astype(float) - part.frames(row).astype(float))
            assert loss <= 1.001e-3 * np.linalg.norm(values.astype(float))
    table = part.clips()
    assert table["n_frames"].to_pylist() == [len(values) for values in kept]
    for row, values in enumerate(kept):
        np.testing.assert_array_equal(part.frames(row), values.astype(found.dtype))
    wanted_means = np.array([values.mean(axis=0) for values in kept], np.float32).reshape(len(kept), dim)
    np.testing.assert_array_equal(part.pooled(), wanted_means)
    assert store.verify() == []


@pytest.mark.parametrize(
    ("values", "dtype", "reason"),
    [
        ([1.0, -2.0], "float16", "fits"),
        ([65504.0, 1.0], "float16", "fits"),
        ([65520.0, 1.0], "float32", "above 65504"),
        ([1e-6, 2e-6], "float32", "relative error"),
        ([1e-30, 1e-30], "float32", "relative error"),
        ([0.0, 0.0], "float16", "fits"),
        ([1000.0, 1e-7], "float32", "dimension 1"),
    ],
)
def test_dtype_decision(store: Store, values: list[float], dtype: str, reason: str) -> None:
    frames = np.array([values] * 4, np.float32)
    part = put_part(store, dim=2, frames=[make_frames([3], 1)[0] @ np.ones((1, 2), np.float32) * 0, frames])
    assert part.manifest.dtype == dtype
    assert reason in part.manifest.dtype_reason
    assert part.frames().dtype == np.dtype(dtype)
    np.testing.assert_array_equal(part.frames(1), frames.astype(dtype))


def test_one_bad_clip_among_many_keeps_all_exact(store: Store) -> None:
    frames = [*make_frames([5, 6, 7], 3), np.full((2, 3), 1e6, np.float32), *make_frames([4], 3, seed=1)]
    part = put_part(store, dim=3, frames=frames)
    assert part.manifest.dtype == "float32"
    np.testing.assert_array_equal(part.frames(), np.concatenate(frames))


def test_flushed_values_and_range_are_recorded(store: Store) -> None:
    frames = np.array([[1.0, -3.0], [1e-9, 2.0]], np.float32)
    manifest = put_part(store, dim=2, frames=[frames]).manifest
    assert (manifest.values.min, manifest.values.max, manifest.values.flushed_to_zero) == (-3.0, 2.0, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_frames_are_refused_and_the_writer_goes_on(store: Store, bad: float) -> None:
    writer = store.part_writer(address(), dim=2, hop_ms=10, sample_rate_hz=16000)
    frames = np.ones((3, 2), np.float32)
    broken = frames.copy()
    broken[1, 1] = bad
    with pytest.raises(StoreError, match="finite"):
        writer.add(CLIP, broken, np.ones(2, np.float32))
    with pytest.raises(StoreError, match="finite"):
        writer.add(CLIP, frames, np.array([1, bad], np.float32))
    writer.add(CLIP, frames, np.ones(2, np.float32))
    part = writer.commit(Source("s", "0" * 64, 1), final=True, first_sample=0, n_samples=1, timing={}, versions={})
    np.testing.assert_array_equal(part.frames(), frames)


def test_wrong_shapes_and_repeated_ids_are_refused(store: Store) -> None:
    writer = store.part_writer(address(), dim=2, hop_ms=10, sample_rate_hz=16000)
    one = np.ones((1, 2), np.float32)
    for frames, pooled in [(one[:0], one[0]), (np.ones((1, 3), np.float32), one[0]), (one[0], one[0]), (one, one)]:
        with pytest.raises(StoreError, match="shape"):
            writer.add(CLIP, frames, pooled)
    writer.add(CLIP, one, one[0])
    with pytest.raises(StoreError, match="unique"):
        writer.add(CLIP, one, one[0])
    assert writer.n_clips == 1
    assert writer.stored_bytes == 4


def test_the_writer_keeps_its_own_copy(store: Store) -> None:
    frames = np.ones((2, 2), np.float32)
    writer = store.part_writer(address(), dim=2, hop_ms=10, sample_rate_hz=16000)
    writer.add(CLIP, frames, frames[0])
    frames[:] = 7  # encoders reuse their output buffers
    part = writer.commit(Source("s", "0" * 64, 1), final=True, first_sample=0, n_samples=1, timing={}, versions={})
    assert (part.frames() == 1).all()
    assert (part.pooled() == 1).all()


def test_every_sample_is_a_clip_or_a_failure(store: Store) -> None:
    def writer_with_two_samples() -> object:
        writer = store.part_writer(address(), dim=1, hop_ms=10, sample_rate_hz=16000)
        for crop in range(2):
            clip = Clip(f"a#{crop:04d}", "a", crop, crop * 1.0, 1.0, "{}")
            writer.add(clip, np.ones((1, 1), np.float32), np.ones(1, np.float32))
        writer.fail(Failure("a#0002", "s", "encoder", "It raised."))  # a crop of the same sample
        writer.fail(Failure("b", "s", "empty", "No audio."))
        return writer

    for wrong in (0, 1, 4):
        with pytest.raises(StoreError, match="as a clip or a failure"):
            writer_with_two_samples().commit(
                Source("s", "0" * 64, 1), final=True, first_sample=0, n_samples=wrong, timing={}, versions={}
            )
    assert store.parts() == []
    part = writer_with_two_samples().commit(
        Source("s", "0" * 64, 1), final=True, first_sample=0, n_samples=2, timing={}, versions={}
    )
    assert part.manifest.counts.model_dump() == {"samples": 2, "clips": 2, "failures": 2, "frames": 2}


def test_a_part_of_failures_only(store: Store) -> None:
    part = put_part(store, frames=[], failures=3)
    assert part.pooled().shape == (0, 5)
    assert part.frames().shape == (0, 5)
    assert part.clips().num_rows == 0
    assert store.verify() == []
    assert store.sql("select count(*) as n from failures").to_pylist() == [{"n": 3}]


def test_equal_content_commits_once_and_other_content_clashes(store: Store) -> None:
    first = put_part(store)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    assert put_part(store).manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before
    with pytest.raises(ClashError) as caught:
        put_part(store, seed=1)
    assert str(first.path) in str(caught.value)
    assert caught.value.hint
    assert store.verify() == []
    assert not list(store.path.rglob(f"{TMP_PREFIX}*"))


def test_files_are_the_same_bytes_again(tmp_path: Path) -> None:
    parts = [put_part(Store.create(tmp_path / name)) for name in ("a", "b")]
    one, other = (
        {path.relative_to(part.path).as_posix(): path.read_bytes() for path in part.path.rglob("*") if path.is_file()}
        for part in parts
    )
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= {"part.json"}  # holds the time of writing
    assert parts[0].manifest.digest == parts[1].manifest.digest


def test_an_incomplete_copy_makes_room(store: Store) -> None:
    part = put_part(store)
    (part.path / "part.json").unlink()
    assert not store.has_part(part.address)
    assert store.parts() == []
    again = put_part(store)
    assert again.manifest.digest == part.manifest.digest
    assert store.verify() == []


def test_a_committed_or_aborted_writer_is_closed(store: Store) -> None:
    writer = store.part_writer(address(), dim=1, hop_ms=10, sample_rate_hz=16000)
    writer.abort()
    with pytest.raises(StoreError, match="committed or aborted"):
        writer.add(CLIP, np.ones((1, 1), np.float32), np.ones(1, np.float32))
    assert store.parts() == []


@settings(max_examples=80, deadline=None)
@given(name=st.text(min_size=1, max_size=30))
def test_any_name_gives_a_path_inside_the_store(name: str) -> None:
    try:
        path = PartAddress(name, name, name, name, 3).path
    except (StoreError, UnicodeEncodeError):
        return
    pieces = path.split("/")
    assert len(pieces) == 5
    assert pieces[0] == "embeddings"
    assert pieces[-1].endswith("~3")
    for piece in pieces:
        assert piece not in ("", ".", "..")
        assert not piece.startswith(".")
        assert piece.isascii()
        assert piece.isprintable()
    assert PartAddress(name, name, name, name, 3).path != PartAddress(name, name, name, name + "~3", 0).path


def test_sequences_sort_as_numbers(store: Store) -> None:
    for sequence in (0, 2, 10, 1):
        put_part(store, address(sequence=sequence), seed=sequence)
    assert [part.address.sequence for part in store.parts()] == [0, 1, 2, 10]


def test_manifest_paths_cannot_leave_the_part(store: Store) -> None:
    from pydantic import ValidationError

    from xares_store.store.layout import PartManifest

    record = put_part(store).manifest.model_dump(mode="json")
    entry = next(iter(record["files"].values()))
    for path in ("../x", "/etc/passwd", "a/../../x", "a\\b", "", "a//b", ".tmp-x/y", "C:/x", "."):
        with pytest.raises(ValidationError):
            PartManifest.model_validate({**record, "files": {**record["files"], path: entry}})
    assert PartManifest.model_validate(json.loads(json.dumps(record))).digest == record["digest"]
