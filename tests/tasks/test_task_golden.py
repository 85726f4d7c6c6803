"""Every shipped X-ARES task says what the published definition says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xares_store.catalog import data_dir, iter_shipped, load_task, load_tasks, suites, task_names, task_path

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "xares_tasks.json"
FACTS: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
TASKS: list[dict[str, Any]] = FACTS["tasks"]


def test_golden_data_is_there() -> None:
    assert len(TASKS) == 20
    assert sum(len(facts["labels"]) for facts in TASKS) == 1996


def test_suite_is_the_published_list() -> None:
    assert suites()["xares"] == [facts["id"] for facts in TASKS]
    assert suites()["xares-public"] == [facts["id"] for facts in TASKS if not facts["private"]]
    assert [task.name for task in load_tasks(["xares"])] == suites()["xares"]
    assert sum(task.published.weight or 0 for task in load_tasks(["xares"])) == 42889
    assert sum(task.published.weight or 0 for task in load_tasks(["xares-public"])) == 22889


@pytest.mark.parametrize("facts", TASKS, ids=[facts["id"] for facts in TASKS])
def test_task_equals_the_facts(facts: dict[str, Any]) -> None:
    task = load_task(facts["id"])
    assert task.title == facts["formal_name"]
    assert task.published.result_name == facts["readme_result_name"]
    assert task.published.weight == facts["eval_weight"]
    assert task.domain == facts["domain"]
    assert task.private == facts["private"]
    assert task.data.zenodo == facts["zenodo_record"]
    assert task.metric.name == facts["metric"]
    assert task.audio.crop_s == facts["crop_length_s"]
    if task.audio.crop_s is not None:
        assert task.audio.tail == "drop"
    assert task.probe.mlp.epochs == facts["epochs"]
    assert task.probe.mlp.batch_size == facts["batch_size_train"]
    assert task.probe.mlp.learning_rates == (facts["learning_rate"],)
    assert task.probe.knn.k == FACTS["knn"]["k"]
    assert task.probe.knn.temperature == FACTS["knn"]["temperature"]
    assert task.target.key == facts["label_key"]


@pytest.mark.parametrize("facts", TASKS, ids=[facts["id"] for facts in TASKS])
def test_labels_equal_the_facts(facts: dict[str, Any]) -> None:
    from xares_store.targets import class_indices

    task = load_task(facts["id"])
    assert list(task.labels) == [str(label) for label in facts.get("class_names", facts["labels"])]
    texts = [json.dumps({facts["label_key"]: label}) for label in facts["labels"]]  # as the sidecar holds them
    found = class_indices(task, texts, [f"clip{index}" for index in range(len(texts))])
    assert found.tolist() == list(range(len(texts)))


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
