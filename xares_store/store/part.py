"""A part: the embedded clips of one audio shard, written once, whole, and never changed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xares_store.clip import Clip, Failure
from xares_store.errors import ClashError, CorruptError, StoreError
from xares_store.fingerprint import canonical_json
from xares_store.store.files import damage, disk_errors, sync_file, sync_folder, temporary_name
from xares_store.store.layout import (
    FORMAT_VERSION,
    PART_MANIFEST,
    FileEntry,
    PartAddress,
    PartManifest,
    Source,
    atomic_write,
    dump_manifest,
    file_entries,
    load_manifest,
    part_digest,
)
from xares_store.store.precision import FrameBuffer
from xares_store.store.reader import ArrayMeta, read_meta, read_rows

__all__ = ["Part", "PartAddress", "PartWriter", "Source"]

CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("key", pa.string()),
        ("crop", pa.int32()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("offset", pa.int64()),
        ("n_frames", pa.int64()),
        ("label", pa.string()),
    ]
)
CLIPS = "clips.parquet"


class HasPath(Protocol):
    """Anything with the folder of a store."""

    @property
    def path(self) -> Path: ...


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
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).cast(CLIP_SCHEMA)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptError(f"The clip rows cannot be read ({error}).", where=path) from error
        if len(table) != self.manifest.counts.clips:
            raise CorruptError(f"Expected {self.manifest.counts.clips} clip rows, found {len(table)}.", where=path)
        return table

    def pooled(self) -> NDArray[np.float32]:
        """Return the clips' mean vectors, ``(clips, dim)`` float32."""
        return self._rows("pooled", 0, None)

    def frames(self, which: int | slice | None = None) -> NDArray[np.float16] | NDArray[np.float32]:
        """Return frames in the stored dtype.

        Args:
            which: row number of a clip, a slice of frame rows (step 1), or None for all frames.

        Returns:
            ``(n_frames, dim)``.

        Example:
            ``part.frames(3)`` is the fourth clip; ``part.frames(slice(0, 100))`` the part's first hundred frames.
        """
        if isinstance(which, int):
            clips = self.clips()
            row = range(len(clips))[which]
            start = clips["offset"][row].as_py()
            return self._rows("frames", start, start + clips["n_frames"][row].as_py())
        start, stop, step = (which or slice(None)).indices(self.manifest.counts.frames)
        if step != 1:
            raise ValueError(f"Expected a slice of step 1, found {step}.")
        return self._rows("frames", start, max(start, stop))

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
        if meta.direct and stored < meta.rows * meta.dim * meta.dtype.itemsize:
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


