"""A Hugging Face dataset on disk, as ``save_to_disk`` of the library ``datasets`` writes it. Audio is never decoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xares_store.errors import ConfigError
from xares_store.importer.table import Blob, FileBlob, Row, Table, lines, plain, refuse_empty

SPLIT_COLUMN = "split"


@dataclass(frozen=True, slots=True)
class ArrowBlob:
    """Audio bytes inside a memory-mapped Arrow table."""

    column: Any  # pyarrow.ChunkedArray of structs with a field "bytes"
    row: int
    nbytes: int
    stamp: str

    def read(self) -> bytes:
        """Return the bytes."""
        found = self.column[self.row]["bytes"].as_py()
        assert isinstance(found, bytes)
        return found


def is_dataset(source: Path) -> bool:
    """Tell whether a folder is one that ``save_to_disk`` wrote."""
    return (source / "dataset_dict.json").is_file() or (
        (source / "state.json").is_file() and (source / "dataset_info.json").is_file()
    )


def read_dataset(source: Path) -> Table:
    """Read a ``Dataset`` or ``DatasetDict`` from a folder.

    The Audio column becomes the clips, class indices become their names, and the splits of a ``DatasetDict`` a column
    ``split``.

    Raises:
        ConfigError: the library is missing, the folder is damaged, or there is not exactly one Audio column.
    """
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "The library datasets is needed to read this folder, and is not installed.",
            where=source,
            hint="pip install 'xares-store[hf]'",
        ) from None
    try:
        loaded = datasets.load_from_disk(str(source))
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise ConfigError(f"The dataset cannot be loaded: {error}", where=source) from error
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    stamp = _stamp(source)
    rows: list[Row] = []
    columns: dict[str, None] = {}
    class_names: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    absent: list[str] = []
    for split, part in parts.items():
        audio = [name for name, feature in part.features.items() if isinstance(feature, datasets.Audio)]
        if len(audio) != 1:
            raise ConfigError(
                f"Wanted one Audio column, found {', '.join(audio) or 'none'} among {', '.join(part.features)}.",
                where=source / split,
                hint='Declare it with cast_column("audio", Audio(decode=False)), or remove the others.',
            )
        columns |= dict.fromkeys(name for name in part.features if name != audio[0])
        names = {name: found for name, feature in part.features.items() if (found := _class_names(feature, datasets))}
        class_names |= names
        rows += _rows(part, audio[0], names, split, source, stamp, absent)
    if absent:
        raise ConfigError(
            f"{len(absent)} rows name files that are not there:\n{lines(absent)}",
            where=source,
            hint="Write the dataset again where the files are; save_to_disk then keeps their bytes.",
        )
    if len(parts) > 1:
        columns[SPLIT_COLUMN] = None
        if any(SPLIT_COLUMN in part.features for part in parts.values()):
            notes.append(f'the splits of the dataset replace its column "{SPLIT_COLUMN}"')
    else:
        for row in rows:
            row.values.pop("", None)
    table = Table(source, "dataset", ("path", *(name for name in columns if name != "path")), rows, class_names, notes)
    refuse_empty(table)
    return table


def _rows(
    part: Any, audio: str, names: dict[str, tuple[str, ...]], split: str, source: Path, stamp: str, absent: list[str]
) -> list[Row]:
    import pyarrow.compute as pc

    content = part.with_format("arrow")[:]
    column = content.column(audio)
    sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
    paths = pc.struct_field(column, "path").to_pylist()
    values = content.drop_columns([audio]).to_pylist() if len(part.features) > 1 else [{} for _ in paths]
    rows = []
    for number, (size, path, cells) in enumerate(zip(sizes, paths, values, strict=True)):
        where = f"{split or 'row'}[{number}]"
        for name, labels in names.items():
            cells[name] = _named(cells[name], labels)
        blob: Blob | None
        if size is not None:
            blob = ArrowBlob(column, number, size, f"{stamp}:{split}:{number}")
        else:
            blob = _file(path, source)
            if blob is None:
                absent.append(f"{where}: {path}")
                continue
        # Paths of the machine that wrote the dataset say nothing here; the row number keeps equal names apart.
        name = PurePosixPath((path or "").replace("\\", "/")).name or "clip"
        cells = {key: plain(value) for key, value in cells.items() if not isinstance(value, bytes)}
        cells["path"] = f"{split}/{number:08d}-{name}" if split else f"{number:08d}-{name}"
        if split:
            cells[SPLIT_COLUMN] = split
        rows.append(Row(where, cells, blob))
    return rows


def _file(path: str | None, source: Path) -> FileBlob | None:
    if not path:
        return None
    try:
        full = source / path
        stat = full.stat()
    except (OSError, ValueError):
        return None
    return FileBlob(full, stat.st_size, stat.st_mtime_ns)


def _class_names(feature: Any, datasets: Any) -> tuple[str, ...]:
    """Return the labels of a column of classes, or of lists of classes."""
    while not isinstance(feature, datasets.ClassLabel):
        inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
        if inner is None or isinstance(inner, dict):
            return ()
        feature = inner
    return tuple(feature.names or ())


def _named(value: Any, labels: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_named(item, labels) for item in value]
    if isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    return None  # -1 is how a dataset says that the label is not known


def _stamp(source: Path) -> str:
    """Return a digest of names, sizes and times of the dataset's files."""
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.name.startswith("cache-"):
            stat = path.stat()
            digest.update(f"{path.relative_to(source)}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
