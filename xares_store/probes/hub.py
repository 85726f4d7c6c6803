"""Where a tokenizer or a text model lies: a folder, the cache of the Hugging Face hub, or the hub itself.

What is there already is used without asking the hub. What a model is follows from the content of its files: a digest
of them goes into the identity of every score made with it. So a folder is refused where Transformers would read more than
these files: an adapter of PEFT, or other weights, configurations and tokenizers that a configuration names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from xares_store.errors import ProbeError
from xares_store.fingerprint import fingerprint, sha256_file, sha256_text

CONFIG = "config.json"
# Any one of the first group makes a tokenizer; the second group changes what it does.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
# In the order in which they are preferred.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_INDEX = ".index.json"
ADAPTER = "adapter_config.json"
# Settings that make Transformers read other files than those named here.
_ELSEWHERE = {
    CONFIG: ("transformers_weights", "configuration_files"),
    "tokenizer_config.json": ("fast_tokenizer_files",),
}
# What a saved configuration says about its origin and not about the computation.
_VOLATILE = frozenset(
    (
        "_name_or_path",
        "name_or_path",
        "is_local",
        "local_files_only",
        "transformers_version",
        "architectures",
        "use_cache",
        "dtype",
        "torch_dtype",
    )
)
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class TextFiles:
    """A tokenizer, or a text model with its tokenizer, on this machine.

    Args:
        spec: as the user wrote it.
        folder: where it lies.
        weights: names of the weight files, none for a tokenizer.
    """

    spec: str
    folder: Path
    weights: tuple[str, ...] = ()

    @property
    def safetensors(self) -> bool:
        """Whether the weights are safetensors files, not torch archives."""
        return all(name.endswith(".safetensors") for name in self.weights)

    def identity(self) -> dict[str, Any]:
        """Return what decides the output: the model's type and one digest over configuration, weights and tokenizer.

        Folder names and what a configuration says about its origin do not matter.
        """
        names = [name for name in (*_VOCABULARIES, *_TOKENIZER_EXTRAS) if (self.folder / name).is_file()]
        content = {name: content_digest(self.folder / name) for name in [*names, *self.weights]}
        if not self.weights:
            return {"sha256": fingerprint(content)}
        config = read_json(self.folder / CONFIG)
        content[CONFIG] = content_digest(self.folder / CONFIG)
        return {"model": str(config.get("model_type")), "sha256": fingerprint(content)}


def find_text_files(spec: str, *, weights: bool, option: str, extras: Sequence[str] = ()) -> TextFiles:
    """Find a tokenizer or a text model, downloading it only when it is not on this machine.

    Args:
        spec: a folder as `save_pretrained` writes it, or ``org/name`` or ``org/name@revision`` on the hub.
        weights: whether a model is wanted, or its tokenizer alone.
        option: option of the command line that named it, for messages.
        extras: further small files that a download brings along where the model has them.

    Raises:
        ProbeError: not found, incomplete, not to be had without network, or decided by further files.
    """
    try:
        path = Path(spec).expanduser()
    except RuntimeError:  # ~name, and nobody is called that
        path = Path(spec)
    if path.is_dir():
        folder = path.resolve()
    elif spec.startswith(("/", ".", "~")):
        raise ProbeError(
            f"The folder {spec} does not exist.", where=option, hint=f"Give a folder that holds {_needed(weights)}."
        )
    else:
        folder = _from_hub(spec, weights, option, extras)
    lacking = _lacking(folder, weights)
    if lacking:
        raise ProbeError(
            f"Wanted {_needed(weights)}, but {lacking} is not there.",
            where=f"{option} {spec} ({folder})",
            hint="Save model and tokenizer with save_pretrained into one folder.",
        )
    _only_these_files(folder, weights, f"{option} {spec} ({folder})")
    return TextFiles(spec, folder, _weight_files(folder) if weights else ())


def _only_these_files(folder: Path, weights: bool, where: str) -> None:
    """Refuse a folder in which Transformers would read files that are no part of the identity."""
    if weights and (folder / ADAPTER).is_file():
        raise ProbeError(
            f"An adapter lies beside the model ({ADAPTER}); scores would be its own and not the model's.",
            where=where,
            hint="Merge it into the weights first (merge_and_unload of PEFT, then save_pretrained), or move it away.",
        )
    for name, keys in _ELSEWHERE.items():
        if not (folder / name).is_file() or (name == CONFIG and not weights):
            continue
        found = next((key for key in keys if read_json(folder / name).get(key)), None)
        if found:
            raise ProbeError(
                f'{name} has "{found}": what is read would not be the usual file.',
                where=where,
                hint="Load the model once and save it with save_pretrained into a folder of its own.",
            )


def _from_hub(spec: str, weights: bool, option: str, extras: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    name, _, revision = spec.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        if not _lacking(folder, weights):
            return folder
    except Exception:  # noqa: S110 - not in the cache, or no name of a model: the hub says which
        pass
    try:
        # One request that fails at once, before a download that would try again and again.
        info = HfApi().model_info(name, revision=revision or None, timeout=_TIMEOUT_S)
        present = [sibling.rfilename for sibling in info.siblings or ()]
        patterns = [*_wanted(present, weights), *(extra for extra in (*extras, ADAPTER) if extra in present)]
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=patterns, etag_timeout=_TIMEOUT_S)
        )
    except Exception as error:  # the hub's errors are of many classes; all of them mean that it is not to be had
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ProbeError(
            f'"{spec}" is not on this machine and cannot be had from the hub: {lines[0] if lines else type(error).__name__}',
            where=option,
            hint=f"Check the name. Without network, put {_needed(weights)} into a folder and give its path: "
            f"{option} /folder; where there is network, `hf download {name}` gets it. For a private or gated model log in first "
            "(hf auth login).",
        ) from error


def _wanted(present: Sequence[str], weights: bool) -> list[str]:
    names = [name for name in (*_VOCABULARIES, *_TOKENIZER_EXTRAS, CONFIG) if name in present]
    if weights:
        best = next((name for name in _WEIGHTS if name in present), None)
        if best is not None and best.endswith(_INDEX):
            names += [best, best.removesuffix(_INDEX).replace(".", "-*.")]
        elif best is not None:
            names.append(best)
    return names


def _needed(weights: bool) -> str:
    tokenizer = "tokenizer.json (or vocab.txt and tokenizer_config.json)"
    return f"{CONFIG}, model.safetensors and {tokenizer}" if weights else tokenizer


def _lacking(folder: Path, weights: bool) -> str | None:
    """Name what is missing for use; None when nothing is."""
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return "a tokenizer"
    if not weights:
        return None
    if not (folder / CONFIG).is_file():
        return CONFIG
    if not any((folder / name).is_file() for name in _WEIGHTS):
        return "a weight file"
    return next((name for name in _weight_files(folder) if not (folder / name).is_file()), None)


def _weight_files(folder: Path) -> tuple[str, ...]:
    found = next(name for name in _WEIGHTS if (folder / name).is_file())
    if not found.endswith(_INDEX):
        return (found,)
    listed = read_json(folder / found).get("weight_map")
    names = list(listed.values()) if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ProbeError("The index of weight files is not usable.", where=folder / found, hint="Get the model again.")
    return tuple(sorted(set(names)))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ProbeError: unreadable, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ProbeError(f"Wanted a JSON file: {error}.", where=path, hint="Get the model again.") from None
    if not isinstance(content, dict):
        raise ProbeError("Wanted a JSON object.", where=path, hint="Get the model again.")
    return content


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file of a model; of a configuration without what it says about its origin."""
    if path.name in (CONFIG, "tokenizer_config.json"):
        kept = {key: value for key, value in read_json(path).items() if key not in _VOLATILE}
        return sha256_text(json.dumps(kept, sort_keys=True))
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, modified_ns: int) -> str:
    """Hash a file once as long as its size and time stay: it is asked for with every encoder and task."""
    return sha256_file(path)
