"""Data sets on the Hugging Face hub: one commit, its hashes, its token, and what is said when it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fetch.server import COMMIT, HUB_TASK, Hub, Zenodo, write_task
from tests.fetch.test_fetch_download import SHARDS, left_over, visible
from xares_store.errors import ConfigError
from xares_store.fetch import http
from xares_store.fetch.hub import dataset_page
from xares_store.fetch.remote import checksum_of
from xares_store.fetch.tasks import FetchReport, fetch_task, plan

LATER = "d1" * 20


def go(hub: Hub, task: Path, data: Path, **options: object) -> FetchReport:
    return fetch_task(task, data=data, hf_mirror=hub.url, **options)  # type: ignore[arg-type]


def complete(hub: Hub, folder: Path, commit: str = COMMIT) -> bool:
    return visible(folder) == sorted(SHARDS) and all(
        (folder / name).read_bytes() == hub.commits[commit][name] for name in SHARDS
    )


def the_problem(report: FetchReport) -> str:
    ((_, message),) = report.problems
    return message


def test_shards_and_nothing_else_arrive(hub: Hub, hub_task: Path, data: Path) -> None:
    report = go(hub, hub_task, data)
    assert report.ok, report.problems
    assert complete(hub, data / "birds")
    assert not left_over(data / "birds")
    assert not hub.requests_of("README.md")
    assert {file.remote.checksum.partition(":")[0] for file in report.files} == {"sha256", "git-sha1"}


def test_a_second_call_downloads_nothing(hub: Hub, hub_task: Path, data: Path) -> None:
    go(hub, hub_task, data)
    hub.log.clear()
    report = go(hub, hub_task, data, verify=True)
    assert report.ok
    assert {file.state for file in report.files} == {"there"}
    assert len(hub.log) == 2  # the commit and its files


def test_the_hash_of_a_small_file_is_the_one_of_git(tmp_path: Path) -> None:
    """The well-known hashes of the empty blob and of ``hello``."""
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"hello\n")
    assert checksum_of(tmp_path / "a", "git-sha1:") == "git-sha1:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert checksum_of(tmp_path / "b", "git-sha1:") == "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize("length", [True, False])
def test_a_file_cut_twenty_times_arrives_whole(hub: Hub, hub_task: Path, data: Path, length: bool) -> None:
    hub.cdn.cuts["train-0.tar"] = 20
    hub.cdn.length = length
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")
    requests = hub.cdn.requests_of("train-0.tar")
    assert [headers.get("range") for headers in requests] == [None] + [f"bytes={1000 * n}-" for n in range(1, 21)]
    assert all(headers["if-range"] == hub.cdn.etag("train-0.tar") for headers in requests[1:])
    # Every attempt asks the hub for a fresh signed address.
    assert len(hub.requests_of("train-0.tar")) == 21


def test_a_throttled_file_cut_twenty_times_arrives_whole(hub: Hub, hub_task: Path, data: Path) -> None:
    hub.cdn.cuts["train-1.tar"] = 20
    hub.cdn.block_s = 0.001
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")


def test_a_store_that_ignores_range_starts_over(hub: Hub, hub_task: Path, data: Path) -> None:
    hub.cdn.ignore_range = True
    hub.cdn.cuts["train-0.tar"] = 3
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")


def test_an_etag_that_changes_between_cuts_starts_over(hub: Hub, hub_task: Path, data: Path) -> None:
    names = iter(range(10**6))
    hub.cdn.etag = lambda name: f'"{next(names)}"'
    hub.cdn.cuts["train-0.tar"] = 2
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")
    assert len(hub.cdn.requests_of("train-0.tar")) == 3


@pytest.mark.parametrize("name", ["train-0.tar", "test-7.tar"])
def test_wrong_bytes_never_become_visible(hub: Hub, hub_task: Path, data: Path, name: str) -> None:
    """Neither where SHA-256 is published nor where git's own hash is."""
    right = hub.files[name]
    hub.cdn.files = {**hub.files, name: bytes(len(right))}
    if len(right) < 100:
        hub.entries = json.loads(json.dumps(hub.tree(COMMIT, "")))
        hub.commits[COMMIT] = {**hub.files, name: bytes(len(right))}
    message = the_problem(go(hub, hub_task, data))
    expected = hashlib.sha256(right) if len(right) > 100 else hashlib.sha1(b"blob %d\0" % len(right) + right)
    assert expected.hexdigest() in message
    assert "--hf-mirror" in message
    assert visible(data / "birds") == sorted(set(SHARDS) - {name})
    assert not left_over(data / "birds")


