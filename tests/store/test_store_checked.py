"""A part is read whole once, and again as soon as anything about its files changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from xares_store.clip import Clip
from xares_store.errors import CorruptError
from xares_store.store.checked import CHECKED
from xares_store.store.opened import Part
from xares_store.store.part import PartAddress, Source
from xares_store.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "s", create=True)
    store.put_encoder("e@00000000", {"name": "e"})
    rng = np.random.default_rng(0)
    for shard in ("a", "b"):
        writer = store.part_writer(
            PartAddress("e@00000000", "t@00000000", "train", shard), dim=8, hop_ms=20, sample_rate_hz=16000
        )
        for index in range(3):
            frames = rng.standard_normal((50, 8)).astype(np.float32)
            name = f"{shard}{index}"
            writer.add(Clip(name, name, 0, 0.0, 1.0, "{}"), frames, frames.mean(0))
        writer.commit(Source(shard, "0" * 64, 1), final=True, first_sample=0, n_samples=3, timing={}, versions={})
    return store


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    original = Part.check

    def check(part: Part) -> None:
        seen.append(part.address.shard)
        original(part)

    monkeypatch.setattr(Part, "check", check)
    return seen


def test_an_untouched_part_is_checked_once(store: Store, checks: list[str]) -> None:
    for _ in range(3):
        store.pooled("e@00000000", "t@00000000")
    assert checks == ["a", "b"]


def test_a_part_whose_files_changed_is_checked_again_even_with_its_old_time(store: Store, checks: list[str]) -> None:
    store.pooled("e@00000000", "t@00000000")
    frames = store.path / "embeddings/e@00000000/t@00000000/train/b/frames/c/0/0"
    before = frames.stat()
    content = bytearray(frames.read_bytes())
    content[7] ^= 1
    frames.write_bytes(content)
    os.utime(frames, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptError, match="train/b"):
        store.pooled("e@00000000", "t@00000000")
    assert checks == ["a", "b", "b"]


@pytest.mark.parametrize("note", [b"", b"[1]", b"{", b'{"embeddings/e@00000000/t@00000000/train/a": 3}'])
def test_a_note_that_makes_no_sense_means_nothing_was_checked(store: Store, checks: list[str], note: bytes) -> None:
    store.pooled("e@00000000", "t@00000000")
    (store.path / CHECKED).write_bytes(note)
    store.pooled("e@00000000", "t@00000000")
    assert checks == ["a", "b", "a", "b"]
    assert store.verify() == []
