"""The list of encoders that come with the package says what their files say."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from xares_store.cli.encoders import encoders
from xares_store.encoders.builtin import BUILTIN, CARDS
from xares_store.encoders.encoder import load_encoder
from xares_store.encoders.family import Family
from xares_store.encoders.published import PublishedEncoder


def target(name: str) -> Any:
    module, _, attribute = BUILTIN[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def test_every_encoder_has_a_card():
    assert list(CARDS) == list(BUILTIN)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.needs == "nothing"])
def test_cards_of_encoders_without_weights_are_true(name):
    encoder = load_encoder(name)
    assert (encoder.dim, encoder.hop_ms) == (CARDS[name].dim, CARDS[name].hop_ms)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.needs != "nothing"])
def test_the_head_of_the_file_says_what_the_card_says(name):
    text = str(importlib.import_module(BUILTIN[name].partition(":")[0]).__doc__)
    card = CARDS[name]
    assert re.search(re.escape(card.paper), text)
    for said in (card.checkpoint, card.revision):
        assert not said or said in text


@pytest.mark.parametrize("name", [name for name in BUILTIN if isinstance(target(name), Family)])
def test_cards_of_families_are_true(name):
    family, card = target(name), CARDS[name]
    assert (family.name, family.checkpoint, family.revision) == (name, card.checkpoint, card.revision)


@pytest.mark.parametrize("name", ["dasheng", "ced"])
def test_cards_of_patch_transformers_are_true(name):
    cls, card = target(name), CARDS[name]
    assert issubclass(cls, PublishedEncoder)
    shape = cls.shape_of("base")
    assert (cls.encoder, cls.hub.format(size="base"), shape.dim, shape.hop_ms) == (
        name,
        card.checkpoint,
        card.dim,
        card.hop_ms,
    )


def test_the_command_lists_them_without_torch():
    code = "import sys, xares_store.cli.encoders, xares_store.encoders.builtin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    result = CliRunner().invoke(encoders, ["--json"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(rows) == list(BUILTIN)
    assert rows["hubert"]["checkpoint"] == "facebook/hubert-base-ls960"
    assert rows["logmel"]["needs"] == "nothing"
