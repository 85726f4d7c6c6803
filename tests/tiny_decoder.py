"""A tiny language model that can spell, to show that a projector learns to make a decoder hear.

It is pretrained on text alone, and never sees audio: on texts that are spelt slowly and unevenly, with pauses and slips,
and followed by the same letters and digits written once (``. a a a . b b b <|vision_end|> a b``). What it has then is what
the probe asks of any decoder: it attends to a long prefix and writes it down. Prefixes pass with some noise on their token
vectors and with neighbours blended, so that vectors between those of two tokens mean something too.

``python -m tests.tiny_decoder`` remakes ``tests/golden/tiny_decoder``: 10 minutes on one core, to a cross
entropy of 0.108 per token written (texts never seen, noise included). Equal seeds on one machine give equal weights; other
machines round otherwise.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden" / "tiny_decoder"
END, PAD, SEPARATOR, PAUSE = "<|endoftext|>", "<|pad|>", "<|vision_end|>", "."
SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789"
# What may stand between the slow text and the answer; the separator most often.
REQUESTS = (SEPARATOR, "spell", "write it")
REQUEST_SHARES = (0.7, 0.15, 0.15)

LONGEST = 8  # symbols of a text
# Of the vectors of a slow text: noise at most, relative to the spread of token vectors (a pause may be four times as noisy,
# for what resembles no token is none), share of the following vector at most, and range of the logarithm of their size.
NOISE, BLEND, LOUDNESS = 0.35, 0.4, 1.5
PREFIX_WEIGHT = 0.1  # of a token of the slow text in the loss; it cannot be foretold well
STEPS, BATCH, LEARNING_RATE, WARMUP = 5000, 64, 3e-3, 300
SORTED = 8  # batches whose texts are sorted by length together


@dataclass(frozen=True)
class Texts:
    """Token ids: the slow text, the request, and the answer with its end token."""

    ids: torch.Tensor  # (texts, longest), padded on the right
    prefix: torch.Tensor  # bool (texts, longest): the slow text
    pause: torch.Tensor  # bool (texts, longest)
    answer: torch.Tensor  # bool (texts, longest): the answer and its end
    context: torch.Tensor  # bool (texts, longest): slow text and request


def make_tokenizer() -> Any:
    """Return a tokenizer of bytes, so that any text can be written; space and letter, digit or full stop are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    space = "Ġ"  # how byte-level vocabularies write it
    whole = [space + symbol for symbol in SYMBOLS + PAUSE]
    names = [END, PAD, SEPARATOR, *whole, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: number for number, name in enumerate(names)}
    inside = Tokenizer(models.BPE(vocabulary, [(space, name[1:]) for name in whole]))
    inside.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inside.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inside, eos_token=END, pad_token=PAD, extra_special_tokens=[SEPARATOR]
    )


