"""A run folder: settings, scores and per-clip predictions of one evaluation, written once and whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from xares_store.errors import CorruptError, StoreError
from xares_store.store.files import damage, disk_errors, sync_file, sync_folder, temporary_name
from xares_store.store.layout import (
    FORMAT_VERSION,
    RUN_MANIFEST,
    RUNS,
    RunManifest,
    atomic_write,
    dump_manifest,
    file_entries,
    load_manifest,
)

PREDICTIONS = "predictions.parquet"
PROBE = "probe.safetensors"
PREDICTION_SCHEMA = pa.schema(
    [
        ("fold", pa.string()),
        ("split", pa.string()),
        ("clip_id", pa.string()),
        ("key", pa.string()),
        ("target", pa.string()),
        ("prediction", pa.string()),
        ("correct", pa.bool_()),
        ("probability", pa.float32()),
        ("target_probability", pa.float32()),
        ("value", pa.float64()),
        ("scores", pa.list_(pa.float32())),
        ("counts", pa.list_(pa.int32())),
        ("substitutions", pa.int32()),
        ("deletions", pa.int32()),
        ("insertions", pa.int32()),
        ("reference_units", pa.int32()),
    ]
)
_LATER = (
    "value",
    "scores",
    "counts",
    "substitutions",
    "deletions",
    "insertions",
    "reference_units",
)  # columns that older runs, and runs that have no use for them, leave out
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def run_folder(root: Path, run_id: str) -> Path:
    """Return the folder of a run.

    Raises:
        StoreError: the id is not letters, digits, dots, dashes and underscores.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise StoreError("Expected a run id of at most 128 letters, digits, '.', '_' and '-'.", where=run_id[:160])
    return root / RUNS / run_id


def write_run(
    root: Path,
    run_id: str,
    run: Mapping[str, Any],
    predictions: pa.Table,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    *,
    same_probe_as: str | None = None,
) -> bool:
    """Write a run under a temporary name and rename it into place.

    Args:
        root: folder of the store.
        run_id: name of the run: equal identity, equal id.
        run: the fields of :class:`~xares_store.store.layout.RunManifest` without run_id, format and files.
        predictions: columns fold, split, clip_id, key, target, prediction, correct, probability, target_probability;
            and where they mean something: value (the item's share of a main metric that is a mean over items), scores
            (a number a class) and counts (true positives, false positives and false negatives, a number a class each).
        tensors: weights of the trained probe, kept as safetensors.
        same_probe_as: a run with the same tensors, whose file is shared where the file system can.

    Returns:
        False when a run of that id is there already; the first one stays.

    Raises:
        StoreError: a field is missing or wrong, or the disk is full or read-only.
    """
    final = run_folder(root, run_id)
    if (final / RUN_MANIFEST).exists():
        return False
    temporary = final.with_name(temporary_name())
    try:
        with disk_errors(final.parent, f"writing run {run_id}"):
            temporary.mkdir(parents=True)
            _write_files(temporary, run_id, predictions)
            shared = None if same_probe_as is None else run_folder(root, same_probe_as) / PROBE
            if tensors is not None and not (shared is not None and _linked(shared, temporary / PROBE)):
                _write_tensors(temporary / PROBE, tensors)
            record = {
                "format": FORMAT_VERSION,
                "details": {},
                **run,
                "run_id": run_id,
                "files": file_entries(temporary),
            }
            try:
                data = dump_manifest(RunManifest.model_validate(record))
            except (ValidationError, ValueError) as error:
                raise StoreError(f"The run's fields are wrong: {error}", where=run_id) from error
            for path in temporary.iterdir():
                sync_file(path)
            atomic_write(temporary / RUN_MANIFEST, data)
            return _publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(folder: Path, run_id: str, predictions: pa.Table) -> None:
    try:
        table = _complete(predictions)
    except (KeyError, pa.ArrowException) as error:
        raise StoreError(f"The predictions' columns are wrong: {error}", where=run_id) from error
    pq.write_table(table, folder / PREDICTIONS, compression="zstd")


def _write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    from safetensors.numpy import save

    path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def _linked(path: Path, link: Path) -> bool:
    """Give a file a second name; False where that cannot be done."""
    try:
        os.link(path, link)
    except OSError:
        return False
    return True


def _complete(table: pa.Table) -> pa.Table:
    for name in _LATER:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), PREDICTION_SCHEMA.field(name).type))
    return table.select(PREDICTION_SCHEMA.names).cast(PREDICTION_SCHEMA)


def _publish(temporary: Path, final: Path) -> bool:
    for _ in range(3):
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
        else:
            sync_folder(final.parent)
            sync_folder(final.parent.parent)
            return True
        if (final / RUN_MANIFEST).exists():
            return False
        final.rename(stale := final.with_name(temporary_name()))  # an incomplete copy is no run
        shutil.rmtree(stale, ignore_errors=True)
    raise StoreError("The run's folder changes while it is being written.", where=final)


def read_run(root: Path, run_id: str) -> RunManifest:
    """Read a run's manifest after checking every file of the run.

    Raises:
        StoreError: there is no such run.
        CorruptError: a file is damaged; named.
    """
    folder = run_folder(root, run_id)
    if not (folder / RUN_MANIFEST).exists():
        raise StoreError("There is no such run.", where=folder, hint="`xares store ls runs` lists what is there.")
    manifest = load_manifest(folder / RUN_MANIFEST, RunManifest)
    if manifest.run_id != run_id:
        raise CorruptError(
            f"The manifest belongs to run {manifest.run_id}.", where=folder, hint="Move the folder back."
        )
    for name, entry in manifest.files.items():
        if what := damage(folder / name, size=entry.bytes, crc32c=entry.crc32c):
            raise CorruptError(
                f"Run {run_id} is damaged. {what}",
                where=folder / name,
                hint="Remove the run's folder and evaluate again, or copy it from an intact store.",
            )
    return manifest


def read_predictions(root: Path, run_id: str) -> pa.Table:
    """Return the per-clip predictions of a run, after checking the run's files.

    Raises:
        StoreError: there is no such run.
        CorruptError: a file is damaged; named.
    """
    read_run(root, run_id)
    path = run_folder(root, run_id) / PREDICTIONS
    try:
        return _complete(pq.ParquetFile(path).read(use_threads=False))
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise CorruptError(f"The predictions cannot be read ({error}).", where=path) from error


def read_tensors(root: Path, run_id: str) -> dict[str, NDArray[Any]]:
    """Return the weights of a run's trained probe by name, after checking the run's files; none where nothing is trained.

    Raises:
        StoreError: there is no such run.
        CorruptError: a file is damaged; named.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    manifest = read_run(root, run_id)
    if PROBE not in manifest.files:
        return {}
    path = run_folder(root, run_id) / PROBE
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptError(f"The weights cannot be read ({error}).", where=path) from error
