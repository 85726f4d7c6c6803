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
from xares_store.errors import ClashError, StoreError
from xares_store.fingerprint import canonical_json
from xares_store.store.files import disk_errors, sync_file, sync_folder, temporary_name
from xares_store.store.layout import (
    CLIP_SCHEMA,
    CLIPS,
    FORMAT_VERSION,
    PART_MANIFEST,
    PartAddress,
    PartManifest,
    Source,
    atomic_write,
    dump_manifest,
    file_entries,
    part_digest,
)
from xares_store.store.opened import Part
from xares_store.store.precision import FrameBuffer

__all__ = ["Part", "PartAddress", "PartWriter", "Source"]


class HasPath(Protocol):
    """Anything with the folder of a store."""

    @property
    def path(self) -> Path: ...


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
        self._check_counts(n_samples)
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

    def _check_counts(self, n_samples: int) -> None:
        failed = {failure.key for failure in self._failures}
        seen = {clip.key for clip, _, _ in self._clips} | failed
        # The failure of one crop carries the crop's clip_id: key#0003 is no further sample beside key.
        least = len(seen) - sum(key.rpartition("#")[0] != "" and key.rpartition("#")[2].isdigit() for key in failed)
        least = max(least, len({clip.key for clip, _, _ in self._clips}))
        if not least <= n_samples <= len(seen):
            raise StoreError(
                f"Expected every one of {n_samples} samples as a clip or a failure, found {len(seen)}.",
                where=self.address.path,
            )

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
        frames = buffer.finish()
        codec = write_frames(folder / "frames", frames, rows, self._dim, buffer.dtype)
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
            "dtype": buffer.dtype,
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
