"""Download the shards of tasks: what each of them needs, what is there, what is missing, and then the missing files."""

from __future__ import annotations

import os
from pathlib import Path

from xares_store.fetch.planning import plan
from xares_store.fetch.report import FetchReport, FileState
from xares_store.fetch.running import PARALLEL, run, shortages
from xares_store.task import Task

__all__ = ["FetchReport", "FileState", "fetch_task", "plan", "run", "shortages"]


def fetch_task(
    *tasks: str | os.PathLike[str] | Task,
    data: str | Path,
    mirror: str | None = None,
    hf_mirror: str | None = None,
    parallel: int = PARALLEL,
    verify: bool = False,
    replace: bool = False,
    offline: bool = False,
    dry_run: bool = False,
) -> FetchReport:
    """Download the audio shards of tasks from Zenodo and the Hugging Face hub into a data root.

    Only what is missing is downloaded, an interrupted download goes on where it stopped, and a file appears under its
    name when its size and its published checksum are right. Files of the hub come from one commit, which the folder
    remembers until ``replace``.

    Args:
        tasks: names of tasks or suites, task files, or tasks.
        data: the data root; shards go to the task's folder below it.
        mirror: address that stands for ``https://zenodo.org``.
        hf_mirror: address that stands for ``https://huggingface.co``; ``$HF_ENDPOINT`` when left out.
        parallel: connections at once, 1 to 8.
        verify: check the checksums of files that are there already, not only their size.
        replace: download files again that are there with a wrong size (or checksum, with ``verify``),
            and take the present commit of a data set on the hub.
        offline: make no connection; the report says which files belong where.
        dry_run: read the lists of files and report what would be downloaded; write nothing.

    Returns:
        What was found and done. A task that could not be completed is named in ``problems``; the others are complete.

    Raises:
        TaskNotFoundError: there is no such task.
        ConfigError: an argument cannot be used.
        ShardError: the disk has too little space; nothing was downloaded.

    Example:
        >>> report = fetch_task("esc50", data="xares_data")  # doctest: +SKIP
        >>> [file.path.name for file in report.files]  # doctest: +SKIP
        ['wds-audio-fold-1-000000.tar', ...]
    """
    report = plan(tasks, data=data, mirror=mirror, hf_mirror=hf_mirror, verify=verify, replace=replace, offline=offline)
    if not dry_run:
        run(report, parallel=parallel)
    return report
