"""Audio models of the Transformers library, with their own preprocessing: ``hf:org/model[@revision]`` and named families.

Four ways to feed a model, chosen from its configuration:

* waveform models (wav2vec 2.0, HuBERT, WavLM, data2vec-audio and their kin): samples, normalised per clip over its own
  samples where the model wants it;
* Whisper: windows of 30 s, filled up with silence, of which only the frames over the clip are kept;
* Audio Spectrogram Transformer: windows of its input length; patches are averaged over frequency;
* any other: whatever its feature extractor makes of the audio, whatever hidden states it returns.

No code from a model repository is ever run, and weights are read without unpickling objects. A checkpoint that lacks a
weight of the encoder, has it in another shape or holds one that the encoder has no place for is refused, never filled up.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from xares_store.encoders.hf_checkpoint import load_model
from xares_store.encoders.identity import hash_files
from xares_store.encoders.spec import Built
from xares_store.errors import EncoderError, did_you_mean

# Attention costs the square of the length, and these models were trained on clips of at most this.
DEFAULT_WINDOW_S = 30.0
HF_ARGUMENTS = ("layer", "max_length_s")
# What a saved configuration says about its origin and not about the computation.
_VOLATILE = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "use_cache",
    "processor_class",
)


class HFEncoder(torch.nn.Module):
    """What all Transformers encoders share: choosing a layer and reading it.

    Args:
        model: the model, or the encoder half of an encoder-decoder.
        extractor: its feature extractor.
        layer: index into the hidden states (0 is the input of the first layer), None for the last.
    """

    max_length_s: float | None = None
    hop_size_in_ms: float | None = None

    def __init__(self, model: Any, extractor: Any, layer: int | None) -> None:
        super().__init__()
        self.model = model
        self.extractor = extractor
        self.layer = layer
        self.sampling_rate = int(extractor.sampling_rate)
        self.output_dim = int(getattr(model.config, "hidden_size", 0) or getattr(model.config, "d_model", 0))

    def read(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run the model and return the chosen hidden states as the model shapes them."""
        with warnings.catch_warnings():
            # WavLM mixes kinds of masks inside; nothing that its users could change.
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            output = self.model(**inputs, output_hidden_states=self.layer is not None, return_dict=True)
        if self.layer is None:
            found = getattr(output, "last_hidden_state", None)
        else:
            states = getattr(output, "hidden_states", None)
            found = None if states is None else states[self.layer]
        if found is None:
            raise EncoderError(
                f"{type(self.model).__name__} returns no hidden states.",
                hint="Choose a model whose AutoModel returns last_hidden_state, or wrap it in a Python encoder.",
            )
        return torch.as_tensor(found)

    def clips(self, audio: torch.Tensor, lengths: torch.Tensor) -> list[Any]:
        """Return the valid samples of each clip as NumPy arrays, as feature extractors take them."""
        return [row[:n].cpu().numpy() for row, n in zip(audio, lengths.tolist(), strict=True)]


class WaveformEncoder(HFEncoder):
    """Models that convolve over samples: every frame's place follows from the convolutions."""

    def __init__(self, model: Any, extractor: Any, layer: int | None) -> None:
        super().__init__(model, extractor, layer)
        config = model.config
        self.convolutions = list(
            zip(config.conv_kernel, config.conv_stride, [0] * len(config.conv_kernel), strict=True)
        )
        if getattr(config, "add_adapter", False) and layer is None:
            adapters = [(config.adapter_kernel_size, config.adapter_stride, 1)] * config.num_adapter_layers
            self.convolutions += adapters
            self.output_dim = int(getattr(config, "output_hidden_size", None) or self.output_dim)
        stride, field = 1, 1
        for kernel, step, _ in self.convolutions:
            field += (kernel - 1) * stride
            stride *= step
        self.shortest = field
        self.hop_size_in_ms = 1000.0 * stride / self.sampling_rate
        self.max_length_s = DEFAULT_WINDOW_S

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode (batch, samples) with (batch,) valid samples; returns frames and valid frames."""
        inside = torch.arange(audio.shape[1], device=audio.device)[None, :] < lengths[:, None]
        if self.extractor.do_normalize:
            count = lengths[:, None].to(audio.dtype)
            audio = audio * inside
            audio = (audio - audio.sum(1, keepdim=True) / count) * inside
            audio = audio / (audio.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        audio = audio * inside
        if audio.shape[1] < self.shortest:  # below one frame: as if the clip were followed by silence
            audio = F.pad(audio, (0, self.shortest - audio.shape[1]))
            inside = F.pad(inside, (0, self.shortest - inside.shape[1]))
        inputs = {"input_values": audio}
        lengths = lengths.clamp_min(self.shortest)
        if len(set(lengths.tolist())) > 1:
            inputs["attention_mask"] = (
                torch.arange(audio.shape[1], device=audio.device)[None, :] < lengths[:, None]
            ).long()
        frames = self.read(inputs)
        valid = lengths
        for kernel, stride, padding in self.convolutions:
            valid = torch.div(valid + 2 * padding - kernel, stride, rounding_mode="floor") + 1
        return frames, valid.clamp(1, frames.shape[1])


class WhisperEncoder(HFEncoder):
    """The encoder half of Whisper, which takes windows of one fixed length only."""

    def __init__(self, model: Any, extractor: Any, layer: int | None) -> None:
        super().__init__(model, extractor, layer)
        stride = model.conv1.stride[0] * model.conv2.stride[0]
        self.samples_per_frame = int(extractor.hop_length) * stride
        self.window = model.config.max_source_positions * self.samples_per_frame
        self.hop_size_in_ms = 1000.0 * self.samples_per_frame / self.sampling_rate
        self.max_length_s = self.window / self.sampling_rate

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode (batch, samples) with (batch,) valid samples; returns frames and valid frames."""
        features = self.extractor(
            self.clips(audio, lengths),
            sampling_rate=self.sampling_rate,
            padding="max_length",
            max_length=self.window,
            return_tensors="pt",
            device=str(audio.device),
        )
        frames = self.read({"input_features": features["input_features"].to(audio.device)})
        valid = -torch.div(-lengths, self.samples_per_frame, rounding_mode="floor")
        return frames[:, : int(valid.max())], valid


