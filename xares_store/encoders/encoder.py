"""The encoder contract: whatever a user brings becomes one ``Encoder`` that everything downstream uses.

An encoder is a ``torch.nn.Module`` with ``sampling_rate`` (Hz), ``output_dim`` and ``hop_size_in_ms``, and either

* ``forward(audio)`` -> ``(batch, frames, dim)``, or
* ``forward(audio, mask_or_lengths)`` -> ``(embeddings, mask or valid frames, or None)``.

``audio`` is ``(batch, samples)`` float32, mono, at the encoder's rate. An encoder may declare ``max_length_s``; longer
audio is then fed in consecutive windows and joined in time.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from xares_store.device import resolve_device
from xares_store.encoders import identity, verify
from xares_store.encoders.spec import Built, build, failed, parse_args
from xares_store.errors import EncoderError
from xares_store.fingerprint import fingerprint, short

DEFAULT_RATE_HZ = 16000  # the rate of the mask convention, whose encoders do not state one


class Encoder:
    """A loaded, frozen encoder with a known identity.

    Attributes:
        name: readable name, e.g. ``logmel`` or ``hubert-base-ls960[layer=6]``.
        spec: the spec string it was loaded from.
        fingerprint: 64 hex digits over code, class, arguments, weights, rate, dimension, hop, maximum length.
        address: ``name@fp8``, its name in a store.
        sample_rate_hz: rate of the audio it takes, in Hz.
        dim: length of an embedding vector.
        hop_ms: distance between frames in milliseconds.
        max_length_s: longest audio of one forward pass in seconds, or None.
        accepts_lengths: unequal clips may be padded together (it takes lengths or a mask, and padding was measured to
            change nothing).
        device: where it computes.
        module: the wrapped module, in eval mode.
        raw_dtype: data type of the last output before its conversion to float32; empty before the first.
        record: JSON data about all of this, kept in a store.
    """

    def __init__(
        self, module: torch.nn.Module, *, built: Built, spec: str, device: str = "cpu", name: str | None = None
    ) -> None:
        self.spec = spec
        self.device = device
        self.raw_dtype = ""
        self.module = module.eval().requires_grad_(False)
        self._second = _second_parameter(module, built.class_name)
        assumed: list[str] = []
        self.name = identity.display_name(name, {}) if name else identity.display_name(built.name, built.shown_args)
        self.sample_rate_hz = round(self._number("sampling_rate", DEFAULT_RATE_HZ if self._second else None, assumed))
        self.dim = round(self._number("output_dim", None, assumed))
        longest = getattr(module, "max_length_s", None)
        self.max_length_s = None if longest is None else self._number("max_length_s", None, assumed)
        self.accepts_lengths = False
        weights = identity.weights_sha256(module)  # before the move, so that the device leaves no trace
        try:
            module.to(device)
        except (RuntimeError, AssertionError) as error:
            if _out_of_memory(error):
                raise
            raise EncoderError(
                f'The encoder cannot be moved to the device "{device}": {error}',
                where=self.name,
                hint="Try --device cpu.",
            ) from error
        hop = getattr(module, "hop_size_in_ms", None)
        if hop is None and self._second:
            self.hop_ms = verify.measure_hop(self)
            assumed.append("hop_size_in_ms")
        else:
            self.hop_ms = self._number("hop_size_in_ms", None, assumed)
        parts: dict[str, Any] = {
            "class": built.class_name,
            "code": built.code,
            "args": identity.identify_args(built.args),
            "weights": weights,
            "sample_rate_hz": self.sample_rate_hz,
            "dim": self.dim,
            "hop_ms": self.hop_ms,
            "max_length_s": self.max_length_s,
        }
        if built.extra:
            parts["extra"] = built.extra
        self.fingerprint = fingerprint(parts)
        self.address = f"{self.name}@{short(self.fingerprint)}"
        padding = verify.padding_probe(self) if self._second else "takes no lengths"
        self.accepts_lengths = padding == "invariant"
        self.record: dict[str, Any] = {
            "name": self.name,
            "spec": spec,
            "fingerprint": self.fingerprint,
            "parts": parts,
            "sample_rate_hz": self.sample_rate_hz,
            "dim": self.dim,
            "hop_ms": self.hop_ms,
            "max_length_s": self.max_length_s,
            "convention": {"": "audio", "mask": "audio, mask", "lengths": "audio, lengths"}[self._second],
            "padding": padding,
            "assumed": assumed,
            "parameters": sum(p.numel() for p in module.parameters()),
            "origin": built.origin,
            "versions": identity.versions(),
        }

    def __repr__(self) -> str:
        return f"<Encoder {self.address}: {self.sample_rate_hz} Hz, {self.dim} dims, a frame every {self.hop_ms:g} ms>"

    def _number(self, attribute: str, default: float | None, assumed: list[str]) -> float:
        try:
            value = getattr(self.module, attribute, None)
        except Exception as error:
            raise failed(f'Reading the encoder\'s "{attribute}" failed', error, None, where=self.name) from error
        if value is None and default is not None:
            assumed.append(attribute)
            return default
        if value is None:
            raise EncoderError(
                f'The encoder has no attribute "{attribute}".',
                where=f"{self.spec} ({type(self.module).__name__})",
                hint={
                    "sampling_rate": "Set self.sampling_rate = 16000 (Hz) in its constructor.",
                    "output_dim": "Set self.output_dim to the last size of what forward returns.",
                }.get(attribute, "Set self.hop_size_in_ms to the distance between frames in milliseconds."),
            )
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        whole = attribute in ("sampling_rate", "output_dim")
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        if not good or (whole and value != int(value)):
            raise EncoderError(
                f'The encoder\'s "{attribute}" must be a positive {"whole " if whole else ""}number; found {value!r}.',
                where=f"{self.spec} ({type(self.module).__name__})",
                hint=f"Correct self.{attribute}.",
            )
        return float(value)

    def encode(self, audio: torch.Tensor, lengths: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch of clips.

        Clips of unequal length are padded together only when ``accepts_lengths``; otherwise, and when clips are longer
        than ``max_length_s``, they are cut into windows and run in groups of equal length, so that an embedding never
        depends on the batch.

        Args:
            audio: (batch, samples) or, for one clip, (samples,); float, at least one sample, any device.
            lengths: (batch,) samples of each clip that count, 1 to samples; all of them when omitted.

        Returns:
            Embeddings (batch, frames, dim) float32 on ``device``, and valid frames (batch,) int64 on the CPU, each at
            least 1. Frames behind the valid ones have no meaning.

        Raises:
            EncoderError: the encoder raised or returned something else than it declared. Running out of memory passes
                through as ``torch.cuda.OutOfMemoryError``.
            ValueError: ``audio`` or ``lengths`` have the wrong shape.

        Example:
            >>> encoder = load_encoder("logmel")
            >>> frames, valid = encoder.encode(torch.zeros(2, 16000), torch.tensor([16000, 8000]))
            >>> tuple(frames.shape), valid.tolist()
            ((2, 100, 64), [100, 50])
        """
        if audio.ndim == 1:
            audio = audio[None]
        if audio.ndim != 2 or 0 in audio.shape:
            raise ValueError(f"audio must be (batch, samples), neither of them 0; found {tuple(audio.shape)}")
        batch, samples = audio.shape
        counts = [samples] * batch if lengths is None else [int(n) for n in lengths.tolist()]
        if len(counts) != batch or min(counts) < 1 or max(counts) > samples:
            raise ValueError(f"lengths must be {batch} numbers in 1 to {samples}; found {counts[:8]}")
        with torch.inference_mode():
            # A copy: a module that normalises in place must not change the caller's audio, which may be encoded again.
            audio = audio.to(self.device, torch.float32, copy=True)
            # An out-of-range window is found from the clips themselves, not from how far the batch was padded.
            windows = [self._windows(count) for count in counts]
            if all(len(each) == 1 for each in windows) and (self.accepts_lengths or len(set(counts)) == 1):
                return self.forward_once(audio[:, : max(counts)], counts)
            return self._by_windows(audio, windows)

    def _windows(self, samples: int) -> list[tuple[int, int]]:
        """Cut ``samples`` into consecutive windows no longer than the encoder takes.

        The windows are about equally long: a remainder of a few samples would be too short for most encoders.
        """
        if self.max_length_s is None:
            return [(0, samples)]
        hop = max(1, round(self.hop_ms * self.sample_rate_hz / 1000)) if hasattr(self, "hop_ms") else 1
        longest = max(1, int(self.max_length_s * self.sample_rate_hz))
        if samples <= longest:
            return [(0, samples)]
        longest = max(longest // hop * hop, min(hop, longest))
        count = -(-samples // longest)
        size = min(longest, -(-samples // (count * hop)) * hop)
        return [(start, min(start + size, samples)) for start in range(0, samples, size)]

    def _by_windows(
        self, audio: torch.Tensor, windows: list[list[tuple[int, int]]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        groups: dict[int, list[tuple[int, int]]] = {}
        for clip, spans in enumerate(windows):
            for index, (start, stop) in enumerate(spans):
                groups.setdefault(stop - start, []).append((clip, index))
        outputs: list[list[torch.Tensor]] = [[torch.empty(0)] * len(spans) for spans in windows]
        for length, members in groups.items():
            at_once = max(1, audio.numel() // length)  # no more audio in one pass than the caller gave in one batch
            for first in range(0, len(members), at_once):
                some = members[first : first + at_once]
                rows = torch.stack([audio[c, windows[c][i][0] : windows[c][i][1]] for c, i in some])
                frames, valid = self.forward_once(rows, [length] * len(some))
                for (clip, index), one, n in zip(some, frames, valid.tolist(), strict=True):
                    outputs[clip][index] = one[:n]
        joined = [torch.cat(pieces) for pieces in outputs]
        counts = torch.tensor([len(one) for one in joined], dtype=torch.int64)
        return torch.nn.utils.rnn.pad_sequence(joined, batch_first=True), counts

    def forward_once(self, audio: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the module once on clips padded together and check what comes back; ``encode`` is the door to use."""
        shape = tuple(audio.shape)
        arguments = [audio]
        if self._second:
            lengths = torch.tensor(counts, dtype=torch.int64, device=audio.device)
            if self._second == "mask":
                lengths = (torch.arange(shape[1], device=audio.device)[None, :] < lengths[:, None]).long()
            arguments.append(lengths)
        self.module.eval()
        try:
            output = self.module(*arguments)
        except (Exception, SystemExit, GeneratorExit) as error:  # an encoder that ends the process ends it as a failure
            if _out_of_memory(error):
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                raise torch.cuda.OutOfMemoryError(str(error)) from error
            raise failed(f"The encoder failed on audio of shape {shape}", error, None, where=self.name) from error
        told: Any = None
        if isinstance(output, tuple | list):
            if not 1 <= len(output) <= 2:
                raise self._broken(shape, f"a {type(output).__name__} of {len(output)} things")
            output, told = (*output, None)[:2]
        if not isinstance(output, torch.Tensor):
            raise self._broken(shape, f"a {type(output).__name__}")
        if output.ndim != 3 or output.shape[0] != shape[0] or output.shape[2] != self.dim or output.shape[1] == 0:
            raise self._broken(shape, f"a tensor of shape {tuple(output.shape)}")
        if not output.is_floating_point():
            raise self._broken(shape, f"a tensor of {output.dtype}")
        if output.is_meta or output.layout is not torch.strided:
            raise self._broken(shape, "a tensor without data" if output.is_meta else f"a tensor of {output.layout}")
        self.raw_dtype = str(output.dtype).removeprefix("torch.")
        output = output.detach().to(self.device, torch.float32)
        valid = self._valid_frames(told, output.shape[1], shape)
        if not bool(torch.isfinite(output).all()):
            inside = torch.arange(output.shape[1])[None, :] < valid[:, None]
            bad = (~torch.isfinite(output)).any(2).cpu() & inside
            if bool(bad.any()):
                clip, frame = (int(i) for i in bad.nonzero()[0])
                raise EncoderError(
                    f"The encoder returned NaN or infinity: {int(bad.sum())} of {int(valid.sum())} frames, first in frame "
                    f"{frame} of clip {clip}, for audio of shape {shape}.",
                    where=self.name,
                    hint="Guard divisions and logarithms; `xares check` tries silence and clipped audio.",
                )
        return output, valid

    def _broken(self, shape: tuple[int, ...], found: str) -> EncoderError:
        return EncoderError(
            f"The encoder must return a float tensor of shape ({shape[0]}, frames, {self.dim}) for audio of shape {shape}; "
            f"it returned {found}.",
            where=f"{self.name} ({type(self.module).__name__})",
            hint="Return (batch, frames, output_dim), alone or with a mask or the valid frames; or correct output_dim.",
        )

    def _valid_frames(self, told: Any, frames: int, shape: tuple[int, ...]) -> torch.Tensor:
        batch = shape[0]
        if told is None:
            return torch.full((batch,), frames, dtype=torch.int64)
        try:
            told = torch.as_tensor(told).detach().cpu()
        except Exception:
            raise self._broken(shape, f"embeddings with a {type(told).__name__}, not a mask") from None
        if told.ndim == 2 and tuple(told.shape) == (batch, frames):
            mask = told != 0
            valid = mask.sum(1)
            if not torch.equal(mask, torch.arange(frames)[None, :] < valid[:, None]):
                raise self._broken(shape, "a mask whose valid frames do not all come first")
        elif told.ndim == 1 and len(told) == batch:
            valid = told.long()
        else:
            raise self._broken(shape, f"embeddings of {frames} frames with a mask of shape {tuple(told.shape)}")
        if int(valid.min()) < 1 or int(valid.max()) > frames:
            raise self._broken(shape, f"{frames} frames, of which {valid.tolist()[:8]} are valid")
        return torch.as_tensor(valid, dtype=torch.int64)


def _second_parameter(module: torch.nn.Module, class_name: str) -> str:
    """Return "mask", "lengths" or "" from how ``forward`` names its second parameter."""
    if type(module).forward is torch.nn.Module.forward:
        raise EncoderError(f"{class_name} has no forward method.", hint="Define forward(self, audio).")
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        if not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            raise EncoderError(f"The forward of {class_name} takes no audio.", hint="Define forward(self, audio).")
        return ""
    second = positional[1]
    for word, meaning in (("mask", "mask"), ("len", "lengths")):
        if word in second.name.lower():
            return meaning
    if second.default is second.empty:
        raise EncoderError(
            f'The forward of {class_name} needs a second argument "{second.name}", which is neither a mask nor lengths.',
            hint='Name it "attention_mask" (batch, samples; 1 = audio) or "lengths" (batch,), or give it a default.',
        )
    return ""


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory" in text or "can't allocate" in text
    )


def load_encoder(
    spec: str, *, args: Mapping[str, Any] | None = None, device: str = "cpu", name: str | None = None
) -> Encoder:
    """Load an encoder and measure what its contract leaves open.

    Args:
        spec: ``enc.py``, ``enc.py:ClassName``, ``package.module:ClassName``, ``hf:org/model[@revision]``,
            ``hear:package.module[@weights]`` or the name of a built-in encoder.
        args: constructor arguments as text (``{"layer": "6"}``), read as numbers, booleans or text.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.
        name: readable name in place of the class or model name.

    Returns:
        The encoder, frozen, in eval mode, on ``device``.

    Raises:
        EncoderError: it cannot be found, loaded or constructed, or lacks an attribute.

    Example:
        >>> load_encoder("logmel").dim
        64
    """
    parsed = parse_args(args)
    device = resolve_device(device)
    built = build(spec, parsed)
    return Encoder(built.module, built=built, spec=spec, device=device, name=name)
