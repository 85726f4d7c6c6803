"""The error checker of FENSE: how probable it is that a caption has an error of language.

A BERT whose last hidden state at the first token goes through a linear layer with several outputs; the sigmoid of the last
output is the probability of any error. The published checkpoint is a file of a GitHub release,
``echecker_clotho_audiocaps_base.ckpt``. Its weights are taken strictly by name, and reading it runs no code from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xares_store.errors import ProbeError, did_you_mean
from xares_store.fingerprint import fingerprint, short
from xares_store.probes.hub import CONFIG, TextFiles, content_digest, find_text_files
from xares_store.probes.text import equal_lengths, load_tokenizer, token_ids
from xares_store.quiet import quiet_transformers

Values = npt.NDArray[np.float64]

OPTION = "--fluency-model"
FLUENCY_MODEL = "echecker_clotho_audiocaps_base"
NO_FLUENCY_MODEL = "none"
_PUBLISHED = {
    FLUENCY_MODEL: "1a719f090af70614bbdb9f9437530b7e133c48cfa4a58d964de0d47fc974a2fa",
    "echecker_clotho_audiocaps_tiny": "90ed0ac5033ec497ec66d4f68588053813e085671136dae312097c96c504f673",
}
_RELEASE = "https://github.com/blmoistawinde/fense/releases/download/V0.1"
# The checkpoint names its tokenizer by this model and does not hold it.
_TOKENIZER = "google-bert/bert-base-uncased"
_CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_ENCODER, _HEAD = "encoder.", "clf."
# Held by checkpoints and not used: positions are counted, and the pooler comes after the hidden state.
_UNUSED = ("encoder.embeddings.position_ids", "encoder.pooler.dense.weight", "encoder.pooler.dense.bias")
_HEAD_DIM = 64  # of every published BERT; a checkpoint's shapes do not show it
_SHOWN = 5
LONGEST = 256


@dataclass(frozen=True)
class FluencyFiles:
    """An error checker on this machine, nothing loaded.

    Attributes:
        spec: as the user named it.
        weights: its weight files.
        tokenizer: where the tokenizer lies.
        config: configuration of its BERT; None where the shapes of the weights must do.
    """

    spec: str
    weights: tuple[Path, ...]
    tokenizer: TextFiles
    config: Path | None = None

    @property
    def name(self) -> str:
        """Its name in the label of a score: that of a published file, or on the hub, else the file's with a digest."""
        digest = self._digests[0] if len(self.weights) == 1 else None
        known = next((name for name, sha256 in _PUBLISHED.items() if sha256 == digest), None)
        if known is not None:
            return known
        path = Path(self.spec).expanduser()
        if not path.exists():
            return self.spec.rpartition("/")[2]
        name = path.resolve().name if path.is_dir() else path.stem
        return f"{name}@{short(fingerprint({'weights': self._digests}))}"

    @property
    def published(self) -> bool:
        """Whether it is the checker that the published scores were made with."""
        return self.name == FLUENCY_MODEL and self._digests == [_PUBLISHED[FLUENCY_MODEL]]

    @property
    def _digests(self) -> list[str]:
        return [content_digest(path) for path in self.weights]

    def identity(self) -> dict[str, Any]:
        """Return what decides the probabilities, one digest over weights, configuration and tokenizer.

        And whether a score may be called published.
        """
        content = {
            "weights": self._digests,
            "config": None if self.config is None else content_digest(self.config),
            "tokenizer": self.tokenizer.identity()["sha256"],
        }
        return {"published": self.published, "sha256": fingerprint(content)}


def find_fluency_model(spec: str = FLUENCY_MODEL) -> FluencyFiles | None:
    """Find an error checker; nothing is loaded.

    Args:
        spec: name of a published checkpoint (looked for in ``$FENSE_DATA``, ``~/.fense_data`` and torch's hub folder, where
            other tools keep it), a checkpoint file, a folder with one, a name on the hub, or ``none``.

    Returns:
        None for ``none``: captions are then never flagged, and the label of a score says so.

    Raises:
        ProbeError: not to be had, or a file under a published name with other content.
    """
    if spec == NO_FLUENCY_MODEL:
        return None
    if spec in _PUBLISHED:
        return _raw(spec, _published_file(spec))
    path = Path(spec).expanduser()
    if path.is_file():
        return _raw(spec, path.resolve())
    if path.is_dir() and not (path / CONFIG).is_file():
        found = sorted(file for file in path.iterdir() if file.suffix in _CHECKPOINTS)
        if len(found) == 1:
            return _raw(spec, found[0].resolve())
        raise ProbeError(
            f"Wanted one checkpoint in the folder, found {len(found)}.",
            where=f"{OPTION} {spec}",
            hint=f"Give the file itself: {OPTION} FILE",
        )
    if not path.is_dir() and (path.suffix in _CHECKPOINTS or "/" not in spec or spec.startswith(("/", ".", "~"))):
        near = did_you_mean(spec, [*_PUBLISHED, NO_FLUENCY_MODEL])
        raise ProbeError(
            f'There is no file "{spec}", and no published error checker of that name.',
            where=OPTION,
            hint=" ".join([near, _how_to_get(FLUENCY_MODEL)]).strip(),
        )
    files = find_text_files(spec, weights=True, option=OPTION)
    weights = tuple(files.folder / name for name in files.weights)
    return FluencyFiles(spec, weights, TextFiles(spec, files.folder), files.folder / CONFIG)


