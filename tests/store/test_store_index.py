from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from tests.store.conftest import ENCODER, TASK, address, flip_byte, make_frames, put_part, put_run
from xares_store import catalog
from xares_store.clip import Clip
from xares_store.errors import CorruptError, QueryError
from xares_store.store import Source, Store, index
from xares_store.store.layout import INDEX
from xares_store.store.query import VIEWS


def _count(store: Store, view: str) -> int:
    return int(store.sql(f"select count(*) as n from {view}")["n"][0].as_py())


def test_views_are_those_of_the_ddl(full: Store) -> None:
    found = set(full.sql("select view_name from duckdb_views() where not internal")["view_name"].to_pylist())
    assert found == set(VIEWS)
    text = (catalog.data_dir("schema") / "index.sql").read_text("utf-8")
    for view in VIEWS:
        assert f"-- {view}:" in text  # each is explained
        assert full.sql(f"select * from {view}").num_columns > 5


def test_rows_of_every_view(full: Store) -> None:
    assert {view: _count(full, view) for view in VIEWS} == {
        "clips": 9,
        "embeddings": 3,
        "failures": 3,
        "scores": 4,
        "runs": 2,
        "predictions": 8,
        "leaderboard": 1,
    }
    clip = full.sql("select * from clips where clip_id = 'clips-2-0-1'").to_pylist()
    assert clip == [
        {
            "encoder": ENCODER, "task": TASK, "split": "fold-2", "shard": "clips-2", "sequence": 0, "clip_id": "clips-2-0-1",
            "key": "clips-2-0-1", "crop": 0, "start_s": 0.0, "duration_s": 0.01, "offset": 3, "n_frames": 1,
            "label": '{"label": 1, "category": "c1"}', "row": 1,
        }
    ]  # fmt: skip
    failure = full.sql("select shard, key, kind, reason from failures order by shard").to_pylist()[0]
    assert failure == {"shard": "clips-1", "key": "clips-1-0-bad0", "kind": "empty", "reason": "There is no audio."}
    assert full.clips("label->>'category' = $c", {"c": "c1"})["clip_id"].to_pylist() == [
        f"clips-{n}-0-1" for n in (1, 2, 3)
    ]


