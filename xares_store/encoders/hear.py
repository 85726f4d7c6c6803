"""Modules that follow the HEAR 2021 interface, as encoders: ``hear:package.module[@weights]`` and ``hear:file.py[@weights]``.

Such a module defines ``load_model(path)``, whose result has ``sample_rate`` and ``timestamp_embedding_size``, and
``get_timestamp_embeddings(audio, model)``, which returns embeddings (batch, frames, dim) and the time of each frame
(batch, frames) in milliseconds. Rules: https://hearbenchmark.com/hear-api.html
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from xares_store.errors import EncoderError, did_you_mean

LOAD, EMBED = "load_model", "get_timestamp_embeddings"
_ARGUMENTS = ("weights", "max_length_s")
_PROBE_S = (2.0, 10.0, 60.0)
_FEW = 3  # frames that a distance can be measured on
# How far a frame may lie off the grid between first and last: times, theirs too, are often rounded to whole milliseconds.
_ROUNDING_MS = 1.0
_UNEVEN = 0.02
_HOP_TOLERANCE = 0.01


def is_hear(loaded: ModuleType) -> bool:
    """Tell whether a module defines both functions."""
    return callable(getattr(loaded, LOAD, None)) and callable(getattr(loaded, EMBED, None))


class HearEncoder(torch.nn.Module):
    """The adapter: takes the frames, checks their times, and measures the hop from them.

    Args:
        loaded: the module.
        args: ``weights`` (handed to ``load_model``) and ``max_length_s`` (longest window in seconds).
        where: the module or file, for messages.

    Raises:
        EncoderError: a function or attribute is missing, an argument is unknown, or the times are not even.
    """

    def __init__(self, loaded: ModuleType, args: Mapping[str, Any], *, where: str) -> None:
        super().__init__()
        self.where = where
        lacking = [name for name in (LOAD, EMBED) if not callable(getattr(loaded, name, None))]
        if lacking:
            raise EncoderError(
                f"A HEAR module must define {LOAD}(path) and {EMBED}(audio, model); it lacks {' and '.join(lacking)}.",
                where=where,
                hint="Scene embeddings alone do not do: frames are pooled here. Name the module that has both functions.",
            )
        for name in args:
            if name not in _ARGUMENTS:
                listing = f"It takes {', '.join(_ARGUMENTS)}."
                raise EncoderError(
                    f'A HEAR module has no argument "{name}".',
                    where=where,
                    hint=did_you_mean(name, _ARGUMENTS, listing=listing),
                )
        self.model = self._loaded(getattr(loaded, LOAD), args.get("weights"))
        self._embed = getattr(loaded, EMBED)
        self.sampling_rate = self._attribute("sample_rate")
        self.output_dim = self._attribute("timestamp_embedding_size")
        self.max_length_s = args.get("max_length_s")
        if self.max_length_s is not None and not (isinstance(self.max_length_s, int | float) and self.max_length_s > 0):
            raise EncoderError(f"max_length_s must be above 0; found {self.max_length_s!r}.", where=where)
        self.hop_size_in_ms = self._measured_hop()

    def _loaded(self, load: Any, weights: Any) -> torch.nn.Module:
        required = [
            p
            for p in inspect.signature(load).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if required and weights is None:
            raise EncoderError(
                f'{LOAD} needs "{required[0].name}", the path of the weights.',
                where=self.where,
                hint="Write hear:...@/path/of/weights, or --encoder-arg weights=/path/of/weights",
            )
        model = load() if weights is None else load(str(weights))
        if not isinstance(model, torch.nn.Module):
            raise EncoderError(
                f"{LOAD} must return a torch.nn.Module; it returned a {type(model).__name__}.",
                where=self.where,
                hint="Models of other libraries than PyTorch cannot be used.",
            )
        return model.eval()

    def _attribute(self, name: str) -> Any:
        value = getattr(self.model, name, None)
        if value is None:
            raise EncoderError(
                f'The model that {LOAD} returns has no attribute "{name}".',
                where=self.where,
                hint="HEAR asks for sample_rate (Hz) and timestamp_embedding_size.",
            )
        return value

    def _measured_hop(self) -> float:
        generator = torch.Generator().manual_seed(0)
        longest = float(self.max_length_s or _PROBE_S[-1])
        frames = 0
        for seconds in _PROBE_S:
            samples = int(min(seconds, longest) * int(self.sampling_rate))
            with torch.inference_mode():
                _, times = self._frames(0.1 * torch.randn(1, samples, generator=generator))
            frames = times.shape[1]
            if frames >= _FEW:
                return self._even(times)
        raise EncoderError(
            f"{EMBED} returned {frames} frames for {min(_PROBE_S[-1], longest):g} s of audio: too few to tell their distance.",
            where=self.where,
            hint="Return frames at even distances, at least three a minute.",
        )

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Encode (batch, samples); returns (batch, frames, dim)."""
        frames, times = self._frames(audio)
        if times.shape[1] >= _FEW:
            hop = self._even(times)
            if abs(hop - self.hop_size_in_ms) > max(
                _HOP_TOLERANCE * self.hop_size_in_ms, _ROUNDING_MS / times.shape[1]
            ):
                raise EncoderError(
                    f"Frames are {hop:g} ms apart for {audio.shape[1]} samples, and {self.hop_size_in_ms:g} ms for others.",
                    where=self.where,
                    hint="The distance of frames must not depend on the length of the audio.",
                )
        return frames

    def _frames(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self._embed(audio, self.model)
        if not isinstance(output, tuple | list) or len(output) != 2:
            raise EncoderError(
                f"{EMBED} must return embeddings and times; it returned a {type(output).__name__}.",
                where=self.where,
                hint="Return (embeddings (batch, frames, dim), milliseconds (batch, frames)).",
            )
        frames, times = output
        shape = tuple(getattr(frames, "shape", ()))
        times = torch.as_tensor(times).detach().to("cpu", torch.float64)
        if not isinstance(frames, torch.Tensor) or len(shape) != 3 or tuple(times.shape) != shape[:2]:
            raise EncoderError(
                f"{EMBED} must return embeddings (batch, frames, dim) and times (batch, frames); it returned shapes "
                f"{shape} and {tuple(times.shape)} for audio of shape {tuple(audio.shape)}.",
                where=self.where,
                hint="Return a tensor of times for every clip, in milliseconds.",
            )
        return frames, times

    def _even(self, times: torch.Tensor) -> float:
        """Return the distance of frames in milliseconds when it is one."""
        count = times.shape[1]
        hop = float((times[0, -1] - times[0, 0]) / (count - 1))
        grid = times[:, :1] + hop * torch.arange(count, dtype=times.dtype)
        off = float((times - grid).abs().max())
        if not hop > 0 or not off <= max(_ROUNDING_MS, _UNEVEN * hop):
            found = ", ".join(f"{value:g}" for value in times[0, :5].tolist())
            raise EncoderError(
                f"The times of the frames are not even: {found}, ... ms (off an even grid by up to {off:.3g} ms).",
                where=self.where,
                hint="Return frames at one distance, with growing times in milliseconds.",
            )
        return hop
