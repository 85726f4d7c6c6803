"""Scores of a suite as MTEB-shaped result files, for tools that read those.

::

    DIR/<probe>-<protocol>[-<settings>]/<encoder>/<fingerprint>/model_meta.json   name, revision
                                                                <task>.json       one result, as below

A result has the fields of MTEB's ``TaskResult``: ``task_name``, ``dataset_revision`` (the fingerprint of the task
definition), ``scores`` (the split ``test`` with ``main_score``), ``evaluation_time`` (seconds of all seeds), ``date``.
``mteb_version`` is null, because MTEB did not measure; ``xares_store_version`` says what did.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from xares_store import __version__
from xares_store.runs.suite import STORE, Line, SuiteReport, TaskScore


def write_mteb(report: SuiteReport, folder: str | Path) -> list[Path]:
    """Write one MTEB-shaped JSON file a task score of the store; printed scores are left out.

    Args:
        report: what :func:`~xares_store.runs.aggregates.suite_report` returned.
        folder: made when it is not there; files of the same name are replaced.

    Returns:
        The result files.

    Raises:
        OSError: the folder cannot be written.

    Example:
        >>> files = write_mteb(suite_report("my.store", "xares"), "results")    # doctest: +SKIP
    """
    written: list[Path] = []
    for line in report.lines:
        if line.source != STORE:
            continue
        name, _, revision = line.encoder.rpartition("@")
        kind = "-".join(filter(None, (line.probe, line.protocol, line.label)))
        place = Path(folder) / re.sub(r"[^A-Za-z0-9._-]+", "_", kind) / name / revision
        place.mkdir(parents=True, exist_ok=True)
        meta = {"name": name, "revision": revision, "framework": ["xares-store"], "modalities": ["audio"]}
        _write(place / "model_meta.json", meta)
        for score in line.scores:
            written.append(place / f"{score.task}.json")
            _write(written[-1], _result(line, score))
    return written


def _result(line: Line, score: TaskScore) -> dict[str, Any]:
    numbers = {
        "main_score": score.score,
        score.metric: score.score,
        "low": score.low,
        "high": score.high,
        "n_seeds": score.n_seeds,
        "seed_sd": score.seed_sd,
        "n_test": score.n_test,
    }
    entry = {name: value for name, value in numbers.items() if value is not None}
    return {
        "task_name": score.task,
        "dataset_revision": score.dataset_revision,
        "mteb_version": None,
        "xares_store_version": __version__,
        "probe": line.probe,
        "protocol": line.protocol,
        "settings": dict(line.settings),
        "scores": {"test": [{**entry, "hf_subset": "default", "languages": []}]},
        "evaluation_time": score.seconds,
        "kg_co2_emissions": None,
        "date": score.started,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
