"""Sentences as unit vectors of a frozen sentence encoder, plain for FENSE and with weighted tokens for DATE.

A vector is the mean of the last hidden state over the tokens, special ones included, divided by its norm. Sentences of one
length share a batch, so no padding is ever seen and a plain vector depends on its own sentence alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xares_store.errors import ProbeError
from xares_store.fingerprint import short
from xares_store.metrics.captioning import tfidf_weights
from xares_store.probes.hub import CONFIG, TextFiles, content_digest, find_text_files, read_json
from xares_store.probes.text import equal_lengths, load_text_model, load_tokenizer, token_ids
from xares_store.quiet import quiet_transformers

Vectors = npt.NDArray[np.float64]

OPTION = "--sentence-encoder"
SENTENCE_ENCODER = "sentence-transformers/paraphrase-TinyBERT-L6-v2"
# Weights by the SHA-256 of their file, so that a copy in a folder is known for what it is.
_KNOWN = {
    "4bfbc1766cca3862ef62dc38ccb4f971f64dc65b7e814d6a9da594d19c76c0ec": SENTENCE_ENCODER,
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db": "sentence-transformers/all-MiniLM-L6-v2",
}
# How Sentence Transformers keeps what it does around the model.
_SETTINGS, _POOLING, _MODULES = "sentence_bert_config.json", "1_Pooling/config.json", "modules.json"
_MEAN, _KINDS = "pooling_mode_mean_tokens", ("Transformer", "Pooling", "Normalize")
_LONGEST = 512
# Tokens that the published encoder sees, for a cache that lacks the file which says so.
_PUBLISHED_LONGEST = 128


@dataclass(frozen=True)
class SentenceFiles:
    """A sentence encoder on this machine, nothing loaded.

    Attributes:
        files: where it lies.
        longest: tokens that it sees of a sentence.
        lower: whether text is lower-cased before the tokenizer.
    """

    files: TextFiles
    longest: int
    lower: bool = False

    @property
    def name(self) -> str:
        """Its name in the label of a score: that of known weights or on the hub, else the folder's with a digest."""
        return _full_name(self.files).rpartition("/")[2]

    @property
    def published(self) -> bool:
        """Whether it is the encoder that the published scores were made with."""
        return _full_name(self.files) == SENTENCE_ENCODER

    def identity(self) -> dict[str, Any]:
        """Return what decides the vectors, content and how text is cut, and whether a score may be called published."""
        return {"published": self.published, **self.files.identity(), "tokens": self.longest, "lower": self.lower}


def find_sentence_encoder(spec: str = SENTENCE_ENCODER) -> SentenceFiles:
    """Find a sentence encoder: a folder, or a name on the hub, which is downloaded only when it is not on this machine.

    Args:
        spec: as in :func:`~xares_store.probes.hub.find_text_files`. A folder of Sentence Transformers keeps its settings.

    Raises:
        ProbeError: not to be had, incomplete, or an encoder that does not take the mean over its tokens.
    """
    files = find_text_files(spec, weights=True, option=OPTION, extras=(_SETTINGS, _POOLING, _MODULES))
    pooling = _optional(files.folder / _POOLING)
    if pooling.get(_MEAN, True) is not True:
        raise _unusual(files, f"{_POOLING} asks for something else")
    further = [kind for kind in _modules(files.folder / _MODULES) if kind not in _KINDS]
    if further:
        raise _unusual(files, f"{_MODULES} lists {', '.join(further)}")
    settings = _optional(files.folder / _SETTINGS)
    limits = [
        settings.get("max_seq_length")
        or (_PUBLISHED_LONGEST if _full_name(files).partition("@")[0] == SENTENCE_ENCODER else None),
        _optional(files.folder / "tokenizer_config.json").get("model_max_length"),
        _optional(files.folder / CONFIG).get("max_position_embeddings"),
    ]
    longest = min([_LONGEST, *(int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0)])
    return SentenceFiles(files, longest, settings.get("do_lower_case") is True)


