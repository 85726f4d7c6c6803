"""Importing an encoder file together with the files beside it, without leaving a trace in this process or that folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OWN_PACKAGE = "xares_store"


@contextmanager
def importable(folder: Path) -> Iterator[Any]:
    """Let a file import its neighbours, and only while it is loaded.

    Yields a function that lists the neighbours imported so far. Modules of the same name that another encoder or the
    working folder loaded before are hidden meanwhile: two encoders may both have a ``utils.py``.
    """
    tops = {p.stem for p in folder.glob("*.py")} | {p.name for p in folder.iterdir() if p.is_dir()}
    tops.discard(_OWN_PACKAGE)
    hidden = {
        key: value
        for key, value in sys.modules.items()
        if key.partition(".")[0] in tops and not key.startswith("__") and not _installed(value)
    }
    for key in hidden:
        del sys.modules[key]
    before = set(sys.modules)

    def local() -> Iterator[tuple[str, Path]]:
        for key, value in list(sys.modules.items()):
            file = getattr(value, "__file__", None)
            if key in before or key.startswith("_xares_encoder_") or not file or _installed(value):
                continue
            path = Path(file).resolve()
            if path.is_relative_to(folder) and key.partition(".")[0] != _OWN_PACKAGE:
                yield path.relative_to(folder).as_posix(), path

    bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # reading an encoder leaves nothing in its folder
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield local
        for name, _ in list(local()):
            key = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            sys.modules.pop(key, None)
    finally:
        sys.dont_write_bytecode = bytecode
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        sys.modules.update(hidden)


def _installed(module: Any) -> bool:
    """Whether a module is no neighbour: part of Python, built in, or installed into site-packages."""
    file = getattr(module, "__file__", None)
    if not file:
        return getattr(module, "__path__", None) is None or bool(getattr(module, "__spec__", None) is None)
    parts = Path(file).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    return module.__name__.partition(".")[0] in sys.stdlib_module_names
