"""A tiny causal language model with a vocabulary of words, random weights, saved as Transformers saves one."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = {
    "<|endoftext|>": 0,
    "<|vision_end|>": 1,
    "hello": 2,
    "world": 3,
    "good": 4,
    "day": 5,
    "Transcribe": 6,
    "it": 7,
    "[UNK]": 8,
}


def save_tiny(folder: Path, *, words: tuple[str, ...] = (), seed: int = 0, **config: object) -> Path:
    """Write model and tokenizer into a folder and return it; further words extend the vocabulary."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = dict(VOCABULARY)
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    inside = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inside.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inside, eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="[UNK]"
    )
    shape = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
    }
    torch.manual_seed(seed)
    made = LlamaConfig(
        vocab_size=len(vocabulary), bos_token_id=None, eos_token_id=0, pad_token_id=0, **{**shape, **config}
    )
    LlamaForCausalLM(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
