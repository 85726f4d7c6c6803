"""``xares transcribe``."""

from __future__ import annotations

from pathlib import Path

import click

from xares_store.cli.common import device_option, emit, format_options, store_option


@click.command()
@click.argument("clip_ids", nargs=-1, required=True, metavar="CLIP_ID...")
@click.option("--run", required=True, metavar="RUN", help="Run of the llm probe whose model writes.")
@click.option("--task", default=None, metavar="TASK", help="Another task of the store whose clips are meant.")
@click.option("--prompt", default=None, metavar="TEXT", help="Another question than the task's.")
@click.option("--decoder", default=None, metavar="MODEL", help="Where the run's decoder is now [default: as recorded].")
@store_option
@device_option
@format_options
def transcribe(
    clip_ids: tuple[str, ...],
    run: str,
    task: str | None,
    prompt: str | None,
    decoder: str | None,
    store: Path,
    device: str,
    fmt: str,
) -> None:
    """Write what a trained language model hears in stored clips."""
    from xares_store.runs.llm.transcribe import transcribe as write

    found = write(store, run, clip_ids, task=task, prompt=prompt, decoder=decoder, device=device)
    rows = [[one.split, one.clip_id, one.text, one.reference, one.finished, one.cut] for one in found]
    emit(["split", "clip", "text", "reference", "finished", "cut"], rows, fmt=fmt)