class ASTEncoder(HFEncoder):
    """Audio Spectrogram Transformer: a fixed window of patches, in time and frequency."""

    def __init__(self, model: Any, extractor: Any, layer: int | None) -> None:
        super().__init__(model, extractor, layer)
        config = model.config
        frame_ms = 10.0  # the step of its filter bank, which the feature extractor fixes
        self.rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        self.columns = (config.max_length - config.patch_size) // config.time_stride + 1
        self.hop_size_in_ms = frame_ms * config.time_stride
        self.max_length_s = self.columns * self.hop_size_in_ms / 1000

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode (batch, samples) with (batch,) valid samples; returns frames and valid frames."""
        shortest = self.sampling_rate // 20  # its filter bank needs a window of 25 ms
        clips = self.clips(F.pad(audio, (0, max(0, shortest - audio.shape[1]))), lengths.clamp_min(shortest))
        features = self.extractor(clips, sampling_rate=self.sampling_rate, return_tensors="pt")
        tokens = self.read({"input_values": features["input_values"].to(audio.device)})
        patches = tokens[:, -self.rows * self.columns :]  # behind the class tokens, frequency-major
        frames = patches.reshape(len(patches), self.rows, self.columns, -1).mean(1)
        hop = self.hop_size_in_ms or 0.0
        per_frame = round(hop * self.sampling_rate / 1000)
        valid = -torch.div(-lengths, per_frame, rounding_mode="floor")
        valid = valid.clamp(1, self.columns)
        return frames[:, : int(valid.max())], valid


class GenericEncoder(HFEncoder):
    """Any other model: its extractor's inputs, its hidden states, one clip length at a time, hop measured."""

    def __init__(self, model: Any, extractor: Any, layer: int | None) -> None:
        super().__init__(model, extractor, layer)
        self.padded = "padding" in inspect.signature(extractor.__call__).parameters
        self.max_length_s = DEFAULT_WINDOW_S
        with torch.inference_mode():
            probe = torch.zeros(1, self.sampling_rate)
            self.output_dim = int(self.forward(probe, torch.tensor([self.sampling_rate]))[0].shape[2])

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Encode (batch, samples); all clips must be equally long. Returns frames and None: all are valid."""
        if len(set(lengths.tolist())) > 1:
            raise ValueError("this model takes clips of one length at a time")
        options = {"padding": True} if self.padded else {}
        shortest = self.sampling_rate // 10  # filter banks and strides need a few frames; silence follows the clip
        audio = F.pad(audio, (0, max(0, shortest - audio.shape[1])))
        features = self.extractor(
            self.clips(audio, lengths.clamp_min(shortest)),
            sampling_rate=self.sampling_rate,
            return_tensors="pt",
            **options,
        )
        inputs = {key: value.to(audio.device) for key, value in features.items() if isinstance(value, torch.Tensor)}
        accepted = inspect.signature(self.model.forward).parameters
        frames = self.read({key: value for key, value in inputs.items() if key in accepted})
        if frames.ndim != 3:
            raise EncoderError(
                f"{type(self.model).__name__} returns hidden states of shape {tuple(frames.shape)}, not (batch, frames, dim).",
                hint="Wrap the model in a Python encoder that says which axis is time.",
            )
        return frames, None


def build_hf(spec: str, args: Mapping[str, Any], *, model_type: str | None = None) -> Built:
    """Load a Transformers model and its feature extractor.

    Args:
        spec: ``hf:org/model``, ``hf:org/model@revision`` or ``hf:/folder``.
        args: ``layer`` (index into the hidden states; -1 or ``last`` for the last) and ``max_length_s`` (window).
        model_type: refuse a model whose configuration has another ``model_type``.

    Raises:
        EncoderError: not found, offline, not an audio model, another family, no such layer, unknown argument; weights
            missing, of another shape or left over.
    """
    check_arguments(args, HF_ARGUMENTS, spec)
    source, revision = _split(spec)
    model, extractor = load_model(spec, source, revision, model_type)
    config = model.config
    layers = int(getattr(config, "encoder_layers", None) or getattr(config, "num_hidden_layers", None) or 0)
    layer = _layer(args.get("layer", -1), layers, spec)
    encoder = _family(model, extractor)(model.eval(), extractor, layer)
    if "max_length_s" in args:
        window = float(args["max_length_s"]) if isinstance(args["max_length_s"], int | float) else 0.0
        longest = encoder.max_length_s if isinstance(encoder, WhisperEncoder | ASTEncoder) else None
        if window <= 0 or (longest is not None and window > longest):
            raise EncoderError(
                f"max_length_s must be above 0, and at most what the model takes; found {args['max_length_s']!r}.",
                where=spec,
            )
        encoder.max_length_s = window
    shown = {key: value for key, value in args.items() if key != "layer"}
    if layer is not None:
        shown["layer"] = layer
    extra = {"config": _plain(config.to_diff_dict()), "extractor": _plain(extractor.to_dict())}
    code = hash_files(Path(__file__), [])
    name = Path(source).name or source
    origin = {"checkpoint": source, "revision": getattr(config, "_commit_hash", None) or revision}
    return Built(encoder, name, type(model).__name__, code, {"layer": layer}, extra, shown, origin)


def check_arguments(args: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    """Refuse an argument that is not among the allowed ones."""
    for name in args:
        if name not in allowed:
            listing = f"It takes {', '.join(allowed)}."
            raise EncoderError(
                f'A Transformers encoder has no argument "{name}".',
                where=where,
                hint=did_you_mean(name, allowed, listing=listing),
            )


def _split(spec: str) -> tuple[str, str | None]:
    source = spec.removeprefix("hf:")
    if Path(source).expanduser().is_dir():
        return str(Path(source).expanduser().resolve()), None
    if Path(source).expanduser().is_file():
        raise EncoderError(
            f"{source} is a file; wanted a folder.",
            where=spec,
            hint="Name the folder, with config.json and preprocessor_config.json beside the weights.",
        )
    if source.startswith(("/", ".", "~")):
        raise EncoderError(
            f"The folder {source} does not exist.", where=spec, hint="Give a folder saved by save_pretrained."
        )
    name, _, revision = source.partition("@")
    if not name or name.count("/") > 1:
        raise EncoderError(f'"{spec}" names no model.', hint="Write hf:org/model, hf:org/model@revision or hf:/folder.")
    return name, revision or None


def _family(model: Any, extractor: Any) -> type[HFEncoder]:
    config = model.config
    if config.model_type == "whisper":
        return WhisperEncoder
    if config.model_type == "audio-spectrogram-transformer":
        return ASTEncoder
    waveform = getattr(extractor, "feature_size", None) == 1 and hasattr(extractor, "do_normalize")
    if waveform and hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
        return WaveformEncoder
    return GenericEncoder


def _layer(wanted: Any, layers: int, spec: str) -> int | None:
    if wanted == "last":
        return None
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not -layers - 1 <= wanted <= layers:
        raise EncoderError(
            f"There is no layer {wanted!r}; the model has {layers} layers.",
            where=spec,
            hint=f"Give layer=0 (input of the first layer) to layer={layers} (the last, the default).",
        )
    index = wanted if wanted >= 0 else layers + 1 + wanted
    return None if index == layers else index


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON data of a configuration without what only tells its origin."""
    kept = {key: item for key, item in value.items() if key not in _VOLATILE}
    plain: dict[str, Any] = json.loads(
        json.dumps(kept, default=str).replace("NaN", "null").replace("Infinity", "1e999")
    )
    return plain
