"""Checkpoints from a local file, strictly: every parameter is found under its name and in its shape, or it is an error.

Reads ``.safetensors`` and what ``torch.save`` writes (``.pt``, ``.pth``, ``.ckpt``), the latter without running any code
from the file. A wrong or partial checkpoint never leaves random weights behind.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xares_store.errors import EncoderError

_SHOWN = 5  # names of each kind of difference that a message lists
_DEEPEST = 4  # levels of mappings between the top of a file and its tensors


def checkpoint_path(checkpoint: str | Path | None, *, encoder: str, source: str) -> Path:
    """Return the path of a checkpoint file, or say where the published ones come from.

    Args:
        checkpoint: a local path; ``~`` is the home folder.
        encoder: name of the encoder, for the message.
        source: sentence that names the published files, their address and licence.

    Raises:
        EncoderError: it is empty, a URL or a hub name, or no file.

    Example:
        >>> checkpoint_path("/nowhere/beats.pt", encoder="beats", source="See the model card.")
        Traceback (most recent call last):
        ...
        xares_store.errors.EncoderError: There is no checkpoint file /nowhere/beats.pt.
          where: beats
          next:  See the model card. Then: --encoder-arg checkpoint=FILE
    """
    hint = f"{source} Then: --encoder-arg checkpoint=FILE"
    text = "" if checkpoint is None else str(checkpoint).strip()
    if not text:
        raise EncoderError(
            f"{encoder} needs the file of a checkpoint; it is not downloaded for you.", where=encoder, hint=hint
        )
    if "://" in text or text.startswith("hf:"):
        raise EncoderError(f"A checkpoint must be a local file; found {text}.", where=encoder, hint=hint)
    path = Path(text).expanduser()
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else ""
        message = f"{path} {what}." if what else f"There is no checkpoint file {path}."
        raise EncoderError(message, where=encoder, hint=hint)
    return path.resolve()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file without running code from it.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``.

    Returns:
        What the file holds at its top: name -> tensor, or a training program's name -> mapping.

    Raises:
        EncoderError: unreadable, damaged, an unknown format, or it holds Python objects other than plain data.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        # A namespace of options, which training programs store beside the weights, is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # every reader has errors of its own for damaged bytes
        if type(error).__name__ == "UnpicklingError":
            raise EncoderError(
                "The checkpoint holds Python objects, which would run code when read, or is no checkpoint: "
                + _first_line(error),
                where=path,
                hint="If you trust its origin, load it where it comes from and save its state dict alone (safetensors).",
            ) from error
        raise EncoderError(
            f"The checkpoint cannot be read: {_first_line(error)}",
            where=path,
            hint="Download it again and compare its size or checksum with the published one.",
        ) from error
    if not isinstance(content, Mapping):
        raise EncoderError(
            f"The checkpoint holds a {type(content).__name__}; wanted a mapping of names to tensors.",
            where=path,
            hint="Save a state dict: torch.save(model.state_dict(), FILE).",
        )
    return dict(content)


def tensors_of(content: Mapping[str, Any], *, keys: Sequence[str], where: Path) -> dict[str, torch.Tensor]:
    """Take the name -> tensor mapping out of what a checkpoint file holds.

    Args:
        content: what ``read_checkpoint`` returned.
        keys: keys under which the published files keep their weights, e.g. ``("model",)``; a dot descends
            (``"model.teacher"``). A file whose top holds the tensors themselves is taken as well.
        where: the file, for messages.

    Returns:
        Name -> tensor, in the order of the file.

    Raises:
        EncoderError: none of the keys is there and the top holds no tensors, or an entry is no tensor.
    """
    found: Any = content
    for key in keys:
        inner: Any = content
        for step in key.split(".")[:_DEEPEST]:
            inner = inner.get(step) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            found = inner
            break
    wrong = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if wrong or not found:
        wanted = " or ".join(f'"{key}"' for key in keys)
        raise EncoderError(
            f"The checkpoint holds no weights under {wanted or 'its top'}; it holds {_listed(map(str, content))}."
            if found is content
            else f"The checkpoint holds entries that are no tensors: {_listed(wrong)}.",
            where=where,
            hint="Give the published file, or a state dict alone.",
        )
    return {str(name): value for name, value in found.items()}


def strip_prefix(
    tensors: Mapping[str, torch.Tensor], prefixes: Sequence[str], names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Remove the prefix that wrappers (data parallel, a training module) put in front of the names.

    Args:
        tensors: name -> tensor as in the file.
        prefixes: known prefixes, e.g. ``("module.", "encoder.")``; the empty one is always tried first.
        names: names the encoder has. The prefix under which most of them are found is taken.

    Returns:
        Name -> tensor: those under the prefix without it; all others keep their whole name, so that nothing in the file
        goes unseen.

    Example:
        >>> list(strip_prefix({"module.a": torch.ones(1), "b": torch.ones(1)}, ["module."], ["a"]))
        ['a', 'b']
    """
    known = set(names)
    best = max(("", *prefixes), key=lambda prefix: sum(prefix + name in tensors for name in known))
    return {
        name.removeprefix(best) if name.startswith(best) and name.removeprefix(best) else name: value
        for name, value in tensors.items()
    }


def load_weights(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, where: Path, ignore: Sequence[str] = ()
) -> None:
    """Copy a checkpoint into a module when it fits exactly: name by name, shape by shape.

    Args:
        module: receives the weights in its own data types; it is left untouched when anything differs. One made on the
            meta device, which costs neither time nor random numbers, gets the tensors themselves.
        tensors: name -> tensor.
        where: the file, for messages.
        ignore: shell patterns of names that the file may hold and the module does not need, e.g. ``"decoder.*"``.

    Raises:
        EncoderError: tensors are missing, unexpected, of another shape or kind of number, or not finite; the message
            names the file and them.
    """
    wanted = module.state_dict()
    kept = {n: t for n, t in tensors.items() if n in wanted or not any(fnmatch.fnmatchcase(n, p) for p in ignore)}
    missing = [name for name in wanted if name not in kept]
    unexpected = [name for name in kept if name not in wanted]
    misshapen = [
        f"{name} (wanted {tuple(value.shape)}, found {tuple(kept[name].shape)})"
        for name, value in wanted.items()
        if name in kept and kept[name].shape != value.shape
    ]
    differences = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if differences:
        raise EncoderError(
            f"The checkpoint does not fit {type(module).__name__}, which has {len(wanted)} tensors: "
            f"{'; '.join(differences)}.",
            where=where,
            hint="Give a checkpoint of this architecture and size, whole and unchanged.",
        )
    unfit = [
        name
        for name, value in wanted.items()
        if kept[name].is_floating_point() != value.is_floating_point()
        or (value.is_floating_point() and not bool(torch.isfinite(kept[name]).all()))
    ]
    if unfit:
        raise EncoderError(
            f"{len(unfit)} tensors of the checkpoint hold NaN, infinity or another kind of number: {_listed(unfit)}.",
            where=where,
            hint="Download the file again; a diverged training cannot be used.",
        )
    fitting = {name: kept[name].to(value.dtype) for name, value in wanted.items()}
    module.load_state_dict(fitting, strict=True, assign=any(value.is_meta for value in wanted.values()))


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return (", ".join(every[:_SHOWN]) + more) or "nothing"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
