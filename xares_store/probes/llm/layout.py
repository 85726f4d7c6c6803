"""Where audio, prompt and answer stand in the decoder's sequence: token ids, labels, masks and positions.

``[audio][separator][prompt][answer][end]``; separator and prompt only where the recipe has them. Labels are the token
itself where it is learnt (separator, answer, end) and -100 elsewhere.

* **strict**: each clip's positions follow each other without a gap and count 0, 1, 2, ...; padding is on the left. The
  positions of a clip are the same alone and in any batch, in training and in generation.
* **published**: audio is padded on the right to the longest audio of the batch, and the text after it likewise. In
  training the padding between them counts as positions; in generation it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class Layout:
    """One batch of sequences.

    Attributes:
        ids: token ids, int64 ``(batch, length)``; 0 where there is no token.
        text: where there is a token, bool ``(batch, length)``.
        labels: int64 ``(batch, length)``; -100 where nothing is learnt.
        attention: int64 ``(batch, length)``; 0 for padding.
        positions: int64 ``(batch, length)``.
        audio: places of all frames of all clips in the flattened batch, int64 ``(frames,)``, clip by clip.
        keep: so many last positions hold every label and what predicts it.
    """

    ids: Tensor
    text: Tensor
    labels: Tensor
    attention: Tensor
    positions: Tensor
    audio: Tensor
    keep: int

    def to(self, device: torch.device | str) -> Layout:
        """Return the same on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def arrange(
    audio: Sequence[int],
    context: Sequence[Sequence[int]],
    answer: Sequence[Sequence[int]] | None,
    *,
    end: int,
    separator: int | None = None,
    gaps: bool = False,
) -> Layout:
    """Lay out a batch.

    Args:
        audio: positions that each clip's audio takes.
        context: token ids of each clip's prompt, or none.
        answer: token ids of what is learnt, without the end token; None to generate.
        end: id of the end token.
        separator: id of the token after the audio.
        gaps: the published layout.

    Example:
        >>> layout = arrange([2, 1], [(6,), (6,)], [(2,), (3,)], end=0)
        >>> layout.labels.tolist()
        [[-100, -100, -100, 2, 0], [-100, -100, -100, 3, 0]]
        >>> layout.positions.tolist()
        [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]
    """
    head = [] if separator is None else [separator]
    texts: list[list[int]] = []
    labels: list[list[int]] = []
    for row, prompt in enumerate(context):
        tail = [] if answer is None else [*answer[row], end]
        texts.append([*head, *prompt, *tail])
        labels.append([*head, *[IGNORE] * len(prompt), *tail])
    most_audio, most_text = max(audio), max(len(text) for text in texts)
    length = most_audio + most_text if gaps else max(n + len(text) for n, text in zip(audio, texts, strict=True))
    shape = (len(texts), length)
    ids, wanted, attention = np.zeros(shape, np.int64), np.full(shape, IGNORE), np.zeros(shape, np.int64)
    text_at = np.zeros(shape, bool)
    places: list[np.ndarray] = []
    for row, (n, text, label) in enumerate(zip(audio, texts, labels, strict=True)):
        start = 0 if gaps else length - n - len(text)
        first = most_audio if gaps else start + n
        places.append(row * length + start + np.arange(n))
        attention[row, start : start + n] = 1
        written = slice(first, first + len(text))
        ids[row, written], wanted[row, written] = text, label
        attention[row, written], text_at[row, written] = 1, True
    if gaps and answer is not None:
        positions = np.broadcast_to(np.arange(length), shape)
    else:
        positions = np.where(attention > 0, attention.cumsum(axis=1) - 1, 0)
    if gaps:
        keep = most_text + 1
    else:
        keep = 1 + max((len(text) - _first_label(label) for text, label in zip(texts, labels, strict=True)), default=0)
    return Layout(
        ids=torch.from_numpy(ids),
        text=torch.from_numpy(text_at),
        labels=torch.from_numpy(wanted),
        attention=torch.from_numpy(attention),
        positions=torch.from_numpy(np.array(positions)),
        audio=torch.from_numpy(np.concatenate(places)),
        keep=min(keep, length),
    )


def _first_label(labels: Sequence[int]) -> int:
    return next((place for place, label in enumerate(labels) if label != IGNORE), len(labels))
