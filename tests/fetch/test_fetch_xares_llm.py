"""Shards of XARES-LLM from the hub to the store: data sets of several tasks, in folders, with two numbers in a name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fetch.server import Hub
from tests.toy import CLASSES, tone, wav, write_tar
from xares_store.catalog import load_task
from xares_store.fetch.tasks import fetch_task, plan
from xares_store.patterns import expand, names_shard, shard_name
from xares_store.runs.embed import embed
from xares_store.store.store import Store
from xares_store.task import Task

NAMES = ("llm-mecat", "llm-esc-50", "llm-gtzan")


def files_of(task: Task) -> list[str]:
    return [file for group in task.split_patterns().values() for pattern in group for file in expand(pattern)]


def here(name: str) -> Task:
    """A shipped task whose data set is the one that the stand-in for the hub serves."""
    task = load_task(name)
    return task.model_copy(update={"data": task.data.model_copy(update={"hf": "org/birds"})})


def shard(path: Path, number: int) -> bytes:
    rng = np.random.default_rng(number)
    text = json.dumps({"long": ["a tone", "a sound"], "label": "tone", "genre": "noise"}).encode()
    audio = wav(tone(CLASSES[number % 3], 0.3, 16000, rng))
    return write_tar(path, [(f"clip{number}.wav", audio), (f"clip{number}.json", text)]).read_bytes()


@pytest.fixture
def served(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    names = [file for name in NAMES for file in files_of(load_task(name))]
    content = {name: shard(tmp_path / "made" / name, number) for number, name in enumerate(names)}
    for files in (hub.files, hub.cdn.files):
        files.clear()
        files.update(content)
    return content


@pytest.mark.parametrize("name", NAMES)
def test_fetched_shards_are_the_ones_that_are_embedded(
    hub: Hub, served: dict[str, bytes], name: str, tmp_path: Path
) -> None:
    task, data = here(name), tmp_path / "data"
    report = fetch_task(task, data=data, hf_mirror=hub.url)
    assert report.ok, report.problems
    assert sorted(file.remote.name for file in report.files) == sorted(files_of(task)), "and no file of another task"
    for file in files_of(task):
        assert (data / task.folder / file).read_bytes() == served[file]
    embedded = embed("logmel", [task], store=tmp_path / "s", data=data, device="cpu", workers=0)
    assert (embedded.ok, embedded.clips, embedded.failures) == (True, len(files_of(task)), [])
    stored = {(part.manifest.split, part.manifest.shard) for part in Store.open(tmp_path / "s").parts()}
    assert {shard for _, shard in stored} == {shard_name(file) for file in files_of(task)}
    for split, name_of_shard in stored:
        assert [own for own, patterns in task.split_patterns().items() if names_shard(patterns, name_of_shard)] == [
            split
        ]


def test_tasks_of_a_data_set_lie_in_one_folder(hub: Hub, served: dict[str, bytes], tmp_path: Path) -> None:
    data = tmp_path / "data"
    report = plan([here("llm-esc-50"), here("llm-gtzan")], data=data, hf_mirror=hub.url)
    assert not report.problems
    assert {file.path.relative_to(data).parts[0] for file in report.files} == {"xares_llm"}
    assert len(report.files) == len(served) - 20
    assert len([path for path, _ in hub.log if "/tree/" in path]) == 1, "its files are listed once"
