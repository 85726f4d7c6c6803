"""The synthetic set: deterministic, decodable, varied, balanced, and neither trivial nor impossible."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xares_store.catalog import load_task
from xares_store.demo import _CRC, SOURCES, generate
from xares_store.errors import ConfigError
from xares_store.protocol import make_folds
from xares_store.targets import class_indices, groups

CLIPS = 200


def read(root: Path) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for shard in sorted((root / "demo").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                key, extension = member.name.rsplit(".", 1)
                clip = found.setdefault(key, {"key": key, "fold": shard.name.split("-")[2]})
                clip["json" if extension == "json" else "audio"] = stream.read()
                if extension != "json":
                    clip["extension"] = extension
    return list(found.values())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    assert generate(root, clips=CLIPS) == root / "demo.toml"
    return root


def test_every_clip_decodes_and_varies(demo: Path) -> None:
    import soundfile

    clips = read(demo)
    assert len(clips) == CLIPS
    rates, channels, lengths, peaks = Counter[int](), Counter[int](), [], []
    for clip in clips:
        audio, rate_hz = soundfile.read(io.BytesIO(clip["audio"]), always_2d=True)
        assert np.isfinite(audio).all()
        rates[rate_hz] += 1
        channels[audio.shape[1]] += 1
        lengths.append(len(audio) / rate_hz)
        peaks.append(float(np.abs(audio).max()))
    assert set(rates) == {16_000, 22_050, 44_100}
    assert set(channels) == {1, 2}
    assert {clip["extension"] for clip in clips} == {"wav", "flac", "ogg"}
    assert 0.35 < min(lengths) < 0.6
    assert 3.0 < max(lengths) < 4.1
    assert 0.0 < min(peaks) < 0.05 < 0.3 < max(peaks) <= 1.0
    facts = [json.loads(clip["json"]) for clip in clips]
    by_format = Counter((fact["label"], fact["format"]) for fact in facts)
    assert len(by_format) == 30  # no format gives a class away


def test_its_task_reads_it(demo: Path) -> None:
    task = load_task(demo / "demo.toml")
    clips = read(demo)
    texts, keys = [clip["json"].decode() for clip in clips], [clip["key"] for clip in clips]
    target = class_indices(task, texts, keys)
    assert np.bincount(target).tolist() == [CLIPS // 10] * 10
    split = [f"fold-{clip['fold']}" for clip in clips]
    assert set(split) == set(task.split_patterns())
    folds = make_folds(task, "strict", split=split, target=target, group=groups(task, texts, keys))
    assert len(folds) == 5
    for fold in folds:
        assert np.bincount(target[fold.test], minlength=10).tolist() == [CLIPS // 50] * 10


def test_same_seed_same_bytes_other_seed_other_sounds(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(tmp_path / name, clips=20, seed=seed)
    files = {name: {p.name: p.read_bytes() for p in sorted((tmp_path / name).rglob("*.t*"))} for name in "abc"}
    assert len(files["a"]) == 6
    assert files["a"] == files["b"]
    assert {clip["extension"] for clip in read(tmp_path / "a")} == {"wav", "flac", "ogg"}  # ogg is the hard one
    assert files["a"]["demo-fold-1-000000.tar"] != files["c"]["demo-fold-1-000000.tar"]


def test_a_clip_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    generate(tmp_path / "few", clips=20)
    generate(tmp_path / "more", clips=40)
    few = {clip["key"]: clip["audio"] for clip in read(tmp_path / "few")}
    more = {clip["key"]: clip["audio"] for clip in read(tmp_path / "more")}
    assert few
    assert few == {key: more[key] for key in few}


def test_neither_chance_nor_perfect(demo: Path) -> None:
    """A mean spectrum in 40 bands separates the classes in part."""
    import soundfile

    task = load_task(demo / "demo.toml")
    clips = read(demo)
    texts, keys = [clip["json"].decode() for clip in clips], [clip["key"] for clip in clips]
    target = class_indices(task, texts, keys)
    rows = []
    for clip in clips:
        audio, rate_hz = soundfile.read(io.BytesIO(clip["audio"]), always_2d=True)
        power = np.abs(np.fft.rfft(audio.mean(axis=1))) ** 2
        edges_hz = np.geomspace(80.0, 7500.0, 41)
        at_hz = np.fft.rfftfreq(len(audio), 1 / rate_hz)
        bands = [power[(at_hz >= low) & (at_hz < high)].sum() for low, high in itertools.pairwise(edges_hz)]
        rows.append(np.log(np.array(bands) + 1e-9))
    features = np.array(rows)
    features -= features.mean(axis=1, keepdims=True)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    split = [f"fold-{clip['fold']}" for clip in clips]
    right = 0
    for fold in make_folds(task, "strict", split=split, target=target, group=groups(task, texts, keys)):
        nearest = np.argsort(-features[fold.test] @ features[fold.knn_train].T, axis=1)[:, :5]
        votes = [np.bincount(target[fold.knn_train][near], minlength=10).argmax() for near in nearest]
        right += int((np.array(votes) == target[fold.test]).sum())
    assert 0.3 < right / CLIPS < 0.9


def test_ten_classes_that_are_deterministic() -> None:
    assert len(SOURCES) == 10
    time_s = np.arange(8000) / 16_000
    for make in SOURCES.values():
        one, other = make(time_s, np.random.default_rng(1)), make(time_s, np.random.default_rng(1))
        assert one.shape == (8000,)
        assert np.isfinite(one).all()
        assert np.abs(one).max() > 0
        assert (one == other).all()


def test_checksum_table_of_ogg_pages() -> None:
    assert _CRC[:4] == [0, 0x04C11DB7, 0x09823B6E, 0x0D4326D9]
    assert len(set(_CRC)) == 256


def test_too_few_clips_and_unwritable_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 20"):
        generate(tmp_path, clips=19)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        generate(tmp_path / "file" / "below", clips=20)
