from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.store.conftest import flip_byte
from xares_store.cli.sql import sql
from xares_store.cli.store import store_group
from xares_store.errors import QueryError
from xares_store.store import Store


def _store(store: Store, *arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(store_group, [arguments[0], "--store", str(store.path), *arguments[1:]], input=input)


def _sql(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(sql, ["--store", str(store.path), *arguments])


def test_info_ls_du(full: Store) -> None:
    found = {row["what"]: row["value"] for row in json.loads(_store(full, "info", "--json").stdout)}
    assert (found["parts"], found["clips"], found["runs"]) == (3, 9, 2)
    assert "fold-2" in _store(full, "ls", "parts").stdout
    rows = json.loads(_store(full, "ls", "--json").stdout)
    assert rows == [
        {
            "encoder": "logmel@1a2b3c4d",
            "task": "esc10@9f8e7d6c",
            "parts": 3,
            "clips": 9,
            "failures": 3,
            "frames": 24,
            "dim": 5,
        }
    ]
    assert [row["run_id"] for row in json.loads(_store(full, "ls", "runs", "--json").stdout)] == ["run-42", "run-43"]
    assert json.loads(_store(full, "ls", "encoders", "--json").stdout)[0]["dim"] == 5
    assert "esc10@00000000" in _store(full, "ls", "tasks", "--csv").stdout
    assert {row["what"] for row in json.loads(_store(full, "du", "--json").stdout)} == {
        "embeddings",
        "runs",
        "index",
        "training",
        "other",
    }
    assert "MB" in _store(full, "du").stdout


def test_verify_exits_with_1_and_names_the_file(full: Store) -> None:
    result = _store(full, "verify")
    assert (result.exit_code, "Intact: 3 parts, 2 runs" in result.stdout) == (0, True)
    path = full.parts()[1].path / "frames/c/0/0"
    flip_byte(path, 20)
    result = _store(full, "verify", "--json")
    assert result.exit_code == 1
    assert [row["path"] for row in json.loads(result.stdout)] == [path.relative_to(full.path).as_posix()]
    assert _store(full, "verify", "--quick").exit_code == 0  # sizes are right
    path.unlink()
    assert _store(full, "verify", "--quick").exit_code == 1


def test_rm_asks(full: Store) -> None:
    result = _store(full, "rm", "--encoder", "logmel", "--dry-run")
    assert "2 runs were made from these embeddings" in result.stdout
    assert "Nothing was removed" in _store(full, "rm", "--encoder", "logmel", input="n\n").stdout
    assert len(full.parts()) == 3
    assert _store(full, "rm", "--encoder", "logmel", "--runs", "with", "--yes").exit_code == 0
    assert (full.parts(), full.runs()) == ([], [])
    assert "Removed 0 temporary" in _store(full, "rm", "--leftovers").stdout


def test_reindex(full: Store) -> None:
    assert "Indexed 9 clip rows and 2 runs." in _store(full, "reindex").stdout


def test_sql_formats(full: Store, tmp_path: Path) -> None:
    query = "select split, count(*) as n, sum(n_frames) as frames from clips group by all order by split"
    wanted = [{"split": f"fold-{fold}", "n": 3, "frames": 8} for fold in (1, 2, 3)]
    assert json.loads(_sql(full, query, "--json").stdout) == wanted
    rows = list(csv.DictReader(io.StringIO(_sql(full, query, "--csv").stdout)))
    assert rows == [{name: str(value) for name, value in row.items()} for row in wanted]
    assert "fold-3" in _sql(full, query).stdout
    result = _sql(full, query, "--parquet", str(tmp_path / "out.parquet"))
    assert result.exit_code == 0
    assert pq.ParquetFile(tmp_path / "out.parquet").read().to_pylist() == wanted


def test_sql_parquet_is_a_whole_file_or_the_old_one(full: Store, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    assert _sql(full, "select 1 as a", "--parquet", str(path)).exit_code == 0
    before = path.read_bytes()
    failed = _sql(full, "select interval 3 day as a", "--parquet", str(path))
    assert isinstance(failed.exception, QueryError)
    assert "varchar" in str(failed.exception)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.glob("*out*")] + [*map(str, tmp_path.glob(".tmp*"))] == ["out.parquet"]
    nowhere = _sql(full, "select 1", "--parquet", str(tmp_path / "none" / "out.parquet"))
    assert "There is no folder" in str(nowhere.exception)


def test_sql_limits_only_the_table(full: Store) -> None:
    result = _sql(full, "select clip_id from clips", "--limit", "2")
    assert "2 of 9 rows" in result.stderr
    assert result.stdout.count("clips-") == 2
    assert _sql(full, "select clip_id from clips", "--limit", "0").stdout.count("clips-") == 9
    assert len(json.loads(_sql(full, "select clip_id from clips", "--limit", "2", "--json").stdout)) == 9


def test_sql_errors_reach_the_one_place_that_prints_them(full: Store) -> None:
    result = _sql(full, "select nothing from clips")
    assert isinstance(result.exception, QueryError)
    assert "Views: clips" in str(result.exception)


@pytest.mark.parametrize("command", [["info"], ["ls"], ["verify"], ["reindex"], ["du"], ["rm", "--encoder", "x"]])
def test_no_store(tmp_path: Path, command: list[str]) -> None:
    result = CliRunner().invoke(store_group, [command[0], "--store", str(tmp_path / "none"), *command[1:]])
    assert isinstance(result.exception, OSError)
    assert not (tmp_path / "none").exists()
