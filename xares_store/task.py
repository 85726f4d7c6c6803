"""What a task is: a frozen value read from one TOML file, with a content hash.

A task file states where the audio is, how it is cropped, how a label becomes a target, which metric counts and the
settings of the probes. It holds no code, no import paths and no devices: a task file from a stranger is safe to read.

    >>> task = Task.from_text('''
    ... format = 1
    ... name = "clicks"
    ... title = "Mouse and keyboard clicks"
    ... domain = "environment"
    ... [data]
    ... splits = { train = ["train-*.tar"], test = ["test-*.tar"] }
    ... [target]
    ... kind = "single-label"
    ... key = "label"
    ... labels = ["mouse", "keyboard"]
    ... [metric]
    ... name = "accuracy"
    ... ''', where="clicks.toml", base=None)
    >>> task.labels, sorted(task.split_patterns())
    (('mouse', 'keyboard'), ['test', 'train'])
"""

from __future__ import annotations

import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, StrictBool, ValidationError, model_validator

from xares_store import fingerprint as _hash
from xares_store.errors import TaskError, did_you_mean
from xares_store.kinds import METRICS_OF_KIND, PROBES_OF_KIND, UNBOUNDED, Seconds, Table, Target, file_name
from xares_store.measures import Count, Metric, Probes
from xares_store.patterns import first_overlap, path_problem, pattern_problem
from xares_store.validation import problems, read_text

FORMAT = 1
SPLITS = ("train", "valid", "test")
FOLD_PREFIX = "fold-"
POOL_SPLIT = "all"


def _safe_pattern(pattern: str) -> str:
    problem = pattern_problem(pattern)
    if problem:
        raise ValueError(f"the pattern {pattern!r} {problem}")
    return pattern


def _safe_folder(folder: str) -> str:
    problem = path_problem(folder)
    if problem:
        raise ValueError(f"the folder {folder!r} {problem}")
    return folder


Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", max_length=64)]
FoldName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=32)]
Patterns = Annotated[tuple[Annotated[str, AfterValidator(_safe_pattern)], ...], Field(min_length=1)]


class Splits(Table):
    """Shard patterns of a task with fixed splits."""

    train: Patterns
    valid: Patterns | None = Field(
        default=None, description="Carved from train under the strict protocol when it is left out."
    )
    test: Patterns


class Data(Table):
    """Where the audio shards are. Exactly one of ``folds``, ``splits`` and ``pool`` is given."""

    folder: Annotated[str, AfterValidator(_safe_folder)] | None = Field(
        default=None, description="Folder below the data root; the task's name when it is left out."
    )
    zenodo: str | None = Field(
        default=None, pattern=r"^\d+$", description="Number of the Zenodo record that holds the shards."
    )
    hf: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$",
        description="Data set on the Hugging Face hub that holds the shards: org/name or org/name@revision.",
    )
    hf_folder: Annotated[str, AfterValidator(_safe_folder)] | None = Field(
        default=None, description="Folder of the shards inside that data set; its top when left out."
    )
    folds: dict[FoldName, Patterns] | None = Field(
        default=None,
        min_length=2,
        description="Shard patterns by fold; the fold declared after the test fold validates.",
    )
    splits: Splits | None = None
    pool: Patterns | None = Field(default=None, description="Shard patterns of one unsplit set.")
    pool_folds: Count | None = Field(
        default=None, ge=3, le=100, description="Folds that strict makes of a pool; 5 when left out."
    )
    published_valid: Literal["train", "valid", "test"] | None = Field(
        default=None, description="Split on which the published protocol chose the checkpoint."
    )

    @model_validator(mode="after")
    def _one_scheme(self) -> Data:
        given = [name for name in ("folds", "splits", "pool") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"wanted exactly one of folds, splits and pool, found {' and '.join(given) or 'none'}")
        if self.hf_folder is not None and self.hf is None:
            raise ValueError("hf_folder belongs to hf, which is not given")
        if self.pool_folds is not None and self.pool is None:
            raise ValueError("pool_folds belongs to pool, which is not given")
        if self.published_valid is not None:
            if self.splits is None:
                raise ValueError("published_valid belongs to splits, which is not given")
            if getattr(self.splits, self.published_valid) is None:
                raise ValueError(f'published_valid is "{self.published_valid}", but there is no such split')
        overlap = first_overlap(self.patterns())
        if overlap:
            one, pattern, other, other_pattern, witness = overlap
            advice = '. Where the original validates on test, leave valid out and say published_valid = "test"'
            raise ValueError(
                f"{one} and {other} overlap: {pattern!r} and {other_pattern!r} both match {witness!r}"
                + (advice if {one, other} == {"valid", "test"} else "")
            )
        return self

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """Return shard patterns by the name of the split in a store."""
        if self.folds is not None:
            return {FOLD_PREFIX + name: patterns for name, patterns in self.folds.items()}
        if self.splits is not None:
            return {name: patterns for name in SPLITS if (patterns := getattr(self.splits, name)) is not None}
        return {POOL_SPLIT: self.pool or ()}


