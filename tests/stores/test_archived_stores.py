"""Stores of every format ever released stay readable."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.stores.make_v1 import ENCODER, TASK, values
from xares_store.store import Store

ARCHIVES = sorted(path for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name.startswith("v"))


def test_there_is_an_archive_of_every_format() -> None:
    from xares_store.store.layout import FORMAT_VERSION

    assert [path.name for path in ARCHIVES] == [f"v{number}" for number in range(1, FORMAT_VERSION + 1)]


@pytest.fixture
def archived(tmp_path: Path) -> Store:
    shutil.copytree(Path(__file__).parent / "v1", tmp_path / "v1")  # a query would write its index into the checkout
    return Store.open(tmp_path / "v1")


def test_v1_is_intact_and_complete(archived: Store) -> None:
    assert archived.verify() == []
    assert list(archived.encoders()) == [ENCODER]
    assert archived.tasks() == {"esc10@00000000": 'format = 1\nname = "esc10"\n'}
    assert [part.manifest.dtype for part in archived.parts()] == ["float16", "float32"]
    assert [part.manifest.codec for part in archived.parts()] == ["crc32c", "zstd+crc32c"]


def test_v1_embeddings(archived: Store) -> None:
    vectors, clips = archived.pooled(ENCODER, TASK)
    wanted = [values(fold, row) for fold in (1, 2) for row in range(3)]
    np.testing.assert_array_equal(vectors, [frames.mean(axis=0) for frames in wanted])
    assert clips["clip_id"].to_pylist() == [f"{fold}-{row}" for fold in (1, 2) for row in range(3)]
    for frames, name in zip(wanted, clips["clip_id"].to_pylist(), strict=True):
        np.testing.assert_array_equal(archived.frames(name), frames)
    assert clips["label"][0].as_py() == '{"label": 0, "name": "ü"}'


def test_v1_runs_and_sql(archived: Store) -> None:
    run = archived.read_run("esc10-mlp-strict-s42-0")
    assert (run.seed, run.settings, run.scores[0].value) == (42, {"epochs": 10}, 0.5)
    assert archived.predictions(run.run_id)["correct"].to_pylist() == [True, False]
    rows = archived.sql("select encoder, task, score, n_test from leaderboard").to_pylist()
    assert rows == [{"encoder": ENCODER, "task": "esc10", "score": 0.5, "n_test": 2}]
    assert archived.sql("select count(*) as n from failures").to_pylist() == [{"n": 2}]
