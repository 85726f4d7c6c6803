"""Which commit of a data set a folder was begun with, so that a later call goes on with the same one.

A branch moves. Half of the shards from one commit and half from the next would be a data set that nobody published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

_NAME = ".hub-commits.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def read_pins(folder: Path) -> dict[str, str]:
    """Return commit by source (``org/name@revision``); what cannot be read counts as absent."""
    try:
        pins = json.loads((folder / _NAME).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(pins, dict):
        return {}
    return {source: pin for source, pin in pins.items() if isinstance(pin, str) and _COMMIT.fullmatch(pin)}


def write_pins(folder: Path, pins: Mapping[str, str]) -> None:
    """Remember commits beside those that are remembered already."""
    known = read_pins(folder)
    merged = {**known, **pins}
    if merged != known:
        fresh = folder / f"{_NAME}.tmp"
        fresh.write_text(json.dumps(merged, indent=1))
        fresh.replace(folder / _NAME)
