"""The decoder: a causal language model and its tokenizer, from a folder or the hub, never executing code of theirs.

What it computes follows from ``config.json``, its weight files and its tokenizer alone, which make its identity. Of what
Transformers reads besides, ``generation_config.json`` is not used and a chat template changes nothing here; adapters and
files under other names are refused (:mod:`xares_store.probes.hub`), and so are quantized weights: what they come to in
float32 depends on a library that is no part of the identity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xares_store.errors import ProbeError
from xares_store.probes.hub import CONFIG, TextFiles, find_text_files
from xares_store.quiet import quiet_transformers

OPTION = "--decoder"
# Parts of the names of what is random in training only: dropout, skipped layers, noise of routers.
_RANDOM = ("drop", "jitter")
# Old checkpoints keep constants that are computed today: angles of positions, masks, numbers of positions.
_CONSTANTS = re.compile(r"(^|\.)(inv_freq|(cos|sin)_cached|(attn|attention)\.(masked_)?bias|causal_mask|position_ids)$")
# Widths of the token table where it is not that of a position.
_WIDTHS = ("word_embed_proj_dim", "embedding_size", "input_embedding_size")
_QUANTIZED = ("quantization_config", "compression_config")
_LONGEST_MESSAGE = 300  # characters of what another library says


@dataclass(frozen=True)
class DecoderShape:
    """Sizes that a configuration names; for estimates, before anything is loaded.

    Attributes:
        hidden, inner: width of a position, and inside the feed-forward layers.
        layers, heads, kv_heads, head_dim: of attention.
        vocabulary: number of tokens.
        context: longest sequence; None where the configuration does not say.
        tied: whether the head shares the token table.
        width: of a token's vector, which is the decoder's input; as `hidden` where none is given.
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
    width: int = 0

    def __post_init__(self) -> None:
        if not self.width:
            object.__setattr__(self, "width", self.hidden)


@dataclass(frozen=True)
class Decoder:
    """A loaded decoder.

    Attributes:
        model: the Transformers model, in evaluation mode, with parameters that need no gradient; it computes the same in
            training mode, where all its own dropout is off.
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
    """Tokenise texts block by block, without special tokens; what looks like one in a text is spelt as any text is.

    A tokenizer that knows no other spelling of a special token leaves it out.
    """
    special = _special(tokenizer)
    flat: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for first in range(0, len(texts), block):
        wanted = list(texts[first : first + block])
        found = tokenizer(wanted, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        found = [ids if special.isdisjoint(ids) else [one for one in ids if one not in special] for ids in found]
        lengths += [len(ids) for ids in found]
        flat.append(np.fromiter((token for ids in found for token in ids), np.int32))
    offset = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Tokens(np.concatenate(flat) if flat else np.zeros(0, np.int32), offset)


def _special(tokenizer: Any) -> set[int]:
    """Return the tokens that no text may hold: all special ones, but that for unknown words if it is nothing else."""
    special = set(tokenizer.all_special_ids)
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        special.discard(tokenizer.unk_token_id)
    return special


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
            text = config.get_text_config()
    except Exception as error:
        raise ProbeError(
            f"The decoder's configuration cannot be used: {_said(error)}.",
            where=place,
            hint="Give a causal language model that Transformers knows without code of its own.",
        ) from error
    reason = _unsuitable(config, text)
    if reason:
        raise ProbeError(
            f'A decoder of model type "{config.model_type}" cannot be used: {reason}.',
            where=place,
            hint="Give a causal language model such as HuggingFaceTB/SmolLM2-135M.",
        )
    try:
        hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
        sizes = {
            "hidden": hidden,
            "inner": int(getattr(text, "intermediate_size", None) or 4 * hidden),
            "layers": int(text.num_hidden_layers),
            "heads": heads,
            "kv_heads": int(getattr(text, "num_key_value_heads", None) or heads),
            "head_dim": int(getattr(text, "head_dim", None) or hidden // max(1, heads)),
            "vocabulary": int(text.vocab_size),
            "width": int(next((value for key in _WIDTHS if (value := getattr(text, key, None))), hidden)),
        }
        context = getattr(text, "max_position_embeddings", None)
        longest = int(context) if context else None
    except Exception as error:  # a configuration is a class of another library's, which may compute what is asked for
        raise ProbeError(
            f"The decoder's configuration does not name its sizes: {_said(error)}.",
            where=place,
            hint="Give a causal language model such as HuggingFaceTB/SmolLM2-135M.",
        ) from error
    empty = [name for name, size in sizes.items() if size < 1]
    if empty:
        raise ProbeError(
            f"Sizes of the decoder must be 1 at least: {', '.join(f'{name} = {sizes[name]}' for name in empty)}.",
            where=f"{place} ({files.folder / CONFIG})",
            hint="Get the model again, or give another.",
        )
    return DecoderShape(**sizes, context=longest, tied=bool(getattr(config, "tie_word_embeddings", False)))


def _unsuitable(config: Any, text: Any) -> str | None:
    """Say why a model of this configuration is no decoder; None when nothing speaks against it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder, and reads text in the encoder"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "Transformers has no causal language model of it"
    masked = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation"}
    if config.model_type in masked and not (getattr(config, "is_decoder", False) or getattr(config, "causal", False)):
        return 'every token sees the tokens after it ("is_decoder" is not set)'
    if not _names_heads(text):
        return "its configuration has no num_attention_heads, and decoders without attention are not supported"
    if any(getattr(one, key, None) for one in (config, text) for key in _QUANTIZED):
        return "its weights are quantized; save it as float32, bfloat16 or float16"
    return None


