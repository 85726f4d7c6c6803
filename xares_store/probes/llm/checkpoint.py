"""A training on the disk: the checkpoint to go on from, and the finished result.

A folder holds ``checkpoint.safetensors`` while training goes on and ``finished.safetensors`` after it. Both are replaced
whole (temporary name, flush, rename), so a process that is killed at any instant leaves the last one intact. A file carries
a JSON record in its header and the CRC-32C of all that it holds; what is damaged, or belongs to another training, is
refused. Nothing in it is code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from xares_store.errors import CorruptError, ProbeError, StoreFormatError
from xares_store.store.files import atomic_write, disk_errors, is_leftover

FORMAT = 1
CHECKPOINT = "checkpoint.safetensors"
FINISHED = "finished.safetensors"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Snapshot:
    """What one file holds.

    Attributes:
        arrays: by name.
        record: what JSON can hold.
    """

    arrays: Arrays
    record: dict[str, Any]


class TrainingFolder:
    """The files of one training.

    Args:
        folder: made when something is written first.
        identity: what decides the training; a file of another one is refused.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     training = TrainingFolder(Path(place) / "one", "abc")
        ...     training.save(Snapshot({"w": np.ones(2, np.float32)}, {"step": 3}))
        ...     training.checkpoint().record
        {'step': 3}
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def checkpoint(self) -> Snapshot | None:
        """Return the checkpoint, None where there is none.

        Raises:
            CorruptError: it is damaged or cut short.
            StoreFormatError: a newer version wrote it.
            ProbeError: it belongs to another training.
        """
        return self._read(self.folder / CHECKPOINT)

    def finished(self) -> Snapshot | None:
        """Return the result, None while there is none; errors as in :meth:`checkpoint`."""
        return self._read(self.folder / FINISHED)

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint in place of the one before.

        Raises:
            StoreError: the disk is full, or cannot be written to; the checkpoint before is kept.
        """
        self._write(self.folder / CHECKPOINT, snapshot)

    def finish(self, snapshot: Snapshot) -> None:
        """Write the result and remove the checkpoint; errors as in :meth:`save`."""
        self._write(self.folder / FINISHED, snapshot)
        self.clean()

    def clean(self) -> None:
        """Remove what killed processes left behind, and a checkpoint beside a result."""
        if not self.folder.is_dir():
            return
        with disk_errors(self.folder, "removing old checkpoints"):
            for path in list(self.folder.iterdir()):
                if is_leftover(path):
                    path.unlink(missing_ok=True)
            if (self.folder / FINISHED).exists():
                (self.folder / CHECKPOINT).unlink(missing_ok=True)

    def _write(self, path: Path, snapshot: Snapshot) -> None:
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(value) for name, value in snapshot.arrays.items()}
        record = json.dumps(snapshot.record, allow_nan=False)
        header = {"format": str(FORMAT), "identity": self.identity, "record": record}
        header["crc32c"] = f"{_checksum(arrays, self.identity, record):08x}"
        with disk_errors(path, "writing a checkpoint"):
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, save(arrays, header))

    def _read(self, path: Path) -> Snapshot | None:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as stream:
                header = stream.metadata() or {}
                arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, str(error)) from error
        try:
            version, identity, record = int(header["format"]), header["identity"], header["record"]
            if version > FORMAT:
                raise StoreFormatError(
                    f"Format {version} of a training was written by a newer version; this one reads {FORMAT}.",
                    where=path,
                    hint="Upgrade xares-store, or remove the folder: training then starts anew.",
                )
            if int(header["crc32c"], 16) != _checksum(arrays, identity, record):
                raise self._damaged(path, "the content does not match its checksum")
            snapshot = Snapshot(arrays, dict(json.loads(record)))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, f"{type(error).__name__}: {error}") from error
        if identity != self.identity:
            raise ProbeError(
                f"Wanted a training with identity {self.identity}, found one with {identity}.",
                where=path,
                hint=f"Remove {path.parent}, or give each training a folder of its own.",
            )
        return snapshot

    def _damaged(self, path: Path, what: str) -> CorruptError:
        return CorruptError(
            f"The file is damaged or cut short ({what}).",
            where=path,
            hint=f"Remove {path.parent}: training then starts anew.",
        )


def _checksum(arrays: Arrays, identity: str, record: str) -> int:
    crc: int = google_crc32c.extend(0, f"{identity}\n{record}".encode())
    for name in sorted(arrays):
        value = arrays[name]
        crc = google_crc32c.extend(crc, f"\n{name} {value.dtype.str} {value.shape}\n".encode())
        crc = google_crc32c.extend(crc, np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    return crc
