"""One file that a server publishes: its name, size and checksum, and how a checksum is computed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 1 << 20
_DIGITS = {"md5": 32, "sha256": 64, "git-sha1": 40}
_WORDS = {"md5": "MD5", "sha256": "SHA-256", "git-sha1": "git SHA-1"}
_CHECKSUM = re.compile(r"(md5|sha256|git-sha1):([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a Zenodo record or of a data set on the Hugging Face hub.

    Attributes:
        name: path below the folder of the shards; not checked to be a safe path.
        size: bytes.
        checksum: ``md5:``, ``sha256:`` or ``git-sha1:`` and its hexadecimal digits in small letters. ``git-sha1`` is
            git's name of the content: SHA-1 of ``blob <size>``, a zero byte and the bytes.
        url: where its bytes are.
        page: web page of the data set on the hub, where its terms are read and accepted; empty for other sources.
    """

    name: str
    size: int
    checksum: str
    url: str
    page: str = ""


def is_checksum(text: str) -> bool:
    """Tell whether a text is a checksum that can be computed here.

    Example:
        >>> is_checksum("md5:" + "0" * 32), is_checksum("md5:0"), is_checksum("sha1:" + "0" * 40)
        (True, False, False)
    """
    found = _CHECKSUM.fullmatch(text)
    return found is not None and len(found[2]) == _DIGITS[found[1]]


def checksum_of(path: Path, like: str, check: Callable[[], None] = lambda: None) -> str:
    """Compute the checksum of a file.

    Args:
        path: the file.
        like: a checksum; its algorithm is used.
        check: called now and then; may raise to interrupt.

    Returns:
        A checksum spelled as ``like``.
    """
    algorithm = like.partition(":")[0]
    digest = hashlib.new("sha1" if algorithm == "git-sha1" else algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        if algorithm == "git-sha1":
            digest.update(b"blob %d\0" % path.stat().st_size)
        while block := stream.read(_BLOCK_BYTES):
            check()
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def spoken(checksum: str) -> str:
    """Return a checksum for people.

    Example:
        >>> spoken("sha256:0a1b")
        'SHA-256 0a1b'
    """
    algorithm, _, digits = checksum.partition(":")
    return f"{_WORDS.get(algorithm, algorithm)} {digits}"
