"""Which parts were checked whole, so that an evaluation reads frames it does not use only once.

What is read is verified every time. The other files of a part are compared with their checksums when the part is first
used, and again whenever any of its files has changed on disk: size, times or inode. The change time cannot be set back,
and a copied store is checked anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from xares_store.errors import XaresError
from xares_store.store.files import atomic_write, read_small
from xares_store.store.layout import PART_MANIFEST
from xares_store.store.opened import Part

CHECKED = "checked.json"


def check_parts(root: Path, parts: Iterable[Part]) -> None:
    """Check the parts that are new or have changed since they were last checked.

    Args:
        root: folder of the store; a note of what was checked is kept there if it can be written.
        parts: the parts about to be used.

    Raises:
        CorruptError: names the first damaged file.
    """
    known = _load(root / CHECKED)
    found: dict[str, str] = {}
    for part in parts:
        place = part.path.relative_to(root).as_posix()
        state = _state(part)
        if state is None or known.get(place) != state:
            part.check()
            state = _state(part)
        if state is not None:
            found[place] = state
    if any(known.get(place) != state for place, state in found.items()):
        # Another process may be writing the same note; what is lost that way is only checked again.
        kept = {
            place: state for place, state in _load(root / CHECKED).items() if (root / place / PART_MANIFEST).exists()
        }
        with suppress(OSError, XaresError):
            atomic_write(root / CHECKED, json.dumps(kept | found, indent=0).encode())


def _state(part: Part) -> str | None:
    """Return a digest of what the file system says of a part's files; None when one is missing."""
    digest = hashlib.sha256(part.manifest.digest.encode())
    for name in (PART_MANIFEST, *part.manifest.files):
        try:
            stat = (part.path / name).stat()
        except OSError:
            return None
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}\n".encode())
    return digest.hexdigest()


def _load(path: Path) -> dict[str, str]:
    """Read the note; anything unexpected in it means that nothing was checked."""
    try:
        value = json.loads(read_small(path))
    except (OSError, ValueError, XaresError):
        return {}
    return {str(key): item for key, item in value.items() if isinstance(item, str)} if isinstance(value, dict) else {}
