"""The index: a DuckDB file made from the manifests, brought up to date when a query needs it. A cache, never the truth."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from xares_store import catalog
from xares_store.errors import QueryError
from xares_store.fingerprint import sha256_text
from xares_store.store.files import sync_file, temporary_name
from xares_store.store.layout import EMBEDDINGS, FORMAT_VERSION, INDEX, PART_MANIFEST, RUN_MANIFEST, RUNS, RunManifest
from xares_store.store.part import Part
from xares_store.store.query import LOCKED, readable
from xares_store.store.run import read_predictions, read_run
from xares_store.store.tree import folders, part_folders

if TYPE_CHECKING:
    import duckdb

_BUILD = 1  # raise it when the loading code below changes what it writes
_STORAGE = "v1.2.0"  # the oldest DuckDB this package accepts reads it
_WAIT_S = 600.0

Stamps = dict[str, str]
_Plain = dict[str, Any]


@contextmanager
def connect(root: Path, *, rebuild: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the index of the store ``root`` for queries, up to date, read-only and shut off from files and network.

    Args:
        root: folder of the store.
        rebuild: make it anew even when it looks current.

    Raises:
        CorruptError: a part or run that is not in the index yet is damaged; named.
        QueryError: the index can neither be read nor built.
    """
    path, kept = root / INDEX, True
    connection = None if rebuild else _open_current(path, _stamps(root))
    if connection is None:
        try:
            _sync(root, path, rebuild=rebuild)
        except _CannotWriteError:
            # A store on a read-only file system or of somebody else: the index lives for this query only.
            path, kept = Path(tempfile.mkdtemp(prefix="xares-index-")) / INDEX, False
            try:
                _made(root, None, path)
            except _CannotWriteError as error:
                raise QueryError(
                    f"There is no room for the index, neither in the store nor in {path.parent.parent}.",
                    where=root,
                    hint="Free some space there, or point TMPDIR at a folder that has some.",
                ) from error
            finally:
                if not path.exists():
                    shutil.rmtree(path.parent, ignore_errors=True)
        connection = _open(path)
    try:
        yield connection
    finally:
        connection.close()
        if not kept:
            shutil.rmtree(path.parent, ignore_errors=True)


class _CannotWriteError(Exception):
    """The store's folder cannot be written."""


def _sync(root: Path, path: Path, *, rebuild: bool) -> None:
    from filelock import FileLock, Timeout

    try:
        with FileLock(root / f"{INDEX}.lock", timeout=_WAIT_S):
            # Another process may have done the work while this one waited.
            current = None if rebuild else _open_current(path, _stamps(root))
            if current is not None:
                current.close()
                return
            temporary = root / temporary_name()
            try:
                _made(root, None if rebuild else path, temporary)
                temporary.replace(path)
            finally:
                for leftover in (temporary, temporary.with_name(temporary.name + ".wal")):
                    leftover.unlink(missing_ok=True)
    except Timeout as error:
        raise QueryError(
            f"Another process has been writing the index for {_WAIT_S:.0f} s.", where=root, hint="Try again later."
        ) from error
    except OSError as error:
        if isinstance(error, QueryError) or error.errno is None:
            raise
        raise _CannotWriteError from error


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    import duckdb

    try:
        return duckdb.connect(str(path), read_only=True, config=LOCKED)
    except duckdb.Error as error:
        raise QueryError(
            f"The index cannot be opened ({error}).", where=path, hint="Run `xares store reindex`."
        ) from error


def _open_current(path: Path, stamps: Stamps) -> duckdb.DuckDBPyConnection | None:
    """Open the index if it is readable, of this version and made from exactly these manifests."""
    if not path.exists():
        return None
    try:
        connection = _open(path)
    except QueryError:
        return None
    if _known(connection) == stamps:
        return connection
    connection.close()
    return None


def _known(connection: duckdb.DuckDBPyConnection) -> Stamps | None:
    """Return what an index was made from, or None when it is not one of this version."""
    import duckdb

    try:
        version = connection.execute("SELECT value FROM cache.meta WHERE key = 'version'").fetchall()
        if version != [(_version(),)]:
            return None
        return dict(connection.execute("SELECT path, stamp FROM cache.manifest").fetchall())
    except duckdb.Error:
        return None


def _schema() -> str:
    return (catalog.data_dir("schema") / "index.sql").read_text("utf-8")


def _version() -> str:
    return sha256_text(f"{FORMAT_VERSION} {_BUILD}\n{_schema()}")


def _stamps(root: Path) -> Stamps:
    """Size, time and inode of every manifest: parts and runs never change, so these tell which are new and gone."""
    manifests = [folder / PART_MANIFEST for folder in part_folders(root / EMBEDDINGS)]
    manifests += [folder / RUN_MANIFEST for folder in folders(root / RUNS)]
    stamps: Stamps = {}
    prefix = len(str(root)) + 1
    for path in manifests:
        with suppress(FileNotFoundError):  # removed, or a run without manifest
            info = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, and a store may have thousands
            stamps[str(path)[prefix:].replace(os.sep, "/")] = f"{info.st_size}-{info.st_mtime_ns}-{info.st_ino}"
    return stamps


def _made(root: Path, old: Path | None, path: Path) -> None:
    """Write an up-to-date index to ``path``, or say why there is none."""
    import duckdb

    try:
        _build(root, old, path)
    except duckdb.Error as error:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".wal").unlink(missing_ok=True)
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)):
            raise _CannotWriteError from error  # DuckDB hands on the words of the system, not its number
        raise QueryError(
            f"The index cannot be built ({error}).", where=root, hint="`xares store verify` looks for damage."
        ) from error


