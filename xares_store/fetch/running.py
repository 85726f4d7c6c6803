"""Download what a plan found missing, several files at once."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from xares_store.errors import ConfigError, ShardError, XaresError
from xares_store.fetch.access import authorize
from xares_store.fetch.download import DiskError, ForbiddenError, discard_partial, download, kept_bytes
from xares_store.fetch.http import CancelledError, Web
from xares_store.fetch.pins import Pin, read_pins, write_pins
from xares_store.fetch.report import FetchReport, FileState

PARALLEL = 2  # connections at once: polite to a public archive
MAX_PARALLEL = 8
_JOIN_S = 2.0
_SPARE_BYTES = 64 << 20

Advance = Callable[[int, str], None]


def run(report: FetchReport, *, parallel: int = PARALLEL, advance: Advance = lambda amount, note: None) -> None:
    """Download what a plan found missing, and bring its report up to date.

    Args:
        report: from :func:`plan`.
        parallel: connections at once.
        advance: called with bytes (negative when bytes are thrown away) and the name of their file, from any thread.

    Raises:
        ConfigError: ``parallel`` cannot be used.
        ShardError: too little disk space, the folder cannot be written, or another fetch is writing to it.
    """
    if not 1 <= parallel <= MAX_PARALLEL:
        raise ConfigError(
            f"Wanted 1 to {MAX_PARALLEL} connections, found {parallel}.", where="--parallel", hint="2 is polite."
        )
    for file in report.files:
        if file.state == "there":
            discard_partial(file.path)
    todo = [file for file in report.files if file.state in ("missing", "partial")]
    if todo:
        _fetch(report, todo, parallel, advance)
    for folder, pins in report.pins.items():  # everything there is now known to be of one commit
        mixed = {source: pin for source, pin in pins.items() if pin.mixed and source in read_pins(folder)}
        if mixed and all(file.state in ("there", "downloaded") for file in report.files if _below(file, folder)):
            with _writing(folder):
                write_pins(folder, {source: Pin(pin.commit) for source, pin in mixed.items()})


def _fetch(report: FetchReport, todo: Sequence[FileState], parallel: int, advance: Advance) -> None:
    begun = {folder: pins for folder, pins in report.pins.items() if any(_below(file, folder) for file in todo)}
    with ExitStack() as stack:
        for folder in sorted({file.path.parent for file in todo} | set(begun)):
            _lock(stack, folder)
        for file in todo:  # again, now that nobody else writes
            file.kept = kept_bytes(file.path, file.remote)
        _refuse_small_disk(todo)
        for folder, pins in begun.items():
            with _writing(folder):
                write_pins(folder, pins)
        _download_all(report, todo, parallel, advance)


def _below(file: FileState, folder: Path) -> bool:
    return file.path.is_relative_to(folder)


def _lock(stack: ExitStack, folder: Path) -> None:
    try:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / ".fetch.lock", timeout=0))
    except Timeout:
        raise ShardError(
            "Another `xares fetch` is downloading into this folder.", where=folder, hint="Wait until it is done."
        ) from None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:  # an OSError too, but nothing is wrong with the folder
        raise
    except OSError as error:
        raise ShardError(
            f"The folder cannot be written: {error.strerror or error}.",
            where=folder,
            hint="Make it writable, or name another data root with --data DIR.",
        ) from error


def shortages(files: Iterable[FileState]) -> list[str]:
    """Return a sentence for every disk that is too small for what has yet to come; writes nothing."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for file in files:
        place = next((folder for folder in file.path.absolute().parents if folder.is_dir()), None)
        if file.to_download and place is not None:
            device = place.stat().st_dev
            needed[device] = needed.get(device, 0) + file.to_download
            places[device] = place
    found = []
    for device, size in needed.items():
        free = shutil.disk_usage(places[device]).free
        if size + _SPARE_BYTES > free:
            found.append(
                f"{size / 1e6:,.0f} MB are to be downloaded, and {free / 1e6:,.0f} MB are free in {places[device]}."
            )
    return found


def _refuse_small_disk(todo: Sequence[FileState]) -> None:
    if short := shortages(todo):
        raise ShardError(
            " ".join([*short, "Nothing was downloaded."]),
            hint="Free some space, name another data root with --data DIR, or fetch fewer tasks.",
        )


def _download_all(report: FetchReport, todo: Sequence[FileState], parallel: int, advance: Advance) -> None:
    workers = _Workers(report, todo, advance)
    # Daemons: an interrupted program must not wait for a server that has stopped sending.
    threads = [
        threading.Thread(target=workers.work, name=f"fetch-{n}", daemon=True) for n in range(min(parallel, len(todo)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        workers.cancel.set()
        for thread in threads:
            thread.join(_JOIN_S)
        raise
    for file in todo:
        if file.state != "downloaded":
            file.state = "failed"
            message = workers.failures.get(id(file), f"{file.remote.name} was given up because of another file.")
            report.problems += [(task, message) for task in file.tasks if message]
        file.kept = 0


class _Workers:
    """What the threads of one download share.

    Attributes:
        cancel: set when all of them shall stop.
        failures: why a file did not arrive, by ``id`` of its state; empty when another file's message says it.
    """

    def __init__(self, report: FetchReport, todo: Sequence[FileState], advance: Advance) -> None:
        self.cancel = threading.Event()
        self.failures: dict[int, str] = {}
        self._forbidden: set[str] = set()  # pages of data sets that may not be read
        self._web = Web(self.cancel)
        self._advance = advance
        self._waiting: queue.SimpleQueue[FileState] = queue.SimpleQueue()
        for file in todo:
            self._waiting.put(file)
        if report.endpoint is not None and any(file.remote.page for file in todo):
            authorize(self._web, report.endpoint)

    def work(self) -> None:
        """Download one file after the other until none is left."""
        while not self.cancel.is_set():
            try:
                file = self._waiting.get_nowait()
            except queue.Empty:
                return
            if file.remote.page in self._forbidden:  # one message is enough, and so is one request
                self.failures[id(file)] = ""
                continue
            try:
                download(self._web, file.remote, file.path, partial(_named, self._advance, file.path.name))
                file.state = "downloaded"
            except CancelledError:
                return
            except DiskError as error:
                self.failures[id(file)] = (
                    f"{error}. What was downloaded is kept.\n"
                    "  next:  Free some space or make the folder writable, and run it again."
                )
                self.cancel.set()
            except XaresError as error:
                self.failures[id(file)] = str(error)
                if isinstance(error, ForbiddenError):
                    self._forbidden.add(file.remote.page)
            except BaseException as error:  # a thread must not die in silence
                self.failures[id(file)] = f"{type(error).__name__}: {error}"


def _named(advance: Advance, name: str, amount: int) -> None:
    advance(amount, name)
