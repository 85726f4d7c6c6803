"""What a task needs, what is there, and what is said when nothing can be downloaded."""

from __future__ import annotations

import csv
import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fetch.server import RECORD, TASK, Zenodo, write_task
from tests.fetch.test_fetch_download import SHARDS, complete, go, visible
from xares_store.audio.shards import _matches
from xares_store.catalog import iter_shipped, load_task
from xares_store.cli import main
from xares_store.errors import ConfigError, ShardError
from xares_store.fetch import http
from xares_store.fetch import zenodo as records
from xares_store.fetch.place import is_named
from xares_store.fetch.tasks import fetch_task, plan
from xares_store.patterns import expand


def xares(zenodo: Zenodo, task: Path | str, data: Path, *more: str) -> int:
    return main(["fetch", str(task), "--data", str(data), "--mirror", zenodo.url, *more])


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_command_downloads(zenodo: Zenodo, task: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert xares(zenodo, task, data) == 0
    assert complete(zenodo, data / "birds")
    assert "birds: 3 downloaded" in capsys.readouterr().out
    assert xares(zenodo, task, data, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["file"]).name for row in rows] == ["test-7.tar", "train-0.tar", "train-1.tar"]
    assert {row["state"] for row in rows} == {"there"}


def test_the_environment_names_the_mirror(
    zenodo: Zenodo, task: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XARES_ZENODO", zenodo.url)
    monkeypatch.setenv("XARES_DATA_HOME", str(data))
    assert main(["fetch", str(task)]) == 0
    assert complete(zenodo, data / "birds")


def test_a_dry_run_shows_sizes_and_writes_nothing(
    zenodo: Zenodo, task: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "birds").mkdir(parents=True)
    (data / "birds" / "train-0.tar").write_bytes(zenodo.files["train-0.tar"])
    (data / "birds" / ".train-0.tar.part").write_bytes(b"x")
    assert xares(zenodo, task, data, "--dry-run", "--csv") == 0
    shown = capsys.readouterr()
    rows = {Path(row["file"]).name: row for row in csv.DictReader(io.StringIO(shown.out))}
    assert {name: row["state"] for name, row in rows.items()} == {
        "train-0.tar": "there",
        "train-1.tar": "missing",
        "test-7.tar": "missing",
    }
    assert sum(int(row["to_download"]) for row in rows.values()) == 50_000
    assert "0.1 MB to download" in shown.err
    assert sorted(path.name for path in (data / "birds").iterdir()) == [".train-0.tar.part", "train-0.tar"]


def test_a_dry_run_makes_no_folder(zenodo: Zenodo, task: Path, data: Path) -> None:
    assert xares(zenodo, task, data, "--dry-run") == 0
    assert not data.exists()


def test_a_file_of_another_size_is_named_and_kept(
    zenodo: Zenodo, task: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "birds").mkdir(parents=True)
    (data / "birds" / "train-0.tar").write_bytes(b"mine")
    assert xares(zenodo, task, data) == 1
    said = capsys.readouterr().err
    assert "25,000 bytes, found 4" in said
    assert "--replace" in said
    assert (data / "birds" / "train-0.tar").read_bytes() == b"mine"
    assert len(visible(data / "birds")) == 3  # the others were downloaded
    assert xares(zenodo, task, data, "--replace") == 0
    assert complete(zenodo, data / "birds")


def test_the_md5_of_a_file_is_checked_on_request(zenodo: Zenodo, task: Path, data: Path) -> None:
    (data / "birds").mkdir(parents=True)
    (data / "birds" / "train-0.tar").write_bytes(bytes(25_000))
    assert go(zenodo, task, data).ok
    assert "MD5" in go(zenodo, task, data, verify=True).problems[0][1]
    assert go(zenodo, task, data, verify=True, replace=True).ok
    assert complete(zenodo, data / "birds")


def test_a_folder_in_the_place_of_a_file_is_named(zenodo: Zenodo, task: Path, data: Path) -> None:
    (data / "birds" / "train-0.tar").mkdir(parents=True)
    assert "found something else" in go(zenodo, task, data, replace=True).problems[0][1]


def test_offline_says_which_files_belong_where(
    zenodo: Zenodo, task: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert xares(zenodo, task, data, "--offline") == 1
    said = capsys.readouterr().err
    for expected in (str(data / "birds"), "train-0.tar\n", "train-1.tar\n", "test-*.tar\n", f"records/{RECORD}"):
        assert expected in said
    assert not zenodo.log
    (data / "birds").mkdir(parents=True)
    for name in ("train-0.tar", "test-3.tar"):
        (data / "birds" / name).touch()
    assert xares(zenodo, task, data, "--offline") == 1
    said = capsys.readouterr().err
    assert "train-1.tar" in said
    assert "train-0.tar" not in said
    assert "test-*" not in said
    (data / "birds" / "train-1.tar").touch()
    assert xares(zenodo, task, data, "--offline") == 0
    assert "are there" in capsys.readouterr().err


def test_without_a_connection_the_same_is_said(
    task: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = write_task(tmp_path, TASK.replace('"birds"', '"frogs"').replace(RECORD, "99"), "frogs")
    mirror = f"http://127.0.0.1:{unused_port()}"
    assert main(["fetch", str(task), str(other), "--data", str(data), "--mirror", mirror]) == 1
    said = capsys.readouterr().err
    assert "Connection refused" in said
    assert str(data / "birds") in said
    assert str(data / "frogs") in said
    assert "test-*.tar" in said
    assert not data.exists()


def test_every_task_names_its_own_record_and_the_cause_is_said_once(
    task: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = write_task(tmp_path, TASK.replace('"birds"', '"frogs"').replace(RECORD, "99"), "frogs")
    mirror = f"http://127.0.0.1:{unused_port()}"
    report = fetch_task(task, other, data=data, mirror=mirror)
    assert [(f"record {RECORD} " in said, "record 99 " in said) for _, said in report.problems] == [
        (True, False),
        (False, True),
    ]
    assert list(report.unanswered.values()) == [["birds", "frogs"]]
    assert main(["fetch", str(task), str(other), "--data", str(data), "--mirror", mirror, "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""  # no table without a file
    assert shown.err.count("Connection refused") == 1
    assert "birds, frogs" in shown.err
    assert "MB" not in shown.err
    assert main(["fetch", str(task), "--data", str(data), "--mirror", mirror, "--dry-run", "--json"]) == 1
    assert capsys.readouterr().out == "[]\n"


def test_an_unknown_host_is_no_connection(task: Path, data: Path) -> None:
    report = fetch_task(task, data=data, mirror="http://no-such-host.invalid")
    assert "Put these files into" in report.problems[0][1]


def test_tasks_without_a_record_are_named(zenodo: Zenodo, task: Path, data: Path, tmp_path: Path) -> None:
    mine = write_task(tmp_path, TASK.replace('"birds"', '"mine"').replace('zenodo = "4711"', 'folder = "a/b"'), "mine")
    report = fetch_task(mine, task, data=data, mirror=zenodo.url)
    ((name, message),) = report.problems
    assert name == "mine"
    assert str(data / "a" / "b") in message
    assert "test-*.tar" in message
    assert complete(zenodo, data / "birds")


@pytest.mark.parametrize("task", list(iter_shipped()), ids=lambda task: task.name)
def test_every_shipped_task_says_where_its_shards_belong(task: Any, tmp_path: Path) -> None:
    ((name, message),) = fetch_task(task, data=tmp_path, offline=True).problems
    assert name == task.name
    assert str(tmp_path / task.folder) in message
    patterns = [pattern for group in task.split_patterns().values() for pattern in group]
    names = [name for pattern in patterns for name in expand(pattern)]
    for pattern in patterns:  # a long list is said as ranges
        count = len(expand(pattern))
        ranges = f"    {pattern} ({count} files)" if count > 1 else pattern
        assert all(name in message for name in (expand(pattern) if len(names) <= 50 else [ranges]))


def test_a_range_that_is_there_in_part_is_named_file_by_file(tmp_path: Path) -> None:
    task = load_task("llm-aishell-1")
    place = tmp_path / task.folder / "AISHELL-1" / "train"
    place.mkdir(parents=True)
    for number in range(100, 174):
        (place / f"train_000{number}.tar.gz").write_bytes(b"")
    ((_, message),) = fetch_task(task, data=tmp_path, offline=True).problems
    lines = [line.strip() for line in message.splitlines() if line.startswith("    ")]
    assert lines[0] == "AISHELL-1/test/test_000{000..011}.tar.gz (12 files)"
    assert lines[1] == "AISHELL-1/train/train_000000.tar.gz"
    assert lines[-1] == "and 51 more, up to AISHELL-1/train/train_000099.tar.gz"
    assert "train_000100" not in message
    assert (f"zenodo.org/records/{task.data.zenodo}" in message) == bool(task.data.zenodo)


def test_tasks_that_share_a_folder_share_the_download(zenodo: Zenodo, task: Path, data: Path, tmp_path: Path) -> None:
    text = TASK.replace('name = "birds"', 'name = "calls"').replace("[data]", '[data]\nfolder = "birds"')
    report = fetch_task(task, write_task(tmp_path, text, "calls"), data=data, mirror=zenodo.url)
    assert report.ok
    assert len(zenodo.log) == 1 + len(SHARDS)


def test_a_record_without_a_shard_is_refused_before_the_download(zenodo: Zenodo, task: Path, data: Path) -> None:
    del zenodo.published["train-1.tar"]
    ((_, message),) = go(zenodo, task, data).problems
    assert "no file for train-1.tar" in message
    assert "README.md" in message
    assert not data.exists()
    (data / "birds").mkdir(parents=True)
    (data / "birds" / "train-1.tar").touch()  # from elsewhere
    assert go(zenodo, task, data).ok


@pytest.mark.parametrize(
    "name",
    ["../test-evil.tar", "test-/../../evil.tar", "/test-1.tar", "test-\\..\\x.tar", "test-a\x00.tar", "test-\n.tar"],
)
def test_names_of_the_server_never_leave_the_folder(zenodo: Zenodo, tmp_path: Path, data: Path, name: str) -> None:
    task = write_task(
        tmp_path, TASK.replace('"test-*.tar"', '"**/*test*", "**/*.tar"').replace("train-{0..1}.tar", "a")
    )
    zenodo.files["a"] = zenodo.published["a"] = b"1"
    zenodo.published[name] = b"evil"
    report = go(zenodo, task, data)
    assert {path.name for path in tmp_path.iterdir()} <= {"birds.toml", "data"}
    harmless = {"a", *SHARDS}  # a name that begins with a dot is no shard; any other bad one stops the task
    assert {path.name for path in data.rglob("*") if path.is_file() and path.name[0] != "."} <= harmless
    assert report.problems or ".." in name.split("/")
    assert bool(report.problems) != data.exists()


def test_a_link_in_the_folder_is_not_followed_out(zenodo: Zenodo, tmp_path: Path, data: Path) -> None:
    task = write_task(tmp_path, TASK.replace('"test-*.tar"', '"sub/*.tar"'))
    zenodo.files["sub/x.tar"] = zenodo.published["sub/x.tar"] = b"1"
    (data / "birds").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (data / "birds" / "sub").symlink_to(tmp_path / "outside")
    assert "leads out" in go(zenodo, task, data).problems[0][1]
    assert not list((tmp_path / "outside").iterdir())


def test_files_in_folders_of_a_record(zenodo: Zenodo, tmp_path: Path, data: Path) -> None:
    task = write_task(tmp_path, TASK.replace('"test-*.tar"', '"sub/*.tar"'))
    zenodo.files["sub/x.tar"] = zenodo.published["sub/x.tar"] = b"1"
    zenodo.links = lambda name: {}  # and without links the address follows from the key
    report = go(zenodo, task, data)
    assert report.ok, report.problems
    assert (data / "birds" / "sub" / "x.tar").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([], "files"),
        ({"files": None}, "files"),
        ({"files": [1]}, "key"),
        ({"files": [{"key": "a", "size": -1}]}, "size"),
        ({"files": [{"key": "a", "size": True}]}, "size"),
        ({"files": [{"key": "a", "size": 1, "checksum": "sha1:00"}]}, "md5:"),
        ({"files": [{"key": "a", "size": 1}]}, "md5:"),
        ({"files": [{"key": "a", "size": n, "checksum": "md5:" + "0" * 32} for n in (1, 2)]}, "two files"),
        (
            {
                "files": [
                    {"key": "a", "size": 1, "checksum": "md5:" + "0" * 32, "links": {"self": "file:///etc/passwd"}}
                ]
            },
            "http://",
        ),
    ],
)
def test_an_odd_record_is_named(zenodo: Zenodo, task: Path, data: Path, record: object, said: str) -> None:
    zenodo.record = record
    ((_, message),) = go(zenodo, task, data).problems
    assert said in message
    assert zenodo.url in message


@pytest.mark.parametrize(("status", "said"), [(404, "no such record"), (403, "not public"), (500, "500")])
def test_a_record_that_cannot_be_read_is_named(zenodo: Zenodo, task: Path, data: Path, status: int, said: str) -> None:
    zenodo.busy = {"record": [(status, None)] * 100}
    ((_, message),) = go(zenodo, task, data).problems
    assert said in message


def test_a_mirror_may_pass_the_original_record_on(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.links = lambda name: {"self": f"https://zenodo.org/api/records/{RECORD}/files/{name}/content"}
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")


def test_redirects_are_followed_with_the_range(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.links = lambda name: {"self": f"{zenodo.url}/go/{name}"}
    zenodo.redirects = {f"/go/{name}": f"../api/records/{RECORD}/files/{name}/content" for name in SHARDS}
    zenodo.cuts["train-0.tar"] = 2
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")
    assert zenodo.requests_of("train-0.tar")[-1]["range"] == "bytes=2000-"


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "javascript:1", "//", "/go/a"]
)
def test_redirects_lead_to_the_web_or_nowhere(zenodo: Zenodo, task: Path, data: Path, target: str) -> None:
    zenodo.links = lambda name: {"self": f"{zenodo.url}/go/a"}
    zenodo.redirects = {"/go/a": target}
    report = go(zenodo, task, data)
    assert len(report.problems) == 3
    assert not visible(data / "birds")


def test_an_encrypted_connection_stays_encrypted() -> None:
    with pytest.raises(http.RefusedError, match="not encrypted"):
        http.redirect("https://zenodo.org/a", "http://zenodo.org/a")
    assert http.redirect("http://zenodo.org/a", "https://zenodo.org/b") == "https://zenodo.org/b"


@pytest.mark.parametrize("mirror", ["ftp://x", "zenodo.org", "http://", "http://u:p@x", "http://x y", "http://x/?a=1"])
def test_a_mirror_must_be_a_web_address(mirror: str, data: Path, task: Path) -> None:
    with pytest.raises(ConfigError):
        fetch_task(task, data=data, mirror=mirror)


def test_arguments_are_checked(zenodo: Zenodo, task: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="connections"):
        go(zenodo, task, data, parallel=0)
    with pytest.raises(ConfigError, match="No task"):
        fetch_task(data=data)


def test_a_data_root_that_cannot_be_written_is_named(zenodo: Zenodo, task: Path, data: Path) -> None:
    data.write_text("a file")
    with pytest.raises(ShardError, match="cannot be written"):
        go(zenodo, task, data)


def test_the_record_is_asked_for_once_more_after_a_cut(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.busy = {"record": [(502, None), (429, "0")]}
    assert plan([task], data=data, mirror=zenodo.url).ok
    assert records.ZENODO == "https://zenodo.org"


@settings(max_examples=150, deadline=None)
@given(
    st.text("ab*?/.[]", min_size=1, max_size=7).filter(lambda text: not text.startswith("/") and ".." not in text),
    st.text("ab/.", min_size=1, max_size=5),
)
def test_the_files_of_a_record_are_those_that_embed_will_find(
    tmp_path_factory: pytest.TempPathFactory, pattern: str, file: str
) -> None:
    parts = file.split("/")
    if any(part in ("", ".", "..") for part in parts) or "//" in pattern or pattern.endswith("/"):
        return
    if any(part in (".", "") or ("**" in part and part != "**") for part in pattern.split("/")):
        return
    folder = tmp_path_factory.mktemp("p")
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).touch()
    found = [name for names in _matches(folder, pattern).values() for name in names]
    if any(part.startswith(".") for part in parts):  # finding asks for an explicit dot; a record's hidden files stay
        return
    assert is_named(pattern, file) == (found == [file])
