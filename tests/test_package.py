"""The package as others get it: one public door, a wheel that carries its data, and no cycle in the tree."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import xares_store

ROOT = Path(__file__).resolve().parents[1]


def test_the_public_door_opens_every_name() -> None:
    assert sorted(xares_store.__all__) == xares_store.__all__
    assert set(xares_store._DOOR) | {"__version__"} == set(xares_store.__all__) == set(dir(xares_store))
    for name in xares_store.__all__:
        assert getattr(xares_store, name) is not None
        if name in xares_store._DOOR and name != "__version__":
            assert getattr(xares_store, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        _ = xares_store.nothing


@pytest.mark.slow
def test_a_wheel_installed_alone_has_the_tasks_and_works(tmp_path: Path) -> None:
    """The dependencies come from this environment; the package itself from the wheel alone."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "xares_store/data/tasks/xares/esc50.toml" in names
    assert "xares_store/data/schema/index.sql" in names
    assert not [name for name in names if name.startswith(("tests/", "tasks/"))]
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)],
        check=True, capture_output=True,
    )  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def xares(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "xares_store", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import xares_store; print(xares_store.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    assert "esc50" in xares("tasks", "ls")
    xares("demo-data", "data", "--clips", "60")
    xares(
        "embed", "--encoder", "logmel", "--task", "data/demo.toml", "--data", "data", "--store", "s", "--workers", "1"
    )
    assert "accuracy" in xares("evaluate", "--store", "s", "--probe", "knn")
    assert "60" in xares("sql", "--store", "s", "select count(*) as n from clips", "--csv")
