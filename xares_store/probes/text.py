"""Captions as numbers: tokens for a text tower trained from scratch, or vectors of a frozen text model.

* ``words``: lower-cased words of the training captions; needs no download.
* A tokenizer of the Transformers library, from a folder or the hub (:mod:`xares_store.probes.hub`). The published
  probe used that of ``google-bert/bert-base-uncased``.
* A frozen text model of the Transformers library. Every caption is embedded once, by itself: captions of one length
  share a batch, so no padding is ever seen.

No code from a model repository is ever run, and weights are read without unpickling objects.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from xares_store.errors import ProbeError
from xares_store.probes.hub import TextFiles
from xares_store.quiet import quiet_transformers

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Pooling = Literal["mean", "cls"]

WORDS_VERSION = 1
UNKNOWN = "[UNK]"
# A word that only one training caption has says little; together such words teach what an unknown word means.
_LEAST_CAPTIONS = 2
_WORD = re.compile(r"\w+(?:'\w+)*")
_TOKENS_PER_BATCH = 8192
_LONGEST = 512
# Weights that the last hidden state does not use, and that checkpoints therefore may lack.
_UNUSED = ("pooler", "lm_head", "classifier")


@dataclass(frozen=True)
class TokenBags:
    """Captions as tokens, laid end to end.

    Args:
        token: ``(tokens,)`` ids, 0 to ``vocabulary - 1``.
        start: ``(captions + 1,)`` where each caption begins, and the end; every caption has a token.
        vocabulary: number of rows of the token table.

    Example:
        >>> bags = TokenBags.of([[3, 1], [2]], vocabulary=4)
        >>> [part.tolist() for part in bags.take(np.array([1, 0]))]
        [[2, 3, 1], [0, 1]]
    """

    token: IndexArray
    start: IndexArray
    vocabulary: int

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]], vocabulary: int) -> TokenBags:
        """Make bags from one list of ids per caption.

        Raises:
            ProbeError: a caption without tokens, or an id outside the vocabulary.
        """
        lengths = np.fromiter((len(caption) for caption in captions), dtype=np.int64, count=len(captions))
        if (lengths == 0).any():
            raise ProbeError(
                "Wanted at least one token in every caption, found none.",
                where=f"caption {np.flatnonzero(lengths == 0)[0]}",
                hint="Check the tokenizer; an empty caption cannot be ranked.",
            )
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        token = np.fromiter((i for caption in captions for i in caption), dtype=np.int64, count=int(start[-1]))
        if len(token) and not 0 <= token.min() <= token.max() < vocabulary:
            raise ProbeError(f"Wanted token ids 0 to {vocabulary - 1}, found {token.min()} to {token.max()}.")
        return cls(token, start, vocabulary)

    def __len__(self) -> int:
        return len(self.start) - 1

    def take(self, rows: IndexArray) -> tuple[IndexArray, IndexArray]:
        """Return the tokens of some captions end to end, and where each caption begins, ``(captions,)``."""
        lengths = self.start[rows + 1] - self.start[rows]
        offsets = np.cumsum(lengths) - lengths
        index = np.arange(lengths.sum()) + np.repeat(self.start[rows] - offsets, lengths)
        return self.token[index], offsets


@dataclass(frozen=True)
class TextVectors:
    """Captions as vectors of a frozen text model: ``values (captions, dim)`` float32."""

    values: FloatArray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class WordTokenizer:
    """Words of the training captions; every other word is one and the same unknown word.

    A word is a run of letters and digits, after Unicode NFKC and lower-casing; an apostrophe inside belongs to it.
    Words of a single training caption count as unknown, so that the vector of the unknown word is trained too.
    Languages written without spaces need a real tokenizer.

    Args:
        words: the vocabulary, sorted; its first entry is the unknown word.

    Example:
        >>> tokenizer = WordTokenizer.fit(["A dog barks.", "The dog's bark", "a cat"])
        >>> tokenizer.words, tokenizer(["A cow", "..."]).token.tolist()
        (('[UNK]', 'a'), [1, 0, 0])
    """

    words: tuple[str, ...]

    @classmethod
    def fit(cls, captions: Iterable[str]) -> WordTokenizer:
        """Collect the words that at least two captions have."""
        count = Counter(word for caption in captions for word in set(words_of(caption)))
        return cls((UNKNOWN, *sorted(word for word, n in count.items() if n >= _LEAST_CAPTIONS)))

    def __call__(self, captions: Sequence[str]) -> TokenBags:
        """Turn captions into tokens; one without any word becomes an unknown word."""
        number = {word: index for index, word in enumerate(self.words)}
        ids = [[number.get(word, 0) for word in words_of(caption)] or [0] for caption in captions]
        return TokenBags.of(ids, len(self.words))


def words_of(caption: str) -> list[str]:
    """Return the words of a caption.

    Example:
        >>> words_of("Birds' songs; it’s RAINING")
        ['birds', 'songs', "it's", 'raining']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", caption).lower().replace("’", "'"))