class Audio(Table):
    """What decides the frames besides the encoder. Channels are averaged and the rate is the encoder's.

    A clip longer than ``crop_s`` becomes consecutive crops. ``tail = "drop"`` leaves out what remains at the end, as
    the published tables do; ``"keep"`` makes a remainder of at least ``min_tail_s`` a crop of its own and joins a
    shorter one to the crop before. A clip shorter than ``crop_s`` is kept whole and never padded.
    """

    crop_s: Seconds | None = Field(default=None, description="Length of a crop in seconds; whole clips when left out.")
    tail: Literal["drop", "keep"] = Field(
        default="keep", description="What happens to audio after the last whole crop."
    )
    min_tail_s: Seconds = Field(default=0.5, description="Shortest remainder, in seconds, that is a crop of its own.")


class Published(Table):
    """What published tables say about the task."""

    weight: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Hand-set weight in the published average."
    )
    result_name: str | None = Field(default=None, description="Row name in the published tables.")
    knn: StrictBool | None = Field(
        default=None,
        description="False where the published tables have no k-NN score; a k-NN is then run on request only.",
    )


class Task(Table):
    """One benchmark task. Read one with :meth:`from_toml` or ``xares_store.catalog.load_task``.

    Attributes are the tables of the file; :attr:`labels` is the vocabulary in class order.
    """

    format: Literal[1] = Field(description="Version of the task file format.")
    name: Name = Field(description="Short name; the file is called <name>.toml.")
    title: str = Field(min_length=1)
    domain: Literal["speech", "environment", "music", "other"]
    private: StrictBool = Field(default=False, description="The audio is not public.")
    description: str = ""
    audio_of: Name | None = Field(
        default=None,
        description="Name of a task over the same audio, under which the embeddings are stored and reused.",
    )
    data: Data
    audio: Audio = Audio()
    target: Target
    metric: Metric
    probe: Probes = Probes()
    published: Published = Published()

    @model_validator(mode="after")
    def _metric_fits(self) -> Task:
        kind, metric = self.target.kind, self.metric
        fitting = METRICS_OF_KIND[kind]
        for key, name in (("name", metric.name), *(("also", name) for name in metric.also or ())):
            if name not in fitting:
                raise ValueError(
                    f'metric.{key}: "{name}" does not fit target.kind "{kind}"; what fits: {", ".join(fitting)}'
                )
        if metric.name in UNBOUNDED:
            raise ValueError(f"metric.name: {metric.name} has no bounds and cannot be averaged; name it in metric.also")
        if len(set(metric.names)) < len(metric.names):
            raise ValueError("metric.also: a metric is named twice")
        segmented = any(name.startswith("segment_") for name in metric.names)
        if segmented and metric.segment_s is None:
            raise ValueError("metric.segment_s: a segment metric needs the length of a segment")
        if metric.segment_s is not None and not segmented:
            raise ValueError("metric.segment_s belongs to segment metrics, of which none is named")
        if metric.name in ("mse", "mae") and not (metric.worst or 0) > 0:
            raise ValueError(f"metric.worst: {metric.name} has no worst value of its own; say which error counts as 0")
        if metric.worst is not None and metric.name not in ("mse", "mae"):
            raise ValueError(f"metric.worst: {metric.name} has bounds of its own")
        classed = any(name in ("string_map", "string_macro_f1") for name in metric.names)
        if classed and metric.n_classes is None:
            raise ValueError("metric.n_classes: the mean over classes needs their number")
        if metric.n_classes is not None and not classed:
            raise ValueError("metric.n_classes belongs to string_map and string_macro_f1, neither of which is named")
        if metric.date_kind is not None and "date" not in metric.names:
            raise ValueError("metric.date_kind belongs to date, which is not named")
        closed = getattr(self.target, "closed", False)
        if self.audio.crop_s is not None and (kind == "transcript" or (kind == "text" and not closed)):
            raise ValueError(
                "audio.crop_s: each crop of a recording would learn the whole of its text; recipes crop in training, so "
                "leave audio.crop_s away"
            )
        for probe in ("frame", "retrieval"):
            if getattr(self.probe, probe) is not None and probe not in PROBES_OF_KIND[kind]:
                raise ValueError(f'probe.{probe} does not fit target.kind "{kind}"')
        return self

    @classmethod
    def from_toml(cls, path: str | Path) -> Task:
        """Read and validate a task file.

        Args:
            path: a ``.toml`` file; its stem must be the task's name.

        Raises:
            TaskNotFoundError: there is no such file.
            TaskError: the file does not validate; the message names the file and every wrong key.
        """
        path = Path(path)
        task = cls.from_text(read_text(path), where=str(path), base=path.parent)
        if task.name != path.stem:
            raise TaskError(
                f'{path}: name: wanted "{path.stem}" (the file is called {path.name}), found "{task.name}".',
                hint="Rename the file or the task.",
            )
        return task

    @classmethod
    def from_text(cls, text: str, *, where: str, base: Path | None) -> Task:
        """Validate the text of a task file.

        Args:
            text: TOML.
            where: what messages call it, usually the path.
            base: folder in which vocabulary files are looked for (and in ``../vocabularies``); None when the text must
                hold its labels itself, as task files inside a store do.

        Raises:
            TaskError: it does not validate; the message names ``where`` and every wrong key.
        """
        try:
            raw = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise TaskError(f"{where}: not valid TOML: {error}.", hint="See https://toml.io for the syntax.") from None
        found = raw.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise TaskError(
                f"{where}: format: this version reads task files of format {FORMAT}, found {found}.",
                hint="Upgrade xares-store.",
            )
        _inline_vocabulary(raw, where, base)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise TaskError(
                "\n".join(f"{where}: {problem}" for problem in problems(error, cls)),
                hint="`xares tasks schema` prints every key that a task file may have.",
            ) from None

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; the position is the class index. None for a kind of target without classes."""
        return self.target.label_names

    @property
    def folder(self) -> str:
        """Folder of the shards below the data root."""
        return self.data.folder or self.name

    def split_patterns(self) -> dict[str, tuple[str, ...]]:
        """Return shard patterns by split name in a store: ``train``/``valid``/``test``, ``fold-<name>``, or ``all``."""
        return self.data.patterns()

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of the whole definition with its labels (64 hexadecimal digits)."""
        content = self.model_dump(mode="json", exclude_none=True)
        if self.data.folds is not None:  # the order of folds decides which one validates, and canonical JSON sorts keys
            content["data"]["folds"] = [[name, list(patterns)] for name, patterns in self.data.folds.items()]
        return _hash.fingerprint(content)

    @cached_property
    def audio_fingerprint(self) -> str:
        """Content hash of only what decides the frames: crop, tail, channel and rate rules (64 hexadecimal digits)."""
        parts: dict[str, Any] = {"channels": "mean", "rate": "encoder"}
        if self.audio.crop_s is not None:
            parts |= {"crop_s": self.audio.crop_s, "tail": self.audio.tail}
            if self.audio.tail == "keep":
                parts["min_tail_s"] = self.audio.min_tail_s
        return _hash.fingerprint(parts)

    @property
    def audio_address(self) -> str:
        """Name under which a store keeps embeddings of this audio, e.g. ``esc50@1a2b3c4d``."""
        return f"{self.audio_of or self.name}@{_hash.short(self.audio_fingerprint)}"

    @property
    def address(self) -> str:
        """Name under which a store keeps this definition, e.g. ``esc50@5e6f7a8b``."""
        return f"{self.name}@{_hash.short(self.fingerprint)}"

    def to_toml(self) -> str:
        """Return a self-contained task file: labels are inlined, and reading it gives the same fingerprint."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _inline_vocabulary(raw: dict[str, Any], where: str, base: Path | None) -> None:
    """Replace ``target.vocabulary`` by the labels in that file."""
    target = raw.get("target")
    if not isinstance(target, dict) or not isinstance(target.get("vocabulary"), str) or "labels" in target:
        return
    name = target["vocabulary"]
    try:
        file_name(name)
    except ValueError as error:
        raise TaskError(f"{where}: target.vocabulary: {error}.", hint="Put the file beside the task file.") from None
    if base is None:
        raise TaskError(
            f'{where}: target.vocabulary: wanted labels inside the file, found the file name "{name}".',
            hint="Write the labels as target.labels.",
        )
    folders = (base, base.parent / "vocabularies")
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        known = sorted(file.name for folder in folders if folder.is_dir() for file in folder.glob("*.txt"))
        raise TaskError(
            f'{where}: target.vocabulary: no file "{name}" in {folders[0]} or {folders[1]}.',
            hint=did_you_mean(name, known, listing="Put the file beside the task file, one label a line."),
        )
    del target["vocabulary"]
    # Not splitlines(): a label may hold one of the rarer line separators.
    target["labels"] = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
