"""A store with two small tasks of spoken letters, a tiny decoder, and a recipe that takes seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.probes.llm.models import save_tiny
from tests.spoken import speak, write_spoken
from tests.toy import wav, write_tar
from xares_store.runs.embed import embed
from xares_store.store.store import Store

CLIPS = {"train": 24, "valid": 6, "test": 8}
LETTERS = "abcdef"

RECIPE = """\
format = 1
name = "{name}"
title = "A recipe of seconds"
decoder = "{decoder}"
joint = {joint}
prompt = {prompt}
{separator}
[projector]
kind = "linear"
stride = 16
{lora}
[optimiser]
name = "adamw"
learning_rate = 0.01
schedule = "linear"

[training]
batch_size = 4
{length}
bucket = 4
frame_budget = {budget}
checkpoint_s = {checkpoint_s}
{selection}
[generation]
max_new_tokens = 8
"""


@dataclass(frozen=True)
class Llm:
    """Everything an evaluation needs."""

    root: Path
    spelling: Path
    naming: Path
    decoder: Path
    joint: Path
    alone: Path
    store: Path

    @property
    def tasks(self) -> list[str]:
        """Both task files."""
        return [str(self.spelling), str(self.naming)]

    def fresh(self, folder: Path) -> Store:
        """Return a copy of the store that a test may fill."""
        import shutil

        return Store.open(Path(shutil.copytree(self.store, folder)))


def write_recipe(
    folder: Path,
    decoder: Path,
    *,
    name: str,
    joint: bool,
    steps: int = 12,
    epochs: int | None = None,
    lora: bool = True,
    checkpoint_s: float = 60.0,
    budget: int = 256,
) -> Path:
    """Write a recipe's file and return it."""
    path = folder / f"{name}.toml"
    path.write_text(
        RECIPE.format(
            name=name,
            decoder=decoder,
            joint=str(joint).lower(),
            prompt=str(joint).lower(),
            separator="" if joint else 'separator = "<|vision_end|>"',
            lora="[lora]\nr = 2\nalpha = 4\ndropout = 0.1\n" if lora else "",
            length=f"epochs = {epochs}" if epochs else f"steps = {steps}",
            checkpoint_s=float(checkpoint_s),
            budget=budget,
            selection="[selection]\nclips = 4\n" if epochs else "",
        )
    )
    return path


NAMING = """\
format = 1
name = "naming"
title = "One spoken letter"
domain = "speech"
[data]
splits = { train = ["train-*.tar"], test = ["test-*.tar"] }
[target]
kind = "text"
keys = ["letter"]
test_keys = ["spoken", "letter"]
prompt = "hello world"
closed = true
[metric]
name = "string_accuracy"
"""


def write_naming(root: Path) -> Path:
    """Write a task of one letter a clip, three of them, and return its file; test clips have a list of spellings."""
    rng = np.random.default_rng(7)
    for split, count in (("train", 18), ("test", 9)):
        members: list[tuple[str, bytes]] = []
        for index in range(count):
            letter = "abc"[index % 3]
            label = {"letter": letter} if split == "train" else {"spoken": [letter, letter.upper()]}
            members.append((f"{split}{index}.wav", wav(speak(letter, rng))))
            members.append((f"{split}{index}.json", json.dumps(label).encode()))
        write_tar(root / "naming" / f"{split}-000000.tar", members)
    path = root / "naming.toml"
    path.write_text(NAMING)
    return path


_made: dict[int, Llm] = {}


def make(root: Path, *, budget: int = 256) -> Llm:
    """Generate audio, embed it, and write decoder and recipes: once a process, whichever module asks first.

    Nobody writes into what is returned; :meth:`Llm.fresh` copies the store.
    """
    if budget not in _made:
        _made[budget] = make_anew(root, budget=budget)
    return _made[budget]


def make_anew(root: Path, *, budget: int = 256) -> Llm:
    """Do so for a test that writes into it."""
    data = root / "data"
    spelling = write_spoken(data, name="spelling", clips=CLIPS, letters=LETTERS, length=(2, 3))
    naming = write_naming(data)
    decoder = save_tiny(root / "decoder", words=tuple(LETTERS))
    store = root / "llm.store"
    embed("logmel", [str(spelling.task), str(naming)], store=store, data=data)
    return Llm(
        root,
        spelling.task,
        naming,
        decoder,
        write_recipe(root, decoder, name="joint", joint=True, budget=budget),
        write_recipe(root, decoder, name="alone", joint=False, epochs=2, lora=False),
        store,
    )
