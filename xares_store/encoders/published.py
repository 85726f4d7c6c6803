"""Patch transformers with published weights, whichever of their two formats they have: what Dasheng and CED share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from xares_store.encoders.hub import checkpoint_file
from xares_store.encoders.patch_transformer import (
    HIGH_HZ,
    HOP,
    LOW_HZ,
    MELS,
    WINDOW,
    PatchEncoder,
    Shape,
)
from xares_store.encoders.weights import load_weights, read_checkpoint, strip_prefix, tensors_of
from xares_store.errors import EncoderError

# What a checkpoint's own settings must say where they say anything.
_FRONT_END = {
    "n_mels": MELS,
    "n_fft": WINDOW,
    "win_size": WINDOW,
    "hop_size": HOP,
    "f_min": LOW_HZ,
    "f_max": HIGH_HZ,
    "center": True,
}
_BUFFERS = {"front_end.0.spectrogram.window": "window", "front_end.0.mel_scale.fb": "mel"}
_CLOSE = 1e-4
_CUSTOM = re.compile(r"^(\d+)x(\d+)x(\d+)$")


class PublishedEncoder(PatchEncoder):
    """A patch transformer with published weights.

    Attributes:
        encoder: its name on the command line.
        hub: the hub model of each size, with ``{size}`` for its name.
        sizes: name -> (dim, depth, heads).
        patch: mel bands and spectrogram frames of a patch.
        columns: patches in time that have a position.

    Args:
        checkpoint: a .safetensors or .pt file, a folder that holds model.safetensors, or a hub model; the published one of
            this size by default.
        revision: commit, branch or tag of the hub model; the newest by default.
        size: a published size, or ``DIMxDEPTHxHEADS`` for weights of one's own.
        max_length_s: longest window in seconds, at most what there are positions for.

    Raises:
        EncoderError: the weights are not found, damaged, or do not fit exactly.
        ValueError: ``size`` or ``max_length_s`` is out of range.
    """

    encoder: ClassVar[str]
    hub: ClassVar[str]
    sizes: ClassVar[Mapping[str, tuple[int, int, int]]]
    patch: ClassVar[tuple[int, int]]
    columns: ClassVar[int]
    origin_args: ClassVar[tuple[str, ...]] = ("checkpoint", "revision")

    def __init__(
        self, checkpoint: str = "", revision: str = "", size: str = "base", max_length_s: float = 10.0
    ) -> None:
        super().__init__(self.shape_of(size), max_length_s)
        if not checkpoint and size not in self.sizes:
            raise ValueError(f"no weights of size {size} are published: give checkpoint=PATH")
        checkpoint = checkpoint or self.hub.format(size=size)
        path = checkpoint_file(checkpoint, revision, "model.safetensors", encoder=self.encoder)
        load_published(self, path)
        self.origin = {"checkpoint": checkpoint, "file": path.name}

    @classmethod
    def shape_of(cls, size: str) -> Shape:
        """Return the sizes behind a published name or ``DIMxDEPTHxHEADS``.

        Raises:
            ValueError: neither a name nor sizes that fit.
        """
        custom = _CUSTOM.match(size)
        dim, depth, heads = cls.sizes.get(size) or (tuple(map(int, custom.groups())) if custom else (0, 0, 0))
        if min(dim, depth, heads) < 1 or dim % heads:
            names = ", ".join(cls.sizes)
            raise ValueError(f'size must be {names}, or DIMxDEPTHxHEADS with HEADS dividing DIM; found "{size}"')
        return Shape(dim, depth, heads, cls.patch, cls.columns)


def load_published(encoder: PatchEncoder, path: Path) -> None:
    """Load a checkpoint when it fits exactly: names, shapes, and the front end it was trained with.

    Args:
        encoder: receives the weights.
        path: a file as on the hub (names under ``encoder.``), or as published first (no prefix, front end included).

    Raises:
        EncoderError: unreadable, damaged, or anything missing, left over or of another shape.
    """
    content = read_checkpoint(path)
    settings = content.get("config")
    if isinstance(settings, Mapping):
        _check_settings(settings, path)
    tensors = strip_prefix(
        tensors_of(content, keys=("model", "state_dict"), where=path), ("encoder.",), encoder.network.state_dict()
    )
    # The published network wraps this layer in a sequence of three.
    tensors = {name.replace("init_bn.1.", "init_bn.", 1): tensor for name, tensor in tensors.items()}
    for name, buffer in _BUFFERS.items():
        if name in tensors:
            _check_buffer(tensors[name], getattr(encoder.front.mel, buffer), name, path)
    load_weights(encoder.network, tensors, where=path, ignore=(*_BUFFERS, "outputlayer.*"))


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    for name, wanted in _FRONT_END.items():
        found = settings.get(name)
        if found is not None and found != wanted:
            raise EncoderError(
                f"The checkpoint was trained with {name} = {found}; this encoder computes with {wanted}.",
                where=path,
                hint="Give a checkpoint with the published front end.",
            )


def _check_buffer(found: torch.Tensor, ours: torch.Tensor, name: str, path: Path) -> None:
    if found.shape != ours.shape or not torch.allclose(found.float(), ours, rtol=0, atol=_CLOSE):
        raise EncoderError(
            f"The checkpoint's {name} is not the published one that this encoder computes.",
            where=path,
            hint="Give a checkpoint with the published front end.",
        )
