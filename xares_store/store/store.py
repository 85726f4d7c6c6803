"""The store: one folder with everything phase one made and phase two reads."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xares_store.errors import CorruptError, StoreError, StoreFormatError, did_you_mean
from xares_store.fingerprint import sha256_text
from xares_store.store import run as run_files
from xares_store.store import select, usage
from xares_store.store.files import disk_errors, read_small, seal, unseal, write_once
from xares_store.store.layout import (
    EMBEDDINGS,
    ENCODERS,
    FORMAT_VERSION,
    PART_MANIFEST,
    RUN_MANIFEST,
    RUNS,
    STORE_MANIFEST,
    TASKS,
    PartAddress,
    PartManifest,
    RunManifest,
    StoreManifest,
    atomic_write,
    dump_manifest,
    load_manifest,
    safe_segment,
)
from xares_store.store.part import Part, PartWriter
from xares_store.store.query import Params
from xares_store.store.tree import files, folders, part_folders, visible
from xares_store.store.verify import Problem, verify

_TOML_SEAL = "# sha256 of the text above: "


class Store:
    """A store, opened. Use :meth:`open` or :meth:`create`.

    Attributes:
        path: its folder.
        id: 32 hex digits, fresh for every store.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store.create(Path(folder) / "my.store")
        ...     store.parts()
        []
    """

    def __init__(self, path: Path, manifest: StoreManifest) -> None:
        self.path = path
        self.id = manifest.id
        self._manifests: dict[Path, tuple[tuple[int, int, int], PartManifest]] = {}

    @classmethod
    def create(cls, path: str | Path) -> Store:
        """Make an empty store; the folder may exist if it is empty.

        Raises:
            StoreError: something else is there, or the folder cannot be written.
        """
        folder = Path(path)
        if (folder / STORE_MANIFEST).exists():
            raise StoreError(
                "A store is there already.", where=folder, hint="Open it instead, or choose another folder."
            )
        if folder.exists() and (not folder.is_dir() or visible(folder)):
            raise StoreError(
                "Expected a new or empty folder for the store, found other files.",
                where=folder,
                hint="Choose another folder.",
            )
        manifest = StoreManifest(
            name="xares-store",
            format=FORMAT_VERSION,
            id=uuid.uuid4().hex,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with disk_errors(folder, "making a store"):
            folder.mkdir(parents=True, exist_ok=True)
            # First, and once: a process that looks meanwhile sees an empty folder or a store, and all agree on its id.
            write_once(folder / STORE_MANIFEST, dump_manifest(manifest))
            for name in (ENCODERS, TASKS, EMBEDDINGS):
                (folder / name).mkdir(exist_ok=True)
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """Open a store.

        Args:
            path: its folder.
            create: make an empty one when nothing is there.

        Raises:
            StoreFormatError: not a store, or one of a newer format.
            StoreError: nothing is there.
        """
        folder = Path(path)
        if not (folder / STORE_MANIFEST).exists():
            if create and (not folder.exists() or (folder.is_dir() and not visible(folder))):
                try:
                    return cls.create(folder)
                except StoreError:
                    if not (folder / STORE_MANIFEST).exists():  # else another process was quicker
                        raise
            elif not folder.exists():
                raise StoreError(
                    "Expected a store, found nothing.",
                    where=folder,
                    hint="`xares embed` makes one; --store or XARES_STORE names another folder.",
                )
            elif not (folder / STORE_MANIFEST).exists():  # looked at again: a store may have been made meanwhile
                raise StoreFormatError(
                    f"Expected a store, found a folder without {STORE_MANIFEST}."
                    if folder.is_dir()
                    else "Expected a folder.",
                    where=folder,
                    hint="--store or XARES_STORE names the store's folder.",
                )
        return cls(folder, load_manifest(folder / STORE_MANIFEST, StoreManifest))

    # ---- what is there

    def parts(self, encoder: str | None = None, task: str | None = None, split: str | None = None) -> list[Part]:
        """Open the committed parts, sorted by encoder, task, split, shard and sequence.

        Args:
            encoder: ``name@fp8``, or ``name`` for every fingerprint; None for all.
            task: ``name@audio8`` or ``name``; None for all.
            split: ``fold-1``, ``train``, ...; None for all.

        Raises:
            CorruptError: a manifest is damaged.
        """
        return [self._part(folder) for folder in part_folders(self.path / EMBEDDINGS, encoder, task, split)]

    def has_part(self, address: PartAddress) -> bool:
        """Tell whether a part is committed."""
        return (self.path / address.path / PART_MANIFEST).exists()

    def part(self, address: PartAddress) -> Part:
        """Open one part.

        Raises:
            StoreError: it is not there.
        """
        if not self.has_part(address):
            raise StoreError("There is no such part.", where=address.path, hint="`xares store ls` lists what is there.")
        return self._part(self.path / address.path)

    def _part(self, folder: Path) -> Part:
        """Open a part, reading its manifest again only when the file has changed: phase two asks several times."""
        path = folder / PART_MANIFEST
        try:
            info = path.stat()
        except OSError as error:
            raise CorruptError(f"The file cannot be read ({error.strerror}).", where=path) from error
        stamp = (info.st_size, info.st_mtime_ns, info.st_ino)
        known = self._manifests.get(folder)
        if known is None or known[0] != stamp:
            known = self._manifests[folder] = (stamp, Part.load(self.path, folder).manifest)
        return Part(folder, known[1])

    def encoders(self) -> dict[str, dict[str, Any]]:
        """Return what is known about each encoder: address to record.

        Raises:
            CorruptError: a record is damaged.
        """
        return {
            path.name.removesuffix(".json"): unseal(read_small(path), where=path)
            for path in files(self.path / ENCODERS, ".json")
        }

    def tasks(self) -> dict[str, str]:
        """Return each task definition as it was used: address to TOML text.

        Raises:
            CorruptError: a file is damaged.
        """
        return {path.name.removesuffix(".toml"): _read_toml(path) for path in files(self.path / TASKS, ".toml")}

    def task_text(self, address: str) -> str:
        """Return one task definition as it was used.

        Raises:
            StoreError: there is none under that address.
            CorruptError: the file is damaged.
        """
        path = self.path / TASKS / f"{safe_segment(address)}.toml"
        if not path.exists():
            raise StoreError("There is no such task definition.", where=path, hint=did_you_mean(address, self.tasks()))
        return _read_toml(path)

    # ---- writing

    def put_encoder(self, address: str, record: Mapping[str, Any]) -> None:
        """Keep what an encoder was; the first record of an address stays.

        Args:
            address: ``name@fp8``.
            record: JSON-able.
        """
        self._put(self.path / ENCODERS / f"{safe_segment(address)}.json", seal(dict(record)))

    def put_task(self, address: str, toml_text: str) -> None:
        """Keep a task definition so that the store explains itself; the first text of an address stays."""
        text = toml_text.rstrip("\n") + "\n"
        path = self.path / TASKS / f"{safe_segment(address)}.toml"
        self._put(path, f"{text}{_TOML_SEAL}{sha256_text(text)}\n".encode())

    def _put(self, path: Path, data: bytes) -> bool:
        if path.exists():
            return False
        with disk_errors(path.parent, f"writing {path.name}"):
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, data)
        return True

    def part_writer(
        self,
        address: PartAddress,
        *,
        dim: int,
        hop_ms: float,
        sample_rate_hz: int,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> PartWriter:
        """Start a new part; see :class:`~xares_store.store.part.PartWriter`."""
        return PartWriter(self, address, dim=dim, hop_ms=hop_ms, sample_rate_hz=sample_rate_hz, dtype=dtype)

    def sweep(self) -> int:
        """Remove temporary files and folders of processes that are gone; return how many."""
        return usage.sweep(self.path)

    # ---- runs and queries

    def write_run(
        self,
        run_id: str,
        run: Mapping[str, Any],
        predictions: pa.Table,
        tensors: Mapping[str, NDArray[Any]] | None = None,
        *,
        same_probe_as: str | None = None,
    ) -> bool:
        """Commit a run; see :func:`xares_store.store.run.write_run`. False when it is there already."""
        return run_files.write_run(self.path, run_id, run, predictions, tensors, same_probe_as=same_probe_as)

    def runs(self) -> list[str]:
        """Return the ids of all committed runs, sorted."""
        return [path.name for path in folders(self.path / RUNS) if (path / RUN_MANIFEST).exists()]

    def has_run(self, run_id: str) -> bool:
        """Tell whether a run is committed."""
        return (run_files.run_folder(self.path, run_id) / RUN_MANIFEST).exists()

    def read_run(self, run_id: str) -> RunManifest:
        """Read a run's manifest; every file of the run is checked first.

        Raises:
            StoreError: there is no such run.
            CorruptError: a file is damaged; named.
        """
        return run_files.read_run(self.path, run_id)

    def predictions(self, run_id: str) -> pa.Table:
        """Read a run's per-clip predictions; raises as :meth:`read_run` does."""
        return run_files.read_predictions(self.path, run_id)

    def sql(self, query: str, params: Params = None) -> pa.Table:
        """Run one SQL query over the views of ``schema/index.sql``, after bringing the index up to date.

        The query reads the index and nothing else: no files, no network, no changes.

        Args:
            query: one statement of DuckDB's SQL.
            params: values for ``?`` (a list) or ``$name`` (a dictionary).

        Raises:
            QueryError: the query is not valid, with the nearest names.
            CorruptError: a part or run that is new to the index is damaged; named.

        Example:
            ``store.sql("select task, score from leaderboard where encoder = ?", ["logmel@1a2b3c4d"])``
        """
        from xares_store.store.query import run_query

        return run_query(self.path, query, params)

    def reindex(self) -> None:
        """Build the index anew from the manifests."""
        from xares_store.store.index import connect

        with connect(self.path, rebuild=True):
            pass

    # ---- care

    def verify(self, *, deep: bool = True) -> list[Problem]:
        """Check every file of every part and run; see :func:`xares_store.store.verify.verify`."""
        return verify(self, deep=deep)

    def info(self) -> dict[str, Any]:
        """Count what the store holds; see :func:`xares_store.store.usage.info`."""
        return usage.info(self)

    def du(self) -> list[dict[str, Any]]:
        """Say what takes how much space; see :func:`xares_store.store.usage.du`."""
        return usage.du(self)

    def rm(
        self,
        *,
        encoder: str | None = None,
        task: str | None = None,
        shard: str | None = None,
        runs: Literal["keep", "with", "only"] = "keep",
        run_ids: Sequence[str] = (),
        dry_run: bool = False,
    ) -> usage.Removal:
        """Remove embeddings, runs or both; see :func:`xares_store.store.usage.rm`."""
        return usage.rm(self, encoder=encoder, task=task, shard=shard, runs=runs, run_ids=run_ids, dry_run=dry_run)

    # ---- reading embeddings

    def clips(self, where: str | None = None, params: Params = None) -> pa.Table:
        """Return clip rows of all encoders and tasks: the view ``clips``, filtered.

        Args:
            where: a SQL predicate over its columns.
            params: values for ``?`` or ``$name`` in it.
        """
        order = 'ORDER BY encoder, task, split, shard, sequence, "row"'
        return self.sql(f"SELECT * FROM clips WHERE (\n{where or 'true'}\n) {order}", params)  # noqa: S608 - SQL on purpose

    def frames(
        self, clip_id: str, *, encoder: str | None = None, task: str | None = None, split: str | None = None
    ) -> NDArray[np.float16] | NDArray[np.float32]:
        """Return the frames of one clip in the stored dtype, ``(n_frames, dim)``.

        Args:
            clip_id: as in the view ``clips``.
            encoder: address or name; needed when several encoders embedded the clip. Likewise ``task`` and ``split``.

        Raises:
            StoreError: no such clip, or several.
            CorruptError: a checksum fails.
        """
        return select.read_frames(self, clip_id, encoder, task, split)

    def pooled(
        self, encoder: str, task: str, where: str | None = None, *, split: str | None = None
    ) -> tuple[NDArray[np.float32], pa.Table]:
        """Read the mean vectors and the clip rows of all parts of one encoder and one task's audio.

        Every file of every part is checked first.

        Args:
            encoder: ``name@fp8``, or ``name`` when the store holds one fingerprint of it.
            task: ``name@audio8``, or ``name`` likewise.
            where: a SQL predicate over the columns of the view ``clips``, e.g. ``"duration_s < 3"``.
            split: one split only.

        Returns:
            ``(clips, dim)`` float32, and a table with a row a clip in the same order (split, shard, sequence, row):
            encoder, task, split, shard, sequence, clip_id, key, crop, start_s, duration_s, offset, n_frames, label.

        Raises:
            CorruptError: a part is damaged; named.
            StoreError: nothing matches, or several encoders or tasks do.
            QueryError: the predicate is not valid SQL.
        """
        return select.read_pooled(self, encoder, task, where, split)

    def clip_table(self, encoder: str, task: str, where: str | None = None) -> pa.Table:
        """Read the clip rows alone, with the columns, order, checks and errors of :meth:`pooled`."""
        return select.read_clips(self, encoder, task, where)


def _read_toml(path: Path) -> str:
    text, _, digest = read_small(path).decode("utf-8", "replace").rpartition(_TOML_SEAL)
    if sha256_text(text) + "\n" != digest:
        raise CorruptError("The task definition does not match its checksum: it is damaged or was edited.", where=path)
    return text
