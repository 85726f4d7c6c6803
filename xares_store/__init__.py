"""Benchmark frozen audio encoders in two phases: embed once into a store, evaluate as often as you like.

The public door: `fetch_task`, `import_audio`, `embed`, `estimate`, `evaluate`, `transcribe`, `compare`, `leaderboard_rows`,
`check`, `load_encoder`, `load_task`, `LlmOptions`, `Store`, `Task` and `XaresError`. Names are loaded when they are first
used, so importing the package imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xares_store.catalog import load_task as load_task
    from xares_store.encoders.check import check as check
    from xares_store.encoders.encoder import load_encoder as load_encoder
    from xares_store.errors import XaresError as XaresError
    from xares_store.fetch.tasks import fetch_task as fetch_task
    from xares_store.importer.imports import import_audio as import_audio
    from xares_store.runs.compare import compare as compare
    from xares_store.runs.embed import embed as embed
    from xares_store.runs.estimate import estimate as estimate
    from xares_store.runs.evaluate import evaluate as evaluate
    from xares_store.runs.leaderboard import leaderboard_rows as leaderboard_rows
    from xares_store.runs.llm.options import LlmOptions as LlmOptions
    from xares_store.runs.llm.transcribe import transcribe as transcribe
    from xares_store.store.store import Store as Store
    from xares_store.task import Task as Task

__version__ = "0.1.0"

_DOOR = {
    "LlmOptions": "xares_store.runs.llm.options",
    "Store": "xares_store.store.store",
    "Task": "xares_store.task",
    "XaresError": "xares_store.errors",
    "check": "xares_store.encoders.check",
    "compare": "xares_store.runs.compare",
    "embed": "xares_store.runs.embed",
    "estimate": "xares_store.runs.estimate",
    "evaluate": "xares_store.runs.evaluate",
    "fetch_task": "xares_store.fetch.tasks",
    "import_audio": "xares_store.importer.imports",
    "leaderboard_rows": "xares_store.runs.leaderboard",
    "load_encoder": "xares_store.encoders.encoder",
    "load_task": "xares_store.catalog",
    "transcribe": "xares_store.runs.llm.transcribe",
}

__all__ = [
    "LlmOptions",
    "Store",
    "Task",
    "XaresError",
    "__version__",
    "check",
    "compare",
    "embed",
    "estimate",
    "evaluate",
    "fetch_task",
    "import_audio",
    "leaderboard_rows",
    "load_encoder",
    "load_task",
    "transcribe",
]


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        return getattr(importlib.import_module(_DOOR[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