class PartWriter:
    """Collect the clips of a shard and commit them as one part.

    Nothing is visible before :meth:`commit` returns; a killed process leaves at most a temporary folder. Memory: three
    times the frames' stored size.

    Args:
        store: the store (anything with a ``path``).
        address: where the part goes.
        dim: size of the embedding.
        hop_ms: time between two frames.
        sample_rate_hz: rate the encoder was fed with.
        dtype: ``float16`` (falls back to float32 for a part whose values do not fit) or ``float32``.
    """

    def __init__(
        self,
        store: HasPath,
        address: PartAddress,
        *,
        dim: int,
        hop_ms: float,
        sample_rate_hz: int,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        self._root = store.path
        self.address = address
        self._final_path = self._root / address.path
        self._settings = {"dim": dim, "hop_ms": float(hop_ms), "sample_rate_hz": int(sample_rate_hz)}
        self._dim = dim
        self._frames = FrameBuffer(dim, dtype=dtype)
        self._pooled: list[NDArray[np.float32]] = []
        self._clips: list[tuple[Clip, int, int]] = []
        self._ids: set[str] = set()
        self._failures: list[Failure] = []
        self._closed = False

    @property
    def stored_bytes(self) -> int:
        """Bytes of the frames so far, as they will be stored (before compression)."""
        return self._frames.stored_bytes

    @property
    def n_clips(self) -> int:
        """Clips so far."""
        return len(self._clips)

    def add(self, clip: Clip, frames: NDArray[np.float32], pooled: NDArray[np.float32]) -> None:
        """Add one clip.

        Args:
            clip: its row.
            frames: ``(n_frames, dim)`` float32, valid frames only.
            pooled: ``(dim,)`` float32, their mean.

        Raises:
            StoreError: wrong shape, NaN or infinity, or a clip_id that is there already. The writer is as before.
        """
        self._open()
        vector = np.array(pooled, dtype="<f4", copy=True)
        if vector.shape != (self._dim,):
            raise StoreError(
                f"Expected a pooled vector of shape ({self._dim},), found {vector.shape}.", where=clip.clip_id
            )
        if not np.isfinite(vector).all():
            raise StoreError("Expected a finite pooled vector, found NaN or infinity.", where=clip.clip_id)
        if clip.clip_id in self._ids:
            raise StoreError("Expected unique clip ids, found this one twice.", where=clip.clip_id)
        offset = self._frames.rows
        self._frames.add(clip.clip_id, frames)
        self._ids.add(clip.clip_id)
        self._clips.append((clip, offset, self._frames.rows - offset))
        self._pooled.append(vector)

    def fail(self, failure: Failure) -> None:
        """Record a sample that could not become a clip."""
        self._open()
        self._failures.append(failure)

    def abort(self) -> None:
        """Drop everything; nothing is on disk yet."""
        self._closed = True
        self._frames = FrameBuffer(self._dim, dtype="float32")
        self._pooled, self._clips = [], []

    def _open(self) -> None:
        if self._closed:
            raise StoreError("This part is committed or aborted.", where=self.address.path)

    def commit(
        self,
        source: Source,
        *,
        final: bool,
        first_sample: int,
        n_samples: int,
        timing: Mapping[str, Any],
        versions: Mapping[str, Any],
    ) -> Part:
        """Write, flush and rename the part into place.

        Args:
            source: the audio shard.
            final: whether this is the shard's last part.
            first_sample: index of the first sample of the shard that the part covers.
            n_samples: how many samples it covers: each is a clip (or several crops) or a failure.
            timing: JSON-able numbers for people; not part of the identity.
            versions: JSON-able versions; not part of the identity.

        Returns:
            The part; the one that was there already when it has the same content.

        Raises:
            ClashError: another part with different content is at this address.
            StoreError: disk full, read-only, or samples and clips do not add up.
        """
        self._open()
        seen = {clip.key for clip, _, _ in self._clips} | {failure.key for failure in self._failures}
        if len(seen) != n_samples:
            raise StoreError(
                f"Expected every one of {n_samples} samples as a clip or a failure, found {len(seen)}.",
                where=self.address.path,
            )
        parent = self._final_path.parent
        temporary = parent / temporary_name()
        try:
            with disk_errors(parent, f"writing part {self.address.path}"):
                temporary.mkdir(parents=True)
                manifest = self._write(temporary, source, final, first_sample, n_samples, timing, versions)
                part = self._publish(temporary, manifest)
        finally:
            self.abort()
            shutil.rmtree(temporary, ignore_errors=True)
        return part

    def _write(
        self,
        folder: Path,
        source: Source,
        final: bool,
        first_sample: int,
        n_samples: int,
        timing: Mapping[str, Any],
        versions: Mapping[str, Any],
    ) -> PartManifest:
        from xares_store.store.arrays import write_frames, write_pooled

        buffer, rows = self._frames, self._frames.rows
        codec = write_frames(folder / "frames", buffer.finish(), rows, self._dim)
        write_pooled(folder / "pooled", self._pooled, self._dim)
        table = self._table()
        pq.write_table(table, folder / CLIPS, compression="zstd")
        failures = [{"key": item.key, "kind": item.kind, "reason": item.reason} for item in self._failures]
        files = file_entries(folder)
        record: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "encoder": self.address.encoder,
            "task": self.address.task,
            "split": self.address.split,
            "shard": self.address.shard,
            "sequence": self.address.sequence,
            "final": final,
            "first_sample": first_sample,
            "source": {"name": source.name, "sha256": source.sha256, "bytes": source.bytes},
            **self._settings,
            "dtype": "float32" if buffer.reason != "fits" else "float16",
            "dtype_reason": buffer.reason,
            "codec": codec,
            "counts": {"samples": n_samples, "clips": len(table), "failures": len(failures), "frames": rows},
            "values": {"min": buffer.low, "max": buffer.high, "flushed_to_zero": buffer.flushed},
            "failures": failures,
            "files": {name: entry.model_dump() for name, entry in files.items()},
            "clips_digest": hashlib.sha256(canonical_json(table.to_pylist()).encode()).hexdigest(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "timing": dict(timing),
            "versions": dict(versions),
        }
        manifest = PartManifest.model_validate({**record, "digest": part_digest(record)})
        for path in sorted(folder.rglob("*"), reverse=True):
            (sync_folder if path.is_dir() else sync_file)(path)
        atomic_write(folder / PART_MANIFEST, dump_manifest(manifest))
        return manifest

    def _table(self) -> pa.Table:
        names = ("clip_id", "key", "crop", "start_s", "duration_s")
        columns: dict[str, list[Any]] = {name: [getattr(clip, name) for clip, _, _ in self._clips] for name in names}
        columns["offset"] = [offset for _, offset, _ in self._clips]
        columns["n_frames"] = [count for _, _, count in self._clips]
        columns["label"] = [clip.label for clip, _, _ in self._clips]
        return pa.table(columns, schema=CLIP_SCHEMA)

    def _publish(self, temporary: Path, manifest: PartManifest) -> Part:
        final = self._final_path
        for _ in range(3):
            try:
                temporary.rename(final)  # fails on a folder that holds anything: one of two racing writers wins
            except OSError:
                if not final.is_dir():
                    raise
            else:
                for folder in final.parents:  # each may be new
                    sync_folder(folder)
                    if folder == self._root:
                        break
                return Part(final, manifest)
            if (final / PART_MANIFEST).exists():
                existing = Part.load(self._root, final)
                if existing.manifest.digest == manifest.digest:
                    return existing
                raise ClashError(
                    f"A part with other content is there already: digest {existing.manifest.digest[:12]} of "
                    f"{existing.manifest.created}, this one has {manifest.digest[:12]}.",
                    where=final,
                    hint="If the audio or the encoder changed, `xares store rm` the old part; else `xares store verify` it.",
                )
            # An incomplete copy without a manifest: it does not count as a part and makes room for one that does.
            final.rename(stale := final.parent / temporary_name())
            shutil.rmtree(stale, ignore_errors=True)
        raise StoreError("The part's folder changes while it is being written.", where=final)
