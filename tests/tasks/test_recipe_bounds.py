"""Numbers of a recipe that no training can use are refused when its file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from xares_store.catalog import load_recipe
from xares_store.errors import TaskError, TaskNotFoundError
from xares_store.recipe import Recipe

MOST = 100_000_000


def read(folder: Path, place: tuple[str, ...], value: Any) -> Recipe:
    """Read the shipped recipe with one value changed."""
    raw = load_recipe("xares-llm").model_dump(mode="json", exclude_none=True)
    table = raw
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    path = folder / "xares-llm.toml"
    path.write_text(tomli_w.dumps(raw))
    return Recipe.from_toml(path)


@pytest.mark.parametrize(
    ("place", "most", "least"),
    [
        (("optimiser", "learning_rate"), 100.0, 1e-9),
        (("optimiser", "warmup_steps"), MOST, 0),
        (("training", "steps"), MOST, 1),
        (("training", "steps_of", "llm-gtzan"), MOST, 1),
        (("training", "frame_budget"), MOST, 16),
        (("mixtures", "all", "steps"), MOST, 1),
        (("mixtures", "all", "probability", "llm-clotho"), 1e6, 1e-6),
        (("mixtures", "all", "shards", "llm-gtzan"), 1_000_000, 1),
        (("mixtures", "all", "all_shards"), 1_000_000, 1),
    ],
    ids=str,
)
def test_bounds(tmp_path: Path, place: tuple[str, ...], most: float, least: float) -> None:
    read(tmp_path, place, most)
    read(tmp_path, place, least)
    for value in (most * 2, type(most)(-1)):
        with pytest.raises(TaskError, match=place[-1]):
            read(tmp_path, place, value)


def test_a_missing_file_speaks_of_recipes(tmp_path: Path) -> None:
    with pytest.raises(TaskNotFoundError, match="no such file") as found:
        Recipe.from_toml(tmp_path / "mine.toml")
    assert found.value.hint == "`xares recipes ls` lists the recipes that ship."
