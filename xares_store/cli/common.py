"""What all commands share: options spelled the same everywhere, and one way to print."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click
from rich import box
from rich.console import Console
from rich.table import Table

INTERRUPTED = 130
PAUSED = 75  # sysexits.h: a temporary failure, try again
_FOLDED = 20  # letters to which a narrow terminal may fold a column of text

F = TypeVar("F", bound=Callable[..., Any])

STORE_ENV = "XARES_STORE"
DATA_ENV = "XARES_DATA_HOME"

console = Console(stderr=True, soft_wrap=True)


class _Duration(click.ParamType[float]):
    """A time such as 90, 90s, 45m or 1.5h, in seconds."""

    name = "TIME"
    _UNITS: ClassVar[dict[str, float]] = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(value))
        if found is None:
            self.fail(f'Expected a time such as 90s, 45m or 2h, found "{value}".', param, ctx)
        return float(found.group(1)) * self._UNITS[found.group(2)]


DURATION = _Duration()


def default_store() -> Path:
    """Return the store used when ``--store`` is not given: ``$XARES_STORE`` or ``./xares.store``."""
    return Path(os.environ.get(STORE_ENV) or "xares.store")


def default_data() -> Path:
    """Return the data root used when ``--data`` is not given: ``$XARES_DATA_HOME`` or ``./xares_data``."""
    return Path(os.environ.get(DATA_ENV) or "xares_data")


def store_option(command: F) -> F:
    """Add ``--store DIR``; the command receives ``store: Path``."""
    return click.option(
        "--store",
        type=click.Path(path_type=Path),
        default=default_store,
        show_default=f"${STORE_ENV} or ./xares.store",
        help="Folder of the store.",
    )(command)


def data_option(command: F) -> F:
    """Add ``--data DIR``; the command receives ``data: Path``."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path),
        default=default_data,
        show_default=f"${DATA_ENV} or ./xares_data",
        help="Data root: holds one folder of audio shards a task.",
    )(command)


def device_option(command: F) -> F:
    """Add ``--device``; the command receives ``device: str`` (``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``)."""
    return click.option(
        "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, mps, or auto: an accelerator if any."
    )(command)


def format_options(command: F) -> F:
    """Add ``--json`` and ``--csv``; the command receives ``fmt``: ``table``, ``json`` or ``csv``."""
    command = click.option("--csv", "fmt", flag_value="csv", help="Print CSV instead of a table.")(command)
    command = click.option("--json", "fmt", flag_value="json", help="Print JSON instead of a table.")(command)
    return click.option("--table", "fmt", flag_value="table", default="table", help="Print a table (default).")(command)


def paper_options(command: F) -> F:
    """Add ``--markdown`` and ``--latex`` to those of :func:`format_options`; ``fmt`` is then also one of these."""
    command = click.option("--latex", "fmt", flag_value="latex", help="Print LaTeX instead of a table.")(command)
    command = click.option("--markdown", "fmt", flag_value="markdown", help="Print Markdown instead of a table.")(
        command
    )
    return format_options(command)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return (
            f"{value:.4g}"
            if value and (abs(value) < 1e-3 or abs(value) >= 1e5)
            else f"{value:.4f}".rstrip("0").rstrip(".")
        )
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def emit(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, fmt: str = "table", title: str | None = None
) -> None:
    """Print rows to standard output as a table for people, for papers, or as JSON or CSV for programs.

    Args:
        columns: column names.
        rows: one sequence a row, as long as ``columns``.
        fmt: ``table``, ``markdown``, ``latex``, ``json`` (a list of objects; non-finite numbers are null) or ``csv``.
        title: heading of the table; programs do not get it.
    """
    if fmt == "json":
        records = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
        click.echo(json.dumps(records, indent=1, ensure_ascii=False, default=str))
        return
    if fmt == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(["" if value is None else _json_cell(value) for value in row])
        return
    if fmt in ("markdown", "latex"):
        click.echo((_markdown if fmt == "markdown" else _latex)(columns, rows, title))
        return
    table = Table(
        title=title and _escape(title), title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for index, column in enumerate(columns):
        numeric = _numeric(index, rows)
        # Where the terminal is narrow, long text is folded; numbers and names stay whole.
        longest = max((len(_cell(row[index])) for row in rows), default=0)
        table.add_column(
            _escape(column),
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric,
            min_width=max(len(column), min(longest, _FOLDED)),
        )
    for row in rows:
        table.add_row(*[_escape(_cell(value)) for value in row])
    out = Console(soft_wrap=False)
    needed = Console(width=100_000).measure(table)
    if not out.is_terminal:  # piped: as wide as the content, so that nothing is cut
        out = Console(width=max(80, needed.maximum))
    elif out.width < needed.minimum:  # the terminal breaks the lines, which reads better than columns of single letters
        out = Console(width=needed.minimum)
    out.print(table)


def _numeric(index: int, rows: Sequence[Sequence[object]]) -> bool:
    return any(isinstance(row[index], int | float) and not isinstance(row[index], bool) for row in rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    marks = ["---:" if _numeric(index, rows) else "---" for index in range(len(columns))]
    head = [f"**{title}**", ""] if title else []
    return "\n".join([*head, line(columns), line(marks), *(line([_cell(value) for value in row]) for row in rows)])


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{letter: "\\" + letter for letter in "&%$#_{}"},
    }
)


def _latex(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None) -> str:
    """A tabular that needs no package; the title is a comment, because captions belong to the paper."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(_LATEX).replace("\n", " ") for cell in cells) + r" \\"

    kinds = "".join("r" if _numeric(index, rows) else "l" for index in range(len(columns)))
    head = ["% " + title.replace("\n", " ")] if title else []
    return "\n".join(
        [
            *head,
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\hline",
            line(columns),
            r"\hline",
            *(line([_cell(value) for value in row]) for row in rows),
            r"\hline",
            r"\end{tabular}",
        ]
    )


def lift(
    columns: Sequence[str], rows: Sequence[Sequence[object]], names: Sequence[str]
) -> tuple[str | None, list[str], list[list[object]]]:
    """Take columns whose rows are all the same out of a table and into its title, so that it fits a terminal.

    Args:
        columns: column names.
        rows: one sequence a row, as long as ``columns``.
        names: columns that may go.

    Returns:
        Title (None when nothing went), the columns that stay, and the rows of them.

    Example:
        >>> lift(["task", "metric"], [["a", "accuracy"], ["b", "accuracy"]], ["metric"])
        ('metric: accuracy', ['task'], [['a'], ['b']])
    """
    same = [name for name in names if len({row[columns.index(name)] for row in rows}) == 1]
    stay = [index for index, name in enumerate(columns) if name not in same]
    title = ", ".join(f"{name}: {rows[0][columns.index(name)]}" for name in same)
    return title or None, [columns[index] for index in stay], [[row[index] for index in stay] for row in rows]


def _json_cell(value: object) -> object:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
