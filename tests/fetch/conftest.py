from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fetch.server import Zenodo, write_task
from xares_store.fetch import http


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_S", 0.001)
    monkeypatch.setattr(http, "MAX_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("XARES_ZENODO", raising=False)


@pytest.fixture
def zenodo() -> Iterator[Zenodo]:
    generator = random.Random(0)
    names = ["train-0.tar", "train-1.tar", "test-7.tar", "README.md"]
    server = Zenodo({name: generator.randbytes(25_000) for name in names})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"
