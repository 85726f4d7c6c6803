"""Spoken letters for tests: what is generated is what is said, and varies."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import soundfile

from tests.spoken import LETTERS, RATE, formants, speak, write_spoken
from xares_store.catalog import load_task


def _texts(shards: list[Path]) -> dict[str, str]:
    found = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".json"):
                    found[member.name[:-5]] = json.load(tar.extractfile(member))["trans"]  # type: ignore[arg-type]
    return found


def test_splits_share_no_text_and_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    clips = {"train": 30, "valid": 5, "test": 7}
    made = [write_spoken(tmp_path / name, clips=clips, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    contents = [[shard.read_bytes() for shard in one.shards] for one in made]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    texts = made[0].texts
    assert {split: len(set(lines)) for split, lines in texts.items()} == clips
    assert not any(set(texts[one]) & set(texts[other]) for one, other in combinations(texts, 2))
    assert sorted(_texts(made[0].shards).values()) == sorted(chain(*texts.values()))
    assert {len(line.split()) for lines in texts.values() for line in lines} == {3, 4, 5, 6}
    task = load_task(str(made[0].task))
    assert (task.name, task.target.kind, task.metric.name) == ("spelling", "transcript", "iwer")


def test_many_clips_are_divided_into_shards(tmp_path: Path) -> None:
    made = write_spoken(tmp_path, clips={"train": 201}, length=(2, 2))
    assert [shard.name for shard in made.shards] == ["train-000000.tar", "train-000001.tar"]
    assert len(_texts(made.shards)) == 201


def test_shuffled_labels_belong_to_other_sounds_of_the_split(tmp_path: Path) -> None:
    clips = {"train": 12, "test": 5}
    right, shuffled = (write_spoken(tmp_path / str(flag), clips=clips, shuffled=flag) for flag in (False, True))
    assert right.texts == shuffled.texts
    texts, others = _texts(right.shards), _texts(shuffled.shards)
    assert texts.keys() == others.keys()
    assert all(others[key] != texts[key] for key in texts)
    for split in clips:
        assert sorted(others[key] for key in others if key.startswith(split)) == sorted(right.texts[split])
    with tarfile.open(right.shards[1]) as one, tarfile.open(shuffled.shards[1]) as other:
        assert one.extractfile("test0000.wav").read() == other.extractfile("test0000.wav").read()  # type: ignore[union-attr]


def test_a_text_never_sounds_the_same_twice_and_is_audible(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    takes = [speak("a z q", rng) for _ in range(4)]
    assert len({len(take) for take in takes}) == 4
    assert all(0.4 < len(take) / RATE < 1.2 for take in takes)
    assert all(0.05 < np.abs(take).max() <= 0.51 and np.isfinite(take).all() for take in takes)
    made = write_spoken(tmp_path, clips={"test": 1})
    with tarfile.open(made.shards[0]) as tar:
        audio, rate = soundfile.read(io.BytesIO(tar.extractfile("test0000.wav").read()))  # type: ignore[union-attr]
    assert rate == RATE
    assert np.sqrt(np.mean(audio**2)) > 0.01


def test_every_letter_has_resonances_of_its_own() -> None:
    pairs = [formants(letter) for letter in LETTERS]
    assert len(set(pairs)) == len(LETTERS)
    for one, other in combinations(pairs, 2):
        assert max(abs(np.log(a / b)) for a, b in zip(one, other, strict=True)) > np.log(1.2)