def make_model(tokenizer: Any, *, seed: int) -> Any:
    """Return the model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for name, value in model.named_parameters():
            if value.ndim == 2:
                value.normal_(0.0, 0.3 if "embed_tokens" in name else value.shape[1] ** -0.5)
    return model


def slowly(symbols: list[str], rng: np.random.Generator) -> str:
    """Spell symbols unevenly: each again and again, with pauses between, and now and then a slip: ``a b`` may become ``. a a . b b b``."""
    pace, rest = math.exp(rng.uniform(0.0, math.log(6.0))), rng.uniform(0.0, 2.5)
    slip = 0.05 if pace > 2.5 and rng.random() < 0.5 else 0.0  # faster, and a slip could be a symbol
    spelt = [PAUSE] * int(rng.integers(0, 5))
    for place, symbol in enumerate(symbols):
        if place:
            pauses = round(rng.exponential(rest))
            spelt += [PAUSE] * max(pauses, int(symbol == symbols[place - 1]))
        for _ in range(max(1, round(pace * rng.uniform(0.6, 1.4)))):
            spelt.append(SYMBOLS[int(rng.integers(len(SYMBOLS)))] if rng.random() < slip else symbol)
    spelt += [PAUSE] * int(rng.integers(0, 5))
    return " ".join(spelt)


def draw_texts(tokenizer: Any, count: int, rng: np.random.Generator) -> list[list[list[int]]]:
    """Draw texts of 1 to 8 symbols; in some of them a symbol comes twice in a row.

    Returns:
        Token ids of the slow text, the request and the answer with its end, for each text; sorted by length.
    """
    slow, requests, answers = [], [], []
    for _ in range(count):
        symbols = [SYMBOLS[index] for index in rng.integers(0, len(SYMBOLS), int(rng.integers(1, LONGEST + 1)))]
        if len(symbols) > 1 and rng.random() < 0.3:
            place = int(rng.integers(1, len(symbols)))
            symbols[place] = symbols[place - 1]
        slow.append(slowly(symbols, rng))
        requests.append(REQUESTS[int(rng.choice(len(REQUESTS), p=REQUEST_SHARES))])
        answers.append(" ".join(symbols) + END)
    parts = [tokenizer(side, add_special_tokens=False)["input_ids"] for side in (slow, requests, answers)]
    return sorted((list(pieces) for pieces in zip(*parts, strict=True)), key=lambda pieces: len(pieces[0]))


def batched(tokenizer: Any, texts: list[list[list[int]]]) -> Texts:
    """Pad texts on the right."""
    rows = [slow + request + answer for slow, request, answer in texts]
    lengths = torch.tensor([[len(ids) for ids in pieces] for pieces in texts]).cumsum(dim=1)[..., None]
    place = torch.arange(max(len(row) for row in rows))
    ids = torch.full((len(rows), len(place)), tokenizer.pad_token_id)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    context = place < lengths[:, 1]
    pause = ids == tokenizer.convert_tokens_to_ids("Ġ" + PAUSE)
    return Texts(ids, place < lengths[:, 0], pause, (place < lengths[:, 2]) & ~context, context)


def blurred(table: torch.Tensor, texts: Texts, generator: torch.Generator) -> torch.Tensor:
    """Return the token vectors of texts ``(texts, longest, hidden)``, those of the slow text blended and noisy."""
    vectors = table[texts.ids]
    count, length, _ = vectors.shape

    def each(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, 1, generator=generator)

    following = vectors.roll(-1, dims=1)
    blend = BLEND * each(count, 1) * each(count, length) * texts.prefix.roll(-1, dims=1)[..., None]
    noise = NOISE * each(count, 1) * (1 + 3 * each(count, 1) * texts.pause[..., None])
    soft = vectors + blend * (following - vectors)
    soft = soft + noise * table.detach().std() * torch.randn(vectors.shape, generator=generator)
    loudness = torch.exp(LOUDNESS * (each(count, 1) - 0.5))
    return torch.where(texts.prefix[..., None], loudness * soft, vectors)


def losses(model: Any, texts: Texts, generator: torch.Generator) -> torch.Tensor:
    """Return the cross entropy of every token but the first, ``(texts, longest - 1)``."""
    vectors = blurred(model.get_input_embeddings().weight, texts, generator)
    logits = model(inputs_embeds=vectors[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), texts.ids[:, 1:], reduction="none")


def pretrain(
    *, steps: int, batch: int = BATCH, seed: int = 0, report: Callable[[int, float], None] | None = None
) -> Any:
    """Train from random weights on texts drawn anew at every step.

    Args:
        steps: of the optimiser.
        batch: texts a step.
        seed: of weights, texts and noise.
        report: is called with each step and its cross entropy per token of the answers.

    Returns:
        The model.
    """
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    pool: list[Texts] = []
    for step in range(steps):
        if not pool:
            drawn = draw_texts(tokenizer, batch * SORTED, rng)
            pool = [batched(tokenizer, drawn[first : first + batch]) for first in range(0, len(drawn), batch)]
        texts = pool.pop(int(rng.integers(len(pool))))
        for group in optimiser.param_groups:
            falling = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * falling
        found = losses(model, texts, generator)
        weight = (texts.answer + PREFIX_WEIGHT * texts.context)[:, 1:]
        optimiser.zero_grad()
        ((found * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if report:
            report(step, float(found.detach()[texts.answer[:, 1:]].mean()))
    return model.eval()


def answer_loss(model: Any, *, count: int = 512, seed: int = 10_000) -> float:
    """Return the cross entropy per token of the answers to texts that were not trained on."""
    tokenizer = make_tokenizer()
    texts = batched(tokenizer, draw_texts(tokenizer, count, np.random.default_rng(seed)))
    with torch.no_grad():
        found = losses(model, texts, torch.Generator().manual_seed(seed))
    return float(found[texts.answer[:, 1:]].mean())


def save_tokenizer(folder: Path) -> None:
    """Save the tokenizer, with a configuration that Transformers reads before release 5 and after."""
    make_tokenizer().save_pretrained(folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [SEPARATOR],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Make the folder anew."""
    torch.set_num_threads(1)
    start = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 250 == 0:
            print(f"step {step:5d}  loss {loss:.3f}  {time.monotonic() - start:5.0f} s", flush=True)

    model = pretrain(steps=STEPS, report=report)
    print(f"texts not seen: loss {answer_loss(model):.4f}  {time.monotonic() - start:5.0f} s")
    model.half().save_pretrained(FOLDER)
    save_tokenizer(FOLDER)


if __name__ == "__main__":
    main()
