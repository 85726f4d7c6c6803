"""The tar writer writes what the standard library writes."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from xares_store.importer.tar import TarWriter

names = st.one_of(st.text("abc-_.0189", min_size=1, max_size=100), st.text(min_size=1, max_size=120))


@given(st.lists(st.tuples(names.filter(lambda name: "\0" not in name and name.encode(errors="ignore").decode() == name), st.binary(max_size=2000)), max_size=5))  # fmt: skip
def test_bytes_are_those_of_tarfile(members: list[tuple[str, bytes]]) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            writer.add(name, data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    writer.end()
    assert ours.getvalue() == theirs.getvalue()