def _build(root: Path, old: Path | None, path: Path) -> None:
    """Write an up-to-date index to ``path``, starting from a copy of the old one where that is usable."""
    import duckdb

    stamps = _stamps(root)
    if old is not None and old.exists():
        shutil.copyfile(old, path)  # nobody writes to it in place: writers rename, like this one
        try:
            with _open(path) as connection:
                known = _known(connection)
            if known is not None:
                _write(root, path, known, stamps)
                return
        except (QueryError, duckdb.Error):
            pass  # unreadable or damaged: it holds nothing that cannot be read again
        path.unlink()
    _write(root, path, None, stamps)


def _write(root: Path, path: Path, known: Stamps | None, stamps: Stamps) -> None:
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {"storage_compatibility_version": _STORAGE}
    with duckdb.connect(str(path), config=config) as connection:
        connection.execute("BEGIN")
        if known is None:
            known = {}
            connection.execute(_schema())
            connection.execute("CREATE TABLE cache.meta (key VARCHAR, value VARCHAR)")
            connection.execute("INSERT INTO cache.meta VALUES ('version', ?)", [_version()])
        _drop(connection, [name for name, stamp in known.items() if stamps.get(name) != stamp])
        _load(connection, root, {name: stamp for name, stamp in stamps.items() if known.get(name) != stamp})
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")
    sync_file(path)


_CHILDREN = {"part": ("clip", "failure"), "run": ("score", "prediction")}


def _drop(connection: duckdb.DuckDBPyConnection, gone: list[str]) -> None:
    if not gone:
        return
    connection.register("gone", pa.table({"path": pa.array(gone, pa.string())}))
    for kind, children in _CHILDREN.items():
        name = PART_MANIFEST if kind == "part" else RUN_MANIFEST
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE dead AS SELECT m.id FROM cache.manifest m JOIN gone USING (path) "
            "WHERE m.path LIKE '%/' || ?",
            [name],
        )
        connection.execute(f"DELETE FROM cache.{kind} WHERE id IN (SELECT id FROM dead)")  # noqa: S608 - fixed names
        for child in children:
            connection.execute(f"DELETE FROM cache.{child} WHERE {kind} IN (SELECT id FROM dead)")  # noqa: S608
    connection.execute("DELETE FROM cache.manifest WHERE path IN (SELECT path FROM gone)")
    connection.unregister("gone")


def _load(connection: duckdb.DuckDBPyConnection, root: Path, new: Stamps) -> None:
    """Insert new parts and runs: a few bulk inserts from Arrow, whatever their number."""
    ((last,),) = connection.execute("SELECT coalesce(max(id), 0) FROM cache.manifest").fetchall()
    rows: dict[str, list[_Plain]] = {name: [] for name in ("manifest", "part", "failure", "run", "score")}
    tables: dict[str, list[pa.Table]] = {"clip": [], "prediction": []}
    for number, (name, stamp) in enumerate(sorted(new.items()), last + 1):
        rows["manifest"].append({"path": name, "stamp": stamp, "id": number})
        folder = (root / name).parent
        if name.endswith("/" + PART_MANIFEST):
            part = Part.load(root, folder)
            clips = part.clips()
            rows["part"].append(_part_row(part, number))
            rows["failure"] += [{"part": number, **item.model_dump()} for item in part.manifest.failures]
            position = pa.array(np.arange(len(clips), dtype=np.int32))
            tables["clip"].append(_numbered(readable(clips), "part", number).append_column("row", position))
        else:
            run = read_run(root, folder.name)
            rows["run"].append(_run_row(run, number))
            rows["score"] += [{"run": number, **score.model_dump()} for score in run.scores]
            predictions = read_predictions(root, folder.name).drop_columns(
                ["scores", "counts"]
            )  # too large for a cache
            tables["prediction"].append(_numbered(predictions, "run", number))
    for table, records in rows.items():
        if records:
            _insert(connection, table, pa.Table.from_pylist(records))
    for table, pieces in tables.items():
        if pieces:
            _insert(connection, table, pa.concat_tables(pieces))


def _numbered(table: pa.Table, column: str, number: int) -> pa.Table:
    return table.append_column(column, pa.repeat(pa.scalar(number, pa.int32()), len(table)))


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    connection.register("incoming", rows)
    connection.execute(f"INSERT INTO cache.{table} BY NAME SELECT * FROM incoming")  # noqa: S608 - fixed names
    connection.unregister("incoming")


def _part_row(part: Part, number: int) -> _Plain:
    manifest = part.manifest
    same = "encoder task split shard sequence final dim hop_ms sample_rate_hz dtype dtype_reason codec digest created"
    return {
        "id": number,
        **{name: getattr(manifest, name) for name in same.split()},
        **{f"n_{name}": count for name, count in manifest.counts.model_dump().items()},
        **manifest.values.model_dump(),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "source": manifest.source.name,
        "source_sha256": manifest.source.sha256,
        "path": part.address.path,
    }


def _run_row(run: RunManifest, number: int) -> _Plain:
    row = run.model_dump(exclude={"format", "scores", "files"})
    for name in ("settings", "versions", "details"):
        row[name] = json.dumps(row[name], sort_keys=True, ensure_ascii=False)
    return {"id": number, **row, "probe_version": str(run.probe_version)}
