"""Every shipped X-ARES task says what the published definition says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xares_store.catalog import data_dir, iter_shipped, load_task, load_tasks, suites, task_names, task_path
from xares_store.kinds import PROBES_OF_KIND, Events
from xares_store.measures import Knn, probe_settings
from xares_store.targets import class_indices, events_of, multi_hot

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "xares_tasks.json"
FACTS: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
TASKS: list[dict[str, Any]] = FACTS["tasks"]
TITLES = {"liveenv": "Live Env"}  # the source gives it none


LABELLED = [facts for facts in TASKS if "labels" in facts]


def test_golden_data_is_there() -> None:
    assert len(TASKS) == 28
    assert len(LABELLED) == 25
    assert sum(len(facts["labels"]) for facts in LABELLED) == 2362
    assert Counter(facts["kind"] for facts in TASKS) == {
        "single-label": 22, "multi-label": 1, "events": 2, "captions": 1, "regression": 1, "transcript": 1,
    }  # fmt: skip


def test_suite_is_the_published_list() -> None:
    published = [facts for facts in TASKS if facts["id"] != "speechocean762"]  # listed there, but not implemented
    assert suites()["xares"] == [facts["id"] for facts in published]
    assert suites()["xares-public"] == [facts["id"] for facts in published if not facts["private"]]
    tasks = load_tasks(["xares"])
    assert [task.name for task in tasks] == suites()["xares"]
    assert (len(tasks), len(load_tasks(["xares-public"]))) == (27, 22)
    assert sum(task.published.weight or 0 for task in tasks) == 63752
    assert sum(task.published.weight or 0 for task in load_tasks(["xares-public"])) == 38752
    near = [task for task in tasks if task.target.kind == "single-label" and task.published.knn is not False]
    assert [task.name for task in near] == [facts["id"] for facts in TASKS if facts["do_knn"]]
    assert sum(task.published.weight or 0 for task in near) == 42889
    assert sum(task.published.weight or 0 for task in near if not task.private) == 22889


@pytest.mark.parametrize("facts", TASKS, ids=[facts["id"] for facts in TASKS])
def test_task_equals_the_facts(facts: dict[str, Any]) -> None:
    task = load_task(facts["id"])
    assert task.title == TITLES.get(facts["id"], facts["formal_name"])
    assert task.published.result_name == facts["readme_result_name"]
    assert task.published.weight == facts["eval_weight"]
    assert task.domain == facts["domain"]
    assert task.private == facts["private"]
    assert task.data.zenodo == facts["zenodo_record"]
    assert task.target.kind == facts["kind"]
    assert task.metric.name == facts["metric"]
    assert task.metric.segment_s == facts.get("segment_s")
    assert task.audio.crop_s == facts["crop_length_s"]
    if task.audio.crop_s is not None:
        assert task.audio.tail == "drop"
    for name, own in probe_settings(task.probe, task.target.kind).items():
        if isinstance(own, Knn):
            assert (own.k, own.temperature) == (FACTS["knn"]["k"], FACTS["knn"]["temperature"])
            continue
        assert own.epochs == facts["epochs"], name
        assert own.batch_size == facts["batch_size_train"]
        assert own.learning_rates == (facts["learning_rate"],)
        assert getattr(own, "positive_weight", None) == facts.get("positive_weight")
    assert (task.published.knn is not False and "knn" in PROBES_OF_KIND[facts["kind"]]) == facts["do_knn"]
    assert task.target.key == facts["label_key"]
    if isinstance(task.target, Events):
        keys = {task.target.onset_key, task.target.offset_key, task.target.label_key}
        assert keys == set(facts["event_keys"])


@pytest.mark.parametrize("facts", LABELLED, ids=[facts["id"] for facts in LABELLED])
def test_labels_equal_the_facts(facts: dict[str, Any]) -> None:
    task = load_task(facts["id"])
    assert list(task.labels) == [str(label).strip() for label in facts.get("class_names", facts["labels"])]
    count = len(facts["labels"])
    places = [f"clip{index}" for index in range(count)]
    if facts["kind"] == "events":  # the sidecar is the list itself
        onset, offset, name = facts["event_keys"]
        events = [{onset: index, offset: index + 0.5, name: label} for index, label in enumerate(facts["labels"])]
        (table,) = events_of(task, [json.dumps(events)], ["clip"])
        assert table.label.tolist() == list(range(count))
        assert table.onset_s.tolist() == list(range(count))
        return
    texts = [json.dumps({facts["label_key"]: label}) for label in facts["labels"]]  # as the sidecar holds them
    if facts["kind"] == "multi-label":
        assert (multi_hot(task, texts, places) == np.eye(count)).all()
        pair = json.dumps({facts["label_key"]: f"{facts['labels'][3]};{facts['labels'][7]}"})
        assert np.flatnonzero(multi_hot(task, [pair], ["clip"])[0]).tolist() == [3, 7]
        return
    assert class_indices(task, texts, places).tolist() == list(range(count))


@pytest.mark.parametrize("facts", TASKS, ids=[facts["id"] for facts in TASKS])
def test_splits_equal_the_facts(facts: dict[str, Any]) -> None:
    task = load_task(facts["id"])
    if "folds" in facts:
        expected = {f"fold-{name}": (pattern,) for name, pattern in facts["folds"].items()}
        assert list(task.split_patterns().items()) == list(expected.items())  # the order of folds counts
        return
    splits = facts["splits"]
    if splits["train"] == splits["test"]:
        assert task.split_patterns() == {"all": (splits["train"],)}
    elif splits["valid"] == splits["test"]:
        assert task.split_patterns() == {"train": (splits["train"],), "test": (splits["test"],)}
        assert task.data.published_valid == "test"
    else:
        assert task.split_patterns() == {name: (pattern,) for name, pattern in splits.items()}
        assert task.data.published_valid is None


def test_every_shipped_file_loads_and_is_found_by_name() -> None:
    tasks = list(iter_shipped())
    assert [task.name for task in tasks] == task_names()
    assert len(tasks) >= 21
    assert len({task.fingerprint for task in tasks}) == len(tasks)
    for task in tasks:
        assert task_path(task.name).stem == task.name


def test_names_of_suites_and_tasks_differ() -> None:
    assert not set(suites()) & set(task_names())


def test_every_vocabulary_is_used() -> None:
    files = {file.name for file in (data_dir("tasks") / "vocabularies").glob("*.txt")}
    texts = [task_path(name).read_text(encoding="utf-8") for name in task_names()]
    used = {name for name in files if any(f'"{name}"' in text for text in texts)}
    assert files == used
    assert len(files) >= 21


def test_esc10_matches_the_real_shards(esc10_dir: Path) -> None:
    import tarfile

    from xares_store.targets import class_indices, groups

    task = load_task("esc10")
    labels, names = [], []
    for shard in sorted(esc10_dir.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    labels.append(stream.read().decode())
                    names.append(member.name)
    found = class_indices(task, labels, names)
    assert len(found) == 400
    assert [json.loads(text)["category"] for text in labels] == [task.labels[index] for index in found]
    assert len(set(groups(task, labels, names))) == 400
