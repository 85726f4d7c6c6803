"""Promises 8 and 9: reading a store runs no code, and importing does nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "xares_store"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)
HEAVY = ("torch", "transformers", "webdataset", "faiss", "sklearn")


def run(script: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_everything_changes_nothing(tmp_path: Path) -> None:
    script = f"""
import hashlib, os, random, sys, logging, socket, warnings, signal
os.chdir({str(tmp_path)!r})
# What other libraries do when they are imported is theirs; here only our own modules are watched.
import duckdb, faiss, jiwer, numpy, psutil, pyarrow.parquet, pydantic, rich.progress, safetensors.numpy, safetensors.torch
import sklearn.metrics, soundfile, soxr, tomli_w, torch, transformers, webdataset, zarr
opened = []
sys.addaudithook(lambda event, args: opened.append((event, args)) if event in ("socket.connect", "os.mkdir", "subprocess.Popen") or (
    event == "open" and isinstance(args[1], str) and any(letter in args[1] for letter in "wxa+")) else None)
digest = lambda value: hashlib.sha256(repr(value).encode()).hexdigest()
before = (dict(os.environ), os.getcwd(), digest(random.getstate()), digest(numpy.random.get_state()), torch.get_num_threads(),
          torch.initial_seed(), list(logging.root.handlers), logging.root.level, signal.getsignal(signal.SIGINT), list(warnings.filters))
import importlib
for name in {MODULES!r}:
    importlib.import_module(name)
after = (dict(os.environ), os.getcwd(), digest(random.getstate()), digest(numpy.random.get_state()), torch.get_num_threads(),
         torch.initial_seed(), list(logging.root.handlers), logging.root.level, signal.getsignal(signal.SIGINT), list(warnings.filters))
for index, (one, other) in enumerate(zip(before, after)):
    assert one == other, (index, one, other)
assert not [entry for entry in opened if "__pycache__" not in str(entry) and "/dev/null" not in str(entry)], opened
print("fine")
"""
    assert run(script, PYTHONDONTWRITEBYTECODE="1").strip() == "fine"
    assert list(tmp_path.iterdir()) == []


LIGHT = [
    ["--help"],
    ["embed", "--help"],
    ["evaluate", "--help"],
    ["tasks", "ls"],
    ["tasks", "show", "esc50"],
    ["store", "--help"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
from xares_store.cli import main
code = main({arguments!r})
assert code == 0, code
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run(script).splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize(
    "query",
    [["sql", "select count(*) as n from clips"], ["leaderboard"], ["store", "info"], ["store", "verify"]],
    ids=str,
)
def test_reading_commands_import_nothing_heavy(query: list[str], tmp_path: Path) -> None:
    script = f"""
import sys
from xares_store.store.store import Store
Store.open({str(tmp_path / "s")!r}, create=True)
from xares_store.cli import main
code = main({query!r} + ["--store", {str(tmp_path / "s")!r}])
assert code == 0, code
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run(script).splitlines()[-1] == "heavy: []"


def test_no_module_unpickles_or_evaluates_text() -> None:
    """Promise 8: there is no code path that could run code from a store."""
    assert len(MODULES) > 40
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml"} & {
                name.split(".")[0] for name in names
            }, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__", "os.system"), (path, called)
                if called in ("torch.load", "np.load", "numpy.load"):
                    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert keywords.get("weights_only") == "True" or keywords.get("allow_pickle") == "False", path
