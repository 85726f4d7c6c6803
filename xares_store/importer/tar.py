"""Writing a tar of many small files: what ``tarfile`` writes, byte for byte, in a tenth of its time a member."""

from __future__ import annotations

from tarfile import BLOCKSIZE, NUL, PAX_FORMAT, RECORDSIZE, TarInfo
from typing import BinaryIO

_TEMPLATE = TarInfo().tobuf(PAX_FORMAT)  # no owner, time 0, mode 644
_MAX_NAME = 100
_MAX_SIZE = 8**11
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)


class TarWriter:
    """Writes members without owners and times, so that equal content gives equal bytes.

    Args:
        stream: open for writing; stays open.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = 0

    def add(self, name: str, data: bytes) -> None:
        """Append a file."""
        self._write(header(name, len(data)))
        self._write(data)
        self._write(NUL * (-len(data) % BLOCKSIZE))

    def end(self) -> None:
        """Write the end of the archive."""
        self._write(NUL * (2 * BLOCKSIZE))
        self._write(NUL * (-self._size % RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._size += len(data)


def header(name: str, size: int) -> bytes:
    """Return the header of a member.

    Example:
        >>> info = TarInfo("a.wav")
        >>> info.size = 5
        >>> header("a.wav", 5) == info.tobuf(PAX_FORMAT)
        True
    """
    if len(name) > _MAX_NAME or size >= _MAX_SIZE or not name.isascii() or "/" in name:
        info = TarInfo(name)
        info.size = size
        return info.tobuf(PAX_FORMAT)
    block = bytearray(_TEMPLATE)
    block[_NAME] = name.encode().ljust(_MAX_NAME, NUL)
    block[_SIZE] = b"%011o\0" % size
    block[_CHECKSUM] = b"        "
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)