def test_the_list_of_files_has_pages(hub: Hub, hub_task: Path, data: Path) -> None:
    hub.page_size = 2
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")
    assert len([path for path, _ in hub.log if "/tree/" in path]) == 3


def test_a_mirror_may_pass_the_original_pages_on(hub: Hub, hub_task: Path, data: Path) -> None:
    hub.page_size = 2
    hub.next_page = lambda path: "https://huggingface.co" + path
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")


@pytest.mark.parametrize(
    ("next_page", "said"),
    [
        ("/api/datasets/org/birds/tree/" + COMMIT + "?recursive=true&expand=false", "does not end"),
        ("http://127.0.0.1:1/x", "another server"),
        ("file:///etc/passwd", "http://"),
    ],
)
def test_pages_stay_at_the_hub_and_end(hub: Hub, hub_task: Path, data: Path, next_page: str, said: str) -> None:
    hub.page_size = 2
    hub.next_page = lambda path: next_page
    assert said in the_problem(go(hub, hub_task, data))
    assert not data.exists()


def test_files_are_of_the_commit_with_which_the_folder_was_begun(hub: Hub, hub_task: Path, data: Path) -> None:
    hub.cdn.busy["train-1.tar"] = [(503, None)] * 100
    assert not go(hub, hub_task, data).ok
    assert visible(data / "birds") == ["test-7.tar", "train-0.tar"]
    hub.cdn.busy.clear()
    hub.commits[LATER] = {name: bytes(len(content)) for name, content in hub.files.items()}
    hub.branches["main"] = LATER
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")
    assert all(COMMIT in path for path, _ in hub.log if "/resolve/" in path)
    # Sizes are the same, so only hashes tell the two commits apart.
    hub.cdn.files = hub.commits[LATER]
    report = go(hub, hub_task, data, replace=True)
    assert {file.state for file in report.files} == {"downloaded"}
    assert complete(hub, data / "birds", LATER)


def test_a_replacement_that_was_interrupted_leaves_no_mixture(hub: Hub, hub_task: Path, data: Path) -> None:
    """Sizes are the same in both commits, and the remembered commit is the new one before all files are."""
    assert go(hub, hub_task, data).ok
    hub.commits[LATER] = {name: content[::-1] for name, content in hub.files.items()}
    hub.branches["main"], hub.cdn.files = LATER, hub.commits[LATER]
    hub.cdn.busy["train-1.tar"] = [(503, None)] * 100
    assert not go(hub, hub_task, data, replace=True).ok
    hub.cdn.busy.clear()
    assert "--replace" in the_problem(go(hub, hub_task, data))
    assert go(hub, hub_task, data, replace=True).ok
    assert complete(hub, data / "birds", LATER)
    hub.log.clear()
    report = go(hub, hub_task, data)
    assert report.ok
    assert not any(pin.mixed for pins in report.pins.values() for pin in pins.values())
    assert {file.state for file in report.files} == {"there"}


def test_a_commit_that_is_gone_is_named(hub: Hub, hub_task: Path, data: Path) -> None:
    assert go(hub, hub_task, data).ok
    hub.branches["main"] = LATER
    hub.commits = {LATER: hub.files}
    message = the_problem(go(hub, hub_task, data))
    assert COMMIT in message
    assert "--replace" in message
    assert go(hub, hub_task, data, replace=True).ok


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"org/birds": "../x"}', '{"org/birds": {"commit": "../x"}}', "\udcff"]
)
def test_a_damaged_note_of_the_commit_counts_as_absent(hub: Hub, hub_task: Path, data: Path, text: str) -> None:
    (data / "birds").mkdir(parents=True)
    (data / "birds" / ".hub-commits.json").write_bytes(text.encode(errors="surrogateescape"))
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")


