"""Import audio of one's own: from a folder, a manifest or a dataset to shards and a task file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from xares_store.device import usable_cores
from xares_store.errors import AudioError, ConfigError, ProtocolError, StoreError, XaresError
from xares_store.importer.examine import Examined, Reader, examine, hash_bytes
from xares_store.importer.options import Options
from xares_store.importer.plan import Plan, PlannedClip, PlannedShard, shard_patterns
from xares_store.importer.prepare import Prepared, prepare
from xares_store.importer.report import (
    ImportReport,
    describe_failures,
    failures_of,
    find_duplicates,
    summarise,
)
from xares_store.importer.splits import Division
from xares_store.importer.state import Working, refuse_small_disk
from xares_store.importer.table import lines
from xares_store.importer.tar import TarWriter
from xares_store.importer.taskfile import vocabulary_file
from xares_store.store.files import disk_errors, temporary_name

Advance = Callable[[float, str], None]
_ANEW = "the source or the options changed since an import that was not finished; it began anew"


def import_audio(
    source: str | Path,
    *,
    name: str,
    out: str | Path = "xares_data",
    dry_run: bool = False,
    advance: Advance | None = None,
    **options: Any,
) -> ImportReport:
    """Turn audio files and their labels into shards and a task file.

    Every file is read once, decoded to see whether it can be and to find the same audio under two names, and copied as it
    is. Shards are committed one by one and the task file last; after a cut the same call goes on where it stopped. Equal
    sources and options give equal bytes.

    Args:
        source: a folder of class folders (with ``train``/``valid``/``test`` or ``fold1``.. above them or not), a manifest
            (CSV, TSV, JSON lines, Parquet), or a folder that ``save_to_disk`` of the library ``datasets`` wrote.
        name: name of the task.
        out: data root; gets ``name.toml`` and ``name/*.tar``.
        dry_run: look at everything but the audio samples, and write nothing.
        advance: called with bytes of audio that are done, and of which shard.
        options: fields of :class:`~xares_store.importer.options.Options`.

    Returns:
        What was made.

    Raises:
        ConfigError: an option that cannot be used, missing files, or a folder that belongs to something else.
        LabelError: labels that are missing or malformed.
        ProtocolError: a group or the same audio in two splits.
        AudioError: files that cannot be decoded.
        StoreError: the disk is full or not writable.

    Example:
        >>> import_audio("recordings", name="birds", folds=5)  # doctest: +SKIP
    """
    planned = plan_import(source, name=name, out=out, **options)
    return planned.preview() if dry_run else planned.run(advance)


def plan_import(source: str | Path, *, name: str, out: str | Path = "xares_data", **options: Any) -> PlannedImport:
    """Read labels and sizes and decide everything, but decode and write nothing.

    Args, raises: as :func:`import_audio`.
    """
    prepared = prepare(Path(source), Options(name=name, **options))
    return PlannedImport(prepared, Path(out))


def _headers(plan: Plan, workers: int) -> dict[str, Examined]:
    """Return lengths from the headers of all files."""

    def look(clip: PlannedClip) -> tuple[str, Examined]:
        nbytes = clip.record.blob.nbytes
        path = getattr(clip.record.blob, "path", None)
        try:
            info = soundfile.info(str(path) if path is not None else io.BytesIO(clip.record.blob.read()))
        except (soundfile.SoundFileError, XaresError, OSError):
            data = clip.record.blob.read()
            return clip.key, examine(data, clip.ext, hash_bytes(data))
        return clip.key, Examined(nbytes, "", None, info.frames / info.samplerate)

    clips = [clip for shard in plan.shards for clip in shard.clips]
    with ThreadPoolExecutor(workers) as pool:
        return dict(pool.map(look, clips))


class PlannedImport:
    """An import that is ready to run.

    Attributes:
        plan: the shards.
        working: the folder.
    """

    def __init__(self, prepared: Prepared, root: Path) -> None:
        self._prepared, self._root = prepared, root
        self._options = prepared.options
        self._division = prepared.division([])
        self.plan = prepared.plan(self._division)
        name = self._options.name
        self.working = Working(root / name, root / f"{name}.toml")
        self._notes = list(prepared.notes)
        self._reused = 0
        self._advance: Advance = _silent

    def preview(self) -> ImportReport:
        """Say what would be made; lengths come from the headers, and duplicates are not looked for."""
        facts = _headers(self.plan, _workers(self._options))
        return self._report(self._division, self.plan, facts, dry_run=True)

    def run(self, advance: Advance | None = None) -> ImportReport:
        """Write the shards and the task file, or go on where an earlier run stopped.

        Args:
            advance: called with bytes of audio that are done (``plan.audio_bytes`` in all), and of which shard.
        """
        self._advance = advance or _silent
        with _disk_errors(self._root), self.working.claimed():
            done = self._finished(self.plan)
            if done is not None:
                return done
            refuse_small_disk(self.working.folder, self.plan.nbytes - self._written(self.plan))
            anew = self.working.begin(self.plan.digest, [shard.file for shard in self.plan.shards])
            report = self._write()
            return replace(report, notes=(*report.notes, _ANEW)) if anew else report

    def _written(self, plan: Plan) -> int:
        files = [self.working.folder / shard.file for shard in plan.shards]
        return sum(file.stat().st_size for file in files if file.is_file())

    def _finished(self, plan: Plan) -> ImportReport | None:
        report = self.working.finished()
        if report is None:
            return None
        if report.get("digest") == plan.digest:
            (self.working.work / "plan.json").unlink(missing_ok=True)
            return ImportReport.from_dict(report, self.working.task, reused_shards=len(plan.shards))
        if not self._options.replace:
            raise ConfigError(
                "An import of this name is finished, and the source or the options are others now.",
                where=self.working.task,
                hint="Say --replace to make it anew (its shards are removed first), or choose another --name.",
            )
        self.working.discard()
        return None

    def _write(self) -> ImportReport:
        division, plan = self._division, self.plan
        joined = self.working.joined
        if joined is not None:
            division, plan = self._redealt(joined)
        facts = self._shards(plan)
        duplicates, sets = find_duplicates(plan, facts)
        if division.made and joined is None and any(one.crosses for one in duplicates):
            # Whoever has splits made wants the same audio in one of them. Nothing is decoded again for it.
            division, plan = self._redealt(sets)
            self.working.join(sets, facts, [shard.file for shard in plan.shards])
            facts = self._shards(plan)
        report = self._report(division, plan, facts)
        self._refuse(report)
        self._finish(report, plan, facts, division)
        return report

    def _redealt(self, joined: Sequence[Sequence[str]]) -> tuple[Division, Plan]:
        division = self._prepared.division(joined)
        return division, self._prepared.plan(division)

    def _shards(self, plan: Plan) -> dict[str, Examined]:
        """Write the shards that are not there yet and return what all files hold."""
        facts: dict[str, Examined] = {}
        missing: list[PlannedShard] = []
        for shard in plan.shards:
            committed = self.working.committed(shard.file)
            if committed is not None and committed.keys() == {clip.key for clip in shard.clips}:
                facts |= committed
                self._reused += 1
                self._advance(sum(clip.record.blob.nbytes for clip in shard.clips), shard.file)
            else:
                missing.append(shard)
        reader = Reader(_workers(self._options), self.working.known())
        results = reader.run([clip for shard in missing for clip in shard.clips])
        with ThreadPoolExecutor(1, thread_name_prefix="commit") as committer:
            committing: Future[None] | None = None
            for shard in missing:
                temporary, found = self._shard(shard, results)
                if committing is not None:  # at most one shard waits for the disk while the next one is read
                    committing.result()
                committing = committer.submit(self.working.commit, shard.file, temporary, found)
                facts |= found
            if committing is not None:
                committing.result()
        return facts

    def _shard(
        self, shard: PlannedShard, results: Iterator[tuple[PlannedClip, bytes, Examined]]
    ) -> tuple[Path, dict[str, Examined]]:
        """Write one shard under a temporary name."""
        facts: dict[str, Examined] = {}
        temporary = self.working.work / temporary_name()
        with temporary.open("wb", buffering=1 << 20) as stream:
            tar = TarWriter(stream)
            for _ in shard.clips:
                clip, data, found = next(results)
                facts[clip.key] = found
                if found.kind is None:
                    tar.add(f"{clip.key}.{clip.ext}", data)
                    tar.add(f"{clip.key}.json", clip.record.text.encode())
                self._advance(len(data), shard.file)
            tar.end()
        return temporary, facts

    def _refuse(self, report: ImportReport) -> None:
        """Refuse what nobody has allowed; the shards stay, so that allowing it takes no second reading."""
        if report.failures and not self._options.skip_bad:
            raise AudioError(
                f"{len(report.failures)} of {report.clips + len(report.failures)} files cannot be used:\n"
                + describe_failures(report.failures),
                where=self.working.folder,
                hint="Repair or remove them, or leave them out with --skip-bad, which reads nothing again.",
            )
        crossing = [one for one in report.duplicates if one.crosses]
        if crossing and not self._options.allow_duplicates:
            raise ProtocolError(
                f"The same audio is in different splits, {len(crossing)} times:\n"
                + lines([str(one) for one in crossing], most=20),
                where=self.working.folder,
                hint="Remove one of each, have new splits made (--folds 5), or accept it with --allow-duplicates.",
            )
        empty = [split.name for split in report.splits if not split.clips]
        if empty:
            raise ProtocolError(f"No clip of the split {', '.join(empty)} can be decoded.", where=self.working.folder)

    def _finish(self, report: ImportReport, plan: Plan, facts: Mapping[str, Examined], division: Division) -> None:
        kept = [shard for shard in plan.shards if any(facts[clip.key].kind is None for clip in shard.clips)]
        patterns = {
            split: shard_patterns(
                self._options.name, split, [s.number for s in kept if s.split == split], folds=division.folds
            )
            for split in division.names
        }
        self._prepared.task_text(patterns, division.folds)  # validates the labels too, wherever they stand
        text = self._prepared.task_text(patterns, division.folds, inline=False)
        beside = self._prepared.labels if vocabulary_file(self._options, self._prepared.labels) else ()
        files = {shard.file: (self.working.folder / shard.file).stat().st_size for shard in kept}
        self.working.finish({"digest": self.plan.digest, "files": files, **report.as_dict()}, list(files), beside, text)

    def _report(
        self, division: Division, plan: Plan, facts: Mapping[str, Examined], *, dry_run: bool = False
    ) -> ImportReport:
        duplicates, _ = find_duplicates(plan, facts)
        splits = summarise(plan, facts)
        labels = self._prepared.labels
        notes = list(self._notes)
        for split in splits:
            if labels and split.classes < len(labels):
                shown = f"fold {split.name}" if division.folds else split.name
                notes.append(f"{len(labels) - split.classes} of {len(labels)} classes have no clip in {shown}")
        return ImportReport(
            task=self.working.task,
            name=self._options.name,
            kind=self._prepared.roles.kind,
            columns=self._prepared.roles.describe(),
            labels=labels,
            splits=splits,
            made_splits=division.made,
            failures=tuple(failures_of(plan, facts)),
            duplicates=tuple(duplicates),
            notes=tuple(notes),
            reused_shards=self._reused,
            dry_run=dry_run,
        )


def _workers(options: Options) -> int:
    return options.workers or usable_cores()


def _silent(amount: float, note: str) -> None:
    return


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        with disk_errors(root, "importing"):
            yield
    except StoreError as error:
        if error.hint and "--store" in error.hint:
            raise StoreError(
                error.message, where=error.where, hint=error.hint.replace("--store", "--out")
            ) from error.__cause__
        raise
