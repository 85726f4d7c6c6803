"""The decoder: a causal language model and its tokenizer, from a folder or the hub, never executing code of theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xares_store.errors import ProbeError
from xares_store.probes.hub import CONFIG, TextFiles, find_text_files
from xares_store.quiet import quiet_transformers

OPTION = "--decoder"
_DROPOUTS = ("dropout", "_pdrop")


@dataclass(frozen=True)
class DecoderShape:
    """Sizes that a configuration names; for estimates, before anything is loaded.

    Attributes:
        hidden, inner: width of a position, and inside the feed-forward layers.
        layers, heads, kv_heads, head_dim: of attention.
        vocabulary: number of tokens.
        context: longest sequence; None where the configuration does not say.
        tied: whether the head shares the token table.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int | None
    tied: bool


@dataclass(frozen=True)
class Decoder:
    """A loaded decoder.

    Attributes:
        model: the Transformers model, in evaluation mode, with parameters that need no gradient and all its own dropout off.
        tokenizer: the fast tokenizer.
        end: id of the token that ends an answer.
        pad: id used for padding; nothing is computed from it.
        shape: its sizes.
        spec: as the user named it.
    """

    model: Any
    tokenizer: Any
    end: int
    pad: int
    shape: DecoderShape
    spec: str

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Return token ids of texts, without tokens at the start or end."""
        return encode(self.tokenizer, texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, up to the end token and without special tokens."""
        kept = list(ids)
        if self.end in kept:
            kept = kept[: kept.index(self.end)]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()

    def token(self, name: str) -> int | None:
        """Return the id of a token by its name; None when the vocabulary has none."""
        found = self.tokenizer.get_vocab().get(name)
        return None if found is None else int(found)


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts, end to end.

    Attributes:
        ids: int32 ``(tokens,)``.
        offset: int64 ``(texts + 1,)``; text i is ``ids[offset[i]:offset[i + 1]]``.
    """

    ids: NDArray[np.int32]
    offset: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return tuple(self.ids[self.offset[index] : self.offset[index + 1]].tolist())

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(np.diff(self.offset).max(initial=0))


def encode(tokenizer: Any, texts: Sequence[str], *, block: int = 8192) -> Tokens:
    """Tokenise texts block by block, without special tokens."""
    flat: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for first in range(0, len(texts), block):
        found = tokenizer(list(texts[first : first + block]), add_special_tokens=False)["input_ids"]
        lengths += [len(ids) for ids in found]
        flat.append(np.fromiter((token for ids in found for token in ids), np.int32))
    offset = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Tokens(np.concatenate(flat) if flat else np.zeros(0, np.int32), offset)


def find_decoder(spec: str) -> TextFiles:
    """Find a decoder on this machine or on the hub; nothing is loaded.

    Raises:
        ProbeError: not found, incomplete, or not to be had without network.
    """
    return find_text_files(spec, weights=True, option=OPTION)


def decoder_shape(files: TextFiles) -> DecoderShape:
    """Read the sizes of a decoder from its configuration.

    Raises:
        ProbeError: the configuration is not that of a causal language model that Transformers knows.
    """
    from transformers import AutoConfig

    place = f"{OPTION} {files.spec}"
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(files.folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ProbeError(
            f"The decoder's configuration cannot be used: {_first_line(error)}.",
            where=place,
            hint="Give a causal language model that Transformers knows without code of its own.",
        ) from error
    text = config.get_text_config()
    try:
        heads = int(text.num_attention_heads)
        return DecoderShape(
            hidden=int(text.hidden_size),
            inner=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
            layers=int(text.num_hidden_layers),
            heads=heads,
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
            vocabulary=int(text.vocab_size),
            context=int(text.max_position_embeddings) if getattr(text, "max_position_embeddings", None) else None,
            tied=bool(getattr(config, "tie_word_embeddings", False)),
        )
    except (AttributeError, TypeError) as error:
        raise ProbeError(
            f"The decoder's configuration does not name its sizes: {_first_line(error)}.",
            where=place,
            hint="Give a causal language model such as HuggingFaceTB/SmolLM2-135M.",
        ) from error


def load_tokenizer(files: TextFiles) -> Any:
    """Load the tokenizer of a decoder.

    Raises:
        ProbeError: it cannot be loaded, or has no end token.
    """
    from transformers import AutoTokenizer

    place = f"{OPTION} {files.spec} ({files.folder})"
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(files.folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ProbeError(
            f"The decoder's tokenizer cannot be loaded: {_first_line(error)}.",
            where=place,
            hint="Save it with save_pretrained beside the model.",
        ) from error
    if tokenizer.eos_token_id is None:
        raise ProbeError(
            "The decoder's tokenizer has no end token (eos_token): it could not learn where an answer ends.",
            where=place,
            hint='Add "eos_token" to tokenizer_config.json.',
        )
    return tokenizer


def load_decoder(files: TextFiles, *, device: str) -> Decoder:
    """Load a decoder in float32, frozen.

    Args:
        files: from :func:`find_decoder`.
        device: where it runs.

    Raises:
        ProbeError: it cannot be loaded; weights that are missing or left over are named.
    """
    import transformers

    library: Any = transformers  # its types do not know what output_loading_info returns
    place = f"{OPTION} {files.spec} ({files.folder})"
    shape = decoder_shape(files)
    tokenizer = load_tokenizer(files)
    try:
        with quiet_transformers():
            model, report = library.AutoModelForCausalLM.from_pretrained(
                str(files.folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=files.safetensors,
                dtype="float32",
                output_loading_info=True,
                **_no_dropout(files.folder),
            )
    except Exception as error:
        raise ProbeError(
            f"The decoder cannot be loaded: {_first_line(error)}.",
            where=place,
            hint="Give a causal language model saved with save_pretrained.",
        ) from error
    wrong = [name for key in ("missing_keys", "mismatched_keys") for name in report.get(key, ())]
    if wrong:
        some = ", ".join(sorted(str(name) for name in wrong)[:3])
        raise ProbeError(
            f"Weights of the decoder are missing or of another shape: {some}; they would be random.",
            where=place,
            hint="Get the model again, or give the folder of a causal language model.",
        )
    model.generation_config = (
        library.GenerationConfig()
    )  # a checkpoint's own sampling settings must not decide anything
    model.eval().requires_grad_(False).to(device)
    if len(tokenizer) > shape.vocabulary:
        raise ProbeError(
            f"The tokenizer has {len(tokenizer)} tokens, the decoder {shape.vocabulary}.",
            where=place,
            hint="Save tokenizer and model of one checkpoint into the folder.",
        )
    pad = tokenizer.pad_token_id
    return Decoder(
        model=model,
        tokenizer=tokenizer,
        end=int(tokenizer.eos_token_id),
        pad=int(tokenizer.eos_token_id if pad is None else pad),
        shape=shape,
        spec=files.spec,
    )


def _no_dropout(folder: Path) -> dict[str, float]:
    """Return settings that switch the decoder's own dropout off: it is not what is trained."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {
        key: 0.0 for key, value in config.items() if key.endswith(_DROPOUTS) and isinstance(value, float) and value > 0
    }


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
