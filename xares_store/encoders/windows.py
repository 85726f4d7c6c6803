"""Long clips through models whose attention costs the square of the length: windows inside one forward pass.

Cutting what lies behind the front end, not the audio, loses no frame at a seam: the time axis stays exact over hours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_FEWEST_AT_ONCE = 8  # windows of one pass, even when the batch is a single clip


def spans(length: int, longest: int, *, even: bool = True) -> list[tuple[int, int]]:
    """Cut ``length`` steps into consecutive spans, none above ``longest``.

    Args:
        length: steps, at least 1.
        longest: most steps of a span.
        even: all about equally long; else all but the last as long as can be.

    Example:
        >>> spans(9, 8)
        [(0, 5), (5, 9)]
        >>> spans(9, 8, even=False)
        [(0, 8), (8, 9)]
    """
    size = -(-length // -(-length // longest)) if even else longest
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def by_windows(
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: torch.Tensor,
    valid: torch.Tensor,
    longest: int,
    *,
    fixed: bool = False,
) -> torch.Tensor:
    """Apply ``run`` to windows of every clip and join the results in time.

    Args:
        run: maps (windows, steps, ...) and how many steps of each count, (windows,), to (windows, steps, dim); a window
            must not depend on its neighbours nor on what lies behind its count.
        steps: (batch, steps, ...).
        valid: (batch,) steps of each clip that count, at least 1.
        longest: most steps of a window.
        fixed: every window has ``longest`` steps, zeros behind a clip's end; else windows are about equally long.

    Returns:
        (batch, most valid steps, dim); zeros behind the valid ones.
    """
    windows = [
        (row, start, stop) for row, n in enumerate(valid.tolist()) for start, stop in spans(n, longest, even=not fixed)
    ]
    windows.sort(key=lambda window: window[2] - window[1])  # those of about one size together: little is padded
    at_once = max(len(steps), _FEWEST_AT_ONCE)
    joined: torch.Tensor | None = None
    for first in range(0, len(windows), at_once):
        some = windows[first : first + at_once]
        counts = [stop - start for _, start, stop in some]
        pieces = steps.new_zeros(len(some), longest if fixed else max(counts), *steps.shape[2:])
        for index, (row, start, stop) in enumerate(some):
            pieces[index, : stop - start] = steps[row, start:stop]
        output = run(pieces, torch.tensor(counts, device=steps.device))
        if joined is None:
            joined = output.new_zeros(len(steps), int(valid.max()), output.shape[2])
        for (row, start, stop), one in zip(some, output, strict=True):
            joined[row, start:stop] = one[: stop - start]
    assert joined is not None  # every clip has a window
    return joined