@pytest.mark.parametrize("revision", ["v1", COMMIT, "refs/pr/1"])
def test_a_revision_may_be_a_branch_a_tag_or_a_commit(hub: Hub, tmp_path: Path, data: Path, revision: str) -> None:
    hub.branches = {"v1": COMMIT, "refs/pr/1": COMMIT}
    task = write_task(tmp_path, HUB_TASK.replace("org/birds", f"org/birds@{revision}"))
    assert go(hub, task, data).ok
    assert complete(hub, data / "birds")


@pytest.mark.parametrize("folder", [None, "audio", "a/b c"])
def test_shards_may_lie_in_a_folder_of_the_data_set(hub: Hub, tmp_path: Path, data: Path, folder: str | None) -> None:
    """With ``hf_folder`` patterns name paths below it; without, what no path answers to is looked for by name alone."""
    below = folder or "somewhere/deep"
    shards = {name: hub.files[name] for name in SHARDS}
    hub.commits[COMMIT] = {f"{below}/{name}": content for name, content in shards.items()} | {"README.md": b"#"}
    hub.cdn.files = hub.commits[COMMIT]
    text = HUB_TASK if folder is None else HUB_TASK.replace("[data]", f'[data]\nhf_folder = "{folder}"')
    report = go(hub, write_task(tmp_path, text), data)
    assert report.ok, report.problems
    assert {name: (data / "birds" / name).read_bytes() for name in SHARDS} == shards


def test_two_files_of_one_name_are_refused_unless_a_path_is_named(hub: Hub, tmp_path: Path, data: Path) -> None:
    task = write_task(tmp_path, HUB_TASK)
    more = {"old/train-0.tar": b"old", "old/test-7.tar": b"old"}
    hub.commits[COMMIT] = {**hub.files, **more}
    assert go(hub, task, data).ok  # those at the top are meant
    assert complete(hub, data / "birds")
    hub.commits[COMMIT] = {f"new/{name}": content for name, content in hub.files.items()} | more
    message = the_problem(go(hub, task, data / "other"))
    assert "new/train-0.tar" in message
    assert "old/train-0.tar" in message
    assert "hf_folder" in message
    assert not (data / "other").exists()


@pytest.mark.parametrize("name", ["../test-evil.tar", "test-/../../evil.tar", "/test-1.tar", "test-\\..\\x.tar"])
def test_names_of_the_hub_never_leave_the_folder(hub: Hub, tmp_path: Path, data: Path, name: str) -> None:
    task = write_task(tmp_path, HUB_TASK.replace('"test-*.tar"', '"**/*test*", "test-*.tar"'))
    hub.commits[COMMIT] = {**hub.files, name: b"evil"}
    go(hub, task, data)
    assert {path.name for path in tmp_path.iterdir()} <= {"birds.toml", "data"}
    assert {path.parent for path in data.rglob("*evil*")} <= {data / "birds"}


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, hub_task: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    hub.cdn.cuts["train-0.tar"] = 2
    hub.page_size = 2
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")
    assert all(headers["authorization"] == "Bearer hf_secret" for _, headers in hub.log)
    assert hub.cdn.log
    assert all("authorization" not in headers for _, headers in hub.cdn.log)


