"""The README's commands and its Python do what it says, in the order in which it says it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(pattern: str) -> list[str]:
    return re.findall(pattern, README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_readme_can_be_followed_from_top_to_bottom(tmp_path: Path) -> None:
    encoder, *_ = [block for block in blocks(r"```python\n(.*?)```") if block.startswith("# my_encoder.py")]
    (tmp_path / "my_encoder.py").write_text(encoder)
    xares = [sys.executable, "-m", "xares_store"]
    env = {**os.environ, "COLUMNS": "120"}
    subprocess.run([*xares, "demo-data", "demo/data", "--clips", "120"], cwd=tmp_path, check=True, capture_output=True)
    commands = [line for block in blocks(r"<!-- tested -->\n```sh\n(.*?)```") for line in block.splitlines()]
    assert len(commands) > 20
    removal = commands.pop()
    assert "store rm" in removal  # last, because the Python below reads what it removes
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "xares", command
        done = subprocess.run([*xares, *words[1:]], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), command
    snippet, *_ = [block for block in blocks(r"```python\n(.*?)```") if block.startswith("from xares_store")]
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*xares, *shlex.split(removal)[1:]], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readmes_task_file_validates(tmp_path: Path) -> None:
    from xares_store.catalog import load_task

    (example,) = blocks(r"```toml\n(.*?)```")
    path = tmp_path / "birds.toml"
    path.write_text(example)
    assert load_task(str(path)).labels == ("blackbird", "robin", "wren")


def test_make_targets_that_the_readme_names_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE))
    assert {"demo", "test", "bench"} <= named <= targets


def test_make_bench_runs_every_benchmark() -> None:
    from tests.benchmarks.__main__ import NAMES

    files = {path.stem.removeprefix("bench_") for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")}
    assert files == set(NAMES)


def test_every_number_in_the_readme_is_one_that_was_measured() -> None:
    assert "RESULT_" not in README
