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
def audio_task() -> tuple[Path, Path]:
    """Return a task file and its data root: the real ESC-10 shards where they are, generated audio elsewhere."""
    if (ESC10 / "esc10").is_dir():
        return ROOT / "tasks" / "extra" / "esc10.toml", ESC10
    from xares_store.demo import generate

    folder = Path(tempfile.mkdtemp(prefix="xares-bench-"))
    generate(folder)
    return folder / "demo.toml", folder
