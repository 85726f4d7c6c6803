"""``xares fetch``: suites, private tasks, sizes, and what is said to people."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fetch.conftest import serving
from tests.fetch.server import HUB_TASK, TASK, Cdn, Hub, Zenodo, write_task
from xares_store.catalog import load_tasks, suites
from xares_store.cli import main


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("XARES_ZENODO", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "XARES_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")


FILES = {"train-0.tar": bytes(3_000_000), "train-1.tar": bytes(range(250)) * 10, "test-7.tar": b"small"}


@pytest.fixture
def zenodo() -> Iterator[Zenodo]:
    server = Zenodo(FILES)
    with serving(server):
        yield server


@pytest.fixture
def hub() -> Iterator[Hub]:
    cdn = Cdn(FILES)
    server = Hub(FILES, cdn)
    with serving(cdn), serving(server):
        yield server


def test_both_sources_in_one_call(
    zenodo: Zenodo, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_task(tmp_path, TASK)
    other = write_task(tmp_path, HUB_TASK.replace('"birds"', '"frogs"'), "frogs")
    data = tmp_path / "data"
    monkeypatch.setenv("XARES_ZENODO", zenodo.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert main(["fetch", str(one), str(other), "--data", str(data)]) == 0
    assert {(p.parent.name, p.name) for p in data.rglob("*.tar")} == {(t, n) for t in ("birds", "frogs") for n in FILES}
    assert capsys.readouterr().out.splitlines() == ["birds: 3 downloaded", "frogs: 3 downloaded"]


def test_a_dry_run_sums_up_and_writes_nothing(
    zenodo: Zenodo, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_task(tmp_path, TASK)
    same = write_task(
        tmp_path, TASK.replace('"birds"', '"calls"').replace("[data]", '[data]\nfolder = "birds"'), "calls"
    )
    other = write_task(tmp_path, HUB_TASK.replace('"birds"', '"frogs"'), "frogs")
    data = tmp_path / "data"
    mirrors = ["--mirror", zenodo.url, "--hf-mirror", hub.url]
    assert main(["fetch", str(one), str(same), str(other), "--data", str(data), "--dry-run", "--csv", *mirrors]) == 0
    shown = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert sum(int(row["to_download"]) for row in rows) == 2 * 3_002_505
    assert {row["state"] for row in rows} == {"missing"}
    assert "birds: 3 files, 3.0 MB, 3.0 MB to download\n" in shown.err
    assert "calls: 3 files, the same as those of birds, 3.0 MB, 3.0 MB to download\n" in shown.err
    assert "frogs: 3 files, 3.0 MB, 3.0 MB to download\n" in shown.err
    assert "6.0 MB to download into" in shown.err
    assert not data.exists()


def test_a_dry_run_says_that_the_disk_is_too_small(
    zenodo: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 2_000_000, 2_000_000))
    task, data = write_task(tmp_path, TASK), tmp_path / "data"
    assert main(["fetch", str(task), "--data", str(data), "--dry-run", "--mirror", zenodo.url]) == 1
    said = capsys.readouterr().err
    assert "3 MB are to be downloaded, and 2 MB are free" in said
    assert main(["fetch", str(task), "--data", str(data), "--mirror", zenodo.url]) == 1
    assert "Nothing was downloaded" in capsys.readouterr().err


def test_private_tasks_of_a_suite_are_skipped_by_name(
    zenodo: Zenodo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The public ones have their records; a record that is missing here is an error, a private task is none."""
    data = tmp_path / "data"
    assert main(["fetch", "--suite", "xares", "--data", str(data), "--mirror", zenodo.url, "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == []
    tasks = load_tasks(suites()["xares"])
    assert [task.name for task in tasks if f"skipped: {task.name}: " in shown.err] == [
        t.name for t in tasks if t.private
    ]
    assert [t.name for t in tasks if f"error: {t.name}: " in shown.err] == [t.name for t in tasks if not t.private]
    for task in tasks:
        assert not task.private or str(data / task.folder) in shown.err
    assert not data.exists()


def test_a_private_task_that_is_asked_for_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private = next(task for task in load_tasks(suites()["xares"]) if task.private)
    assert main(["fetch", private.name, "--suite", "xares", "--offline", "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"error: {private.name}: " in said
    assert "the owner of the data" in said


def test_a_private_task_that_is_in_place_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TASK.replace('zenodo = "4711"', "").replace("[data]", "private = true\n[data]")
    task = write_task(tmp_path, text)
    (tmp_path / "birds").mkdir()
    for name in FILES:
        (tmp_path / "birds" / name).touch()
    assert main(["fetch", str(task), "--data", str(tmp_path)]) == 0
    assert "birds: all shards that its patterns name are there" in capsys.readouterr().err


def test_wrong_arguments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--data", str(tmp_path)]) == 2
    assert "--suite xares" in capsys.readouterr().err
    assert main(["fetch", "--suite", "xarse", "--data", str(tmp_path)]) != 0
    assert 'no suite called "xarse"' in capsys.readouterr().err
    assert main(["fetch", "--suite", "xares", "--offline", "--hf-mirror", "ftp://x", "--data", str(tmp_path)]) != 0
    assert "--hf-mirror" in capsys.readouterr().err