def test_a_token_that_left_does_not_come_back(
    hub: Hub, hub_task: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server must not be able to make requests with it."""
    monkeypatch.setenv("HF_TOKEN", "any")
    signed = f"/cdn/train-0.tar?{hub.cdn.key}"
    hub.cdn.redirects = {signed: f"{hub.url}/settings"}
    message = the_problem(go(hub, hub_task, data))
    assert "train-0.tar" in message
    assert [headers.get("authorization") for path, headers in hub.log if path == "/settings"] == [None]


def test_the_stored_token_is_used(
    hub: Hub, hub_task: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_stored"
    (tmp_path / "token").write_text("hf_stored\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert go(hub, hub_task, data).ok
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert "private" in the_problem(go(hub, hub_task, data))


@pytest.mark.parametrize("token", ["two words", "ümlaut", "a\x07b"])
def test_a_token_cannot_add_a_header(
    hub: Hub, hub_task: Path, data: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match="characters") as caught:
        go(hub, hub_task, data)
    assert token not in str(caught.value)
    assert not hub.log


def test_zenodo_never_sees_the_token(zenodo: Zenodo, task: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch_task(task, data=data, mirror=zenodo.url).ok
    assert all("authorization" not in headers for _, headers in zenodo.log)


def test_no_token_goes_over_an_open_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    from xares_store.fetch.access import authorize

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    sent: list[str] = []
    monkeypatch.setattr(http.Web, "authorize", lambda self, url, token: sent.append(url))
    for url in ("http://mirror.example.org", "https://mirror.example.org", "http://localhost:1"):
        authorize(http.Web(), url)
    assert sent == ["https://mirror.example.org", "http://localhost:1"]


@pytest.mark.parametrize(
    ("token", "sent", "source", "said", "advice"),
    [
        (None, None, "org/none", "no such data set, or it is private", "hf auth login"),
        ("right", None, "org/birds", "no such data set, or it is private", "HF_TOKEN"),
        ("right", "wrong", "org/birds", "token was refused", "renew HF_TOKEN"),
        (None, "wrong", "org/birds", "token was refused", "need none"),
        (None, None, "org/birds@v9", "no such revision", "follows the @"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: Hub, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch,
    token: str | None, sent: str | None, source: str, said: str, advice: str,
) -> None:  # fmt: skip
    hub.token = token
    if sent is not None:
        monkeypatch.setenv("HF_TOKEN", sent)
    message = the_problem(go(hub, write_task(tmp_path, HUB_TASK.replace("org/birds", source)), data))
    assert said in message
    assert advice in message
    assert source in message
    assert not data.exists()


def test_a_folder_that_the_data_set_lacks_is_named(hub: Hub, tmp_path: Path, data: Path) -> None:
    task = write_task(tmp_path, HUB_TASK.replace("[data]", '[data]\nhf_folder = "nowhere"'))
    message = the_problem(go(hub, task, data))
    assert "nowhere" in message
    assert "hf_folder" in message


@pytest.mark.parametrize("token", [None, "any"])
def test_a_gated_data_set_is_refused_once(
    hub: Hub, hub_task: Path, data: Path, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list of files is public; its files are not."""
    hub.accepted = False
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    message = the_problem(go(hub, hub_task, data, parallel=1))
    assert "gated" in message
    assert "https://huggingface.co/datasets/org/birds" in message
    assert "HF_TOKEN" in message
    assert len([path for path, _ in hub.log if "/resolve/" in path]) == 1
    hub.accepted = True
    assert go(hub, hub_task, data).ok


def test_a_signed_address_that_has_expired_is_asked_for_again(hub: Hub, hub_task: Path, data: Path) -> None:
    hub.cdn.refusals["train-0.tar"] = 2
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")
    assert len(hub.requests_of("train-0.tar")) == 3


@pytest.mark.parametrize(("after", "limit", "expected"), [("42", None, 42.0), (None, '"api";r=0;t=41', 42.0)])
def test_pauses_of_the_hub_are_honoured(
    hub: Hub, hub_task: Path, data: Path, after: str | None, limit: str | None, expected: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    slept: list[float] = []
    monkeypatch.setattr(http.Web, "sleep", lambda self, seconds: slept.append(seconds))
    hub.rate_limit = limit
    for name in ("info", "tree", "train-0.tar"):
        hub.busy[name] = [(429, after)]
    assert go(hub, hub_task, data, parallel=1).ok
    assert complete(hub, data / "birds")
    assert slept.count(expected) == 3


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "not a list"),
        ([1], "type None"),
        ([{"type": "file", "path": "a", "size": -1}], "size"),
        ([{"type": "file", "path": "a", "size": 1, "oid": "0"}], "hash"),
        ([{"type": "file", "path": "a", "size": 1, "oid": "0" * 40, "lfs": {"oid": None}}], "hash"),
        ([{"type": "file", "path": "a", "size": size, "oid": "0" * 40} for size in (1, 2)], "two files"),
        ([{"type": "link", "path": "a"}], "'link'"),
    ],
)
def test_an_odd_list_is_named(hub: Hub, hub_task: Path, data: Path, entries: object, said: str) -> None:
    hub.entries = entries
    message = the_problem(go(hub, hub_task, data))
    assert said in message
    assert hub.url in message