def test_leaderboard_averages_seeds_and_nothing_else(store: Store) -> None:
    def run(name: str, value: float, **changes: object) -> None:
        scores = [
            {"metric": "accuracy", "value": value, "fold": None, "low": value - 0.1, "high": value + 0.1, "n": 4},
            {"metric": "accuracy", "value": 0.0, "fold": "1", "low": 0.0, "high": 0.0, "n": 2},
            {"metric": "other", "value": 9.0, "fold": None, "low": 9.0, "high": 9.0, "n": 4},
        ]
        assert put_run(store, name, scores=scores, **changes)

    run("a", 0.5, seed=1)
    run("b", 0.7, seed=2)
    run("c", 0.1, seed=1, where="duration_s < 3")
    run("d", 0.2, seed=1, protocol="published")
    run("e", 0.3, seed=1, settings={"epochs": 3})
    run("f", 0.4, seed=None, probe="knn", settings={"k": 10})
    rows = store.sql("select * from leaderboard").to_pylist()
    got = {(row["probe"], row["protocol"], row["settings"]): row for row in rows}
    assert len(got) == len(rows) == 4
    two = got["mlp", "strict", '{"epochs": 10, "learning_rates": [0.001]}']
    assert two["score"] == pytest.approx(0.6)
    assert two["seed_sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert (two["n_seeds"], two["low"], two["high"]) == (2, pytest.approx(0.5), pytest.approx(0.7))
    assert got["mlp", "published", '{"epochs": 10, "learning_rates": [0.001]}']["score"] == pytest.approx(0.2)
    assert got["knn", "strict", '{"k": 10}']["seed_sd"] is None
    assert _count(store, "scores") == 18


def test_follows_what_comes_and_goes(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _count(full, "clips") == 9
    loaded: list[list[str]] = []
    real = index._load

    def spy(connection: duckdb.DuckDBPyConnection, root: Path, new: dict[str, str]) -> None:
        loaded.append(sorted(new))
        real(connection, root, new)

    monkeypatch.setattr(index, "_load", spy)
    part = put_part(full, address("fold-4", "clips-4"))
    put_run(full, "run-44", seed=44)
    assert _count(full, "clips") == 12
    assert loaded == [[f"{part.address.path}/part.json", "runs/run-44/run.json"]]  # only what is new
    assert _count(full, "clips") == 12
    assert len(loaded) == 1  # nothing changed, nothing done
    shutil.rmtree(part.path)
    shutil.rmtree(full.path / "runs/run-42")
    assert (_count(full, "clips"), _count(full, "runs"), _count(full, "predictions"), _count(full, "failures")) == (
        9,
        2,
        8,
        3,
    )
    put_part(full, address("fold-4", "clips-4"), seed=9, lengths=[2, 2])
    assert _count(full, "clips") == 11
    shutil.rmtree(part.path)
    put_part(full, address("fold-4", "clips-4"), seed=8, lengths=[2])  # another part at the same place
    assert _count(full, "clips") == 10
    monkeypatch.setattr(index, "_load", real)
    before = {view: full.sql(f"select * from {view} order by all").to_pylist() for view in VIEWS}
    full.reindex()
    assert {view: full.sql(f"select * from {view} order by all").to_pylist() for view in VIEWS} == before


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other_version(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("update cache.meta set value = 'older'")


def _other_database(path: Path) -> None:
    path.unlink()
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table clips (a int)")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _folder(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [_garbage, _empty, _other_version, _other_database, _cut, _folder])
def test_a_useless_index_is_built_anew(full: Store, spoil: object) -> None:
    wanted = full.sql("select * from clips order by all")
    spoil(full.path / INDEX)
    assert full.sql("select * from clips order by all").equals(wanted)


def test_any_damaged_block_is_built_anew(full: Store) -> None:
    wanted = full.sql("select * from clips order by all").to_pylist()
    path = full.path / INDEX
    intact = path.read_bytes()
    for position in range(40_000, len(intact), len(intact) // 9):
        flip_byte(path, position)
        assert full.sql("select * from clips order by all").to_pylist() == wanted
        assert _count(full, "predictions") == 8
        flip_byte(path, position)  # and once more, met while a run is added
        assert put_run(full, f"after-{position}")
        assert _count(full, "predictions") == 12
        full.rm(run_ids=[f"after-{position}"])
        path.write_bytes(intact)


def test_damage_in_a_new_part_is_named(full: Store) -> None:
    part = full.parts()[0]
    flip_byte(part.path / "clips.parquet", 200)
    with pytest.raises(CorruptError) as caught:
        full.sql("select 1")
    assert str(part.path / "clips.parquet") in str(caught.value)
    shutil.rmtree(part.path)
    assert _count(full, "clips") == 6


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('{other}')",
        "select * from '{other}'",
        "select * from read_parquet('{root}/embeddings/**/*.parquet')",
        "select * from glob('/*')",
        "attach '{other}.duckdb' as x",
        "attach '{other}.duckdb' as x (read_only)",
        "copy clips to '{other}.csv'",
        "copy (select 1) to '{other}.parquet'",
        "export database '{other}.d'",
        "create table x as select 1",
        "insert into cache.run select * from cache.run",
        "delete from cache.clip",
        "drop view clips",
        "update cache.score set value = 1",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "set temp_directory = '{root}'",
        "reset enable_external_access",
        "select * from 'https://example.org/x.parquet'",
        "select * from secret",
        "select getenv('HOME')",
        "select 1; drop view clips",
        "",
        "selec 1",
        "select foo from clips",
        "select * from clip",
    ],
)
def test_what_a_query_cannot_do(full: Store, tmp_path: Path, query: str) -> None:
    secret = pa.table({"a": [1]})  # a Python variable must not be a table either
    assert secret.num_rows == 1
    other = tmp_path / "other.txt"
    other.write_text("secret")
    with duckdb.connect(f"{other}.duckdb") as connection:
        connection.execute("create table t as select 1")
    listing = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError) as caught:
        full.sql(query.format(other=other, root=full.path))
    assert "secret" not in caught.value.message.replace("from secret", "").replace("name secret", "")
    assert sorted(tmp_path.iterdir()) == listing
    assert _count(full, "clips") == 9


def test_errors_help(full: Store) -> None:
    with pytest.raises(QueryError, match="Did you mean") as caught:
        full.sql("select * from clps")
    assert "predictions" in str(caught.value)
    with pytest.raises(QueryError) as caught:
        full.sql("select durations from clips")
    assert "duration_s" in str(caught.value)


def test_parameters_and_plain_numbers(full: Store) -> None:
    assert full.sql("select ? as a, ? as b", [1, "x'; drop view clips"]).to_pylist() == [
        {"a": 1, "b": "x'; drop view clips"}
    ]
    empty = full.sql(
        "select count(*) as n from clips where len($names) = 0 or list_contains($names, encoder)", {"names": []}
    )
    assert empty.to_pylist() == [{"n": 9}]
    table = full.sql("select sum(n_frames) as s, avg(n_frames) as m, 1.5 as d from clips")
    assert [str(kind) for kind in table.schema.types] == ["int64", "double", "double"]
    assert table.to_pylist() == [{"s": 24, "m": pytest.approx(8 / 3), "d": 1.5}]


def test_numbers_and_names_that_do_not_fit_are_not_bent(full: Store) -> None:
    big = full.sql("select sum(9223372036854775807) as s, 12345678901234567890::decimal(38, 0) as d from range(3)")
    assert big.to_pylist() == [{"s": pytest.approx(3 * 2.0**63), "d": pytest.approx(12345678901234567890)}]
    assert full.sql("select 1 as a, 2 as a, 3 as a_1").to_pylist() == [{"a": 1, "a_1": 2, "a_1_1": 3}]


def test_text_that_is_not_unicode(full: Store) -> None:
    for query in (lambda: full.sql("select '\udcff'"), lambda: full.pooled(ENCODER, TASK, "clip_id = '\udcff'")):
        with pytest.raises(QueryError, match="UTF-8"):
            query()


def test_one_odd_label_does_not_spoil_the_others(store: Store) -> None:
    # Python's JSON lets half of a surrogate pair pass, DuckDB's does not.
    labels = ['{"category":"dog","note":"\\ud800"}', '{"category":"cat","note":"\\ud83d\\ude00"}', "no JSON"]
    put_part(store, labels=labels)
    assert store.sql("select label->>'category' as c, label->>'note' as n from clips order by \"row\"").to_pylist() == [
        {"c": "dog", "n": "?"},
        {"c": "cat", "n": "\N{GRINNING FACE}"},
        {"c": None, "n": None},
    ]
    assert store.clips().num_rows == 3
    rows = store.pooled(ENCODER, TASK)[1].column("label").to_pylist()
    assert rows == labels  # as they came
    where = "case when label like 'no%' then false else label->>'note' = '?' end"
    assert store.pooled(ENCODER, TASK, where)[0].shape[0] == 1


def test_ctrl_c_ends_a_query(full: Store) -> None:
    full.sql("select 1")  # an index that is up to date: the query begins at once
    endless = "select count(*) from range(10000000) a, range(10000000) b where a.range * b.range % 7 = 3"
    command = (
        f"from xares_store.store import Store; print('on', flush=True); Store.open({str(full.path)!r}).sql({endless!r})"
    )
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        try:
            assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
        finally:
            process.kill()


def test_queries_from_threads(full: Store) -> None:
    found, errors = [], []

    def query(number: int) -> None:
        try:
            put_run(full, f"thread-{number}", seed=number)
            found.append(_count(full, "runs"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=query, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert max(found) == 8


def test_names_with_special_characters(store: Store) -> None:
    where = address("fold 1", "a%2Fb*[c]?", encoder="hubert[layer=6]@1a2b3c4d", task="it's@9f8e7d6c")
    part = put_part(store, where)
    assert part.address == where
    assert store.sql("select distinct encoder, task, split, shard from clips").to_pylist() == [
        {"encoder": "hubert[layer=6]@1a2b3c4d", "task": "it's@9f8e7d6c", "split": "fold 1", "shard": "a%2Fb*[c]?"}
    ]
    assert store.pooled("hubert[layer=6]", "it's")[0].shape == (3, 5)
    assert store.frames(f"{where.shard}-0-0", encoder="hubert[layer=6]").shape == (3, 5)
    assert store.verify() == []


@pytest.mark.slow
def test_a_hundred_thousand_clips(store: Store) -> None:
    one = np.ones((1, 1), np.float32)
    for shard in range(4):
        writer = store.part_writer(address(shard=f"s{shard}"), dim=1, hop_ms=10, sample_rate_hz=16000)
        for row in range(25_000):
            writer.add(Clip(f"{shard}-{row}", f"{shard}-{row}", 0, 0.0, row / 1000, '{"label": 3}'), one, one[0])
        writer.commit(Source("s", "0" * 64, 1), final=True, first_sample=0, n_samples=25_000, timing={}, versions={})
    assert _count(store, "clips") == 100_000
    vectors, table = store.pooled(ENCODER, TASK, "duration_s >= 24")
    assert vectors.shape == (4000, 1)
    assert table["shard"].to_pylist() == sorted(table["shard"].to_pylist())


def test_make_frames_is_seeded() -> None:
    np.testing.assert_array_equal(make_frames([3], 2, seed=4)[0], make_frames([3], 2, seed=4)[0])
