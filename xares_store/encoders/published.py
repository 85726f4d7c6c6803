"""Loading a published Dasheng or CED checkpoint into a ``PatchEncoder``, whichever of its two formats it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

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
_BUFFERS = {"front_end.0.spectrogram.window": "window", "front_end.0.mel_scale.fb": "filters"}
_CLOSE = 1e-4
_CUSTOM = re.compile(r"^(\d+)x(\d+)x(\d+)$")


def shape_of(size: str, sizes: Mapping[str, tuple[int, int, int]], patch: tuple[int, int], columns: int) -> Shape:
    """Return the sizes behind a name.

    Args:
        size: a published name, or ``DIMxDEPTHxHEADS``.
        sizes: name -> (dim, depth, heads).
        patch: height and width of a patch.
        columns: patches in time that have a position.

    Raises:
        ValueError: neither a name nor sizes that fit.

    Example:
        >>> shape_of("192x12x3", {}, (16, 16), 63).depth
        12
    """
    custom = _CUSTOM.match(size)
    dim, depth, heads = sizes.get(size) or (tuple(map(int, custom.groups())) if custom else (0, 0, 0))
    if min(dim, depth, heads) < 1 or dim % heads:
        names = ", ".join(sizes)
        raise ValueError(f'size must be {names}, or DIMxDEPTHxHEADS with HEADS dividing DIM; found "{size}"')
    return Shape(dim, depth, heads, patch, columns)


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
            _check_buffer(tensors[name], getattr(encoder, buffer), name, path)
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
