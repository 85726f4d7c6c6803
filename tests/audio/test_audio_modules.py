from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = ["batches", "decode", "processes", "samples", "shards", "waveform", "worker"]


def test_all_modules_are_named_here() -> None:
    package = Path(__file__).parents[2] / "xares_store" / "audio"
    assert sorted(path.stem for path in package.glob("*.py") if path.stem != "__init__") == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"xares_store.audio.{name}")).failed == 0


def test_reading_audio_needs_no_torch() -> None:
    code = f"import sys; import {', '.join(f'xares_store.audio.{name}' for name in MODULES)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert not {"torch", "webdataset", "transformers"} & set(done.stdout.split())
