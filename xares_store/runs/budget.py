"""How much audio goes into one batch: measured for the encoder and device, once, and then kept.

A fixed batch count is wrong twice: on a CPU sixteen 5 s clips took three times the time of single clips, on an
accelerator the opposite holds. The budget is in seconds of padded audio. It is kept in the store, because a resumed run
must form the batches that the interrupted one would have formed: rounding may depend on them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from xares_store.encoders.encoder import Encoder

MAX_ITEMS = 128
MAX_BATCH_S = 1200.0
_REPEAT_S = 0.03
_NO_GAIN = 0.99
_GOOD_ENOUGH = 1.03  # the smallest batch within this factor of the best wins: it needs less memory


@dataclass(frozen=True)
class Trial:
    """One batch size tried.

    Attributes:
        items: clips in the batch.
        batch_s: seconds of audio in the batch.
        cost: encoder seconds for one second of audio.
    """

    items: int
    batch_s: float
    cost: float


def measure_budget(encoder: Encoder, *, clip_s: float, limit_s: float = 4.0) -> tuple[float, list[Trial]]:
    """Find the batch budget by encoding noise in batches of 1, 2, 4, ... clips.

    Args:
        encoder: the encoder, on its device.
        clip_s: length of a typical clip in seconds.
        limit_s: stop trying larger batches after so many seconds.

    Returns:
        The budget in seconds of audio and the trials it was chosen from.
    """
    import torch

    samples = max(1, round(clip_s * encoder.sample_rate_hz))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, samples), generator=generator) * 0.1
    trials: list[Trial] = []
    began = time.perf_counter()
    items = 1
    while items <= MAX_ITEMS and (items == 1 or items * clip_s <= MAX_BATCH_S):
        try:
            seconds = _time_batch(encoder, noise.expand(items, -1).contiguous())
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        trials.append(Trial(items, items * clip_s, seconds / (items * clip_s)))
        best = min(trial.cost for trial in trials)
        if len(trials) > 2 and min(trials[-1].cost, trials[-2].cost) > best * _NO_GAIN:
            break  # twice in a row no better than something smaller
        if time.perf_counter() - began + 4 * seconds > limit_s:
            break
        items *= 2
    if not trials:  # not even one clip fits; phase one will name the clips that do not
        return clip_s, []
    best = min(trial.cost for trial in trials)
    chosen = next(trial for trial in trials if trial.cost <= best * _GOOD_ENOUGH)
    return chosen.batch_s, trials


def _time_batch(encoder: Encoder, audio: torch.Tensor) -> float:
    """Return the shortest of a few timings of one batch, in seconds."""
    import torch

    lengths = torch.full((audio.shape[0],), audio.shape[1], dtype=torch.int64) if encoder.accepts_lengths else None
    encoder.encode(audio, lengths)  # the first call pays for allocation and kernel choice
    _wait(encoder.device)
    timings: list[float] = []
    began = time.perf_counter()
    while len(timings) < 2 or (len(timings) < 10 and time.perf_counter() - began < _REPEAT_S):
        start = time.perf_counter()
        encoder.encode(audio, lengths)
        _wait(encoder.device)
        timings.append(time.perf_counter() - start)
    return min(timings)


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