class SentenceEncoder:
    """A loaded sentence encoder, frozen, in float32.

    Args:
        found: from :func:`find_sentence_encoder`.
        device: torch device.

    Raises:
        ProbeError: it cannot be loaded or lacks weights.
    """

    def __init__(self, found: SentenceFiles, *, device: str = "cpu") -> None:
        self._found, self._device = found, device
        self._tokenizer = load_tokenizer(found.files)
        self._model = load_text_model(found.files).to(device)
        if not token_ids(self._tokenizer, [""], None)[0]:
            raise ProbeError(
                "The tokenizer puts no token around a sentence: an empty caption would have no vector.",
                where=f"{OPTION} {found.files.spec}",
                hint="Give a sentence encoder of the BERT kind.",
            )

    def embed(self, sentences: Sequence[str]) -> Vectors:
        """Return unit vectors of sentences, ``(sentences, dim)``.

        Raises:
            ProbeError: the model fails or returns NaN.
        """
        distinct = list(dict.fromkeys(sentences))
        return self._vectors(self._ids(distinct), None)[_places(distinct, sentences)]

    def embed_weighted(self, sentences: Sequence[str], *, half: bool = False) -> Vectors:
        """Return unit vectors of sentences whose input embeddings were multiplied by their weights, ``(sentences, dim)``.

        Args:
            sentences: a whole corpus: the weights of each depend on all
                (:func:`~xares_store.metrics.captioning.tfidf_weights`).
            half: compute the weights in half precision, as MECAT 1.1.0 did.

        Raises:
            ProbeError: the tokenizer has no tokens for padding, start and end, or as :meth:`embed`.
        """
        special = {
            "pad": self._tokenizer.pad_token_id,
            "start": self._tokenizer.cls_token_id,
            "end": self._tokenizer.sep_token_id,
        }
        if None in special.values():
            raise ProbeError(
                "DATE needs a tokenizer with tokens for padding, start and end (pad_token, cls_token, sep_token).",
                where=f"{OPTION} {self._found.files.spec}",
                hint="Give a sentence encoder of the BERT kind.",
            )
        distinct = list(dict.fromkeys(sentences))
        places = _places(distinct, sentences)
        ids = self._ids(distinct)
        table = self._model.get_input_embeddings().weight.detach().float().cpu().numpy()
        weights = tfidf_weights([ids[place] for place in places], table, half=half, **special)
        of = dict(zip(sentences, weights, strict=True))
        return self._vectors(ids, [of[sentence] for sentence in distinct])[places]

    def _ids(self, sentences: Sequence[str]) -> list[list[int]]:
        if not sentences:
            raise ProbeError("Wanted captions to embed, found none.", where=f"{OPTION} {self._found.files.spec}")
        texts = [text.lower() for text in sentences] if self._found.lower else sentences
        return token_ids(self._tokenizer, texts, self._found.longest)

    def _vectors(self, ids: Sequence[Sequence[int]], weights: Sequence[Vectors] | None) -> Vectors:
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        found: list[Vectors] = []
        with torch.inference_mode(), quiet_transformers():
            for rows in equal_lengths(order, ids):
                hidden = self._hidden(
                    [ids[row] for row in rows], None if weights is None else [weights[r] for r in rows]
                )
                found.append(hidden.mean(dim=1).double().cpu().numpy())
        values = np.empty((len(ids), found[0].shape[1]))
        values[order] = np.concatenate(found)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise ProbeError(
                "The sentence encoder returned NaN, Inf or zeros.",
                where=f"{OPTION} {self._found.files.spec}",
                hint="Check its weights.",
            )
        unit: Vectors = values / norms
        return unit

    def _hidden(self, ids: list[Sequence[int]], weights: list[Vectors] | None) -> torch.Tensor:
        tokens = torch.tensor(ids, device=self._device)
        inputs: dict[str, Any] = {"attention_mask": torch.ones_like(tokens), "return_dict": True}
        try:
            if weights is None:
                inputs["input_ids"] = tokens
            else:
                factor = torch.tensor(np.stack(weights), dtype=torch.float32, device=self._device)
                inputs["inputs_embeds"] = self._model.get_input_embeddings()(tokens) * factor[..., None]
            hidden: torch.Tensor = self._model(**inputs).last_hidden_state
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # each fails its own way: a foreign tokenizer, no hidden states
            raise ProbeError(
                f"{type(self._model).__name__} cannot embed captions: {error or type(error).__name__}",
                where=f"{OPTION} {self._found.files.spec}",
                hint="Choose a model of text alone, with its own tokenizer.",
            ) from error
        return hidden


def _full_name(files: TextFiles) -> str:
    digests = [content_digest(files.folder / name) for name in files.weights]
    known = _KNOWN.get(digests[0]) if len(digests) == 1 else None
    if known is not None:
        return known
    if not Path(files.spec).expanduser().is_dir():
        return files.spec
    return f"{files.folder.name}@{short(files.identity()['sha256'])}"


def _places(distinct: Sequence[str], sentences: Sequence[str]) -> list[int]:
    number = {sentence: row for row, sentence in enumerate(distinct)}
    return [number[sentence] for sentence in sentences]


def _optional(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def _modules(path: Path) -> list[str]:
    """Return the kinds of the modules that an encoder is made of, as far as its folder says."""
    if not path.is_file():
        return []
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return [str(module["type"]).rpartition(".")[2] for module in modules]
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise ProbeError(f"Wanted a list of modules: {error}.", where=path, hint="Get the model again.") from None


def _unusual(files: TextFiles, why: str) -> ProbeError:
    return ProbeError(
        f"Wanted a sentence encoder that takes the mean over its tokens, but {why}.",
        where=f"{OPTION} {files.spec} ({files.folder})",
        hint=f"Use {SENTENCE_ENCODER} or another that pools by the mean and does nothing after it.",
    )