def _names_heads(text: Any) -> bool:
    try:
        return hasattr(text, "num_attention_heads")
    except RuntimeError:  # they differ from layer to layer
        return True


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
            f"The decoder's tokenizer cannot be loaded: {_said(error)}.",
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
                generation_config=library.GenerationConfig(),  # how a checkpoint would sample must not decide anything
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
            )
    except Exception as error:
        raise ProbeError(
            f"The decoder cannot be loaded: {_said(error)}.",
            where=place,
            hint="Give a causal language model saved with save_pretrained.",
        ) from error
    _all_fit(report, place)
    _no_dropout(model)
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
        shape=replace(shape, width=int(model.get_input_embeddings().weight.shape[1])),
        spec=files.spec,
    )


def _all_fit(report: Any, place: str) -> None:
    """Refuse weights that are missing, of another shape than the configuration says, or left over."""
    wrong = sorted(str(name) for name in report.get("missing_keys", ()))
    for name, found, wanted in sorted(report.get("mismatched_keys", ())):
        wrong.append(f"{name} ({tuple(found)} in the file, {tuple(wanted)} in the model)")
    if wrong:
        raise ProbeError(
            f"Weights of the decoder are missing or of another shape: {_some(wrong)}; they would be random.",
            where=place,
            hint="Get the model again, or give the folder of a causal language model.",
        )
    left = sorted(name for name in map(str, report.get("unexpected_keys", ())) if not _CONSTANTS.search(name))
    if left:
        raise ProbeError(
            f"Weights are left over that the decoder has no place for: {_some(left)}; it is another model than the file's.",
            where=place,
            hint="Check config.json (layers, model type), or save the model as a causal language model without further heads.",
        )


def _no_dropout(model: Any) -> None:
    """Switch the decoder's own dropout off, whether it is a module, a number of a module or of a configuration."""
    configs: list[Any] = []
    for module in model.modules():
        _zero(module)
        if "drop" in type(module).__name__.lower() and hasattr(module, "p"):
            module.p = 0.0
        config = getattr(module, "config", None)
        if config is not None and all(config is not one for one in configs):
            configs.append(config)
    for config in configs:
        _zero(config)


def _zero(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and any(part in name for part in _RANDOM):
            setattr(owner, name, 0.0)


def _some(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _said(error: BaseException) -> str:
    """Return what an error of another library says in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) if lines else type(error).__name__
    short = text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
    return short.rstrip(".")
