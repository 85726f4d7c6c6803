"""Content hashes: the same content gives the same name everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FP_LENGTH = 8
_BLOCK = 1 << 20


def canonical_json(value: Any) -> str:
    """Serialise JSON data so that equal values give equal text.

    Keys are sorted, there is no white space, non-ASCII text is kept and NaN is refused.

    Example:
        >>> canonical_json({"b": 1, "a": [0.1, "ü"]})
        '{"a":[0.1,"ü"],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of UTF-8 text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return the full content hash (64 hex digits) of JSON-like parts.

    Example:
        >>> fingerprint({"a": 1}) == fingerprint({"a": 1})
        True
    """
    return sha256_text(canonical_json(dict(parts)))


def short(digest: str) -> str:
    """Shorten a digest to the eight digits used in names.

    Example:
        >>> short("0123456789abcdef")
        '01234567'
    """
    return digest[:FP_LENGTH]
