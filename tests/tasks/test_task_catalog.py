"""Finding tasks by name, path and suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from xares_store import catalog
from xares_store.catalog import data_dir, load_task, load_tasks, suites, task_names, task_path
from xares_store.errors import TaskError, TaskNotFoundError


def test_a_user_task_works_like_a_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "esc10.toml"
    path.write_text(load_task("esc10").to_toml(), encoding="utf-8")
    for spec in (path, str(path)):
        assert load_task(spec).fingerprint == load_task("esc10").fingerprint


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("esc5O", 'Did you mean "esc50"'),
        ("voxlingua", 'Did you mean "voxlingua33"'),
        ("qqqq", "`xares tasks ls`"),
        ("", "`xares tasks ls`"),
        ("no/such.toml", "no such file"),
        ("such.toml", "no such file"),
        ("../esc50", "no such file"),
    ],
)
def test_unknown_names(spec: str, expected: str) -> None:
    with pytest.raises(TaskNotFoundError) as caught:
        load_task(spec)
    assert expected in str(caught.value)
    assert isinstance(caught.value, LookupError)


def test_suites_and_names_mix_without_repeats() -> None:
    tasks = load_tasks(["esc50", "xares", "esc10", "esc50"])
    assert [task.name for task in tasks][:1] == ["esc50"]
    assert len(tasks) == 28
    with pytest.raises(TaskNotFoundError, match="xare"):
        load_tasks(["xares-publik"])


def test_two_tasks_of_one_name_are_refused(tmp_path: Path, task_text: str) -> None:
    for folder, label in (("one", '"a"'), ("two", '"z"')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text(task_text.replace('"a"', label))
    paths = [tmp_path / "one" / "mine.toml", tmp_path / "two" / "mine.toml"]
    assert len(load_tasks([paths[0], paths[0]])) == 1
    with pytest.raises(TaskError, match='called "mine"'):
        load_tasks(paths)


def test_the_installed_data_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "xares_store"
    package.mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    assert data_dir("tasks") == tmp_path / "site" / "tasks"
    (package / "data" / "tasks").mkdir(parents=True)
    assert data_dir("tasks") == package / "data" / "tasks"


def test_suites_name_shipped_tasks_and_cannot_be_changed() -> None:
    for members in suites().values():
        assert set(members) <= set(task_names())
        assert len(members) == len(set(members))
    suites()["xares"].clear()
    assert len(suites()["xares"]) == 27


def test_path_of_a_shipped_task() -> None:
    assert task_path("esc50").name == "esc50.toml"
    with pytest.raises(TaskNotFoundError):
        task_path("esc51")
