"""Which commit of a data set a folder was begun with, so that a later call goes on with the same one.

A branch moves. Half of the shards from one commit and half from the next would be a data set that nobody published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

_NAME = ".hub-commits.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Pin:
    """The commit of a folder.

    Attributes:
        commit: 40 hexadecimal digits.
        mixed: whether files of an earlier commit may still be there, so that their sizes prove nothing.
    """

    commit: str
    mixed: bool = False


def read_pins(folder: Path) -> dict[str, Pin]:
    """Return pins by source (``org/name@revision``); what cannot be read counts as absent."""
    try:
        notes = json.loads((folder / _NAME).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    pins = {}
    for source, note in notes.items() if isinstance(notes, dict) else ():
        commit = note.get("commit") if isinstance(note, dict) else None
        if isinstance(commit, str) and _COMMIT.fullmatch(commit):
            pins[source] = Pin(commit, note.get("mixed") is not False)
    return pins


def write_pins(folder: Path, pins: Mapping[str, Pin]) -> None:
    """Remember pins beside those that are remembered already."""
    known = read_pins(folder)
    merged = {**known, **pins}
    if merged != known:
        fresh = folder / f"{_NAME}.tmp"
        fresh.write_text(json.dumps({source: asdict(pin) for source, pin in merged.items()}, indent=1))
        fresh.replace(folder / _NAME)
