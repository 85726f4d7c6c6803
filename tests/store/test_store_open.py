"""Opening, refusing, and disks that do not play along."""

from __future__ import annotations

import ctypes
import errno
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.store.conftest import ENCODER, TASK, address, flip_byte, make_frames, put_part, put_run
from xares_store.errors import ClashError, CorruptError, QueryError, StoreError, StoreFormatError
from xares_store.store import Store
from xares_store.store.files import TMP_PREFIX, atomic_write, disk_errors, seal, unseal

ROOT = Path(__file__).parents[2]


def test_create_then_open(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "deep" / "s")
    assert Store.open(store.path).id == store.id
    assert Store.open(store.path, create=True).id == store.id
    with pytest.raises(StoreError, match="already"):
        Store.create(store.path)
    assert Store.create(tmp_path / "other").id != store.id


def test_what_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found nothing") as caught:
        Store.open(tmp_path / "none")
    assert "embed" in str(caught.value)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "holiday.jpg").write_bytes(b"x")
    for create in (False, True):
        with pytest.raises(StoreFormatError, match=r"without store\.json"):
            Store.open(tmp_path / "a", create=create)
    with pytest.raises(StoreError, match="other files"):
        Store.create(tmp_path / "a")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreFormatError):
        Store.open(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert Store.open(tmp_path / "empty", create=True).parts() == []


@pytest.mark.parametrize("sealed", [True, False])
def test_a_newer_format_is_refused_and_untouched(full: Store, sealed: bool) -> None:
    path = full.path / "store.json"
    record = {**unseal(path.read_bytes(), where=path), "format": 2, "new": "key"}
    path.write_bytes(seal(record) if sealed else json.dumps(record).encode())
    before = {file: file.read_bytes() for file in full.path.rglob("*") if file.is_file()}
    with pytest.raises(StoreFormatError, match="format 2") as caught:
        Store.open(full.path, create=True)
    assert "Update xares-store" in str(caught.value)
    assert {file: file.read_bytes() for file in full.path.rglob("*") if file.is_file()} == before


def test_a_newer_part_is_refused_by_name(full: Store) -> None:
    path = full.parts()[1].path / "part.json"
    path.write_bytes(seal({**unseal(path.read_bytes(), where=path), "format": 7}))
    with pytest.raises(StoreFormatError) as caught:
        full.pooled(ENCODER, TASK)
    assert str(path) in str(caught.value)
    assert [problem.path for problem in full.verify()] == [path.relative_to(full.path).as_posix()]


def test_pooled_in_order_with_rows(full: Store) -> None:
    vectors, table = full.pooled("logmel", "esc10")
    assert vectors.dtype == np.float32
    assert vectors.shape == (9, 5)
    assert table["split"].to_pylist() == ["fold-1"] * 3 + ["fold-2"] * 3 + ["fold-3"] * 3
    np.testing.assert_array_equal(vectors, np.concatenate([part.pooled() for part in full.parts()]))
    for row, clip in enumerate(table["clip_id"].to_pylist()):
        frames = full.frames(clip).astype(np.float32)
        np.testing.assert_allclose(vectors[row], frames.mean(axis=0), atol=2e-3)
    assert full.pooled(ENCODER, TASK, split="fold-2")[0].shape == (3, 5)


def test_pooled_where(full: Store) -> None:
    everything, table = full.pooled(ENCODER, TASK)
    picked, rows = full.pooled(ENCODER, TASK, "duration_s < 0.04 and split <> 'fold-2' -- a comment")
    keep = [
        d < 0.04 and s != "fold-2"
        for d, s in zip(*(table[n].to_pylist() for n in ("duration_s", "split")), strict=True)
    ]
    np.testing.assert_array_equal(picked, everything[np.array(keep)])
    assert rows.num_rows == sum(keep) > 0
    assert full.pooled(ENCODER, TASK, "label->>'category' = 'c1'")[0].shape == (3, 5)
    assert full.pooled(ENCODER, TASK, "false")[0].shape == (0, 5)


@pytest.mark.parametrize(
    "where",
    ["duration < 3", "1; drop table clips", "true) or (select count(*) from read_text('/etc/passwd')) > 0 --", "", " \n",
     "random() < 0.5",
     "clip_id in (select content from read_text('/etc/hostname'))"],
)  # fmt: skip
def test_pooled_where_is_a_predicate_and_reads_nothing_else(full: Store, where: str) -> None:
    with pytest.raises(QueryError):
        full.pooled(ENCODER, TASK, where)


def test_names_that_match_nothing_or_too_much(full: Store) -> None:
    with pytest.raises(StoreError, match="no embeddings") as caught:
        full.pooled("logmle", "esc10")
    assert 'Did you mean "logmel"' in str(caught.value)
    put_part(full, address(encoder="logmel@ffffffff"))
    with pytest.raises(StoreError, match="one of the encoders, found 2"):
        full.pooled("logmel", "esc10")
    assert full.pooled("logmel@ffffffff", "esc10")[0].shape == (3, 5)
    with pytest.raises(StoreError, match="Expected one clip, found 0"):
        full.frames("nobody")
    put_part(full, address("fold-1", "clips-1", encoder="other@00000000"), seed=1)
    with pytest.raises(StoreError, match="Expected one clip, found 2"):
        full.frames("clips-1-0-0")
    assert full.frames("clips-1-0-0", encoder="other").shape == (3, 5)


def test_merging_is_copying_folders(tmp_path: Path) -> None:
    one, two = Store.create(tmp_path / "1"), Store.create(tmp_path / "2")
    put_part(one, address("fold-1", "a"))
    put_part(two, address("fold-2", "b"))
    put_run(two, "run-2")
    one.sql("select 1")
    shutil.copytree(two.path, one.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index*", "store.json"))
    assert one.pooled(ENCODER, TASK)[0].shape == (6, 5)
    assert one.sql("select count(*) as n from clips").to_pylist() == [{"n": 6}]
    assert one.runs() == ["run-2"]
    assert one.verify() == []


def test_rm_says_what_depends_and_removes_it(full: Store) -> None:
    plan = full.rm(encoder="logmel", dry_run=True)
    assert (len(plan.parts), plan.runs, plan.dependent) == (3, [], ["run-42", "run-43"])
    assert len(full.parts()) == 3
    full.rm(run_ids=["run-42"])
    assert full.runs() == ["run-43"]
    assert full.sql("select count(*) as n from scores").to_pylist() == [{"n": 2}]
    full.rm(task="esc10", encoder="logmel")
    assert full.parts() == []
    assert full.runs() == ["run-43"]
    assert list(full.encoders()) == [ENCODER]  # a run still refers to it
    assert full.sql("select count(*) as n from clips").to_pylist() == [{"n": 0}]
    full.rm(encoder="logmel", runs="only")
    assert full.runs() == []
    assert full.verify() == []
    for wrong in ({}, {"run_ids": ["nobody"]}):
        with pytest.raises(StoreError):
            full.rm(**wrong)


def test_rm_of_everything_takes_the_record_along(full: Store) -> None:
    full.rm(encoder=ENCODER, runs="with")
    assert full.encoders() == {}
    assert full.runs() == []
    put_part(full)  # and the same can be embedded again
    assert full.verify() == []


def test_du_and_info_add_up(full: Store) -> None:
    rows = full.du()
    everything = sum(path.stat().st_size for path in full.path.rglob("*") if path.is_file())
    assert sum(row["bytes"] for row in rows) == everything == full.info()["bytes"]
    assert (rows[0]["parts"], rows[0]["clips"], rows[0]["frames"]) == (3, 9, 24)
    assert {name: full.info()[name] for name in ("parts", "clips", "failures", "runs")} == {
        "parts": 3,
        "clips": 9,
        "failures": 3,
        "runs": 2,
    }


def test_size_on_disk_is_at_most_half_of_float32(store: Store) -> None:
    put_part(store, dim=64, frames=make_frames([500] * 80, 64))  # noise: the worst case
    assert store.du()[0]["ratio"] < 0.5


# ---- disks


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def _run(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, env=environment, check=False, cwd=ROOT, **options,
    )  # fmt: skip


def test_a_file_size_limit_leaves_the_store_as_it_was(full: Store) -> None:
    code = """
import sys
from tests.store.conftest import address, make_frames, put_part
from xares_store.errors import StoreError
from xares_store.store import Store
store = Store.open(sys.argv[1])
try:
    put_part(store, address(shard="big"), dim=64, frames=make_frames([2000], 64))
except StoreError as error:
    print(error)
"""
    result = _run(code, full.path, preexec_fn=_limit_file_size)
    assert result.returncode == 0, result.stderr
    assert "larger than this system allows" in result.stdout
    assert "Nothing that was committed before is touched" in result.stdout
    assert full.verify() == []
    assert len(full.parts()) == 3
    assert not list(full.path.rglob(f"{TMP_PREFIX}*"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Path:
    """A real file system of 1 MiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_disk_full(tiny_disk: Path) -> None:
    store = Store.create(tiny_disk / "s")
    put_part(store)
    for attempt in range(2):
        with pytest.raises(StoreError, match="disk is full") as caught:
            put_part(store, address(shard=f"big-{attempt}"), dim=64, frames=make_frames([20_000], 64))
        assert "MB are free" in str(caught.value)
    assert store.verify() == []
    assert not list(store.path.rglob(f"{TMP_PREFIX}*"))
    put_part(store, address(shard="small"))  # there is room again
    assert len(store.parts()) == 2
    (tiny_disk / "filler").write_bytes(b"x" * (tiny_disk_free(tiny_disk) - 8192))
    with pytest.raises(StoreError, match="disk is full"):
        store.write_run("r", *_big_run())
    assert store.runs() == []


@pytest.mark.parametrize("room", [8192, 200_000])
def test_a_query_on_a_full_disk(tiny_disk: Path, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tiny_disk / "s")
    put_part(store)
    (tiny_disk / "filler").write_bytes(b"x" * (tiny_disk_free(tiny_disk) - room))
    assert store.sql("select count(*) as n from clips").to_pylist() == [{"n": 3}]  # the index is elsewhere meanwhile
    assert not list(store.path.rglob(f"{TMP_PREFIX}*"))
    monkeypatch.setattr(tempfile, "tempdir", str(tiny_disk))
    with pytest.raises(StoreError, match=r"no room for the index(.|\n)*TMPDIR"):
        store.sql("select count(*) as n from clips")
    assert not list(tiny_disk.glob("xares-index-*"))


def tiny_disk_free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _big_run() -> tuple:
    from tests.store.conftest import predictions, run_record

    return run_record(), predictions(), {"w": np.random.default_rng(0).standard_normal((100, 100))}


READER = """
import sys
from pathlib import Path
from tests.store.conftest import ENCODER, TASK, address, put_part, put_run
from xares_store.errors import StoreError
from xares_store.store import Store
try:
    Path(sys.argv[1], "probe").write_bytes(b"")
    raise SystemExit("the folder can be written: the test would show nothing")
except PermissionError:
    pass
store = Store.open(sys.argv[1])
assert store.pooled(ENCODER, TASK)[0].shape == (9, 5)
assert store.frames("clips-1-0-0").shape == (3, 5)
assert store.sql("select count(*) as n from clips").to_pylist() == [{"n": 9}]
assert store.verify() == []
assert store.sweep() == 0
for act in (lambda: put_part(store, address(shard="new")), lambda: put_run(store, "new")):
    try:
        act()
    except StoreError as error:
        print(error)
"""


def _drop_override() -> None:
    """Root may write anywhere; without two capabilities the permission bits hold for it as for everybody."""
    if os.getuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("indexed", ["no", "current", "stale"])
def test_a_read_only_store_can_be_read_and_queried(full: Store, indexed: str) -> None:
    if indexed != "no":
        full.sql("select 1")
    if indexed == "stale":
        full.rm(run_ids=["run-42"])
    before = {path: path.stat().st_mtime_ns for path in full.path.rglob("*")}
    for path in [full.path, *full.path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        result = _run(READER, full.path, preexec_fn=_drop_override)
    finally:
        for path in [full.path, *full.path.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("no permission to write") == 2, result.stdout
    assert {path: path.stat().st_mtime_ns for path in full.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission"), (errno.EIO, "error")],
)
def test_disk_errors_are_sentences(tmp_path: Path, number: int, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as caught, disk_errors(tmp_path / "not" / "there", "writing x"):
        raise OSError(number, os.strerror(number))
    assert "writing x" in str(caught.value)
    assert caught.value.hint
    with pytest.raises(ClashError), disk_errors(tmp_path, "writing x"):
        raise ClashError("as it is")


def test_atomic_write_leaves_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic_write(path, b"old")
    with pytest.raises(TypeError):
        atomic_write(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_opening_from_several_processes_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        ids = pool.map(_open_or_create, [tmp_path / "s"] * 8)
    assert len(set(ids)) == 1


def _open_or_create(path: Path) -> str:
    return Store.open(path, create=True).id


def test_importing_and_reading_need_no_heavy_package(full: Store) -> None:
    code = """
import sys
from xares_store.store import Store
HEAVY = {"zarr", "duckdb", "torch", "sklearn", "pandas", "pyarrow.compute", "pyarrow.dataset"}
assert not HEAVY & set(sys.modules)
assert Store.open(sys.argv[1]).pooled("logmel", "esc10")[0].shape == (9, 5)
assert Store.open(sys.argv[1]).parts()[0].frames().shape == (8, 5)
HEAVY = {"zarr", "duckdb", "torch", "sklearn", "pandas", "pyarrow.compute", "pyarrow.dataset"}
assert not HEAVY & set(sys.modules)
assert Store.open(sys.argv[1]).sql("select count(*) from clips").num_rows == 1
assert not {"zarr", "torch", "sklearn"} & set(sys.modules)
"""
    result = _run(code, full.path)
    assert result.returncode == 0, result.stderr


def test_seal_notices_every_byte() -> None:
    data = seal({"a": [1, 2.5, None], "b": "ü"})
    assert unseal(data, where="x") == {"a": [1, 2.5, None], "b": "ü"}
    for position in range(len(data)):
        for change in (0x20, 0x01):
            broken = bytearray(data)
            broken[position] ^= change
            with pytest.raises(CorruptError):
                unseal(bytes(broken), where="x")
    for cut in (data[:-1], data + b"\n", b"", b"{}"):
        with pytest.raises(CorruptError):
            unseal(cut, where="x")


def test_flip_byte_changes_something(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    flip_byte(tmp_path / "a", 1)
    assert (tmp_path / "a").read_bytes() != b"abc"


def test_the_schema_of_runs_is_current() -> None:
    """Make it again with: json.dumps(RunManifest.model_json_schema(), indent=2)."""
    import json

    from xares_store.catalog import data_dir
    from xares_store.store.layout import RunManifest

    assert json.loads((data_dir("schema") / "run.schema.json").read_text()) == RunManifest.model_json_schema()
