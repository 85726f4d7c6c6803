"""Nothing is chosen on test clips: other test labels give the same probes, validation curves and choices."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.published import FACTS, make_shards
from tests.toy import write_tar
from xares_store.catalog import load_task
from xares_store.errors import ProtocolError
from xares_store.runs.embed import embed
from xares_store.runs.evaluate import evaluate
from xares_store.runs.features import load_features
from xares_store.store.store import Store
from xares_store.task import Task

# Fixed splits, of every kind; two without a validation split of their own.
TASKS = ("vocalsound", "fsdkaggle2018", "fsd50k", "speechocean762", "desed", "maestro", "clotho")


def _swap_labels(path: Path) -> None:
    """Give every clip of a shard the label of another one."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    texts = [content for name, content in members if name.endswith(".json")]
    rotated = iter([*texts[1:], texts[0]])
    write_tar(path, [(name, next(rotated) if name.endswith(".json") else content) for name, content in members])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores of the same audio; in the second one the test labels are other ones."""
    root = tmp_path_factory.mktemp("selection")
    made = []
    for version in ("true", "swapped"):
        for name in TASKS:
            shards = make_shards(FACTS[name], root / version / name, clips=24)
            patterns = load_task(name).split_patterns()["test"]
            for shard in shards:
                if version == "swapped" and any(shard.match(pattern) for pattern in patterns):
                    _swap_labels(shard)
        store = root / f"{version}.store"
        embed("logmel", TASKS, store=store, data=root / version, device="cpu", workers=0)
        evaluate(store, seeds=2, epochs=4, learning_rates=[1e-3, 1e-1], probes=["mlp"], device="cpu")
        made.append(store)
    return made[0], made[1]


def _run(store: Path, task: str) -> tuple[Any, dict[str, np.ndarray], list[str]]:
    opened = Store.open(store)
    (run_id, *_) = opened.sql("select run_id from runs where task = $t order by seed", {"t": task})[
        "run_id"
    ].to_pylist()
    predictions = opened.predictions(run_id)
    return (
        opened.read_run(run_id),
        load_file(store / "runs" / run_id / "probe.safetensors"),
        predictions["target"].to_pylist(),
    )


@pytest.mark.parametrize("task", TASKS)
def test_other_test_labels_change_no_choice_and_no_weight(stores: tuple[Path, Path], task: str) -> None:
    (one, weights, targets), (other, others, swapped) = (_run(store, task) for store in stores)
    assert targets != swapped, "the labels were not swapped: the test would show nothing"
    assert json.dumps(one.details["folds"]) == json.dumps(other.details["folds"])
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_train_validation_and_test_share_no_clip(stores: tuple[Path, Path], task: str) -> None:
    store = Store.open(stores[0])
    features = load_features(store, store.encoders().popitem()[0], load_task(task), protocol="strict", where=None)
    for fold in features.folds:
        sides = [set(features.recording[rows].tolist()) for rows in (fold.train, fold.valid, fold.test)]
        assert all(sides)
        assert sum(map(len, sides)) == len(set.union(*sides))


def test_the_group_that_a_task_names_counts(stores: tuple[Path, Path]) -> None:
    """Every index stands in train and in test here, so as a group it crosses them."""
    task = load_task("fsdkaggle2018")
    text = task.to_toml().replace('kind = "single-label"', 'kind = "single-label"\ngroup_key = "index"')
    grouped = Task.from_text(text, where="grouped", base=None)
    store = Store.open(stores[0])
    with pytest.raises(ProtocolError, match=r'The group "\d+" \(index\) is in (train|valid) and in test'):
        load_features(store, store.encoders().popitem()[0], grouped, protocol="strict", where=None)
