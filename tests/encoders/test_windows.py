"""Windows of long clips: nothing is lost, nothing leaks, no window is a splinter."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from xares_store.encoders.windows import by_windows, spans


@given(length=st.integers(1, 500), longest=st.integers(1, 60), even=st.booleans())
def test_spans_tile(length, longest, even):
    found = spans(length, longest, even=even)
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == length
    sizes = [stop - start for start, stop in found]
    assert min(sizes) >= 1
    assert max(sizes) <= longest
    assert len(set(sizes[:-1])) <= 1
    assert len(sizes) == -(-length // max(sizes))
    if not even:
        assert all(size == longest for size in sizes[:-1])


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), longest=st.integers(1, 15), fixed=st.booleans())
def test_windows_are_what_a_loop_over_them_gives(lengths, longest, fixed):
    steps = torch.randn(len(lengths), max(lengths), 2, 3, generator=torch.Generator().manual_seed(0))

    def run(pieces, counts):
        assert not fixed or pieces.shape[1] == longest
        inside = torch.arange(pieces.shape[1])[None, :] < counts[:, None]
        total = (pieces * inside[:, :, None, None]).sum(1, keepdim=True)
        return (pieces + total).flatten(2)  # depends on the whole window

    found = by_windows(run, steps, torch.tensor(lengths), longest, fixed=fixed)
    assert found.shape == (len(lengths), max(lengths), 6)
    for row, n in enumerate(lengths):
        for start, stop in spans(n, longest, even=not fixed):
            alone = torch.zeros(1, longest if fixed else stop - start, 2, 3)
            alone[0, : stop - start] = steps[row, start:stop]
            expected = run(alone, torch.tensor([stop - start]))[0, : stop - start]
            torch.testing.assert_close(found[row, start:stop], expected)
        assert (found[row, n:] == 0).all()
