"""Is a WAV file all there? libsndfile reads a file that was cut short as a shorter recording, without a word."""

from __future__ import annotations

import struct

# What writers put into the size when they stream and do not know it yet.
_UNKNOWN = {0, 0x7FFFFFFF, 0xFFFFFFFF}


def missing_bytes(data: bytes | bytearray | memoryview) -> int:
    """Return how many bytes of samples a WAV file promises but does not hold; 0 for anything else.

    Args:
        data: the whole file.

    Example:
        >>> head = b"RIFF" + struct.pack("<I", 40) + b"WAVE"
        >>> missing_bytes(head + b"data" + struct.pack("<I", 10) + b"1234")
        6
    """
    view = memoryview(data)
    if len(view) < 12 or bytes(view[:4]) != b"RIFF" or bytes(view[8:12]) != b"WAVE":
        return 0
    place = 12
    while place + 8 <= len(view):
        name, size = struct.unpack_from("<4sI", view, place)
        if name == b"data":
            # Size 0 and the largest sizes stand for "until the end"; a size near them is a header that overran.
            known = size not in _UNKNOWN and size < 0xFFFF0000
            return max(0, size - (len(view) - place - 8)) if known else 0
        place += 8 + size + size % 2
    return 0
