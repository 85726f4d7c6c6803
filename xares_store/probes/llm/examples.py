"""One clip with its text, ready for the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """One clip with its text.

    Attributes:
        frames: float32 ``(frames, dim)``, cropped, before frames are combined.
        prompt: token ids of what is asked; empty for a recipe without prompts.
        target: token ids of the answer without the end token; empty when text is to be written.
        name: ``split/clip_id``, for messages.
        number: of the draw that the clip comes from; what dropout drops follows from it.
    """

    frames: NDArray[np.float32]
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    name: str
    number: int = 0
