"""Texts become tokens: what is written in them is text, whatever it looks like."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.probes.llm.models import VOCABULARY, save_tiny
from tests.tiny_decoder import END, FOLDER, PAD, SEPARATOR
from xares_store.probes.llm.decoder import encode, find_decoder, load_tokenizer


def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(find_decoder(str(folder)))


@pytest.mark.parametrize("name", [END, PAD, SEPARATOR])
def test_special_tokens_in_texts_are_text(name: str) -> None:
    tokenizer = _tokenizer(FOLDER)
    special = set(tokenizer.all_special_ids)
    assert tokenizer(name)["input_ids"] != encode(tokenizer, [name])[0]
    for text in (name, f"a {name} b", f"a{name}", f"{name}{name} c"):
        (ids,) = [encode(tokenizer, ["before", text])[1]]
        assert special.isdisjoint(ids)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_ordinary_text_is_what_it_was() -> None:
    tokenizer = _tokenizer(FOLDER)
    for text in ("a b c", "rain, wind. 3", "你好", "<|", ""):
        assert list(encode(tokenizer, [text])[0]) == tokenizer(text, add_special_tokens=False)["input_ids"]
    # Encoding texts leaves the tokenizer as it was.
    assert tokenizer(END, add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id


def test_a_vocabulary_of_words_leaves_special_ones_out(tmp_path: Path) -> None:
    tokenizer = _tokenizer(save_tiny(tmp_path / "words"))
    found = encode(tokenizer, ["hello <|endoftext|> world", "good nowhere day"])
    assert [found[0], found[1]] == [
        (VOCABULARY["hello"], VOCABULARY["world"]),
        (VOCABULARY["good"], VOCABULARY["[UNK]"], VOCABULARY["day"]),
    ]


def test_the_end_is_left_out_even_where_it_stands_for_unknown_words() -> None:
    class Tokenizer(SimpleNamespace):
        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[1, 0, 2] for _ in texts]}

    tokenizer = Tokenizer(all_special_ids=[0], unk_token_id=0, eos_token_id=0, pad_token_id=None)
    assert encode(tokenizer, ["x"])[0] == (1, 2)