class FluencyModel:
    """A loaded error checker, frozen, in float32.

    Args:
        files: from :func:`find_fluency_model`.
        device: torch device.

    Raises:
        ProbeError: it cannot be read, holds Python objects, or its weights are missing, left over or of another shape.
    """

    def __init__(self, files: FluencyFiles, *, device: str = "cpu") -> None:
        self._files, self._device = files, device
        state = _read(files)
        self._tokenizer = load_tokenizer(files.tokenizer)
        self._encoder, self._head = _build(files, state)
        self._encoder.to(device)
        self._head.to(device)
        rows = self._encoder.config.vocab_size
        if len(self._tokenizer) > rows:
            raise ProbeError(
                f"The tokenizer has {len(self._tokenizer)} tokens, the error checker {rows}.",
                where=f"{OPTION} {files.spec}",
                hint=f"Put the tokenizer that it was trained with beside it; {_TOKENIZER} is used where there is none.",
            )

    def error_probability(self, captions: Sequence[str], *, longest: int = LONGEST) -> Values:
        """Return how probable an error is in each caption, 0 to 1, ``(captions,)``.

        Captions are lower-cased and lose what is neither a letter, a digit, an underscore nor white space, as in training.

        Args:
            captions: any number; each is judged by itself.
            longest: tokens that are seen of a caption. FENSE saw 64, MECAT 256 (64 of a caption that is the only one).

        Raises:
            ProbeError: it returns NaN.
        """
        cleaned = [_NO_WORD.sub("", caption).lower() for caption in captions]
        distinct = list(dict.fromkeys(cleaned))
        ids = token_ids(self._tokenizer, distinct, min(longest, self._encoder.config.max_position_embeddings))
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        found: dict[str, float] = {}
        with torch.inference_mode(), quiet_transformers():
            for rows in equal_lengths(order, ids):
                tokens = torch.tensor([ids[row] for row in rows], device=self._device)
                output = self._encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens), return_dict=True)
                probability = torch.sigmoid(self._head(output.last_hidden_state[:, 0])[:, -1])
                found.update(zip((distinct[row] for row in rows), probability.double().tolist(), strict=True))
        values = np.array([found[caption] for caption in cleaned])
        if not np.isfinite(values).all():
            raise ProbeError(
                "The error checker returned NaN.", where=f"{OPTION} {self._files.spec}", hint="Check its weights."
            )
        return values


_NO_WORD = re.compile(r"[^\w\s]")


def _published_file(name: str) -> Path:
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    folders = [os.environ.get("FENSE_DATA"), "~/.fense_data", Path(torch_home) / "hub" / "fense_data"]
    for folder in folders:
        if not folder:
            continue
        path = (Path(folder) / f"{name}.ckpt").expanduser()
        if path.is_file():
            if content_digest(path) != _PUBLISHED[name]:
                raise ProbeError(
                    f"The file is not the published {name}: its SHA-256 is {content_digest(path)}, "
                    f"wanted {_PUBLISHED[name]}.",
                    where=path,
                    hint=f"Remove it. {_how_to_get(name)}",
                )
            return path.resolve()
    raise ProbeError(
        f'The error checker "{name}" is not on this machine.', where=f"{OPTION} {name}", hint=_how_to_get(name)
    )


def _how_to_get(name: str) -> str:
    return (
        f"Download {_RELEASE}/{name}.ckpt into ~/.fense_data (or give its path: {OPTION} FILE). {OPTION} {NO_FLUENCY_MODEL} "
        "scores without an error checker, under another name."
    )


