"""Downloads from a server that misbehaves: the file arrives whole and verified, or not at all."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fetch.server import Zenodo
from xares_store.errors import ShardError
from xares_store.fetch import download as downloading
from xares_store.fetch import http
from xares_store.fetch.tasks import FetchReport, fetch_task, plan, run

SHARDS = ["train-0.tar", "train-1.tar", "test-7.tar"]


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if ".part" in path.name]


def complete(zenodo: Zenodo, folder: Path) -> bool:
    return visible(folder) == sorted(SHARDS) and all(
        (folder / name).read_bytes() == zenodo.published[name] for name in SHARDS
    )


def go(zenodo: Zenodo, task: Path, data: Path, **options: object) -> FetchReport:
    return fetch_task(task, data=data, mirror=zenodo.url, **options)  # type: ignore[arg-type]


def test_shards_and_nothing_else_arrive(zenodo: Zenodo, task: Path, data: Path) -> None:
    report = go(zenodo, task, data)
    assert report.ok, report.problems
    assert complete(zenodo, data / "birds")
    assert not left_over(data / "birds")
    assert not zenodo.requests_of("README.md")
    assert {file.state for file in report.files} == {"downloaded"}


def test_a_second_call_downloads_nothing(zenodo: Zenodo, task: Path, data: Path) -> None:
    go(zenodo, task, data)
    zenodo.log.clear()
    report = go(zenodo, task, data, verify=True)
    assert report.ok
    assert {file.state for file in report.files} == {"there"}
    assert len(zenodo.log) == 1  # the record


@pytest.mark.parametrize("length", [True, False])
def test_a_file_cut_twenty_times_arrives_whole(zenodo: Zenodo, task: Path, data: Path, length: bool) -> None:
    zenodo.cuts["train-0.tar"] = 20
    zenodo.length = length
    report = go(zenodo, task, data)
    assert report.ok, report.problems
    assert complete(zenodo, data / "birds")
    requests = zenodo.requests_of("train-0.tar")
    assert [headers.get("range") for headers in requests] == [None] + [f"bytes={1000 * n}-" for n in range(1, 21)]
    assert all(headers["if-range"] == zenodo.etag("train-0.tar") for headers in requests[1:])


def test_a_throttled_file_cut_twenty_times_arrives_whole(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.cuts["test-7.tar"] = 20
    zenodo.block_s = 0.001
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")


def test_a_weak_etag_is_not_compared_but_the_date_is(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.etag = lambda name: 'W/"1"'
    zenodo.modified = "Wed, 01 Jan 2025 00:00:00 GMT"
    zenodo.cuts["train-0.tar"] = 1
    assert go(zenodo, task, data).ok
    assert zenodo.requests_of("train-0.tar")[1]["if-range"] == zenodo.modified
    assert complete(zenodo, data / "birds")


def test_a_server_without_validators_still_resumes(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.etag = lambda name: None
    zenodo.cuts["train-0.tar"] = 3
    assert go(zenodo, task, data).ok
    last = zenodo.requests_of("train-0.tar")[-1]
    assert last["range"] == "bytes=3000-"
    assert "if-range" not in last
    assert complete(zenodo, data / "birds")


def test_a_server_that_ignores_range_starts_over(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.ignore_range = True
    zenodo.cuts["train-0.tar"] = 3
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")


def test_a_server_that_ignores_range_and_always_cuts_is_given_up(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.ignore_range = True
    zenodo.cuts["train-0.tar"] = 10_000
    report = go(zenodo, task, data)
    ((name, message),) = report.problems
    assert name == "birds"
    assert "did not arrive" in message
    assert visible(data / "birds") == ["test-7.tar", "train-1.tar"]
    assert len(zenodo.requests_of("train-0.tar")) <= 2 * downloading.RESTARTS


def test_a_range_that_cannot_be_satisfied_starts_over(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.refuse_range = True
    zenodo.cuts["train-0.tar"] = 1
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")


@pytest.mark.parametrize("honour", [True, False])
def test_an_etag_that_changes_between_attempts_starts_over(
    zenodo: Zenodo, task: Path, data: Path, honour: bool
) -> None:
    """Also when the server sends a part of the new file in spite of If-Range."""
    old = bytes(25_000)
    new = zenodo.published["train-0.tar"]
    zenodo.files["train-0.tar"] = old
    zenodo.honour_if_range = honour
    seen = [0]

    def etag(name: str) -> str:
        if name != "train-0.tar":
            return '"same"'
        seen[0] += 1
        zenodo.files[name] = old if seen[0] == 1 else new
        return '"old"' if seen[0] == 1 else '"new"'

    zenodo.etag = etag
    zenodo.cuts["train-0.tar"] = 1
    # The handler reads the bytes before it asks for the ETag, so the first answer is the old file.
    report = go(zenodo, task, data)
    assert report.ok, report.problems
    assert complete(zenodo, data / "birds")


def test_an_etag_that_always_changes_is_given_up(zenodo: Zenodo, task: Path, data: Path) -> None:
    count = iter(range(10**6))
    zenodo.etag = lambda name: f'"{next(count)}"'
    zenodo.cuts["train-0.tar"] = 10_000
    report = go(zenodo, task, data)
    assert len(report.problems) == 1
    assert "train-0.tar" not in visible(data / "birds")


def test_wrong_bytes_once_are_fetched_again(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.wrong["train-0.tar"] = 1
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")
    assert len(zenodo.requests_of("train-0.tar")) == 2


@pytest.mark.parametrize("cuts", [0, 3])
def test_wrong_bytes_never_become_visible(zenodo: Zenodo, task: Path, data: Path, cuts: int) -> None:
    zenodo.wrong["train-0.tar"] = 1000
    zenodo.cuts["train-0.tar"] = cuts
    report = go(zenodo, task, data)
    ((name, message),) = report.problems
    assert name == "birds"
    assert hashlib.md5(zenodo.published["train-0.tar"]).hexdigest() in message
    assert "removed" in message
    assert visible(data / "birds") == ["test-7.tar", "train-1.tar"]
    assert not left_over(data / "birds")


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [10, 24_999, 25_001, 2_000_000])
def test_a_file_of_another_size_never_becomes_visible(
    zenodo: Zenodo, task: Path, data: Path, size: int, length: bool
) -> None:
    """Nor does it fill the disk: no more bytes are read than the record says."""
    zenodo.files["train-0.tar"] = bytes(size)
    zenodo.length = length
    most = [0]
    report = plan([task], data=data, mirror=zenodo.url)
    run(report, advance=lambda amount, name: most.__setitem__(0, max(most[0], amount)))
    assert len(report.problems) == 1
    assert visible(data / "birds") == ["test-7.tar", "train-1.tar"]
    assert most[0] <= 25_000


def test_a_longer_file_with_the_right_beginning_is_cut_to_what_was_published(
    zenodo: Zenodo, task: Path, data: Path
) -> None:
    zenodo.files["train-0.tar"] += b"more"
    zenodo.length = False
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(
    zenodo: Zenodo, task: Path, data: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(http.Web, "sleep", lambda self, seconds: slept.append(seconds))
    zenodo.busy = {"record": [(status, "17")], "train-0.tar": [(status, "42"), (status, None)]}
    assert go(zenodo, task, data, parallel=1).ok
    assert complete(zenodo, data / "birds")
    assert 17.0 in slept
    assert 42.0 in slept
    # A pause holds for every connection to the host.
    assert len([seconds for seconds in slept if 30 < seconds < 42]) >= 1


def test_a_pause_is_really_waited_for(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.busy = {"train-0.tar": [(429, "1")]}
    begin = time.monotonic()
    assert go(zenodo, task, data).ok
    assert time.monotonic() - begin >= 1


def test_a_pause_may_be_a_date_and_may_be_too_long(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.busy = {"train-0.tar": [(503, email.utils.formatdate(time.time() + 7200, usegmt=True))]}
    report = go(zenodo, task, data)
    assert "come back in 120 minutes" in report.problems[0][1]


def test_a_busy_server_is_given_up_in_the_end(zenodo: Zenodo, task: Path, data: Path) -> None:
    zenodo.busy = {"train-0.tar": [(503, None)] * 1000}
    report = go(zenodo, task, data)
    assert "503" in report.problems[0][1]
    assert len(zenodo.requests_of("train-0.tar")) == downloading.ATTEMPTS


def test_a_file_that_is_gone_is_named(zenodo: Zenodo, task: Path, data: Path) -> None:
    del zenodo.files["train-0.tar"]
    report = go(zenodo, task, data)
    assert "404" in report.problems[0][1]
    assert str(data / "birds" / "train-0.tar") in report.problems[0][1]
    assert len(zenodo.requests_of("train-0.tar")) == 1


def test_a_server_that_stops_sending_is_left_after_the_timeout(
    zenodo: Zenodo, task: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_S", 1.0)
    zenodo.hang_s["train-0.tar"] = 3.0
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")
    assert zenodo.requests_of("train-0.tar")[1]["range"] == "bytes=1000-"


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_no_more_connections_than_allowed(
    zenodo: Zenodo, task: Path, data: Path, parallel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where they are opened and closed: the server learns of a close too late."""
    counted, original, lock = [0, 0], http.Web.get, threading.Lock()
    first, opened = threading.Barrier(parallel), iter(range(100))

    @contextmanager
    def get(self: http.Web, url: str, headers: dict[str, str]) -> Iterator[object]:
        with original(self, url, headers) as response:
            with lock:
                counted[0] += 1
                counted[1] = max(counted)
                among_the_first = "/files/" in url and next(opened) < parallel
            if among_the_first:  # all of them are open at once, however slow the machine is
                first.wait(60)
            yield response
            with lock:
                counted[0] -= 1

    monkeypatch.setattr(http.Web, "get", get)
    zenodo.block_s = 0.002
    assert go(zenodo, task, data, parallel=parallel).ok
    assert counted == [0, parallel]


