"""``xares tasks`` and ``xares demo-data``."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from xares_store.catalog import data_dir, load_task, task_names
from xares_store.cli.tasks import demo_data, schema_text, tasks
from xares_store.errors import TaskError, TaskNotFoundError


def run(*args: str) -> str:
    result = CliRunner().invoke(tasks, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_ls() -> None:
    rows = json.loads(run("ls", "--json"))
    assert [row["task"] for row in rows] == task_names()
    assert {row["task"]: row["evaluation"] for row in rows}["subway_broadcast"] == "pool"
    music = list(csv.DictReader(io.StringIO(run("ls", "--domain", "music", "--csv"))))
    assert [row["task"] for row in music] == [
        "freemusicarchive", "gtzan_genre", "llm-freemusicarchive", "llm-gtzan", "llm-nsynth", "llm-nsynth-pitch",
        "llm-songdescriber", "maestro", "nsynthinstument",
    ]  # fmt: skip
    assert "gtzan" in run("ls")


def test_show() -> None:
    facts = json.loads(run("show", "voxceleb1", "--json"))
    assert facts["classes"] == len(facts["labels"]) == 1251
    assert facts["task address"] == load_task("voxceleb1").address
    assert "id10003" in run("show", "voxceleb1")
    with pytest.raises(TaskNotFoundError):
        run("show", "voxceleb2")


def test_show_toml_is_a_task_file(tmp_path: Path) -> None:
    (tmp_path / "esc50.toml").write_text(run("show", "esc50", "--toml"), encoding="utf-8")
    assert load_task(tmp_path / "esc50.toml").fingerprint == load_task("esc50").fingerprint


def test_validate_lists_all_problems(tmp_path: Path, task_text: str) -> None:
    good, bad = tmp_path / "mine.toml", tmp_path / "bad.toml"
    good.write_text(task_text)
    bad.write_text(task_text.replace('"mine"', '"bad"').replace("key =", "kee ="))
    assert "mine.toml: valid, single-label, 3 classes, train/valid/test, mine@" in run("validate", str(good))
    result = CliRunner().invoke(tasks, ["validate", str(bad), str(good), str(tmp_path / "none.toml")])
    assert isinstance(result.exception, TaskError)
    assert "2 of 3 task files" in str(result.exception)
    assert f"{good}: valid" in result.stdout
    assert "target.kee: unknown key" in result.stderr
    assert "none.toml: there is no such file" in result.stderr


def test_validate_a_folder(tmp_path: Path) -> None:
    assert run("validate", str(data_dir("tasks"))).count(": valid, ") == len(task_names())
    with pytest.raises(TaskError, match=r"no \.toml file"):
        run("validate", str(tmp_path))


def test_the_committed_schema_is_current() -> None:
    committed = (data_dir("schema") / "task.schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "run: xares tasks schema > schema/task.schema.json"
    assert run("schema") == committed
    content = json.loads(committed)
    assert content["additionalProperties"] is False
    assert set(content["required"]) == {"format", "name", "title", "domain", "data", "target", "metric"}


def test_demo_data(tmp_path: Path) -> None:
    result = CliRunner().invoke(demo_data, [str(tmp_path / "d"), "--clips", "20"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "d" / "demo.toml")
    assert "20 clips" in result.stderr
    assert load_task(tmp_path / "d" / "demo.toml").title == "Synthetic sounds"


@pytest.mark.parametrize("statement", ["tasks(['ls'])", "tasks(['show', 'esc50'])", "tasks(['validate', TASKS])"])
def test_no_heavy_import(statement: str) -> None:
    program = (
        "import sys\n"
        "from xares_store.cli.tasks import tasks\n"
        f"TASKS = {str(data_dir('tasks'))!r}\n"
        f"try:\n    {statement}\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'webdataset', 'sklearn', 'faiss', 'duckdb', 'zarr'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "esc50" in done.stdout


def test_importing_has_no_side_effects() -> None:
    program = (
        "import logging, os, sys\n"
        "before = dict(os.environ), os.listdir(), list(logging.root.handlers)\n"
        "import xares_store.task, xares_store.catalog, xares_store.targets, xares_store.protocol, xares_store.demo\n"
        "assert (dict(os.environ), os.listdir(), list(logging.root.handlers)) == before\n"
        "assert not {'torch', 'sklearn', 'webdataset', 'soundfile'} & sys.modules.keys()\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "probe", "target"),
    [
        ("fsd50k", "mlp", 'multi-label, JSON key "soundevent"'),
        ("maestro", "frame", "events"),
        ("clotho", "retrieval", "captions"),
        ("speechocean762", "mlp", 'regression, JSON key "accuracy"'),
        ("librispeech", None, 'transcript, JSON key "trans"'),
        (
            "llm-songdescriber",
            None,
            'text, JSON key "caption" or "captions" or "text", in test "captions" or "caption" or "text"',
        ),
    ],
)
def test_show_says_what_is_measured_and_how(name: str, probe: str | None, target: str) -> None:
    facts = json.loads(run("show", name, "--json"))
    task = load_task(name)
    assert facts["target"] == target
    assert [key for key in ("mlp", "knn", "frame", "retrieval") if key in facts] == ([probe] if probe else [])
    assert facts["prompt"] == getattr(task.target, "prompt", None)
    assert (facts["further metrics"] or "").split() == list(task.metric.also or ())
    assert facts["classes"] == (len(task.labels) or None)
