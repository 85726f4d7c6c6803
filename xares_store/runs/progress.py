"""Progress with an ETA for people; silence when nobody is watching."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Note(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("note", "")), style="dim")


class Meter:
    """One progress bar over work whose size is known beforehand.

    Args:
        title: what is going on, two or three words.
        total: amount of work in any unit (bytes of shards, training steps).
        quiet: never draw. A console that is not a terminal is never drawn on either.

    Example:
        >>> with Meter("embedding", total=10, quiet=True) as meter:
        ...     meter.advance(10, note="done")
    """

    def __init__(self, title: str, *, total: float, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(elapsed_when_finished=True),
            _Note(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
            refresh_per_second=5,
        )
        self._task = self._progress.add_task(title, total=max(total, 1e-9), note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, amount: float, *, note: str = "") -> None:
        """Count ``amount`` more units as done."""
        self._progress.update(self._task, advance=amount, note=note)
