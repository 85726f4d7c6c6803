"""Fixtures that all tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.toy import encoder_file, make_toy, toy

# Test processes side by side: threads that compute in step lose far more to a busy core than they gain. Read when torch is
# first imported, which no test module has done yet, and inherited by the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

__all__ = ["encoder_file", "esc10_dir", "make_toy", "toy"]


@pytest.fixture(scope="session")
def esc10_dir() -> Path:
    """Folder of the real ESC-10 shards (never committed); the same behaviour is tested on generated audio too."""
    root = Path(os.environ.get("XARES_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    folder = root / "esc10"
    if not folder.is_dir():
        pytest.skip("the real ESC-10 shards are not on this machine (set XARES_TEST_DATA)")
    return folder
