"""A minimal task file to bend."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xares_store.task import Task

BASE = """\
format = 1
name = "mine"
title = "Mine"
domain = "other"
[data]
splits = { train = ["train-*.tar"], valid = ["valid-*.tar"], test = ["test-*.tar"] }
[target]
kind = "single-label"
key = "label"
labels = ["a", "b", "c"]
[metric]
name = "accuracy"
"""
SPLITS = 'splits = { train = ["train-*.tar"], valid = ["valid-*.tar"], test = ["test-*.tar"] }'


@pytest.fixture(scope="session")
def task_text() -> str:
    return BASE


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """Return a function that makes a task with other ``[data]`` lines and further lines of ``[target]``."""

    def make(data: str = SPLITS, target: str = "") -> Task:
        text = BASE.replace(SPLITS, data).replace('kind = "single-label"', f'kind = "single-label"\n{target}')
        return Task.from_text(text, where="mine.toml", base=None)

    return make
