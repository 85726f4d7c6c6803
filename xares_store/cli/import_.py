"""``xares import``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xares_store.cli.common import DATA_ENV, INTERRUPTED, console, default_data, emit

if TYPE_CHECKING:
    from xares_store.importer.report import ImportReport

SHOWN = 10


def _shard_size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, int]:
    from xares_store.importer.options import parse_shard_size

    if value is None:
        return {}
    clips, nbytes = parse_shard_size(value)
    return {"shard_clips": clips, "shard_bytes": nbytes}


def _pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.rpartition("=") for value in values]
    wrong = next((value for value, (name, _, _) in zip(values, pairs, strict=True) if not name), None)
    if wrong is not None:
        raise click.BadParameter(f"wanted NAME=train, NAME=valid or NAME=test, found {wrong!r}")
    return {name: split for name, _, split in pairs}


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the task: small letters, digits, _ and -.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_data,
    show_default=f"${DATA_ENV} or ./xares_data",
    help="Data root that gets NAME.toml and NAME/*.tar.",
)
@click.option("--kind", help="single-label, multi-label, events, captions, regression, transcript [default: guessed].")
@click.option("--path-column", metavar="COLUMN", help="Column that names the audio file.")
@click.option(
    "--label-column",
    "label_columns",
    multiple=True,
    metavar="COLUMN",
    help="Column of the label, labels, events, captions, text or number; captions may have several.",
)
@click.option("--separator", metavar="TEXT", help="What divides several labels in one cell.")
@click.option("--onset-column", metavar="COLUMN", help="Column of the start of an event, in seconds.")
@click.option("--offset-column", metavar="COLUMN", help="Column of the end of an event, in seconds.")
@click.option("--split-column", metavar="COLUMN", help="Column of train, valid and test; none: there is none.")
@click.option("--fold-column", metavar="COLUMN", help="Column of folds; none: there is none.")
@click.option("--group-column", metavar="COLUMN", help="Column of the speaker or recording; none: there is none.")
@click.option("--group-pattern", metavar="REGEX", help="Finds the speaker or recording in the path: its first group.")
@click.option(
    "--split-as", multiple=True, metavar="NAME=SPLIT", callback=_pairs, help="What a split is called in the source."
)
@click.option("--split-folders/--no-split-folders", default=None, help="Whether the upper folders are splits or folds.")
@click.option(
    "--audio-root", type=click.Path(path_type=Path), help="Where relative paths start [default: the manifest]."
)
@click.option("--folds", type=int, help="Make so many folds [default: 5 when the source has no splits].")
@click.option("--split", type=(float, float, float), metavar="TRAIN VALID TEST", help="Make splits, e.g. 0.8 0.1 0.1.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other splits.")
@click.option("--vocabulary", type=click.Path(path_type=Path), help="Text file of labels in class order, one a line.")
@click.option("--crop", "crop_s", type=float, metavar="SECONDS", help="Crop clips to this length when embedding.")
@click.option("--domain", default="other", show_default=True, help="speech, environment, music or other.")
@click.option("--title", help="Title in tables [default: the name].")
@click.option(
    "--shard-size", metavar="SIZE", callback=_shard_size, help="Clips or bytes: 1000 or 256MB [default: both]."
)
@click.option("--workers", type=int, help="Decoding threads [default: one a core].")
@click.option("--skip-bad", is_flag=True, help="Leave out files that cannot be decoded.")
@click.option("--allow-duplicates", is_flag=True, help="Accept the same audio in different splits.")
@click.option("--replace", is_flag=True, help="Make a finished import of this name anew.")
@click.option("--dry-run", is_flag=True, help="Say what would be made; decode and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def import_command(
    source: Path, name: str, out: Path, shard_size: dict[str, int], dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Turn a folder, manifest or dataset of audio into shards and a task.

    SOURCE is a folder of class folders (with train, valid and test or fold1, fold2, ... above them or not), a manifest
    (CSV, TSV, JSON lines or Parquet) that names audio files, or a Hugging Face dataset on disk. Columns and the kind of
    task are found by their names; options say what a guess gets wrong.

    Splits of the source are kept; without any, folds are made. The same audio, or the same speaker or recording, in two
    splits is refused. Files are copied as they are. After an interruption the same command goes on where it stopped.
    """
    from xares_store.importer.imports import plan_import
    from xares_store.runs.progress import Meter

    planned = plan_import(source, name=name, out=out, **{**options, **shard_size})
    if dry_run:
        report = planned.preview()
    else:
        try:
            with Meter("importing", total=planned.plan.audio_bytes) as meter:
                report = planned.run(lambda amount, note: meter.advance(amount, note=note))
        except KeyboardInterrupt:
            console.print(
                f"Interrupted. Shards written so far are kept in {planned.working.folder}; run the same command again to "
                "go on where it stopped.",
                markup=False,
                highlight=False,
            )
            return INTERRUPTED
    if as_json:
        content = {"task": str(report.task), "dry_run": report.dry_run, "reused_shards": report.reused_shards}
        click.echo(json.dumps(content | report.as_dict(), indent=1, ensure_ascii=False))
    else:
        _print_report(report, out)
    return 0


def _print_report(report: ImportReport, out: Path) -> None:
    columns = ["split", "clips", "minutes", "MB", "shards", "groups", *(["classes"] if report.labels else [])]
    rows: list[list[object]] = [
        [s.name, s.clips, round(s.seconds / 60, 2), round(s.nbytes / 1e6, 2), s.shards, s.groups]
        + ([s.classes] if report.labels else [])
        for s in report.splits
    ]
    classes = f", {len(report.labels)} classes" if report.labels else ""
    made = "splits made here" if report.made_splits else "splits of the source"
    emit(columns, rows, title=f"{report.name}: {report.kind}{classes}, {report.clips} clips, {made}")
    taken = ", ".join(f"{role}: {column}" for role, column in report.columns.items())
    _say(f"columns: {taken}")
    for note in report.notes:
        _say(f"note: {note}")
    for one in report.duplicates[:SHOWN]:
        _say(f"same audio: {one}")
    if len(report.duplicates) > SHOWN:
        _say(f"same audio: {len(report.duplicates) - SHOWN} sets more; --json lists all")
    for path, kind, reason in report.failures[:SHOWN]:
        _say(f"{'cannot be used' if report.dry_run else 'left out'}: {path} ({kind}): {reason}")
    if len(report.failures) > SHOWN:
        _say(f"{len(report.failures) - SHOWN} files more cannot be used; --json lists all")
    if report.dry_run:
        _say(f"Nothing was written. Without --dry-run: {report.task}")
        return
    if report.reused_shards:
        _say(f"{report.reused_shards} shards were written by an earlier run")
    click.echo(report.task)
    _say(f"Next: xares embed --encoder logmel --task {report.task} --data {out}")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False)