@pytest.mark.parametrize("info", [["x"], {"sha": "main"}, {"sha": "../" + "0" * 37}])
def test_an_odd_commit_is_named(hub: Hub, hub_task: Path, data: Path, info: object) -> None:
    hub.info = info
    assert "commit" in the_problem(go(hub, hub_task, data))


def test_a_data_set_without_a_shard_is_refused_before_the_download(hub: Hub, hub_task: Path, data: Path) -> None:
    hub.commits[COMMIT] = {name: content for name, content in hub.files.items() if name != "train-1.tar"}
    message = the_problem(go(hub, hub_task, data))
    assert "The data set org/birds has no file for train-1.tar" in message
    assert not data.exists()


def test_the_hub_takes_over_when_zenodo_is_silent(hub: Hub, zenodo: Zenodo, tmp_path: Path, data: Path) -> None:
    both = write_task(tmp_path, HUB_TASK.replace("[data]", '[data]\nzenodo = "4711"'))
    zenodo.busy["record"] = [(404, None)]
    assert fetch_task(both, data=data, mirror=zenodo.url, hf_mirror=hub.url).ok
    assert complete(hub, data / "birds")
    zenodo.busy["record"] = [(404, None)]
    hub.branches.clear()
    (data / "birds" / ".hub-commits.json").unlink()
    message = the_problem(fetch_task(both, data=data, mirror=zenodo.url, hf_mirror=hub.url))
    assert "no such record" in message
    assert "no such revision" in message


def test_the_endpoint_of_the_hub_comes_from_the_environment(
    hub: Hub, hub_task: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    assert fetch_task(hub_task, data=data).ok
    assert complete(hub, data / "birds")
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(ConfigError, match="mirror"):
        fetch_task(hub_task, data=data)


@pytest.mark.parametrize("by", ["option", "HF_HUB_OFFLINE"])
def test_offline_names_the_page(hub: Hub, hub_task: Path, data: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "HF_HUB_OFFLINE":
        monkeypatch.setenv(by, "1")
    message = the_problem(go(hub, hub_task, data, offline=by == "option"))
    assert dataset_page("org/birds") in message
    assert str(data / "birds") in message
    assert "test-*.tar" in message
    assert not hub.log


def test_an_old_download_of_other_bytes_is_not_gone_on_from(hub: Hub, hub_task: Path, data: Path) -> None:
    quiet = hub.cdn.etag

    def once(name: str) -> str | None:
        hub.cdn.busy[name] = [(503, None)] * 100
        return quiet(name)

    hub.cdn.etag, hub.cdn.cuts = once, {"train-0.tar": 1}
    assert not go(hub, hub_task, data).ok
    assert plan([hub_task], data=data, hf_mirror=hub.url).files[1].kept == 1000
    hub.cdn.etag = quiet
    hub.cdn.busy.clear()
    hub.commits[LATER] = {**hub.files, "train-0.tar": bytes(25_000)}
    hub.branches["main"] = LATER
    hub.cdn.files = hub.commits[LATER]
    hub.cdn.log.clear()
    assert go(hub, hub_task, data, replace=True).ok
    assert complete(hub, data / "birds", LATER)
    assert "range" not in hub.cdn.requests_of("train-0.tar")[0]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_goes_on(hub: Hub, hub_task: Path, data: Path, how: signal.Signals) -> None:
    """Also when the branch has moved in the meantime."""
    hub.cdn.block_s = 0.1
    process = subprocess.Popen(
        [sys.executable, "-m", "xares_store", "fetch", str(hub_task), "--data", str(data), "--hf-mirror", hub.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_PROXY": "*"},
    )  # fmt: skip
    partial = data / "birds" / ".train-0.tar.part"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (partial.is_file() and partial.stat().st_size > 2000):
        time.sleep(0.01)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL), error
    hub.cdn.block_s = 0.0
    hub.commits[LATER], hub.branches["main"] = dict.fromkeys(hub.files, b""), LATER
    kept = partial.stat().st_size
    hub.cdn.log.clear()
    assert go(hub, hub_task, data).ok
    assert complete(hub, data / "birds")
    assert hub.cdn.requests_of("train-0.tar")[0]["range"] == f"bytes={kept}-"
    assert not left_over(data / "birds")
