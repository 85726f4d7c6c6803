"""The conformance suite: does an encoder keep the contract, and what does it cost?

Every result says what was wanted and what was found. A check that only measures, or that does not apply, is a note: its
``ok`` is None and it fails nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.encoders.verify import (
    check_hop,
    check_neighbours,
    check_repeatable,
    noise,
    relative_error,
    tolerance,
    verify_quick,
)
from xares_store.errors import EncoderError

__all__ = ["CheckResult", "check", "verify_quick"]

_SAMPLE_INTERVAL_S = 0.005
_SPEED_CLIP_S = 10.0


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        name: what was checked.
        ok: True or False; None for a note, which passes nothing and fails nothing.
        found: what was found, with the file, line and remedy when it failed.
        wanted: what the contract asks for.
        seconds: how long the check took.
        error: what was raised, where the encoder could not even be loaded.
    """

    name: str
    ok: bool | None
    found: str
    wanted: str
    seconds: float
    error: EncoderError | None = None


def check(
    spec: str,
    *,
    args: Mapping[str, Any] | None = None,
    device: str = "cpu",
    long_minutes: float = 10.0,
    progress: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Run the conformance suite on an encoder.

    Args:
        spec: a spec string as of ``load_encoder``.
        args: constructor arguments.
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``auto``.
        long_minutes: length of the long clip in minutes, above 0.
        progress: called with every result as it comes.

    Returns:
        One result a check. When the encoder cannot be loaded, that one failure alone.

    Raises:
        ValueError: ``long_minutes`` is not above 0.

    Example:
        >>> all(result.ok is not False for result in check("logmel", long_minutes=0.1))
        True
    """
    if not 0 < long_minutes < math.inf:
        raise ValueError(f"long_minutes must be above 0; found {long_minutes}")
    results: list[CheckResult] = []
    loaded: list[Encoder] = []

    def run(name: str, wanted: str, test: Callable[[], tuple[bool | None, str]]) -> None:
        started = time.perf_counter()
        ok: bool | None
        raised: EncoderError | None = None
        try:
            ok, found = test()
        except EncoderError as error:
            raised = None if loaded else error
            where = f" [{error.where}]" if error.where and ", line " in error.where else ""
            ok, found = False, f"{error.message}{where}" + (f" {error.hint}" if error.hint else "")
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            first = str(error).splitlines()[0] if str(error) else "no detail"
            ok, found = False, f"Out of memory: {first} Set max_length_s to be fed in windows."
        results.append(CheckResult(name, ok, found, wanted, time.perf_counter() - started, raised))
        if progress is not None:
            progress(results[-1])

    def load() -> tuple[bool, str]:
        loaded.append(load_encoder(spec, args=args, device=device))
        one = loaded[0]
        assumed = f"; assumed or measured: {', '.join(one.record['assumed'])}" if one.record["assumed"] else ""
        return True, f"{one.address}: {one.sample_rate_hz} Hz, {one.dim} dims, a frame every {one.hop_ms:g} ms{assumed}"

    run("class and attributes", "one class with sampling_rate, output_dim, hop_size_in_ms", load)
    if not loaded:
        return results
    encoder = loaded[0]
    run("identity", "the same fingerprint when loaded again", lambda: _identity(encoder, spec, args))
    run("output", "(batch, frames, output_dim), floating point", lambda: _output(encoder))
    run("hop", f"{encoder.hop_ms:g} ms, within 2 % or one frame", lambda: (True, f"{check_hop(encoder):.4g} ms"))
    run("repeatable", "the same audio, the same embedding", lambda: (True, _difference(check_repeatable(encoder))))
    run("batch", "neighbours change nothing", lambda: (True, _difference(check_neighbours(encoder))))
    run("padding", "padding changes nothing, if lengths are taken", lambda: _padding(encoder))
    run("unequal lengths", "each clip as when alone", lambda: _unequal(encoder))
    run("one dimension", "(samples,) as (1, samples)", lambda: _one_dimension(encoder))
    run("very short", "10 ms gives at least one frame", lambda: _short(encoder))
    run("silence", "finite values", lambda: _finite(encoder, lambda clip: torch.zeros_like(clip)))
    run("clipped", "finite values", lambda: _finite(encoder, lambda clip: (clip * 1000).clamp(-1.0, 1.0)))
    run("long", f"{long_minutes:g} min gives as many frames as declared", lambda: _long(encoder, long_minutes))
    run("speed", "a measurement", lambda: _speed(encoder))
    return results


def _difference(found: float) -> str:
    return f"largest relative difference of a frame {found:.1g}"


def _identity(encoder: Encoder, spec: str, args: Mapping[str, Any] | None) -> tuple[bool, str]:
    again = load_encoder(spec, args=args, device=encoder.device)
    if again.fingerprint == encoder.fingerprint:
        return True, encoder.fingerprint[:16]
    before, after = encoder.record["parts"], again.record["parts"]
    differing = ", ".join(key for key in before if before[key] != after.get(key))
    return False, (
        f"Loading it twice gave two identities; what differs: {differing}. "
        "Seed random initial weights (torch.manual_seed in the constructor), or load them from a file."
    )


def _output(encoder: Encoder) -> tuple[bool, str]:
    clips = 0.1 * torch.randn(2, min(50_000, _longest(encoder)), generator=torch.Generator().manual_seed(0))
    frames, valid = encoder.encode(clips)
    return True, f"{tuple(frames.shape)} for {tuple(clips.shape)}, valid {valid.tolist()}, {encoder.raw_dtype}"


def _longest(encoder: Encoder) -> int:
    return int(min(encoder.max_length_s or 60.0, 60.0) * encoder.sample_rate_hz)


def _padding(encoder: Encoder) -> tuple[bool | None, str]:
    if encoder.accepts_lengths:
        return True, "invariant: unequal clips are batched together"
    return None, f"{encoder.record['padding']}; only clips of equal length are batched"


def _unequal(encoder: Encoder) -> tuple[bool, str]:
    clips = noise(encoder, 1.3, 0.7, 0.31)
    batch = torch.zeros(len(clips), clips[0].shape[1])
    for row, clip in enumerate(clips):
        batch[row, : clip.shape[1]] = clip[0]
    together, valid = encoder.encode(batch, torch.tensor([clip.shape[1] for clip in clips]))
    worst = 0.0
    for row, clip in enumerate(clips):
        alone, counts = encoder.encode(clip)
        if int(counts[0]) != int(valid[row]):
            return False, f"{int(valid[row])} frames in a batch, {int(counts[0])} alone"
        worst = max(worst, relative_error(alone[0, : int(counts[0])], together[row, : int(valid[row])]))
    return worst <= tolerance(encoder), _difference(worst)


def _one_dimension(encoder: Encoder) -> tuple[bool, str]:
    (clip,) = noise(encoder, 1.0)
    flat, deep = encoder.encode(clip[0])[0], encoder.encode(clip)[0]
    return flat.shape == deep.shape and relative_error(deep[0], flat[0]) <= tolerance(encoder), f"{tuple(flat.shape)}"


def _short(encoder: Encoder) -> tuple[bool, str]:
    (clip,) = noise(encoder, 0.01)
    _, valid = encoder.encode(clip)
    frames, expected = int(valid[0]), 10.0 / encoder.hop_ms
    return frames <= expected + 4, f"{clip.shape[1]} samples gave {frames} frame{'s' * (frames > 1)}"


def _finite(encoder: Encoder, change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[bool, str]:
    (clip,) = noise(encoder, 3.0)
    frames, valid = encoder.encode(change(clip))
    inside = frames[0, : int(valid[0])]
    return True, f"{float(inside.min()):.3g} to {float(inside.max()):.3g}"


def _long(encoder: Encoder, minutes: float) -> tuple[bool, str]:
    samples = round(minutes * 60 * encoder.sample_rate_hz)
    clip = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    with _peak_memory(encoder.device) as peak:
        started = time.perf_counter()
        frames = int(encoder.encode(clip)[1][0])
        took_s = time.perf_counter() - started
    expected = minutes * 60_000 / encoder.hop_ms
    # Windows may each cost a frame or so at their edges.
    windows = 1 if encoder.max_length_s is None else math.ceil(minutes * 60 / encoder.max_length_s)
    slack = max(0.02 * expected, 2.0 * windows)
    return abs(frames - expected) <= slack, (
        f"{frames} frames of {expected:.0f}, {took_s:.3g} s, real-time factor {took_s / minutes / 60:.2g}, "
        f"peak memory +{peak[0] / 2**20:.0f} MiB"
    )


def _speed(encoder: Encoder) -> tuple[None, str]:
    (clip,) = noise(encoder, _SPEED_CLIP_S)
    seconds = clip.shape[1] / encoder.sample_rate_hz
    encoder.encode(clip)
    times: list[float] = []
    with _peak_memory(encoder.device) as peak:
        while len(times) < 3 or (sum(times) < 1.0 and len(times) < 50):
            started = time.perf_counter()
            encoder.encode(clip)  # ends with reading values back, so that an accelerator has finished
            times.append(time.perf_counter() - started)
    middle = sorted(times)[len(times) // 2]
    return None, (
        f"real-time factor {middle / seconds:.2g} for {seconds:g} s at a time "
        f"({seconds / middle:.0f} s of audio a second), peak memory +{peak[0] / 2**20:.0f} MiB, "
        f"{encoder.record['parameters']:,} parameters, on {encoder.device} with {torch.get_num_threads()} threads"
    )


@contextmanager
def _peak_memory(device: str) -> Iterator[list[int]]:
    """Measure the memory used above what is used now, in bytes; the list holds the answer afterwards."""
    peak = [0]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device) - before
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def sample() -> None:
        while True:
            peak[0] = max(peak[0], process.memory_info().rss - before)
            if done.wait(_SAMPLE_INTERVAL_S):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
