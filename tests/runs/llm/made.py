"""Tasks, clips, a tokenizer of letters and a model that only remembers what it was asked: all made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from xares_store.probes.llm.decoder import Tokens, encode
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import Written
from xares_store.protocol import Fold
from xares_store.recipe import Recipe
from xares_store.runs.features import Features
from xares_store.runs.llm.material import Material, make_material
from xares_store.targets import Texts
from xares_store.task import Task

HOP_MS = 10.0
SPLITS = {
    "splits": 'splits = { train = ["a-*.tar"], test = ["b-*.tar"] }',
    "folds": 'folds = { 1 = ["a-*.tar"], 2 = ["b-*.tar"] }',
}


def make_task(metric: str = "iwer", *, target: str = 'kind = "transcript"\nkey = "t"\nprompt = "hear"', data: str = "splits", more: str = "") -> Task:  # fmt: skip
    """A task with this metric and table of its target."""
    return Task.from_text(
        f'format = 1\nname = "made"\ntitle = "Made"\ndomain = "speech"\n[data]\n{SPLITS[data]}\n'
        f'[target]\n{target}\n[metric]\nname = "{metric}"\n{more}\n',
        where="made.toml",
        base=None,
    )


LABELS = 'kind = "text"\nkeys = ["t"]\nprompt = "hear"\nclosed = true'


def make_recipe(**tables: Any) -> Recipe:
    """A recipe; ``training`` and ``generation`` add to their tables, anything else replaces its own."""
    content: dict[str, Any] = {
        "format": 1,
        "name": "made",
        "title": "Made",
        "decoder": "nothing",
        "joint": False,
        "prompt": True,
        "projector": {"kind": "linear", "stride": 2},
        "optimiser": {"name": "adam", "learning_rate": 0.1, "schedule": "linear"},
        "training": {"batch_size": 1, "epochs": 1, "bucket": 1} | tables.pop("training", {}),
        "generation": {"max_new_tokens": 7} | tables.pop("generation", {}),
    }
    return Recipe.model_validate(content | tables)


class _Letters:
    """One token a character."""

    all_special_ids: tuple[int, ...] = (0,)
    eos_token_id = pad_token_id = 0
    unk_token_id = None

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


tokenizer = _Letters()


def said(tokens: Sequence[int]) -> str:
    """The text of such tokens."""
    return "".join(map(chr, tokens))


class _Part:
    """Frames that count, so that the first value of a frame is its number in the part."""

    def __init__(self, n: int) -> None:
        self.path = "part"
        self.manifest = SimpleNamespace(dim=3, hop_ms=HOP_MS, dtype="float32", counts=SimpleNamespace(frames=n))

    def frames(self, wanted: slice) -> np.ndarray:
        return np.repeat(np.arange(wanted.start, wanted.stop, dtype=np.float32)[:, None], 3, axis=1)


def make_features(texts: Sequence[Texts | str], folds: Sequence[Fold], *, n_frames: int | Sequence[int] = 10) -> Features:  # fmt: skip
    """Clips ``c0``, ``c1`` and so on with these texts."""
    n = len(texts)
    lengths = np.broadcast_to(np.asarray(n_frames, np.int64), n).copy()
    rows = np.arange(n)
    names = np.array([f"c{row}" for row in rows], dtype=object)
    parts: Any = (_Part(int(lengths.sum())),)
    return Features(
        values=np.zeros((n, 0), np.float32),
        target=[Texts((one,), (one,)) if isinstance(one, str) else one for one in texts],
        recording=rows,
        split=np.full(n, "all", dtype=object),
        clip_id=names,
        key=names,
        folds=list(folds),
        cropped=False,
        dropped=0,
        start_s=np.zeros(n),
        duration_s=np.ones(n),
        parts=parts,
        part_of=np.zeros(n, np.int64),
        offset=np.cumsum(lengths) - lengths,
        n_frames=lengths,
    )


def rows(*numbers: int) -> np.ndarray:
    """An array of rows."""
    return np.array(numbers, np.int64)


def made(
    texts: Sequence[Texts | str],
    recipe: Recipe,
    *,
    task: Task | None = None,
    fold: Fold | None = None,
    n_frames: int | Sequence[int] = 10,
) -> Material:
    """Material of these clips; without a fold, half of them train, a quarter validates and a quarter tests."""
    half, most = len(texts) // 2, len(texts) * 3 // 4
    number = np.arange(len(texts))
    fold = fold or Fold("test", number[:half], number[half:most], number[most:])
    features = make_features(texts, [fold], n_frames=n_frames)
    return make_material(task or make_task(), features, fold, recipe, tokenizer)


def renamed(material: Material, name: str) -> Material:
    """The same material, whose clips are called otherwise."""
    ids = np.array([f"{name}{row}" for row in range(len(material.features.clip_id))], dtype=object)
    return replace(material, features=replace(material.features, clip_id=ids))


class FakeModel:
    """Answers by the name of a clip.

    Args:
        answer: what is written about the clip of that name.
        recipe: of the training.
        gaps: the published layout.
        separator: id of the token after the audio.
    """

    def __init__(
        self,
        answer: Callable[[str], str] = lambda name: "x",
        *,
        recipe: Recipe | None = None,
        gaps: bool = False,
        separator: int | None = None,
    ) -> None:
        self.answer, self.recipe, self.gaps, self.separator = answer, recipe or make_recipe(), gaps, separator
        self.text = SimpleNamespace(encode=self._encode, end=0, spec="made")
        self.written: list[Example] = []
        self.forced: list[Example] = []
        self.scored: list[Example] = []
        self.generation: list[dict[str, Any]] = []

    @staticmethod
    def _encode(texts: Sequence[str]) -> Tokens:
        return encode(tokenizer, list(texts))

    def positions(self, example: Example) -> int:
        return len(example.frames) + len(example.prompt) + len(example.target) + 1

    def write(self, examples: Sequence[Example], **generation: Any) -> list[Written]:
        self.written += examples
        self.generation.append(generation)
        return [Written(self.answer(example.name), 1, True) for example in examples]

    def teacher_forced(self, examples: Sequence[Example]) -> list[str]:
        self.forced += examples
        return [self.answer(example.name) for example in examples]

    def label_scores(self, example: Example, labels: Sequence[tuple[int, ...]], *, budget: int) -> np.ndarray:
        self.scored.append(example)
        return np.zeros(len(labels))


def names(examples: Sequence[Example]) -> set[str]:
    """Clips of examples."""
    return {example.name.removeprefix("all/") for example in examples}
