"""The layout of a store on disk: names, paths and manifests. Reading one runs no code and trusts no path in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from xares_store.errors import CorruptError, StoreError, StoreFormatError
from xares_store.fingerprint import fingerprint, sha256_file
from xares_store.store.files import TMP_PREFIX, atomic_write, crc32c_file, read_small, seal, unseal

__all__ = [
    "CLIPS",
    "CLIP_SCHEMA",
    "EMBEDDINGS",
    "ENCODERS",
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "INDEX",
    "PART_MANIFEST",
    "RUNS",
    "RUN_MANIFEST",
    "STORE_MANIFEST",
    "TASKS",
    "TRAINING",
    "FileEntry",
    "PartAddress",
    "PartManifest",
    "RunManifest",
    "Score",
    "Source",
    "StoreManifest",
    "atomic_write",
    "dump_manifest",
    "file_entries",
    "load_manifest",
    "safe_segment",
]

FORMAT_NAME = "xares-store"
FORMAT_VERSION = 1
STORE_MANIFEST = "store.json"
PART_MANIFEST = "part.json"
RUN_MANIFEST = "run.json"
ENCODERS, TASKS, EMBEDDINGS, RUNS = "encoders", "tasks", "embeddings", "runs"
TRAINING = "training"  # checkpoints of trainings that have not ended
INDEX = "index.duckdb"

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

_MAX_SEGMENT_BYTES = 240  # file systems allow 255; temporary and sequence suffixes need room
_SAFE = "@[]=,+%-._"
_HEX64 = Field(pattern=r"^[0-9a-f]{64}$")


def safe_segment(name: str) -> str:
    """Turn any name into one folder name: unsafe characters become ``%XX``; ``%`` stays, so encoded names stay as they are.

    Raises:
        StoreError: empty or longer than 240 bytes.

    Example:
        >>> safe_segment("a b/c"), safe_segment(".hidden"), safe_segment("a~1")
        ('a%20b%2Fc', '%2Ehidden', 'a%7E1')
    """
    text = quote(name, safe=_SAFE).replace("~", "%7E")  # "~" separates a part's sequence number
    if text.startswith("."):
        text = "%2E" + text[1:]
    if not text or len(text) > _MAX_SEGMENT_BYTES:
        raise StoreError(f"Expected a name of 1 to {_MAX_SEGMENT_BYTES} bytes, found {len(text)}.", where=name[:80])
    return text


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.parts or "\\" in path or "\0" in path or pure.is_absolute() or str(pure) != path or ".." in pure.parts:
        raise ValueError(f"unsafe path {path!r}")
    if any(part.startswith(TMP_PREFIX) for part in pure.parts) or re.match(r"^[A-Za-z]:", path):
        raise ValueError(f"unsafe path {path!r}")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Name = Annotated[str, Field(min_length=1, max_length=400)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
_FROZEN = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class PartAddress:
    """Where a part lives: equal identity means equal path.

    Attributes:
        encoder: ``name@fp8`` of the encoder.
        task: ``name@audio8``: what decides the frames of a task's audio.
        split: ``train``, ``valid``, ``test``, ``fold-1``, ``all``, ...
        shard: name of the source audio shard.
        sequence: 0, or 1, 2, ... for the further parts of a very large shard.

    Example:
        >>> PartAddress("logmel@1a2b3c4d", "esc10@9f8e7d6c", "fold-1", "clips-000", 2).path
        'embeddings/logmel@1a2b3c4d/esc10@9f8e7d6c/fold-1/clips-000~2'
    """

    encoder: str
    task: str
    split: str
    shard: str
    sequence: int = 0

    @property
    def path(self) -> str:
        """The folder of the part, relative to the store, with forward slashes."""
        shard = safe_segment(self.shard) + (f"~{self.sequence}" if self.sequence else "")
        return "/".join(
            [EMBEDDINGS, safe_segment(self.encoder), safe_segment(self.task), safe_segment(self.split), shard]
        )


@dataclass(frozen=True, slots=True)
class Source:
    """The audio shard a part was made from: its name, the SHA-256 of its bytes, and how many bytes it has."""

    name: str
    sha256: str
    bytes: int


class FileEntry(BaseModel):
    """Checksums and size of one file: SHA-256 for ``verify``, CRC-32C (ten times faster) for the check before every use."""

    model_config = _FROZEN
    sha256: Annotated[str, _HEX64]
    crc32c: Annotated[int, Field(ge=0, lt=1 << 32)]
    bytes: Count


class Counts(BaseModel):
    """How many samples of the shard a part covers, and what became of them."""

    model_config = _FROZEN
    samples: Count
    clips: Count
    failures: Count
    frames: Count


class Values(BaseModel):
    """Range of the embedding before rounding; null when the part holds no frames."""

    model_config = _FROZEN
    min: float | None
    max: float | None
    flushed_to_zero: Count


class FailedSample(BaseModel):
    """A sample that could not become a clip."""

    model_config = _FROZEN
    key: str
    kind: str
    reason: str


class StoreManifest(BaseModel):
    """``store.json``."""

    model_config = _FROZEN
    name: Literal["xares-store"]
    format: int
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    created: str


class PartManifest(BaseModel):
    """``part.json``: everything about a part but its arrays and clip rows."""

    model_config = _FROZEN
    format: int
    encoder: Name
    task: Name
    split: Name
    shard: Name
    sequence: Annotated[int, Field(ge=0, le=1_000_000)]
    final: bool
    first_sample: Count
    source: Source
    dim: Annotated[int, Field(ge=1, le=1 << 24)]
    hop_ms: Annotated[float, Field(gt=0)]
    sample_rate_hz: Annotated[int, Field(ge=1)]
    dtype: Literal["float16", "float32"]
    dtype_reason: str
    codec: Literal["crc32c", "zstd+crc32c"]
    counts: Counts
    values: Values
    failures: tuple[FailedSample, ...]
    files: dict[RelativePath, FileEntry]
    clips_digest: Annotated[str, _HEX64]
    digest: Annotated[str, _HEX64]
    created: str
    timing: dict[str, Any]
    versions: dict[str, Any]

    @property
    def n_samples(self) -> int:
        """How many samples of the shard the part covers."""
        return self.counts.samples

    @property
    def address(self) -> PartAddress:
        """Where the part belongs."""
        return PartAddress(self.encoder, self.task, self.split, self.shard, self.sequence)


def part_digest(record: Mapping[str, Any]) -> str:
    """Hash the content of a part: what was read, what came out, and nothing about when, where or with which versions.

    ``zarr.json`` and Parquet files are left out because library versions show in their bytes; the clip rows enter
    through ``clips_digest`` and the arrays through the bytes of their chunks.
    """
    keys: tuple[str, ...] = (
        "encoder",
        "task",
        "split",
        "shard",
        "sequence",
        "final",
        "first_sample",
        "source",
        "dim",
        "hop_ms",
    )
    keys = (*keys, "sample_rate_hz", "dtype", "codec", "counts", "failures", "clips_digest")
    chunks = {path: entry for path, entry in record["files"].items() if "/c/" in path}
    return fingerprint({**{key: record[key] for key in keys}, "chunks": chunks})


class Score(BaseModel):
    """One number of a run: a metric over one fold, or over all folds (``fold`` null).

    ``low`` and ``high`` are null for a metric without an interval.
    """

    model_config = _FROZEN
    metric: Name
    value: float
    fold: str | None
    low: float | None
    high: float | None
    n: Count


class RunManifest(BaseModel):
    """``run.json``: settings, provenance and scores of one evaluation."""

    model_config = _FROZEN
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    format: int
    encoder: Name
    task: Name
    task_address: Name
    audio_address: Name
    probe: Name
    probe_version: int | str
    protocol: Name
    seed: int | None
    settings: dict[str, Any]
    where: str | None
    parts_digest: str
    started: str
    seconds: float
    device: str
    versions: dict[str, Any]
    n_test: Count
    n_dropped: Count
    weight: float
    main_metric: Name
    scores: tuple[Score, ...]
    details: dict[str, Any]
    files: dict[RelativePath, FileEntry]


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Checksum every file below a folder; paths are relative, with forward slashes, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=sha256_file(path), crc32c=crc32c_file(path), bytes=path.stat().st_size
        )
        for path in files
    }


M = TypeVar("M", bound=BaseModel)


def dump_manifest(manifest: BaseModel) -> bytes:
    """Serialise a manifest with its own checksum at the end."""
    return seal(manifest.model_dump(mode="json"))


def load_manifest(path: Path, model: type[M]) -> M:
    """Read, check and validate a manifest.

    Raises:
        CorruptError: unreadable, damaged, or with values no writer puts there.
        StoreFormatError: written by a newer version.
    """
    data = read_small(path)
    try:
        record = unseal(data, where=path)
    except CorruptError as error:
        _refuse_newer(data, path)
        error.hint = "Remove the folder it is in and make its content again, or copy the folder from an intact store."
        raise
    refuse_newer(record, path)
    try:
        return model.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(item) for item in first["loc"])
        raise CorruptError(f"{key}: {first['msg']}.", where=path) from error


def _refuse_newer(data: bytes, path: Path) -> None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict):
        refuse_newer(record, path)


def refuse_newer(record: Mapping[str, Any], path: Path) -> None:
    """Raise StoreFormatError when a manifest says it was written in a newer format."""
    version = record.get("format")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise StoreFormatError(
            f"Written in format {version}; this version of xares-store reads up to format {FORMAT_VERSION}.",
            where=path,
            hint="Update xares-store: pip install --upgrade xares-store",
        )
