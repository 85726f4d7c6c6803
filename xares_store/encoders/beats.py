"""``beats``: BEATs and OpenBEATs, a transformer over patches of 16 mel bands by 160 ms. Needs a local checkpoint.

* S. Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML 2023, arXiv 2212.09058. Checkpoints
  ``BEATs_iter1.pt`` to ``BEATs_iter3_plus_AS2M.pt`` and those fine-tuned on AudioSet, from
  https://github.com/microsoft/unilm/tree/master/beats (MIT licence): 12 layers of 768.
* S. Bharadwaj et al., "OpenBEATs: A Fully Open-Source General-Purpose Audio Encoder", WASPAA 2025, arXiv 2507.14129.
  Checkpoints from https://huggingface.co/collections/espnet/openbeats (see there for the licence of each): base as
  BEATs, large with 24 layers of 1024.

Both store ``{"cfg": settings, "model": weights}``; a file without settings is read with ``size=base`` or ``large``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from xares_store.encoders.logmel import frame_mask
from xares_store.encoders.melfront import KaldiFbank, followed_by_silence
from xares_store.encoders.weights import checkpoint_path, load_weights, read_checkpoint, strip_prefix, tensors_of
from xares_store.encoders.windows import by_windows
from xares_store.errors import EncoderError

SOURCE = (
    "Download BEATs_iter3_plus_AS2M.pt from https://github.com/microsoft/unilm/tree/master/beats (MIT) or an OpenBEATs "
    "checkpoint from https://huggingface.co/collections/espnet/openbeats."
)
BANDS = 128
FBANK_MEAN = 15.41663  # of AudioSet, published with the models
FBANK_STD = 6.55582  # twice this is divided by
DEFAULT_WINDOW_S = 10.0  # the models were trained on clips of 10 s
# What files of fine-tuned models and of training programs hold besides the encoder. The two ``_pad`` tensors are
# constants with which OpenBEATs counts frames.
_NOT_THE_ENCODER = ("predictor.*", "decoder.*", "patch_embedding_pad.weight", "raw2fbank_pad.weight")


@dataclass(frozen=True)
class BeatsConfig:
    """The settings of a checkpoint that decide its shapes and its computation, under their published names.

    The defaults are those of the published code, which apply to whatever a checkpoint leaves out.
    """

    input_patch_size: int = 16
    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = False
    num_buckets: int = 320
    max_distance: int = 1280
    gru_rel_pos: bool = False
    fbank_mean: float = FBANK_MEAN
    fbank_std: float = FBANK_STD


# All published models share these two lines.
BASE = BeatsConfig(deep_norm=True, relative_position_embedding=True, max_distance=800, gru_rel_pos=True)
LARGE = replace(BASE, encoder_layers=24, encoder_embed_dim=1024, encoder_ffn_embed_dim=4096, encoder_attention_heads=16)
SIZES = {"base": BASE, "large": LARGE}


def relative_buckets(query: int, key: int, buckets: int, max_distance: int) -> torch.Tensor:
    """Number the distances between tokens as T5 does: half the buckets for either direction.

    Of each half, the first half are single distances and the rest grow logarithmically up to ``max_distance``.

    Args:
        query: number of query tokens.
        key: number of key tokens.
        buckets: number of buckets, a multiple of 4.
        max_distance: from here on all distances share the last bucket.

    Returns:
        (query, key) int64; keys behind the query are in the upper half.
    """
    ahead = torch.arange(key)[None, :] - torch.arange(query)[:, None]
    half = buckets // 2
    exact = half // 2
    distance = ahead.abs()
    # In float32, as the models were trained: a logarithm on the edge of two buckets falls where it fell then.
    growth = (distance.clamp_min(1).float() / exact).log() / math.log(max_distance / exact) * (half - exact)
    far = (exact + growth.long()).clamp_max(half - 1)
    return torch.where(distance < exact, distance, far) + half * (ahead > 0)


class PositionConv(torch.nn.Module):
    """A grouped convolution over time whose kernel is stored as direction and, for each of its taps, length."""

    def __init__(self, dim: int, width: int, groups: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(dim))
        self.weight_g = torch.nn.Parameter(torch.ones(1, 1, width))
        self.weight_v = torch.nn.Parameter(torch.randn(dim, dim // groups, width))
        self.groups = groups

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, tokens, dim) to the same shape."""
        width = self.weight_v.shape[2]
        kernel = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        moved = F.conv1d(tokens.transpose(1, 2), kernel, self.bias, padding=width // 2, groups=self.groups)
        return F.gelu(moved[..., : tokens.shape[1]]).transpose(1, 2)  # an even width yields one token too many


class Attention(torch.nn.Module):
    """Self-attention with a relative position bias that every query opens or closes with a gate of its own."""

    def __init__(self, config: BeatsConfig, bias: torch.nn.Embedding) -> None:
        super().__init__()
        dim, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.grep_a = torch.nn.Parameter(torch.ones(1, self.heads, 1, 1))
        self.relative_attention_bias = bias  # one for all layers
        self.k_proj = torch.nn.Linear(dim, dim)
        self.v_proj = torch.nn.Linear(dim, dim)
        self.q_proj = torch.nn.Linear(dim, dim)
        self.out_proj = torch.nn.Linear(dim, dim)
        self.grep_linear = torch.nn.Linear(dim // self.heads, 8)

    def forward(self, tokens: torch.Tensor, position: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Attend.

        Args:
            tokens: (batch, tokens, dim).
            position: (heads, tokens, tokens), the bias without its gates.
            hidden: (batch, tokens) booleans, true for keys that nobody may see; None when there are none.

        Returns:
            (batch, tokens, dim).
        """
        batch, length, dim = tokens.shape
        query, key, value = (
            projection(tokens).view(batch, length, self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Eight numbers a query and head, summed by fours, are the two gates.
        gates = self.grep_linear(query).view(batch, self.heads, length, 2, 4).sum(-1).sigmoid()
        first, second = gates.split(1, dim=-1)
        bias = (first * (second * self.grep_a - 1.0) + 2.0) * position
        if hidden is not None:
            bias = bias.masked_fill(hidden[:, None, None, :], -math.inf)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return torch.as_tensor(self.out_proj(mixed.transpose(1, 2).reshape(batch, length, dim)))


class Layer(torch.nn.Module):
    """One transformer layer, normalised after each half, the residual scaled by ``alpha`` (DeepNorm)."""

    def __init__(self, config: BeatsConfig, bias: torch.nn.Embedding) -> None:
        super().__init__()
        dim = config.encoder_embed_dim
        self.self_attn = Attention(config, bias)
        self.self_attn_layer_norm = torch.nn.LayerNorm(dim)
        self.fc1 = torch.nn.Linear(dim, config.encoder_ffn_embed_dim)
        self.fc2 = torch.nn.Linear(config.encoder_ffn_embed_dim, dim)
        self.final_layer_norm = torch.nn.LayerNorm(dim)
        self.alpha = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0

    def forward(self, tokens: torch.Tensor, position: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Map (batch, tokens, dim) to the same shape; the rest as for ``Attention``."""
        tokens = self.self_attn_layer_norm(tokens * self.alpha + self.self_attn(tokens, position, hidden))
        inner = self.fc2(F.gelu(self.fc1(tokens)))
        return torch.as_tensor(self.final_layer_norm(tokens * self.alpha + inner))


class Transformer(torch.nn.Module):
    """The layers and what stands before them."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder_embed_dim
        self.pos_conv = torch.nn.Sequential(PositionConv(dim, config.conv_pos, config.conv_pos_groups))
        bias = torch.nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        self.layers = torch.nn.ModuleList(Layer(config, bias) for _ in range(config.encoder_layers))
        self.layer_norm = torch.nn.LayerNorm(dim)

    def position_bias(self, buckets: torch.Tensor) -> torch.Tensor:
        """Look up (query, key) bucket numbers; returns (query, key, heads)."""
        first = self.layers[0]
        assert isinstance(first, Layer)
        return F.embedding(buckets, first.self_attn.relative_attention_bias.weight)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor, layers: int) -> torch.Tensor:
        """Run the first ``layers`` layers on (batch, tokens, dim), of which (batch,) count."""
        length = tokens.shape[1]
        inside = frame_mask(valid, length)
        hidden = None if bool(inside.all()) else ~inside
        tokens = tokens * inside[..., None]
        tokens = self.layer_norm(tokens + self.pos_conv(tokens))
        buckets = relative_buckets(length, length, self.config.num_buckets, self.config.max_distance)
        position = self.position_bias(buckets.to(tokens.device)).permute(2, 0, 1)
        for layer in self.layers[:layers]:
            tokens = layer(tokens, position, hidden)
        return tokens


class Beats(torch.nn.Module):
    """The network with the parameter names of the published checkpoints."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        patch = config.input_patch_size
        if config.embed_dim != config.encoder_embed_dim:
            self.post_extract_proj = torch.nn.Linear(config.embed_dim, config.encoder_embed_dim)
        self.patch_embedding = torch.nn.Conv2d(1, config.embed_dim, patch, stride=patch, bias=config.conv_bias)
        self.encoder = Transformer(config)
        self.layer_norm = torch.nn.LayerNorm(config.embed_dim)

    def patches(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed (batch, frames, bands) as (batch, time patches, bands patches, dim)."""
        found = self.layer_norm(self.patch_embedding(mel[:, None]).permute(0, 2, 3, 1))
        return torch.as_tensor(self.post_extract_proj(found) if hasattr(self, "post_extract_proj") else found)


def read_config(cfg: Mapping[str, Any], where: Path) -> BeatsConfig:
    """Read the settings of a checkpoint.

    Args:
        cfg: setting -> value as stored; those of the training alone are passed over.
        where: the file, for messages.

    Raises:
        EncoderError: a setting has the wrong type, or is one that no published model has.
    """
    kept: dict[str, Any] = {}
    for field in fields(BeatsConfig):
        if field.name not in cfg:
            continue
        value, kind = cfg[field.name], type(field.default)
        positive = kind is int or field.name == "fbank_std"
        if type(value) is not kind or (positive and not float(cfg[field.name]) > 0):
            raise EncoderError(
                f'The setting "{field.name}" of the checkpoint must be a{" positive" * positive} {kind.__name__}; '
                f"found {value!r}.",
                where=where,
                hint="Give the published file unchanged.",
            )
        kept[field.name] = value
    config = BeatsConfig(**kept)
    wanted = {
        "activation_fn": "gelu", "layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True,
    }  # fmt: skip
    others = [f"{name}={getattr(config, name)}" for name, value in wanted.items() if getattr(config, name) != value]
    uneven = (
        BANDS % config.input_patch_size
        or config.encoder_embed_dim % config.encoder_attention_heads
        or config.encoder_embed_dim % config.conv_pos_groups
        or config.num_buckets % 4
        or config.max_distance <= config.num_buckets // 4
    )
    if others or uneven:
        found = ", ".join(others) or "sizes that do not divide each other"
        raise EncoderError(
            f"The checkpoint is of a kind of BEATs that was never published: {found}.",
            where=where,
            hint=SOURCE,
        )
    return config


class BeatsEncoder(torch.nn.Module):
    """BEATs, a frame every 160 ms: the mean over the eight frequency patches of that time, or all eight in a row.

    Frames are those of the published front end, whole patches only: up to 0.17 s at the end of a clip have no frame.
    Clips below one patch (0.175 s) are followed by silence. Clips longer than the window are attended to in windows
    of equal length.

    Args:
        checkpoint: path of a BEATs or OpenBEATs checkpoint.
        layer: index into the hidden states, 0 for the input of the first layer, -1 for the last.
        merge: ``mean`` of the frequency patches, or ``concat``, low frequencies first.
        size: ``base`` or ``large``, for a checkpoint without settings.
        window_s: longest stretch that attends to itself, in seconds.

    Raises:
        EncoderError: no such file, a damaged, wrong or partial checkpoint, no such layer, an impossible setting.

    Example:
        >>> encoder = load_encoder("beats", args={"checkpoint": "BEATs_iter3_plus_AS2M.pt"})  # doctest: +SKIP
        >>> encoder.dim, encoder.hop_ms  # doctest: +SKIP
        (768, 160.0)
    """

    sampling_rate = 16000

    def __init__(
        self,
        checkpoint: str = "",
        layer: int = -1,
        merge: str = "mean",
        size: str = "",
        window_s: float = DEFAULT_WINDOW_S,
    ) -> None:
        super().__init__()
        path = checkpoint_path(checkpoint, encoder="beats", source=SOURCE)
        if merge not in ("mean", "concat"):
            raise EncoderError(f'merge must be "mean" or "concat"; found {merge!r}.', where="beats")
        content = read_checkpoint(path)
        config = _config(content, size, path)
        with torch.device("meta"):  # every weight comes from the file
            self.model = Beats(config)
        tensors = tensors_of(content, keys=("model", "state_dict"), where=path)
        tensors = strip_prefix(tensors, ("module.", "encoder.", "module.encoder."), self.model.state_dict())
        load_weights(self.model, tensors, where=path, ignore=_NOT_THE_ENCODER)
        _check_shared_bias(tensors, path)
        self.origin = {"file": path.name}
        self.layers = layer if layer >= 0 else config.encoder_layers + 1 + layer
        if not 0 <= self.layers <= config.encoder_layers:
            raise EncoderError(
                f"There is no layer {layer}; the model has {config.encoder_layers}.",
                where=path,
                hint=f"Give layer=0 (input of the first layer) to layer={config.encoder_layers} (the last).",
            )
        self.mean, self.std = config.fbank_mean, config.fbank_std
        self.patch = config.input_patch_size
        self.rows = BANDS // self.patch
        self.merge = merge
        self.output_dim = config.encoder_embed_dim * (self.rows if merge == "concat" else 1)
        self.hop_size_in_ms = 10.0 * self.patch
        self.window = int(window_s * 1000 / self.hop_size_in_ms)
        if self.window < 1:
            raise EncoderError(f"window_s must hold a patch of {self.hop_size_in_ms:g} ms; found {window_s}.")
        self.fbank = KaldiFbank(BANDS)

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips.

        Args:
            audio: (batch, samples) float in -1 to 1 at 16 kHz.
            lengths: (batch,) samples of each clip that count.

        Returns:
            Frames (batch, frames, output_dim) float32, and valid frames (batch,).
        """
        mel, frames = self.fbank(*followed_by_silence(audio, lengths, self.fbank.shortest(self.patch)))
        patches = self.model.patches((mel - self.mean) / (2 * self.std))
        valid = torch.div(frames, self.patch, rounding_mode="floor")
        return by_windows(self._attend, patches, valid, self.window), valid

    def _attend(self, patches: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Run the transformer on (windows, time, frequency, dim); the tokens go through time, frequency by frequency."""
        tokens: torch.Tensor = self.model.encoder(patches.flatten(1, 2), valid * self.rows, self.layers)
        tokens = tokens.view(*patches.shape[:3], -1)
        return tokens.mean(2) if self.merge == "mean" else tokens.flatten(2)


def _config(content: Mapping[str, Any], size: str, path: Path) -> BeatsConfig:
    if size and size not in SIZES:
        raise EncoderError(f'size must be "base" or "large"; found {size!r}.', where="beats")
    cfg = content.get("cfg")
    if isinstance(cfg, Mapping):
        return read_config(cfg, path)
    if not size:
        raise EncoderError(
            'The checkpoint holds no settings ("cfg").',
            where=path,
            hint="Give the published file, or say which published model it is: --encoder-arg size=base (or large).",
        )
    return SIZES[size]


def _check_shared_bias(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse a file whose layers disagree on the position bias that they share."""
    name = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    first, layer = tensors[name.format(0)], 1
    while (other := tensors.get(name.format(layer))) is not None:
        if not torch.equal(first, other):
            raise EncoderError(
                f"Layer {layer} of the checkpoint has another relative_attention_bias than layer 0; they share one.",
                where=path,
                hint="Give the published file unchanged.",
            )
        layer += 1
