"""What an encoder is: content hashes of its code and weights, and a readable name.

Two encoders are the same when code, class, arguments, weights, rate, dimension, hop and maximum length are the same.
Where the files lie, the device and the versions of libraries are recorded but are no part of the identity.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xares_store import __version__
from xares_store.errors import EncoderError
from xares_store.fingerprint import canonical_json, sha256_file

_UNSAFE = re.compile(r"[^A-Za-z0-9._=,\[\]-]+")
_LONGEST_ARG = 32


def weights_sha256(module: torch.nn.Module) -> str:
    """Hash everything an encoder computes with, apart from its code.

    Covers the state dict and tensors or arrays kept as plain attributes (which ``state_dict`` leaves out), in sorted
    order: name, dtype, shape, bytes.

    Args:
        module: the encoder; parameters may be on any device.

    Returns:
        64 hexadecimal digits.

    Raises:
        EncoderError: a parameter has no values yet (meta device).

    Example:
        >>> a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> weights_sha256(a) == weights_sha256(b)
        False
    """
    digest = hashlib.sha256()
    for name, value in sorted(_tensors(module), key=lambda item: item[0]):
        if value.device.type == "meta":
            raise EncoderError(
                f'The parameter "{name}" has a shape but no values (device "meta").',
                hint="Load the weights in the encoder's constructor.",
            )
        plain = value.detach().cpu()
        if plain.layout != torch.strided:
            plain = plain.to_dense()
        if plain.is_quantized:
            plain = plain.dequantize()
        plain = plain.resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(canonical_json([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            yield name, value
    for prefix, child in module.named_modules():
        # Buffers that are not saved (persistent=False) and plain attributes decide the output just as weights do.
        for name in sorted(child._non_persistent_buffers_set):
            buffer = child._buffers.get(name)
            if buffer is not None:
                yield f"{prefix}.{name}#buffer", buffer
        for name, value in vars(child).items():
            if not name.startswith("_") or isinstance(value, torch.Tensor | np.ndarray):
                yield from _loose(f"{prefix}.{name}#plain", value, depth=0)


def _loose(name: str, value: Any, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        yield name, torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, torch.nn.Module):
        for inner, tensor in _tensors(value):
            yield f"{name}.{inner}", tensor
    elif depth < 3 and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _loose(f"{name}.{index}", item, depth + 1)
    elif depth < 3 and isinstance(value, dict):
        for key, item in value.items():
            yield from _loose(f"{name}.{key}", item, depth + 1)


def hash_files(main: Path | None, others: Iterable[tuple[str, Path]]) -> dict[str, str]:
    """Hash source files under names that do not depend on where they lie.

    Args:
        main: the encoder's own file; its entry is named ``<encoder>``, so that renaming it changes nothing.
        others: ``(name, path)`` of the modules it needs.

    Returns:
        Name -> SHA-256 of the bytes, in sorted order.
    """
    found = {name: sha256_file(path) for name, path in others}
    if main is not None:
        found["<encoder>"] = sha256_file(main)
    return dict(sorted(found.items()))


def identify_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Put the content of files in place of their paths, so that a moved checkpoint is the same checkpoint.

    Args:
        args: constructor arguments as parsed.

    Returns:
        The same, where text that is the path of a file (with a separator or a suffix in it) became ``sha256:...``.
    """
    return {key: _file_or_value(value) for key, value in sorted(args.items())}


def _file_or_value(value: Any) -> Any:
    # "base" stays "base" even when the working folder happens to hold such a file.
    if not isinstance(value, str) or not ("/" in value or "\\" in value or Path(value).suffix):
        return value
    try:
        return f"sha256:{sha256_file(value)}" if Path(value).is_file() else value
    except OSError:
        return value


def display_name(base: str, args: Mapping[str, Any]) -> str:
    """Make the readable part of an encoder's address, safe in file names and SQL.

    Args:
        base: class or model name.
        args: constructor arguments given by the user; long values and paths are shortened to their last part.

    Example:
        >>> display_name("hubert-base-ls960", {"layer": 6})
        'hubert-base-ls960[layer=6]'
    """
    clean = _UNSAFE.sub("-", base).strip("-.") or "encoder"
    if not args:
        return clean
    shown = []
    for key, value in sorted(args.items()):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if "/" in text or "\\" in text:
            text = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
        text = _UNSAFE.sub("-", text).replace("[", "").replace("]", "").replace(",", "-")
        shown.append(f"{key}={text[:_LONGEST_ARG]}")
    return f"{clean}[{','.join(shown)}]"


def versions() -> dict[str, str]:
    """Return the versions worth recording beside embeddings."""
    found = {
        "xares_store": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{sys.platform}-{platform.machine()}",
    }
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["transformers"] = metadata.version("transformers")
    return found