def pretrained_bags(files: TextFiles, captions: Sequence[str]) -> TokenBags:
    """Turn captions into the tokens of a Transformers tokenizer, special tokens (such as CLS and SEP) included.

    Raises:
        ProbeError: the tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(files)
    return TokenBags.of(token_ids(tokenizer, captions, None), len(tokenizer))


def embed_captions(
    files: TextFiles, captions: Sequence[str], *, pooling: Pooling = "mean", device: str = "cpu"
) -> FloatArray:
    """Embed captions with a frozen Transformers text model.

    Args:
        files: where model and tokenizer lie.
        captions: any number; equal ones are embedded once.
        pooling: ``mean`` of the last hidden state over the caption's tokens, special ones included, or its first token.
        device: torch device.

    Returns:
        ``(captions, dim)`` float32. Captions longer than the model takes (512 tokens, or fewer) are cut.

    Raises:
        ProbeError: the model cannot be loaded, lacks weights, or returns no hidden states.
    """
    tokenizer = load_tokenizer(files)
    model = load_text_model(files).to(device)
    limits = (getattr(tokenizer, "model_max_length", None), getattr(model.config, "max_position_embeddings", None))
    longest = min([_LONGEST, *(int(limit) for limit in limits if limit)])
    distinct = sorted(set(captions))
    ids = token_ids(tokenizer, distinct, longest)
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    found: list[FloatArray] = []
    with torch.inference_mode(), quiet_transformers():
        for rows in equal_lengths(order, ids):
            inputs = torch.tensor([ids[row] for row in rows], device=device)
            try:
                output = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), return_dict=True)
            except (torch.cuda.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # each fails its own way: a model of text and sound, a foreign tokenizer
                raise ProbeError(
                    f"{type(model).__name__} cannot embed captions: {error or type(error).__name__}",
                    where=files.spec,
                    hint="Choose a model of text alone, with its own tokenizer.",
                ) from error
            hidden = getattr(output, "last_hidden_state", None)
            if hidden is None or hidden.ndim != 3:
                raise ProbeError(
                    f"{type(model).__name__} returns no hidden states.",
                    where=files.spec,
                    hint="Choose a text model whose AutoModel returns last_hidden_state.",
                )
            found.append((hidden.mean(dim=1) if pooling == "mean" else hidden[:, 0]).float().cpu().numpy())
    if not order:
        raise ProbeError("Wanted captions to embed, found none.", where=files.spec)
    values = np.concatenate(found)
    if not np.isfinite(values).all():
        raise ProbeError("The text model returned NaN or Inf.", where=files.spec, hint="Check its weights.")
    place = {distinct[row]: number for number, row in enumerate(order)}
    return values[[place[caption] for caption in captions]]


def equal_lengths(order: Sequence[int], ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Cut rows, sorted by length, into batches of one length and a bounded number of tokens: nothing is padded."""
    batch: list[int] = []
    for row in order:
        if batch and (len(ids[row]) != len(ids[batch[0]]) or (len(batch) + 1) * len(ids[row]) > _TOKENS_PER_BATCH):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def token_ids(tokenizer: Any, captions: Sequence[str], longest: int | None) -> list[list[int]]:
    """Return the ids of each caption, special tokens included, cut to ``longest`` of them."""
    with quiet_transformers():
        options: dict[str, Any] = {} if longest is None else {"truncation": True, "max_length": longest}
        encoded = tokenizer(
            list(captions),
            add_special_tokens=True,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # a tower that takes a mean has no longest caption
            **options,
        )
    return list(encoded["input_ids"])


def load_tokenizer(files: TextFiles) -> Any:
    """Load a Transformers tokenizer without running code of its repository.

    Raises:
        ProbeError: it cannot be loaded.
    """
    import transformers

    library: Any = transformers  # its loaders are not typed
    try:
        with quiet_transformers():
            return library.AutoTokenizer.from_pretrained(
                str(files.folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # of many classes; all of them mean that the tokenizer did not load
        raise _not_loaded("tokenizer", files, error) from error


def load_text_model(files: TextFiles) -> Any:
    """Load a frozen Transformers text model in float32, without unpickling objects or running code.

    Raises:
        ProbeError: it cannot be loaded, or lacks weights that would be random.
    """
    import transformers

    library: Any = transformers
    try:
        with quiet_transformers():
            model, info = library.AutoModel.from_pretrained(
                str(files.folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=files.safetensors,
                weights_only=True,
                output_loading_info=True,
            )
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise _not_loaded("text model", files, error) from error
    lacking = sorted(key for key in info["missing_keys"] if not any(word in key for word in _UNUSED))
    if lacking:
        raise ProbeError(
            f"The checkpoint lacks {len(lacking)} weights of {type(model).__name__}, which would be random: "
            f"{', '.join(lacking[:3])}.",
            where=files.spec,
            hint="Choose a checkpoint of this architecture.",
        )
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return model.float().eval()


def _not_loaded(what: str, files: TextFiles, error: Exception) -> ProbeError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ProbeError(
        f"The {what} cannot be loaded: {lines[0] if lines else type(error).__name__}",
        where=f"{files.spec} ({files.folder})",
        hint="It must be one of the Transformers library that needs no code of its own.",
    )
