"""Names of splits and folds as people write them, and keys of clips made from paths."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

_SPLITS = {
    "train": "train training trn tr learn development-train",
    "valid": "valid validation validate val dev develop development cv",
    "test": "test testing tst eval evaluation evaluate heldout held-out",
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words.split()}
_FOLD = re.compile(r"(?:fold|split|cv)?[-_ ]?([A-Za-z0-9_-]{1,32})", re.IGNORECASE)
_FOLD_FOLDER = re.compile(r"(?:fold|cv)[-_ ]?([A-Za-z0-9]{1,8})", re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_KEY = 80
_HASH = 10


def split_name(text: str, split_as: Mapping[str, str]) -> str | None:
    """Return ``train``, ``valid`` or ``test`` for what a source calls a split, or None.

    Example:
        >>> split_name("Validation", {}), split_name("extra", {"extra": "train"}), split_name("dog", {})
        ('valid', 'train', None)
    """
    return split_as.get(text) or _SPLIT_OF.get(text.strip().lower())


def fold_name(folder: str) -> str | None:
    """Return the name of the fold that a folder is called after, or None.

    Example:
        >>> fold_name("fold_3"), fold_name("dog")
        ('3', None)
    """
    found = _FOLD_FOLDER.fullmatch(folder)
    return found[1] if found else None


def fold_value(value: object) -> str | None:
    """Return a fold's name from a cell: ``3``, ``"fold3"`` and ``3.0`` are all fold 3; None for what is no name.

    Example:
        >>> fold_value(3.0), fold_value("fold-a"), fold_value("")
        ('3', 'a', None)
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    found = _FOLD.fullmatch(str(value).strip())
    return found[1] if found else None


def make_keys(paths: Sequence[str]) -> list[str]:
    """Make a key for every clip: its path without suffix, in letters that every tool and file system takes.

    Folders become ``__``-joined parts. Where letters had to be replaced, where two paths would get the same key (also
    when only capitals differ) or where the key is long, ten digits of the path's hash make it unique. So a key depends
    on its path and on clashes only, not on the order.

    Args:
        paths: relative paths, all different.

    Example:
        >>> make_keys(["dog/1-a.wav", "dog/1-b.wav"])
        ['dog__1-a', 'dog__1-b']
    """
    stems = [path.removesuffix(PurePosixPath(path).suffix).strip("/") for path in paths]
    plain = [_UNSAFE.sub("_", stem.replace("/", "__")).lstrip("-_") or "clip" for stem in stems]
    count = Counter(name.lower() for name in plain)
    keys = []
    for path, stem, name in zip(paths, stems, plain, strict=True):
        exact = name == stem.replace("/", "__")
        if exact and count[name.lower()] == 1 and len(name) <= _MAX_KEY:
            keys.append(name)
            continue
        digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:_HASH]
        keys.append(f"{name[: _MAX_KEY - _HASH - 1]}-{digest}")
    return keys
