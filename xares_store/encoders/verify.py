"""Short measurements on a loaded encoder: its hop, whether padding leaks, whether neighbours leak.

They use seeded noise, take well under a second for a cheap encoder, and refuse what would fill a store with wrong numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from xares_store.errors import EncoderError

if TYPE_CHECKING:
    from xares_store.encoders.encoder import Encoder

# Relative L2 error of any one frame. Float32 rounding stays below 1e-5, the short floats that accelerators use inside
# matrix products below 1e-3; padding or a neighbour that leaks in changes frames by 1e-2 and more.
TOLERANCE = 1e-3
ACCELERATOR_TOLERANCE = 5e-3
HOP_TOLERANCE = 0.02


def tolerance(encoder: Encoder) -> float:
    """Return the largest relative error of a frame that counts as rounding on the encoder's device."""
    return TOLERANCE if encoder.device == "cpu" else ACCELERATOR_TOLERANCE


def relative_error(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Return the largest error of any frame, relative to the mean length of the wanted frames.

    Args:
        wanted: (frames, dim).
        found: (frames, dim).

    Example:
        >>> round(relative_error(torch.ones(3, 4), torch.ones(3, 4) * 1.5), 6)
        0.5
    """
    scale = wanted.norm(dim=1).mean().clamp_min(1e-12)
    return float(((wanted - found).norm(dim=1) / scale).max())


def noise(encoder: Encoder, *seconds: float) -> list[torch.Tensor]:
    """Return seeded noise clips, each (1, samples), no longer than the encoder takes in one pass."""
    generator = torch.Generator().manual_seed(0)
    longest = encoder.max_length_s or math.inf
    sizes = [max(1, int(min(s, longest) * encoder.sample_rate_hz)) for s in seconds]
    return [0.1 * torch.randn(1, size, generator=generator) for size in sizes]


def measure_hop(encoder: Encoder, *, short_s: float = 1.0, long_s: float = 5.0) -> float:
    """Return the hop in milliseconds, exact for an encoder of constant stride.

    The number of samples at which a frame is added is searched near two lengths; between the two lie whole hops.

    Raises:
        EncoderError: the longer clip has no more valid frames than the shorter one.
    """
    counts, clips = _frame_counts(encoder, short_s, long_s)
    lengths = [clip.shape[1] for clip in clips]
    step = (lengths[1] - lengths[0]) / (counts[1] - counts[0])
    edges = [_last_frame_added(encoder, clip, step) for clip in clips]
    if None not in edges:
        step = (float(edges[1] or 0) - float(edges[0] or 0)) / (counts[1] - counts[0])
    return 1000.0 * step / encoder.sample_rate_hz


def _last_frame_added(encoder: Encoder, clip: torch.Tensor, step: float) -> int | None:
    """Find the smallest number of samples that has as many frames as the clip; None when frames are not added evenly."""

    def frames(samples: int) -> int:
        return int(encoder.encode(clip[:, :samples])[1][0])

    enough = clip.shape[1]
    few, target = enough - int(1.5 * step) - 1, frames(enough)
    if few < 1 or frames(few) >= target:
        return None
    while enough - few > 1:
        middle = (enough + few) // 2
        if frames(middle) >= target:
            enough = middle
        else:
            few = middle
    return enough


def _frame_counts(encoder: Encoder, short_s: float, long_s: float) -> tuple[list[int], list[torch.Tensor]]:
    shrink = min(1.0, (encoder.max_length_s or math.inf) / long_s)  # inside one window, whose edges may cost frames
    clips = noise(encoder, short_s * shrink, long_s * shrink)
    counts = [int(encoder.encode(clip)[1][0]) for clip in clips]
    if counts[1] <= counts[0]:
        raise EncoderError(
            f"The encoder returned {counts[0]} valid frames for {clips[0].shape[1]} samples and {counts[1]} for "
            f"{clips[1].shape[1]}: the number of frames must grow with the audio.",
            where=encoder.name,
            hint="When the encoder pads inside, return a mask or the valid frames as second value.",
        )
    return counts, clips


def check_hop(encoder: Encoder) -> float:
    """Compare the declared hop with the frames of a 2 s and a 6 s clip.

    Returns:
        The measured hop in milliseconds; it agrees with the declared one within 2 % or one frame.

    Raises:
        EncoderError: it does not; the message has both.
    """
    # Enough frames that one of them more or less, which is rounding, stays below the tolerance.
    long_s = min(max(6.0, 2.0 + 0.1 * encoder.hop_ms), 60.0)
    counts, clips = _frame_counts(encoder, 2.0, long_s)
    grown_ms = 1000.0 * (clips[1].shape[1] - clips[0].shape[1]) / encoder.sample_rate_hz
    measured = grown_ms / (counts[1] - counts[0])
    expected = grown_ms / encoder.hop_ms
    if abs(counts[1] - counts[0] - expected) > max(1.0, HOP_TOLERANCE * expected):
        raise EncoderError(
            f"The encoder declares a hop of {encoder.hop_ms:g} ms, but {clips[0].shape[1]} samples gave {counts[0]} frames "
            f"and {clips[1].shape[1]} gave {counts[1]}: a measured hop of {measured:.4g} ms.",
            where=encoder.name,
            hint=f"Set hop_size_in_ms = {measured:.4g}, or return as many frames as declared.",
        )
    # A frame that stands for audio that is not there: padding inside the encoder that it does not tell.
    if counts[0] * encoder.hop_ms > 1.5 * 1000.0 * clips[0].shape[1] / encoder.sample_rate_hz + 4 * encoder.hop_ms:
        raise EncoderError(
            f"The encoder returned {counts[0]} frames of {encoder.hop_ms:g} ms for "
            f"{clips[0].shape[1] / encoder.sample_rate_hz:.3g} s of audio: more time than there is.",
            where=encoder.name,
            hint="When the encoder pads inside, return a mask or the valid frames as second value.",
        )
    return measured


def padding_probe(encoder: Encoder) -> str:
    """Measure whether padding changes a clip.

    Returns:
        ``invariant``, or a sentence that says what changed.
    """
    clips = noise(encoder, 1.5, 0.9)
    if clips[0].shape[1] == clips[1].shape[1]:
        return "not measured: max_length_s is below one second"
    alone = [encoder.encode(clip) for clip in clips]
    padded = torch.zeros(2, clips[0].shape[1])
    for row, clip in enumerate(clips):
        padded[row, : clip.shape[1]] = clip[0]
    try:
        with torch.inference_mode():
            together, valid = encoder.forward_once(padded.to(encoder.device), [clip.shape[1] for clip in clips])
    except EncoderError as error:
        return f"refused unequal lengths: {error.message}"
    for row, (frames, counts) in enumerate(alone):
        count = int(counts[0])
        if count != int(valid[row]):
            return f"{int(valid[row])} valid frames when padded, {count} alone"
        found = relative_error(frames[0, :count], together[row, :count])
        if found > tolerance(encoder):
            return f"a frame changes by {found:.2g} (relative) when its clip is padded"
    return "invariant"


def check_repeatable(encoder: Encoder) -> float:
    """Encode the same clip twice; returns the relative difference.

    Raises:
        EncoderError: it is more than rounding.
    """
    (clip,) = noise(encoder, 2.0)
    first, counts = encoder.encode(clip)
    second, again = encoder.encode(clip)
    count = int(counts[0])
    same = count == int(again[0])
    found = relative_error(first[0, :count], second[0, :count]) if same else math.inf
    if found > tolerance(encoder):
        raise EncoderError(
            f"The same audio gave two embeddings: a frame differs by {found:.2g} (relative).",
            where=encoder.name,
            hint="Remove dropout, dither and other randomness from forward.",
        )
    return found


def check_neighbours(encoder: Encoder) -> float:
    """Encode a clip alone and beside another one; returns the relative difference.

    Raises:
        EncoderError: it is more than rounding, so that batches would decide embeddings.
    """
    clip, other = noise(encoder, 2.0, 2.0)
    # The neighbour is louder: statistics shared over the batch then show clearly.
    alone, counts = encoder.encode(clip)
    both, beside = encoder.encode(torch.cat([clip, 5 * other.clamp(-0.2, 0.2)]))
    count = int(counts[0])
    same = count == int(beside[0])
    found = relative_error(alone[0, :count], both[0, :count]) if same else math.inf
    if found > tolerance(encoder):
        raise EncoderError(
            f"A clip's embedding depends on its neighbours in the batch: a frame differs by {found:.2g} (relative).",
            where=encoder.name,
            hint="Normalise every clip by itself; keep batch normalisation in eval mode.",
        )
    return found


def verify_quick(encoder: Encoder) -> None:
    """Refuse an encoder that would fill a store with wrong numbers; cheap enough to run before every embed.

    Shapes, dimension and finite values are checked by every ``encode``; here the frames must agree with the declared
    hop, the same audio must give the same embedding twice, and neighbours must not matter.

    Args:
        encoder: a loaded encoder.

    Raises:
        EncoderError: naming what was declared and what was found.
    """
    try:
        check_hop(encoder)
        check_repeatable(encoder)
        check_neighbours(encoder)
    except torch.cuda.OutOfMemoryError as error:
        raise EncoderError(
            f"The memory of {encoder.device} does not hold the encoder and a few seconds of audio"
            + (f": {str(error).strip().splitlines()[0]}" if str(error).strip() else "."),
            where=encoder.name,
            hint="Free memory there, or choose another --device.",
        ) from error