def interrupted(zenodo: Zenodo, task: Path, data: Path, how: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Start a slow download in a process of its own and stop it in the middle."""
    zenodo.block_s = 0.1
    process = subprocess.Popen(
        [sys.executable, "-m", "xares_store", "fetch", str(task), "--data", str(data), "--mirror", zenodo.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_PROXY": "*"},
    )  # fmt: skip
    partial = data / "birds" / ".train-0.tar.part"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (partial.is_file() and partial.stat().st_size > 2000):
        time.sleep(0.01)
    process.send_signal(how)
    out, error = process.communicate(timeout=60)
    zenodo.block_s = 0.0
    return subprocess.CompletedProcess([], process.returncode, out, error)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_arrived_before_an_interruption_is_kept(
    zenodo: Zenodo, task: Path, data: Path, how: signal.Signals
) -> None:
    done = interrupted(zenodo, task, data, how)
    if how is signal.SIGINT:
        assert done.returncode == 130, done.stderr
        assert "run the same command again" in done.stderr
        assert "Traceback" not in done.stderr
    assert not visible(data / "birds")
    zenodo.log.clear()
    before = plan([task], data=data, mirror=zenodo.url)
    kept = {file.path.name: file.kept for file in before.files if file.state == "partial"}
    assert kept["train-0.tar"] > 2000
    assert go(zenodo, task, data).ok
    assert complete(zenodo, data / "birds")
    assert zenodo.requests_of("train-0.tar")[0]["range"] == f"bytes={kept['train-0.tar']}-"
    assert not left_over(data / "birds")


@pytest.mark.parametrize(
    "note", [None, "", "[]", '{"checksum": 1}', '{"checksum": "md5:0", "size": "25000"}', "[" * 100_000]
)
def test_kept_bytes_of_unknown_origin_are_not_gone_on_from(
    zenodo: Zenodo, task: Path, data: Path, note: str | None
) -> None:
    folder = data / "birds"
    folder.mkdir(parents=True)
    (folder / ".train-0.tar.part").write_bytes(b"something else")
    if note is not None:
        (folder / ".train-0.tar.part.json").write_text(note)
    assert go(zenodo, task, data).ok
    assert complete(zenodo, folder)
    assert "range" not in zenodo.requests_of("train-0.tar")[0]


def test_a_note_cannot_add_a_header(zenodo: Zenodo, task: Path, data: Path) -> None:
    folder = data / "birds"
    folder.mkdir(parents=True)
    whole = zenodo.published["train-0.tar"]
    (folder / ".train-0.tar.part").write_bytes(whole[:100])
    note = {"checksum": f"md5:{hashlib.md5(whole).hexdigest()}", "size": "25000", "etag": '"x"\r\nEvil: 1'}
    (folder / ".train-0.tar.part.json").write_text(json.dumps(note))
    assert go(zenodo, task, data).ok
    assert all("evil" not in headers for headers in zenodo.requests_of("train-0.tar"))


def test_complete_bytes_are_verified_without_a_request(zenodo: Zenodo, task: Path, data: Path) -> None:
    folder = data / "birds"
    folder.mkdir(parents=True)
    (folder / ".train-0.tar.part").write_bytes(zenodo.published["train-0.tar"])
    (folder / ".test-7.tar.part").write_bytes(bytes(25_000))
    assert go(zenodo, task, data).ok
    assert complete(zenodo, folder)
    assert not zenodo.requests_of("train-0.tar")
    assert len(zenodo.requests_of("test-7.tar")) == 1


def test_disk_space_is_checked_before_anything_is_downloaded(
    zenodo: Zenodo, task: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ShardError, match="are free"):
        go(zenodo, task, data)
    assert not visible(data / "birds")
    assert len(zenodo.log) == 1


def test_a_full_disk_stops_everything_and_keeps_what_is_there(
    zenodo: Zenodo, task: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, block: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloading, "_append", full)
    report = go(zenodo, task, data)
    assert len(report.problems) == 3
    assert "No space left" in str(report.problems)
    assert not visible(data / "birds")
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "*")
    assert go(zenodo, task, data).ok


def test_a_crash_before_the_rename_shows_nothing(
    zenodo: Zenodo, task: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "_publish", lambda path: (_ for _ in ()).throw(MemoryError()))
    report = go(zenodo, task, data)
    assert "MemoryError" in str(report.problems)
    assert not visible(data / "birds")
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "*")
    zenodo.log.clear()
    assert go(zenodo, task, data).ok
    assert len(zenodo.log) == 1  # everything had arrived


def test_two_at_once_do_not_mix_their_bytes(zenodo: Zenodo, task: Path, data: Path) -> None:
    from filelock import FileLock

    (data / "birds").mkdir(parents=True)
    with FileLock(data / "birds" / ".fetch.lock"), pytest.raises(ShardError, match="Another"):
        go(zenodo, task, data)
