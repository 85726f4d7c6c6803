"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["check", "encoder", "identity", "logmel", "modspec", "spec", "verify"])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"xares_store.encoders.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
