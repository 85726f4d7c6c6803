"""``xares recipes``."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from xares_store.catalog import data_dir, load_recipe, recipe_names
from xares_store.cli.recipes import recipes, schema_text
from xares_store.errors import TaskError, TaskNotFoundError

SHIPPED = data_dir("tasks") / "recipes"


def run(*args: str) -> str:
    result = CliRunner().invoke(recipes, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_ls() -> None:
    rows = json.loads(run("ls", "--json"))
    assert [row["recipe"] for row in rows] == recipe_names()
    found = {row["recipe"]: row for row in rows}
    assert found["xares-llm"]["lora"] == "r 8, alpha 32"
    assert found["xares-llm"]["mixtures"] == "task1 task2 all challenge"
    assert (found["xares-asr"]["length"], found["xares-asr"]["lora"]) == ("10 epochs", None)
    assert [row["decoder"] for row in csv.DictReader(io.StringIO(run("ls", "--csv")))] == [
        load_recipe(name).decoder for name in recipe_names()
    ]
    assert "xares-asr" in run("ls")


def test_a_change_is_seen_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = run("show", "xares-asr", "--toml").replace("stride = 1", "stride = 4").replace('"stack"', '"mean"')
    (tmp_path / "xares-asr.toml").write_text(text, encoding="utf-8")
    changed = load_recipe(tmp_path / "xares-asr.toml")
    monkeypatch.setattr("xares_store.catalog.load_recipe", lambda name: changed)
    assert {row["projector"] for row in json.loads(run("ls", "--json"))} == {"swiglu, mean 4"}


def test_show() -> None:
    recipe = load_recipe("xares-llm")
    facts = json.loads(run("show", "xares-llm", "--json"))
    assert facts["fingerprint"] == recipe.fingerprint
    assert facts["mixtures"]["task2"]["shares"] == recipe.mixtures["task2"].shares()
    assert facts["training"]["steps_of"] == recipe.training.steps_of
    rows = {row["key"]: row["value"] for row in csv.DictReader(io.StringIO(run("show", "xares-llm", "--csv")))}
    assert rows["mixtures.task2.shares.llm-mecat"] == "0.333333"
    assert (rows["optimiser.learning_rate"], rows["joint"]) == ("0.0001", "True")
    assert "separator" not in rows
    with pytest.raises(TaskNotFoundError, match='Did you mean "xares-llm"'):
        run("show", "xares-lm")


@pytest.mark.parametrize("name", recipe_names())
def test_show_toml_is_a_recipe_file(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.toml").write_text(run("show", name, "--toml"), encoding="utf-8")
    assert load_recipe(tmp_path / f"{name}.toml").fingerprint == load_recipe(name).fingerprint
    assert run("show", str(tmp_path / f"{name}.toml"), "--json") == run("show", name, "--json")


@pytest.mark.parametrize("other", ["--json", "--csv"])
def test_two_formats_are_refused(other: str) -> None:
    result = CliRunner().invoke(recipes, ["show", "xares-llm", "--toml", other])
    assert result.exit_code == 2
    assert f"--toml and {other}" in result.output


def test_validate_lists_all_problems(tmp_path: Path) -> None:
    assert run("validate", str(SHIPPED)).count(": valid, ") == len(recipe_names())
    text = run("show", "xares-asr", "--toml")
    good, bad = tmp_path / "mine.toml", tmp_path / "bad.toml"
    good.write_text(text.replace('"xares-asr"', '"mine"'), encoding="utf-8")
    bad.write_text(text.replace("epochs = 10", "epochs = 10\nsteps = 3").replace("combine", "combin"), encoding="utf-8")
    assert "mine.toml: valid, Qwen/Qwen2.5-0.5B, 10 epochs, mine@" in run("validate", str(good))
    result = CliRunner().invoke(recipes, ["validate", str(tmp_path), str(tmp_path / "none.toml")])
    assert isinstance(result.exception, TaskError)
    assert "2 of 3 recipe files" in str(result.exception)
    assert f"{good}: valid" in result.stdout
    assert 'projector.combin: unknown key. Did you mean "combine"?' in result.stderr
    assert "wanted exactly one of epochs and steps" in result.stderr
    assert "none.toml: there is no such file" in result.stderr
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=r"no \.toml file"):
        run("validate", str(tmp_path / "empty"))


def test_the_committed_schema_is_current() -> None:
    committed = (data_dir("schema") / "recipe.schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "run: xares recipes schema > schema/recipe.schema.json"
    assert run("schema") == committed
    content = json.loads(committed)
    assert content["additionalProperties"] is False
    assert {"decoder", "projector", "optimiser", "training", "generation"} <= set(content["required"])
    for name in recipe_names():
        first = (SHIPPED / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0]
        assert (SHIPPED / first.removeprefix("#:schema ")).resolve() == data_dir("schema") / "recipe.schema.json"


@pytest.mark.parametrize("arguments", [["ls"], ["show", "xares-llm"], ["validate", str(SHIPPED)], ["schema"]], ids=str)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from xares_store.cli import main\n"
        f"assert main({['recipes', *arguments]!r}) == 0\n"
        "heavy = {'torch', 'transformers', 'webdataset', 'sklearn', 'faiss', 'duckdb', 'zarr'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
