"""Tiny random text models with a BERT tokenizer, in folders as ``save_pretrained`` writes them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = ("a", "the", "dog", "bird", "rain", "bark", "##s", "##ing", "sing", "fall", "loud", "soft", ".", ",")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def save_tokenizer(folder: Path, words: Sequence[str] = PIECES) -> Path:
    """Save a WordPiece tokenizer over a small vocabulary."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *words]) + "\n")
    transformers.BertTokenizerFast.from_pretrained(str(folder)).save_pretrained(str(folder))
    return folder


def save_text_model(folder: Path, words: Sequence[str] = PIECES, *, seed: int = 0, safetensors: bool = True) -> Path:
    """Save a BERT of two layers with random weights, and its tokenizer."""
    import torch
    import transformers

    save_tokenizer(folder, words)
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.BertConfig(vocab_size=len(SPECIAL) + len(words), max_position_embeddings=32, **TINY)
        model = transformers.BertModel(config)
        model.save_pretrained(str(folder))
        if not safetensors:
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
    return folder
