"""The tiny decoder of the tests: the script that made it runs, and what is committed can spell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny_decoder import END, FOLDER, SEPARATOR, answer_loss, draw_texts, make_model, make_tokenizer, pretrain
from xares_store.probes.llm.decoder import Decoder, find_decoder, load_decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(find_decoder(str(FOLDER)), device="cpu")


def write(decoder: Decoder, text: str) -> str:
    ids = torch.tensor(
        [decoder.tokenizer(text, add_special_tokens=False)["input_ids"]]
    )  # the separator is a token here
    found = decoder.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
        eos_token_id=decoder.end, pad_token_id=decoder.pad,
    )  # fmt: skip
    return decoder.decode(found[0, ids.shape[1] :].tolist())


def test_the_script_learns_and_repeats_itself() -> None:
    losses: list[list[float]] = [[], []]
    weights = []
    for kept in losses:
        model = pretrain(steps=30, batch=8, report=lambda step, loss, kept=kept: kept.append(loss))
        weights.append(model.state_dict())
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    other: list[float] = []
    pretrain(steps=1, batch=8, seed=1, report=lambda step, loss: other.append(loss))
    assert other[0] != losses[0][0]
    untrained = make_model(make_tokenizer(), seed=0)
    assert answer_loss(model, count=32) < answer_loss(untrained, count=32) - 0.3


def test_the_committed_tokenizer_is_the_script_s(decoder: Decoder) -> None:
    made = make_tokenizer()
    assert decoder.tokenizer.get_vocab() == made.get_vocab()
    text = "Straße, 7 Bären & a b"
    assert decoder.encode([text])[0] == tuple(made(text, add_special_tokens=False)["input_ids"])
    assert decoder.decode(decoder.encode([text])[0]) == text
    assert len(decoder.encode(["a b 7"])[0]) == 3
    assert decoder.token(SEPARATOR) == made.convert_tokens_to_ids(SEPARATOR)
    assert (decoder.end, decoder.pad) == (made.eos_token_id, made.pad_token_id)


def test_the_committed_model_reads_slow_texts_and_spells_them(decoder: Decoder) -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 600_000
    assert answer_loss(decoder.model) < 0.12
    assert write(decoder, f". a a a . b b . . 7 7 7 7 .{SEPARATOR}") == "a b 7"
    assert write(decoder, "q . x x x . x . z z spell") == "q x x z"


def test_the_answer_hangs_on_the_slow_text(decoder: Decoder) -> None:
    texts = draw_texts(make_tokenizer(), 40, np.random.default_rng(3))
    written = [write(decoder, decoder.tokenizer.decode(slow) + SEPARATOR) for slow, _, _ in texts]
    wanted = [decoder.tokenizer.decode(answer).removesuffix(END).strip() for _, _, answer in texts]
    right = np.mean([one == other for one, other in zip(written, wanted, strict=True)])
    assert right >= 0.8  # of whole texts; slips cannot all be told from symbols