def _raw(spec: str, checkpoint: Path) -> FluencyFiles:
    config = checkpoint.parent / CONFIG
    try:
        tokenizer = find_text_files(str(checkpoint.parent), weights=False, option=OPTION)
    except ProbeError:
        try:
            tokenizer = find_text_files(_TOKENIZER, weights=False, option=OPTION)
        except ProbeError as error:
            raise ProbeError(
                f"The error checker has no tokenizer beside it, and {error.message}",
                where=checkpoint,
                hint=f"Put tokenizer.json, or vocab.txt and tokenizer_config.json, of {_TOKENIZER} into {checkpoint.parent}.",
            ) from error
    return FluencyFiles(spec, (checkpoint,), tokenizer, config if config.is_file() else None)


def _read(files: FluencyFiles) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for path in files.weights:
        content = _read_file(path)
        inner = content.get("state_dict", content)
        if not isinstance(inner, Mapping) or not all(isinstance(value, torch.Tensor) for value in inner.values()):
            raise ProbeError(
                "Wanted a checkpoint of names and tensors, found something else.",
                where=path,
                hint=_how_to_get(FLUENCY_MODEL),
            )
        state.update(inner)
    return {str(name): value for name, value in state.items() if name not in _UNUSED}


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # every reader has errors of its own for damaged bytes
        code = "Unpickling" in type(error).__name__
        what = "holds Python objects, which would run code when read, or is no checkpoint" if code else "cannot be read"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ProbeError(
            f"The error checker's checkpoint {what}: {lines[0] if lines else type(error).__name__}",
            where=path,
            hint=_how_to_get(FLUENCY_MODEL),
        ) from error
    if not isinstance(content, Mapping):
        raise ProbeError(
            f"Wanted a checkpoint of names and tensors, found a {type(content).__name__}.",
            where=path,
            hint=_how_to_get(FLUENCY_MODEL),
        )
    return content


def _build(files: FluencyFiles, state: Mapping[str, torch.Tensor]) -> tuple[Any, torch.nn.Linear]:
    import transformers

    library: Any = transformers
    where = f"{OPTION} {files.spec} ({', '.join(str(path) for path in files.weights)})"
    try:
        # The weights drawn here are all replaced; a training that follows must not see that any were drawn.
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            if files.config is None:
                config = library.BertConfig(**_sizes(state))
            else:
                config = library.BertConfig.from_json_file(str(files.config))
            encoder = library.BertModel(config, add_pooling_layer=False)
            head = torch.nn.Linear(config.hidden_size, len(state[f"{_HEAD}weight"]))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ProbeError(
            f"The checkpoint is not that of an error checker: {type(error).__name__} {error}.",
            where=where,
            hint=f"Its weights are called {_ENCODER}* (a BERT) and {_HEAD}weight, {_HEAD}bias. {_how_to_get(FLUENCY_MODEL)}",
        ) from error
    wanted = {_ENCODER + name: value for name, value in encoder.state_dict().items()}
    wanted |= {_HEAD + name: value for name, value in head.state_dict().items()}
    wanted = {name: value for name, value in wanted.items() if name not in _UNUSED}
    differences = [
        *_named("missing", sorted(wanted.keys() - state.keys())),
        *_named("left over", sorted(state.keys() - wanted.keys())),
        *_named(
            "of another shape",
            sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape),
        ),
    ]
    if differences:
        raise ProbeError(
            f"The weights of the error checker do not fit: {'; '.join(differences)}.",
            where=where,
            hint=f"Get the whole checkpoint again, with its own {CONFIG} if it has one.",
        )
    encoder.load_state_dict(_part(state, _ENCODER), strict=False)  # what it may lack was compared above
    head.load_state_dict(_part(state, _HEAD))
    return encoder.float().eval().requires_grad_(False), head.float().eval().requires_grad_(False)


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _sizes(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the sizes of a BERT from the shapes of its weights."""
    embeddings, layer = f"{_ENCODER}embeddings.", re.compile(rf"{re.escape(_ENCODER)}encoder\.layer\.(\d+)\.")
    rows, hidden = state[f"{embeddings}word_embeddings.weight"].shape
    if hidden % _HEAD_DIM:
        raise ValueError(f"{hidden} hidden values are no whole number of heads of {_HEAD_DIM}; put {CONFIG} beside it")
    return {
        "vocab_size": rows,
        "hidden_size": hidden,
        "max_position_embeddings": len(state[f"{embeddings}position_embeddings.weight"]),
        "type_vocab_size": len(state[f"{embeddings}token_type_embeddings.weight"]),
        "num_hidden_layers": len({found[1] for name in state if (found := layer.match(name))}),
        "num_attention_heads": hidden // _HEAD_DIM,
        "intermediate_size": len(state[f"{_ENCODER}encoder.layer.0.intermediate.dense.weight"]),
    }


def _named(what: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"] if names else []
