"""The store: one folder with everything phase one made and phase two reads."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xares_store.errors import ClashError, CorruptError, StoreError, StoreFormatError, did_you_mean
from xares_store.fingerprint import sha256_text
from xares_store.store.files import TMP_PREFIX, disk_errors, is_leftover, read_small, seal, unseal
from xares_store.store.layout import (
    EMBEDDINGS,
    ENCODERS,
    FORMAT_NAME,
    FORMAT_VERSION,
    PART_MANIFEST,
    STORE_MANIFEST,
    TASKS,
    PartAddress,
    StoreManifest,
    atomic_write,
    dump_manifest,
    load_manifest,
    safe_segment,
)
from xares_store.store.part import Part, PartWriter

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
        if folder.exists() and (not folder.is_dir() or _visible(folder)):
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
            for name in (ENCODERS, TASKS, EMBEDDINGS):
                (folder / name).mkdir(exist_ok=True)
            atomic_write(folder / STORE_MANIFEST, dump_manifest(manifest))
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
            if create and (not folder.exists() or (folder.is_dir() and not _visible(folder))):
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
            else:
                raise StoreFormatError(
                    f"Expected a store, found a folder without {STORE_MANIFEST}."
                    if folder.is_dir()
                    else "Expected a folder.",
                    where=folder,
                    hint="--store or XARES_STORE names the store's folder.",
                )
        return cls(folder, load_manifest(folder / STORE_MANIFEST, StoreManifest))

    # ---- what is there

    def part_folders(self, encoder: str | None = None, task: str | None = None, split: str | None = None) -> list[Path]:
        """Return folders of committed parts, sorted by encoder, task, split, shard and sequence, without reading them."""
        found: list[Path] = []
        for encoder_path in _named(self.path / EMBEDDINGS, encoder):
            for task_path in _named(encoder_path, task):
                for split_path in _folders(task_path):
                    if split is None or split_path.name == safe_segment(split):
                        shards = (path for path in _folders(split_path) if (path / PART_MANIFEST).exists())
                        found.extend(sorted(shards, key=_shard_order))
        return found

    def parts(self, encoder: str | None = None, task: str | None = None, split: str | None = None) -> list[Part]:
        """Open the committed parts, sorted by encoder, task, split, shard and sequence.

        Args:
            encoder: ``name@fp8``, or ``name`` for every fingerprint; None for all.
            task: ``name@audio8`` or ``name``; None for all.
            split: ``fold-1``, ``train``, ...; None for all.

        Raises:
            CorruptError: a manifest is damaged.
        """
        return [Part.load(self.path, folder) for folder in self.part_folders(encoder, task, split)]

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
        return Part.load(self.path, self.path / address.path)

    def encoders(self) -> dict[str, dict[str, Any]]:
        """Return what is known about each encoder: address to record.

        Raises:
            CorruptError: a record is damaged.
        """
        return {path.name.removesuffix(".json"): self._record(path) for path in _files(self.path / ENCODERS, ".json")}

    def tasks(self) -> dict[str, str]:
        """Return each task definition as it was used: address to TOML text.

        Raises:
            CorruptError: a file is damaged.
        """
        return {path.name.removesuffix(".toml"): _read_toml(path) for path in _files(self.path / TASKS, ".toml")}

    def _record(self, path: Path) -> dict[str, Any]:
        return unseal(read_small(path), where=path)

    # ---- writing

    def put_encoder(self, address: str, record: Mapping[str, Any]) -> None:
        """Keep what an encoder was; the first record of an address stays.

        Args:
            address: ``name@fp8``.
            record: JSON-able.
        """
        self._put(self.path / ENCODERS / f"{safe_segment(address)}.json", seal(dict(record)))

    def put_task(self, address: str, toml_text: str) -> None:
        """Keep a task definition so that the store explains itself; equal addresses have equal text.

        Raises:
            ClashError: another text is stored under the address.
        """
        text = toml_text.rstrip("\n") + "\n"
        path = self.path / TASKS / f"{safe_segment(address)}.toml"
        if not self._put(path, f"{text}{_TOML_SEAL}{sha256_text(text)}\n".encode()) and _read_toml(path) != text:
            raise ClashError("Another definition is stored under this task's address.", where=path)

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
        from shutil import rmtree

        count = 0
        for path in self.leftovers():
            if is_leftover(path):
                if path.is_dir():
                    rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                count += not path.exists()
        return count

    def leftovers(self) -> Iterator[Path]:
        """Yield temporary files and folders, of running processes too."""
        for root, folders, files in os.walk(self.path):
            yield from (Path(root) / name for name in [*folders, *files] if name.startswith(TMP_PREFIX))
            deep = Path(root).parent.parent.parent == self.path / EMBEDDINGS  # parts hold no temporary files
            folders[:] = [] if deep else [name for name in folders if not name.startswith(TMP_PREFIX)]

    # ---- reading embeddings

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
        parts = self._one(encoder, task, split)
        vectors, tables = [], []
        for part in parts:
            part.check()
            vectors.append(part.pooled())
            tables.append(clip_rows(part))
        features, table = np.concatenate(vectors), pa.concat_tables(tables)
        if where is not None:
            from xares_store.store.query import select_rows

            rows = select_rows(table, where)
            features, table = features[rows], table.take(rows)
        return features, table

    def _one(self, encoder: str, task: str, split: str | None = None) -> list[Part]:
        parts = self.parts(encoder, task, split)
        if not parts:
            known = sorted(
                {part.address.encoder for part in self.parts()} | {part.address.task for part in self.parts()}
            )
            wanted = encoder if not any(True for _ in _named(self.path / EMBEDDINGS, encoder)) else task
            raise StoreError(
                f"There are no embeddings of encoder {encoder} for task {task}"
                + (f", split {split}." if split else "."),
                where=self.path,
                hint=did_you_mean(wanted, known) or "`xares store ls` lists what is there; `xares embed` adds more.",
            )
        for what, found in (
            ("encoders", {part.address.encoder for part in parts}),
            ("tasks", {part.address.task for part in parts}),
        ):
            if len(found) > 1:
                raise StoreError(
                    f"Expected one of the {what}, found {len(found)}: {', '.join(sorted(found))}.",
                    where=self.path,
                    hint="Give the full name with the part after @.",
                )
        if len(dims := {part.manifest.dim for part in parts}) > 1:
            raise CorruptError(f"Expected one dimension for {encoder}, found {sorted(dims)}.", where=self.path)
        return parts


def clip_rows(part: Part) -> pa.Table:
    """Return a part's clip rows with its address in front: the columns of the view ``clips``."""
    table = part.clips()
    address, count = part.address, len(table)
    front: Sequence[tuple[str, pa.Array]] = [
        (name, pa.repeat(pa.scalar(getattr(address, name), pa.string()), count))
        for name in ("encoder", "task", "split", "shard")
    ]
    front = [*front, ("sequence", pa.repeat(pa.scalar(address.sequence, pa.int32()), count))]
    return pa.table(
        [column for _, column in front] + table.columns, names=[name for name, _ in front] + table.column_names
    )


def _visible(folder: Path) -> bool:
    return any(not path.name.startswith(TMP_PREFIX) for path in folder.iterdir())


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names)]


def _files(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffix) and not path.name.startswith("."))


def _named(folder: Path, wanted: str | None) -> list[Path]:
    """Folders whose name is ``wanted``, or ``wanted@...`` when it has no fingerprint."""
    if wanted is None:
        return _folders(folder)
    name = safe_segment(wanted)
    return [path for path in _folders(folder) if path.name == name or path.name.rpartition("@")[0] == name]


def _shard_order(path: Path) -> tuple[str, int]:
    shard, _, sequence = path.name.partition("~")
    return shard, int(sequence) if sequence.isdigit() else 0


def _read_toml(path: Path) -> str:
    text, _, digest = read_small(path).decode("utf-8", "replace").rpartition(_TOML_SEAL)
    if sha256_text(text) + "\n" != digest:
        raise CorruptError("The task definition does not match its checksum: it is damaged or was edited.", where=path)
    return text
