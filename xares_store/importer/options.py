"""What a person may say about an import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xares_store.errors import ConfigError, did_you_mean
from xares_store.kinds import METRICS_OF_KIND
from xares_store.task import SPLITS

KINDS = tuple(METRICS_OF_KIND)
DOMAINS = ("speech", "environment", "music", "other")
NONE = "none"  # said instead of a column: there is none, whatever the columns look like
FOLDS = 5
SHARD_CLIPS = 1000
SHARD_BYTES = 256 << 20
_MAX_FOLDS = 100
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(|[KMG]i?B)\s*", re.IGNORECASE)
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of :func:`xares_store.importer.imports.import_audio`; what is None is guessed or has a default.

    Attributes:
        name: name of the task: small letters, digits, ``_`` and ``-``.
        kind: kind of the target (``single-label``, ``multi-label``, ``events``, ``captions``, ``regression``,
            ``transcript``).
        title, domain, description: for the task file.
        audio_root: folder that relative paths of a manifest start from; the manifest's own by default.
        path_column, label_columns, onset_column, offset_column: columns of a manifest or dataset. Only captions may
            have several label columns.
        split_column, fold_column, group_column: likewise; ``"none"`` for none at all.
        separator: what divides several labels in one text.
        group_pattern: regular expression searched in the relative path; its first group names the recording or speaker.
        split_as: splits of the source by what they are called there, e.g. ``{"validation": "test"}``.
        split_folders: whether the upper level of a folder is splits or folds; None decides by the names.
        folds, split: how splits are made when there are none: so many folds, or shares of train, valid and test.
        seed: another seed makes other splits.
        vocabulary: text file, one label a line, in class order; else the labels found, sorted.
        crop_s: length of a crop in seconds, for the task file.
        shard_clips, shard_bytes: a shard is full when it has so many clips or so many bytes.
        skip_bad: leave out files that cannot be decoded instead of refusing.
        allow_duplicates: report the same audio in several splits instead of refusing it.
        replace: replace a finished import of this name.
        workers: threads that read and decode; one a usable core by default.
    """

    name: str
    kind: str | None = None
    title: str | None = None
    domain: str = "other"
    description: str = ""
    audio_root: Path | None = None
    path_column: str | None = None
    label_columns: tuple[str, ...] = ()
    onset_column: str | None = None
    offset_column: str | None = None
    split_column: str | None = None
    fold_column: str | None = None
    group_column: str | None = None
    separator: str | None = None
    group_pattern: str | None = None
    split_as: Mapping[str, str] = field(default_factory=dict)
    split_folders: bool | None = None
    folds: int | None = None
    split: tuple[float, float, float] | None = None
    seed: int = 0
    vocabulary: Path | None = None
    crop_s: float | None = None
    shard_clips: int = SHARD_CLIPS
    shard_bytes: int = SHARD_BYTES
    skip_bad: bool = False
    allow_duplicates: bool = False
    replace: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_-]{1,64}", self.name):
            raise ConfigError(
                f"Wanted a name of small letters, digits, _ and - (at most 64), found {self.name!r}.", where="--name"
            )
        if self.kind is not None and self.kind not in KINDS:
            raise ConfigError(
                f'Unknown kind "{self.kind}".',
                where="--kind",
                hint=did_you_mean(self.kind, KINDS, listing=f"Kinds: {', '.join(KINDS)}."),
            )
        if self.domain not in DOMAINS:
            raise ConfigError(f'Unknown domain "{self.domain}".', where="--domain", hint=f"Use {', '.join(DOMAINS)}.")
        for target in self.split_as.values():
            if target not in SPLITS:
                raise ConfigError(f'Wanted train, valid or test, found "{target}".', where="--split-as")
        self._check_numbers()
        if self.group_pattern is not None:
            self._check_pattern(self.group_pattern)

    def _check_numbers(self) -> None:
        if self.folds is not None and self.split is not None:
            raise ConfigError("Folds and a split into train, valid and test are both wanted.", hint="Choose one.")
        if self.folds is not None and not 2 <= self.folds <= _MAX_FOLDS:
            raise ConfigError(f"Wanted 2 to {_MAX_FOLDS} folds, found {self.folds}.", where="--folds")
        if self.split is not None:
            train, valid, test = self.split
            fitting = train > 0 and test > 0 and valid >= 0 and abs(train + valid + test - 1) < 1e-6
            if not fitting:
                raise ConfigError(
                    f"Wanted shares of train, valid and test that add up to 1, found {train:g}, {valid:g} and {test:g}.",
                    where="--split",
                    hint="For example 0.8 0.1 0.1; valid may be 0 and is then carved from train when evaluating.",
                )
        if self.shard_clips < 1 or self.shard_bytes < 1:
            raise ConfigError("A shard holds at least one clip and one byte.", where="--shard-size")
        if self.crop_s is not None and not 0 < self.crop_s < float("inf"):
            raise ConfigError(f"Wanted a crop of more than 0 seconds, found {self.crop_s}.", where="--crop")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"Wanted at least one thread, found {self.workers}.", where="--workers")

    def _check_pattern(self, pattern: str) -> None:
        try:
            found = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"Not a regular expression: {error}.", where="--group-pattern") from None
        if not found.groups:
            raise ConfigError(
                "The pattern has no group that names the recording or speaker.",
                where="--group-pattern",
                hint=r"Put round brackets around that part, for example '^[^/]+/(\w+)_'.",
            )


def parse_shard_size(text: str) -> tuple[int, int]:
    """Return clips and bytes of a full shard from what a person wrote.

    Raises:
        ConfigError: neither a count of clips nor a size.

    Example:
        >>> parse_shard_size("500"), parse_shard_size("64MB")
        ((500, 268435456), (1000000, 64000000))
    """
    found = _SIZE.fullmatch(text)
    if found is None or not float(found[1]) or (not found[2] and "." in found[1]):
        raise ConfigError(
            f"Wanted a number of clips or a size, found {text!r}.", where="--shard-size", hint="Write 1000 or 256MB."
        )
    if not found[2]:
        return int(found[1]), SHARD_BYTES
    return 1_000_000, max(1, int(float(found[1]) * _UNITS[found[2].lower().removesuffix("b")]))
