"""The examples in the docstrings of all modules run."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.test_promises import MODULES


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
