from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fetch.server import HUB_TASK, Cdn, Hub, Misbehaving, Zenodo, write_task
from xares_store.fetch import http


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_S", 0.001)
    monkeypatch.setattr(http, "MAX_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("XARES_ZENODO", "HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")


@contextmanager
def serving(server: Misbehaving) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def zenodo() -> Iterator[Zenodo]:
    generator = random.Random(0)
    names = ["train-0.tar", "train-1.tar", "test-7.tar", "README.md"]
    server = Zenodo({name: generator.randbytes(25_000) for name in names})
    with serving(server):
        yield server


@pytest.fixture
def hub() -> Iterator[Hub]:
    generator = random.Random(1)
    files = {name: generator.randbytes(25_000) for name in ("train-0.tar", "train-1.tar", "other/x.bin")}
    files |= {"test-7.tar": b"small enough for git", "README.md": b"# Birds"}
    cdn = Cdn(files)
    server = Hub(files, cdn)
    with serving(cdn), serving(server):
        yield server


@pytest.fixture
def hub_task(tmp_path: Path) -> Path:
    return write_task(tmp_path, HUB_TASK)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"
