"""Embedding one shard: windows of clips, length-aware batches, parts cut at window boundaries.

Everything that decides a value (window, batch, part boundary) is a function of the clips' order and the recorded batch
plan alone, so a resumed run continues with exactly the batches an uninterrupted one would have formed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from xares_store.audio.batches import group_batches
from xares_store.clip import Failure
from xares_store.errors import EncoderError
from xares_store.store.part import Part, PartAddress, PartWriter, Source

if TYPE_CHECKING:
    from xares_store.audio.decode import Decoded
    from xares_store.audio.shards import Shard
    from xares_store.encoders.encoder import Encoder
    from xares_store.runs.state import ShardState
    from xares_store.store.store import Store

PART_BYTES = 192 << 20

Encoded = tuple[np.ndarray, np.ndarray]


@dataclass
class Work:
    """What the shards of one embed run share, and what is counted over them.

    Attributes:
        budget_s: seconds of padded audio in one batch.
        window_s: seconds of audio collected before batches are formed.
        commits: the thread that writes parts while the encoder goes on.
        alone: entered while the encoder computes.
    """

    store: Store
    encoder: Encoder
    audio_address: str
    budget_s: float
    window_s: float
    dtype: Literal["float16", "float32"]
    commits: Executor
    alone: Callable[[], AbstractContextManager[None]]
    versions: dict[str, str]
    part_bytes: int = field(default_factory=lambda: PART_BYTES)
    pending: list[Future[Part]] = field(default_factory=list)
    clips: int = 0
    failures: list[Failure] = field(default_factory=list)
    encoder_s: float = 0.0
    audio_s: float = 0.0
    parts: int = 0
    oom_splits: int = 0

    def settle(self, keep: int = 0) -> None:
        """Wait until at most ``keep`` commits are under way; raise what a commit raised."""
        while len(self.pending) > keep:
            self.pending.pop(0).result()
            self.parts += 1


class ShardRun:
    """Turn the samples of one shard into committed parts."""

    def __init__(self, work: Work, shard: Shard, state: ShardState, sha256: Callable[[], str]) -> None:
        self._work = work
        self.shard = shard
        self._sha256 = sha256
        self._sequence = state.sequence
        self._first = state.first_sample
        self._samples = 0
        self._window: list[Decoded] = []
        self._window_s = 0.0
        self._cut_next = False
        self._began = time.perf_counter()
        self._writer = self._open()

    def _open(self) -> PartWriter:
        work = self._work
        address = PartAddress(
            encoder=work.encoder.address,
            task=work.audio_address,
            split=self.shard.split,
            shard=self.shard.name,
            sequence=self._sequence,
        )
        return work.store.part_writer(
            address,
            dim=work.encoder.dim,
            hop_ms=work.encoder.hop_ms,
            sample_rate_hz=work.encoder.sample_rate_hz,
            dtype=work.dtype,
        )

    @property
    def empty(self) -> bool:
        """Whether no sample of the shard was met, now or by an earlier call."""
        return self._first + self._samples == 0

    def take(self, content: list[Decoded] | Failure) -> None:
        """Take the next sample of the shard."""
        if self._cut_next:  # cut only now, so that the last part of a shard is never an empty one
            self._commit(final=False)
        self._samples += 1
        if isinstance(content, Failure):
            self._fail(content)
            return
        self._window.extend(content)
        self._window_s += sum(item.clip.duration_s for item in content)
        if self._window_s >= self._work.window_s:
            self._flush()

    def finish(self) -> None:
        """Encode what is left and commit the last part."""
        self._flush()
        self._commit(final=True)

    def abort(self) -> None:
        """Forget everything not committed."""
        self._writer.abort()

    def _fail(self, failure: Failure) -> None:
        self._writer.fail(failure)
        self._work.failures.append(failure)

    def _flush(self) -> None:
        work, window = self._work, self._window
        if window:
            rate = work.encoder.sample_rate_hz
            lengths = [len(item.audio) for item in window]
            encoded: list[Encoded | EncoderError | None] = [None] * len(window)
            budget = max(1, round(work.budget_s * rate))
            with work.alone():
                for batch in group_batches(lengths, budget=budget, equal_only=not work.encoder.accepts_lengths):
                    self._encode(batch, encoded)
            for item, result in zip(window, encoded, strict=True):
                if isinstance(result, EncoderError):
                    crop = f"Crop {item.clip.crop}: " if item.clip.clip_id != item.clip.key else ""
                    self._fail(Failure(item.clip.key, self.shard.name, "encoder", crop + result.message))
                else:
                    assert result is not None
                    self._writer.add(item.clip, result[0], result[1])
                    work.clips += 1
                    work.audio_s += item.clip.duration_s
            if work.clips == 0 and (errors := [e for e in encoded if isinstance(e, EncoderError)]):
                # Not one clip worked: the encoder is broken, and a store full of failures would help nobody.
                raise errors[0]
        self._window, self._window_s = [], 0.0
        self._cut_next = self._writer.stored_bytes >= work.part_bytes

    def _encode(self, batch: list[int], encoded: list[Encoded | EncoderError | None]) -> None:
        """Encode the window's clips ``batch``; halve on out-of-memory, go one by one to find a clip that breaks."""
        try:
            for index, result in zip(batch, self._forward([self._window[i].audio for i in batch]), strict=True):
                encoded[index] = result
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if len(batch) == 1:
                hint = "Let the encoder declare max_length_s, so that long audio is fed in windows."
                encoded[batch[0]] = EncoderError(f"Out of memory on one clip: {error}".split("\n")[0], hint=hint)
                return
            self._work.oom_splits += 1
            longest = max(len(self._window[i].audio) for i in batch) / self._work.encoder.sample_rate_hz
            self._work.budget_s = min(self._work.budget_s, longest * (len(batch) // 2))
            half = len(batch) // 2
            self._encode(batch[:half], encoded)
            self._encode(batch[half:], encoded)
        except EncoderError as error:
            if len(batch) == 1:
                encoded[batch[0]] = error
                return
            for index in batch:
                self._encode([index], encoded)

    def _forward(self, audio: list[np.ndarray]) -> list[Encoded]:
        encoder = self._work.encoder
        longest = max(len(wave) for wave in audio)
        batch = np.zeros((len(audio), longest), dtype=np.float32)
        for row, wave in zip(batch, audio, strict=True):
            row[: len(wave)] = wave
        lengths = torch.tensor([len(wave) for wave in audio]) if encoder.accepts_lengths else None
        began = time.perf_counter()
        embedding, valid = encoder.encode(torch.from_numpy(batch), lengths)
        frames = embedding.to("cpu", torch.float32).numpy()
        self._work.encoder_s += time.perf_counter() - began
        # The mean is taken in float64 before any rounding: sums of long clips lose digits in float32.
        return [
            (rows := frames[i, : int(n)], rows.mean(axis=0, dtype=np.float64).astype(np.float32))
            for i, n in enumerate(valid)
        ]

    def _commit(self, *, final: bool) -> None:
        work, writer = self._work, self._writer
        timing: dict[str, Any] = {"seconds": round(time.perf_counter() - self._began, 3), "device": work.encoder.device}
        arguments: dict[str, Any] = {
            "final": final,
            "first_sample": self._first,
            "n_samples": self._samples,
            "timing": timing,
            "versions": work.versions,
        }
        source = Source(name=self.shard.name, sha256=self._sha256(), bytes=self.shard.path.stat().st_size)
        work.settle(keep=1)  # at most two parts in memory: one being written, one being filled
        work.pending.append(work.commits.submit(writer.commit, source, **arguments))
        self._first += self._samples
        self._samples = 0
        self._sequence += 1
        self._cut_next = False
        self._began = time.perf_counter()
        if not final:
            self._writer = self._open()
