"""SIGTERM ends ``xares evaluate`` as Ctrl-C does: with a checkpoint, a message and a code of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.runs.llm.material import Llm, make, write_recipe
from xares_store.cli import cli


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return make(tmp_path_factory.mktemp("llm"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_told_to_end_keeps_its_steps(
    llm: Llm, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    store = llm.fresh(tmp_path / "s")
    # So many steps that only the signal ends it; the first checkpoint tells that it has begun.
    recipe = write_recipe(tmp_path, llm.decoder, name="slow", joint=True, steps=100_000, checkpoint_s=4.0)
    command = [
        sys.executable, "-m", "xares_store", "evaluate", "--probe", "llm", "--recipe", str(recipe), "--task",
        str(llm.naming), "--store", str(store.path),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not _checkpoints(store.path):
        time.sleep(0.05)
    (checkpoint,) = _checkpoints(store.path)
    before = checkpoint.stat().st_mtime_ns
    time.sleep(0.5)  # for further steps, which are not kept before another four seconds are over
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command does only what is missing" in said
    assert "Traceback" not in said
    assert _checkpoints(store.path)[0].stat().st_mtime_ns > before
    assert store.runs() == []


def _checkpoints(store: Path) -> list[Path]:
    return list((store / "training").rglob("checkpoint.safetensors"))


def test_the_handler_is_there_only_as_long_as_the_command(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xares_store.runs import evaluate as module

    def terminated(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(module, "evaluate", terminated)
    before = signal.getsignal(signal.SIGTERM)
    found = CliRunner().invoke(cli, ["evaluate", "--store", str(llm.store)], standalone_mode=False)
    assert (found.exception, found.return_value) == (None, 143)
    assert signal.getsignal(signal.SIGTERM) is before
