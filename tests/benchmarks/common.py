"""What the benchmarks share: ratios as rows, and audio to work on."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xares_store.cli.common import emit

ROOT = Path(__file__).resolve().parents[2]
ESC10 = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Row:
    """Ratios measured against a baseline in the same run, and the target they must not exceed."""

    what: str
    ratios: Sequence[float]
    target: float


def show(rows: Sequence[Row]) -> None:
    """Print median, minimum, maximum and target of each ratio."""
    emit(
        ("what", "median", "min", "max", "runs", "target", "met"),
        [
            (row.what, statistics.median(row.ratios), min(row.ratios), max(row.ratios), len(row.ratios), row.target,
             statistics.median(row.ratios) <= row.target)
            for row in rows
        ],
    )  # fmt: skip


@cache
def audio_task(copies: int = 4) -> tuple[Path, Path]:
    """Return a task file and its data root: the ESC-10 shards where they are, else generated ones, several times over.

    Real tasks take hours; so many copies of half an hour of audio keep the start of a run from weighing too much.
    """
    folder = Path(tempfile.mkdtemp(prefix="xares-bench-"))
    sources = sorted((ESC10 / "esc10").glob("*.tar"))
    if not sources:
        from xares_store.demo import generate

        generate(folder / "once")
        sources = sorted((folder / "once" / "demo").glob("*.tar"))
    (folder / "bench").mkdir()
    for copy in range(copies):
        for number, source in enumerate(sources):
            (folder / "bench" / f"copy{copy}-{number}.tar").symlink_to(source)
    labels = '"' + '", "'.join(str(number) for number in range(10)) + '"'
    text = f"""
format = 1
name = "bench"
title = "Benchmark"
domain = "other"
[data]
pool = ["copy*.tar"]
[target]
kind = "single-label"
key = "label"
labels = [{labels}]
[metric]
name = "accuracy"
"""
    (folder / "bench.toml").write_text(text)
    return folder / "bench.toml", folder
