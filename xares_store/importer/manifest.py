"""Manifests: CSV, TSV, JSON lines and Parquet files that name audio files and say what is in them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xares_store.errors import ConfigError
from xares_store.importer.table import Row, Table, plain, refuse_empty

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_MAX_BYTES = 4 << 30
_MAX_FIELD = 16 << 20


def read_manifest(source: Path) -> Table:
    """Read a manifest. Cells of CSV and TSV files stay text, so that a label ``01`` is not the number 1.

    Args:
        source: the suffix says what it is. CSV may be divided by commas, semicolons or tabs; the first line names the
            columns. JSON is one object a line, or one list of objects.

    Raises:
        ConfigError: unreadable, not UTF-8, or lines that do not fit the header; the message names the line.
    """
    suffix = source.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            f'Wanted a folder or a manifest ({", ".join(SUFFIXES)}), found a file with the suffix "{suffix}".',
            where=source,
        )
    if suffix == ".parquet":
        rows, columns = _parquet(source)
    else:
        text = _text(source)
        rows = list(_csv(source, text, suffix) if suffix in (".csv", ".tsv") else _json(source, text))
        columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    table = Table(source, "manifest", columns, rows)
    refuse_empty(table)
    return table


def _text(source: Path) -> str:
    try:
        if source.stat().st_size > _MAX_BYTES:
            raise ConfigError("The manifest is larger than 4 GiB.", where=source, hint="Use Parquet.")
        return source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The manifest is not UTF-8 text (byte {error.start}).", where=source, hint="Save it as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(f"The manifest cannot be read: {error.strerror or error}.", where=source) from error


def _csv(source: Path, text: str, suffix: str) -> Iterator[Row]:
    head = text[: text.find("\n")] if "\n" in text else text
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=head.count)
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if columns is None:
                columns = [cell.strip() for cell in cells]
                twice = next((name for name in columns if columns.count(name) > 1), None)
                if twice is not None:
                    raise ConfigError(f'The column "{twice}" appears twice in the first line.', where=source)
                continue
            if len(cells) != len(columns):
                raise ConfigError(
                    f"Wanted {len(columns)} cells as in the first line, found {len(cells)}.",
                    where=f"{source}, line {reader.line_num}",
                    hint='Put cells that hold the separator in double quotes, or use another one (comma, ";", tab).',
                )
            yield Row(f"line {reader.line_num}", dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise ConfigError(f"Not valid CSV: {error}.", where=f"{source}, line {reader.line_num}") from None


def _json(source: Path, text: str) -> Iterator[Row]:
    if text.lstrip().startswith("["):
        items = _loads(text, str(source))
        for number, item in enumerate(items):
            yield _row(item, f"item {number}", source)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _row(_loads(line, f"{source}, line {number}"), f"line {number}", source)


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"Not valid JSON: {error}.", where=where, hint="Wanted one JSON object a line, or one list of objects."
        ) from None


def _row(item: Any, where: str, source: Path) -> Row:
    if not isinstance(item, dict):
        raise ConfigError(f"Wanted a JSON object, found {json.dumps(item)[:60]}.", where=f"{source}, {where}")
    return Row(where, plain(item))


def _parquet(source: Path) -> tuple[list[Row], tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            columns = [field.name for field in schema if not _holds_bytes(field.type)]
            rows: list[Row] = []
            for batch in file.iter_batches(columns=columns):
                rows += [Row(f"row {len(rows) + at}", plain(values)) for at, values in enumerate(batch.to_pylist())]
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"Not a readable Parquet file: {error}.", where=source) from None
    if len(columns) < len(schema) and not any(column.lower() in ("path", "file", "file_name") for column in columns):
        inside = next(field.name for field in schema if _holds_bytes(field.type))
        raise ConfigError(
            f'The column "{inside}" holds the audio itself; a manifest names files.',
            where=source,
            hint='Load it with the library datasets and import what load_dataset("parquet", ...).save_to_disk(FOLDER) wrote.',
        )
    return rows, tuple(columns)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(at).type) for at in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
