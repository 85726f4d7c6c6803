"""Open a committed part: its clip rows, mean vectors and frames, each checked before it is used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xares_store.errors import CorruptError
from xares_store.store.files import damage
from xares_store.store.layout import (
    CLIP_SCHEMA,
    CLIPS,
    PART_MANIFEST,
    FileEntry,
    PartAddress,
    PartManifest,
    load_manifest,
)
from xares_store.store.reader import ArrayMeta, read_meta, read_rows


class Part:
    """A committed part, opened for reading.

    Attributes:
        path: its folder.
        manifest: what ``part.json`` says.
    """

    def __init__(self, path: Path, manifest: PartManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def load(cls, root: Path, path: Path) -> Part:
        """Open the part in a folder below the store ``root``.

        Raises:
            CorruptError: the manifest is damaged or belongs to another folder.
        """
        manifest = load_manifest(path / PART_MANIFEST, PartManifest)
        found = path.relative_to(root).as_posix()
        if manifest.address.path != found:
            raise CorruptError(
                f"The manifest belongs to {manifest.address.path}.", where=found, hint="Move the folder back."
            )
        return cls(path, manifest)

    @property
    def address(self) -> PartAddress:
        """Where the part belongs."""
        return self.manifest.address

    def check(self) -> None:
        """Compare every file of the part with its size and CRC-32C (several GB/s).

        Raises:
            CorruptError: names the first damaged file.
        """
        for name, entry in self.manifest.files.items():
            if what := damage(self.path / name, size=entry.bytes, crc32c=entry.crc32c):
                raise CorruptError(
                    f"Part {self.address.path} is damaged. {what}",
                    where=self.path / name,
                    hint="`xares store verify` lists all damage. Remove the part's folder and embed again, "
                    "or copy the part from an intact store.",
                )

    def clips(self) -> pa.Table:
        """Return the clip rows: clip_id, key, crop, start_s, duration_s, offset (first frame), n_frames, label.

        Raises:
            CorruptError: the file does not match the manifest.
        """
        path = self.path / CLIPS
        entry = self._entry(CLIPS)
        try:
            data = path.read_bytes() if path.stat().st_size == entry.bytes else b""
        except OSError as error:
            raise CorruptError(f"The file cannot be read ({error.strerror}).", where=path) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptError("The clip rows do not match their checksum.", where=path)
        try:
            # ParquetFile, not read_table: that would import the dataset machinery, slower than the reading itself.
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptError(f"The clip rows cannot be read ({error}).", where=path) from error
        if table.schema != CLIP_SCHEMA:
            raise CorruptError(f"Expected the columns {CLIP_SCHEMA.names}, found {table.schema.names}.", where=path)
        if empty := [name for name in table.column_names if table[name].null_count]:
            raise CorruptError(f"Expected a value in every clip row, found none in {', '.join(empty)}.", where=path)
        if len(table) != self.manifest.counts.clips:
            raise CorruptError(f"Expected {self.manifest.counts.clips} clip rows, found {len(table)}.", where=path)
        return table

    def pooled(self) -> NDArray[np.float32]:
        """Return the clips' mean vectors, ``(clips, dim)`` float32."""
        vectors: NDArray[np.float32] = self._rows("pooled", 0, None)
        return vectors

    def frames(self, which: int | slice | None = None) -> NDArray[Any]:
        """Return frames in the stored dtype.

        Args:
            which: row number of a clip, a slice of frame rows (step 1), or None for all frames.

        Returns:
            ``(n_frames, dim)``.

        Example:
            ``part.frames(3)`` is the fourth clip; ``part.frames(slice(0, 100))`` the part's first hundred frames.
        """
        frames: NDArray[Any]
        if isinstance(which, int):
            clips = self.clips()
            row = range(len(clips))[which]
            start = clips["offset"][row].as_py()
            frames = self._rows("frames", start, start + clips["n_frames"][row].as_py())
            return frames
        start, stop, step = (which or slice(None)).indices(self.manifest.counts.frames)
        if step != 1:
            raise ValueError(f"Expected a slice of step 1, found {step}.")
        frames = self._rows("frames", start, max(start, stop))
        return frames

    def _entry(self, name: str) -> FileEntry:
        try:
            return self.manifest.files[name]
        except KeyError:
            raise CorruptError(f"The manifest does not list {name}.", where=self.path / PART_MANIFEST) from None

    def meta(self, array: Literal["frames", "pooled"]) -> ArrayMeta:
        """Return an array's metadata after comparing it with the manifest, so that no size is taken on trust."""
        entry = self._entry(f"{array}/zarr.json")
        path = self.path / array / "zarr.json"
        if what := damage(path, size=entry.bytes, crc32c=entry.crc32c):
            raise CorruptError(what, where=path)
        meta = read_meta(self.path / array)
        counts, dtype = self.manifest.counts, np.dtype(np.float32)
        if array == "frames":
            dtype = np.dtype(self.manifest.dtype)
        rows = counts.frames if array == "frames" else counts.clips
        if (meta.rows, meta.dim, meta.dtype) != (rows, self.manifest.dim, dtype):
            raise CorruptError(
                f"Expected ({rows}, {self.manifest.dim}) {dtype}, found ({meta.rows}, {meta.dim}) {meta.dtype}.",
                where=path,
            )
        stored = sum(entry.bytes for name, entry in self.manifest.files.items() if name.startswith(f"{array}/c/"))
        if meta.codec == "raw" and stored < meta.rows * meta.dim * meta.dtype.itemsize:
            raise CorruptError("The manifest lists too few bytes for the array.", where=path)
        return meta

    def _rows(self, array: Literal["frames", "pooled"], start: int, stop: int | None) -> Any:
        meta = self.meta(array)
        for shard in range(start // meta.shard_rows, -(-(meta.rows if stop is None else stop) // meta.shard_rows)):
            name = f"{array}/c/{shard}/0"
            try:
                size = (self.path / name).stat().st_size
            except OSError:
                raise CorruptError("The file is missing.", where=self.path / name) from None
            if size != self._entry(name).bytes:
                raise CorruptError(
                    f"Expected {self._entry(name).bytes:,} bytes, found {size:,}.", where=self.path / name
                )
        return read_rows(self.path / array, meta, start, stop)
