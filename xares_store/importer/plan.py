"""Which clip goes into which shard under which key: decided before anything is written, so that a cut import can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from tarfile import BLOCKSIZE

from xares_store.audio.samples import AUDIO_SUFFIXES
from xares_store.errors import ConfigError
from xares_store.fingerprint import canonical_json
from xares_store.importer.folder import FOREIGN_SUFFIXES
from xares_store.importer.names import make_keys
from xares_store.importer.options import Options
from xares_store.importer.records import Record
from xares_store.importer.splits import Division
from xares_store.importer.table import Blob

# Raise it when the same source and options come to give other bytes: a cut import is then not continued with them.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """One clip: its key, the suffix of its audio and the recording."""

    key: str
    ext: str
    record: Record


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard: file name, split, number inside the split, clips in order."""

    file: str
    split: str
    number: int
    clips: tuple[PlannedClip, ...]

    @property
    def nbytes(self) -> int:
        """About how long the file will be."""
        return sum(_in_tar(clip) for clip in self.clips) + 2 * BLOCKSIZE


@dataclass(frozen=True)
class Plan:
    """All shards.

    Attributes:
        shards: in the order in which they are written.
        digest: of sources, labels, options and layout.
    """

    shards: tuple[PlannedShard, ...]
    digest: str

    @property
    def nbytes(self) -> int:
        """About how much is written."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def audio_bytes(self) -> int:
        """Size of the encoded audio."""
        return sum(clip.record.blob.nbytes for shard in self.shards for clip in shard.clips)


def keyed(records: Sequence[Record]) -> list[PlannedClip]:
    """Give every recording its key and fix the JSON text beside it.

    Raises:
        ConfigError: two keys are the same, which takes two paths with the same hash.
    """
    clips = []
    keys = make_keys([record.path for record in records])
    seen: dict[str, str] = {}
    for key, record in zip(keys, records, strict=True):
        if seen.setdefault(key, record.path) != record.path:
            raise ConfigError(f"{seen[key]} and {record.path} get the same key, {key}.", hint="Rename one of them.")
        record.text = canonical_json(record.facts)
        clips.append(PlannedClip(key, audio_suffix(record.path, record.blob), record))
    return clips


def make_plan(clips: Sequence[PlannedClip], division: Division, options: Options, *, task_text: str) -> Plan:
    """Lay clips out in shards.

    Inside a split the clips follow a hash of their keys, so that a shard is a random sample and training that reads
    whole shards does not meet class after class.

    Args:
        clips: all of them; the order does not matter.
        division: the split of each.
        options: size of a shard, seed.
        task_text: the task file, which is part of the digest.
    """
    shards: list[PlannedShard] = []
    by_split: dict[str, list[PlannedClip]] = {name: [] for name in division.names}
    for clip, split in zip(clips, division.of, strict=True):
        by_split[split].append(clip)
    for split, members in by_split.items():
        members.sort(key=lambda clip: hashlib.sha256(f"{options.seed}:{clip.key}".encode()).digest())
        start = size = number = 0
        for at, clip in enumerate(members):
            nbytes = _in_tar(clip)
            if at > start and (at - start >= options.shard_clips or size + nbytes > options.shard_bytes):
                shards.append(_shard(options.name, split, number, members[start:at], division.folds))
                start, size, number = at, 0, number + 1
            size += nbytes
        shards.append(_shard(options.name, split, number, members[start:], division.folds))
    return Plan(tuple(shards), _digest(shards, task_text))


def shard_file(name: str, split: str, number: int, *, folds: bool) -> str:
    """Return the file name of a shard.

    Example:
        >>> shard_file("birds", "1", 2, folds=True)
        'birds-fold-1-000002.tar'
    """
    return f"{name}-{'fold-' if folds else ''}{split}-{number:06d}.tar"


def shard_patterns(name: str, split: str, numbers: Sequence[int], *, folds: bool) -> list[str]:
    """Return the patterns that name these shards and no others: a missing shard is then found missing.

    Example:
        >>> shard_patterns("birds", "test", [0, 1, 2, 4], folds=False)
        ['birds-test-{000000..000002}.tar', 'birds-test-000004.tar']
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    patterns = []
    for first, last in runs:
        pattern = shard_file(name, split, first, folds=folds)
        if last > first:
            pattern = pattern.replace(f"{first:06d}.tar", f"{{{first:06d}..{last:06d}}}.tar")
        patterns.append(pattern)
    return patterns


def audio_suffix(path: str, blob: Blob) -> str:
    """Return the suffix under which the audio is stored: its own, or by its first bytes when that says nothing."""
    suffix = PurePosixPath(path).suffix[1:].lower()
    if suffix in AUDIO_SUFFIXES or suffix in FOREIGN_SUFFIXES:
        return suffix
    return _sniff(blob.read()[:16]) or "unknown"


def _sniff(head: bytes) -> str | None:
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return "wav"
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2):
        return "mp3"
    return {b"fLaC": "flac", b"OggS": "ogg", b"FORM": "aiff", b".snd": "au", b"caff": "caf"}.get(head[:4])


def _shard(name: str, split: str, number: int, clips: Sequence[PlannedClip], folds: bool) -> PlannedShard:
    return PlannedShard(shard_file(name, split, number, folds=folds), split, number, tuple(clips))


def _in_tar(clip: PlannedClip) -> int:
    blocks = -(-clip.record.blob.nbytes // BLOCKSIZE) + -(-len(clip.record.text.encode()) // BLOCKSIZE)
    return (blocks + 2) * BLOCKSIZE


def _digest(shards: Sequence[PlannedShard], task_text: str) -> str:
    digest = hashlib.sha256(f"{_FORMAT}\n{task_text}\n".encode())
    for shard in shards:
        digest.update(f"{shard.file}\n".encode())
        for clip in shard.clips:
            digest.update(f"{clip.key}.{clip.ext} {clip.record.blob.stamp} {clip.record.text}\n".encode())
    return digest.hexdigest()
