"""Letters spoken by a buzzing voice: audio whose words are known, in the shard format of the benchmarks.

A letter is a pair of formants. Speaker, pitch, pace, loudness, pauses and noise differ from clip to clip, so that no two
renderings are alike and a clip's letters can only be found by listening.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.toy import wav, write_tar

RATE = 16000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LOW_HZ = 300.0 * 1.32 ** np.arange(5)
HIGH_HZ = 1300.0 * 1.22 ** np.arange(6)
CLIPS = {"train": 400, "valid": 40, "test": 60}
SHARD_CLIPS = 200

TASK = """\
format = 1
name = "{name}"
title = "Spoken letters"
domain = "speech"

[data]
folder = "{name}"

[data.splits]
{splits}
[target]
kind = "{kind}"
key = "trans"
prompt = "{prompt}"

[metric]
name = "iwer"
{extra}"""


@dataclass(frozen=True)
class Spoken:
    """A generated task: the data root, the task file, the shards, and what is said in each split, clip by clip."""

    root: Path
    task: Path
    shards: list[Path]
    texts: dict[str, list[str]]


def formants(letter: str) -> tuple[float, float]:
    """The two resonances of a letter in Hz; no two letters share both."""
    index = LETTERS.index(letter)
    return float(LOW_HZ[index % len(LOW_HZ)]), float(HIGH_HZ[index // len(LOW_HZ)])


def texts(count: int, rng: np.random.Generator, *, letters: str, length: tuple[int, int]) -> list[str]:
    """Draw different texts such as ``"q a a x"``, of ``length[0]`` to ``length[1]`` letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        drawn = rng.integers(0, len(letters), int(rng.integers(length[0], length[1] + 1)))
        found[" ".join(letters[index] for index in drawn)] = None
    return list(found)


def speak(text: str, rng: np.random.Generator) -> np.ndarray:
    """Say letters that are separated by spaces, 0.1 to 0.2 s each; float32 at 16 kHz."""
    size, pitch = rng.uniform(0.96, 1.04), rng.uniform(90.0, 170.0)
    pieces = [np.zeros(round(rng.uniform(0.02, 0.1) * RATE))]
    for letter in text.split():
        pieces += [_letter(letter, size, pitch * rng.uniform(0.9, 1.1), rng)]
        pieces += [np.zeros(round(rng.uniform(0.06, 0.12) * RATE))]
    clean = np.concatenate(pieces)
    noisy = clean / np.sqrt(np.mean(clean**2)) + rng.standard_normal(len(clean)) * 10 ** (-rng.uniform(20, 30) / 20)
    level = 10 ** (-rng.uniform(6, 20) / 20)
    return (noisy * level / np.abs(noisy).max()).astype(np.float32)


def _letter(letter: str, size: float, pitch: float, rng: np.random.Generator) -> np.ndarray:
    n = round(rng.uniform(0.1, 0.2) * RATE)
    bend = 1 + rng.uniform(-0.1, 0.1) * np.linspace(-1, 1, n)
    turns = np.cumsum(pitch * bend) / RATE + rng.uniform()
    source = np.diff(np.floor(turns), prepend=np.floor(turns[0])) * 8 + rng.standard_normal(n) * 0.5
    size_fft = 4096  # at least the longest letter; a transform of a prime length would be slow
    hz = np.fft.rfftfreq(size_fft, 1 / RATE)
    gain = sum(1 / (1 + ((hz - centre * size) / (0.08 * centre)) ** 2) for centre in formants(letter))
    sound = np.fft.irfft(np.fft.rfft(source, size_fft) * gain)[:n]
    edge = round(0.015 * RATE)
    sound[:edge] *= np.linspace(0, 1, edge)
    sound[-edge:] *= np.linspace(1, 0, edge)
    return sound / np.sqrt(np.mean(sound**2)) * 10 ** (rng.uniform(-3, 3) / 20)


def write_spoken(
    folder: Path,
    *,
    name: str = "spelling",
    clips: Mapping[str, int] = CLIPS,
    letters: str = LETTERS,
    length: tuple[int, int] = (3, 6),
    kind: str = "transcript",
    prompt: str = "spell",
    extra: str = "",
    shuffled: bool = False,
    seed: int = 0,
) -> Spoken:
    """Write shards ``<folder>/<name>/<split>-<n>.tar`` and the task ``<folder>/<name>.toml``; equal seeds give equal bytes.

    Args:
        folder: the data root.
        name: of the task.
        clips: how many of each split. No text is in two splits, nor twice in one.
        letters: that texts are drawn from.
        length: least and most letters of a text.
        kind: ``transcript`` or ``text``.
        prompt: of the task.
        extra: further lines of the task file.
        shuffled: label every sound with what is said in the next clip of its split.
        seed: of texts and sounds.
    """
    rng = np.random.default_rng(seed)
    drawn = iter(texts(sum(clips.values()), rng, letters=letters, length=length))
    said = {split: [next(drawn) for _ in range(count)] for split, count in clips.items()}
    shards: list[Path] = []
    for split, lines in said.items():
        labels = [*lines[1:], *lines[:1]] if shuffled else lines
        clips_of = [*enumerate(zip(lines, labels, strict=True))]
        for number, first in enumerate(range(0, len(lines), SHARD_CLIPS)):
            members: list[tuple[str, bytes]] = []
            for index, (line, label) in clips_of[first : first + SHARD_CLIPS]:
                members.append((f"{split}{index:04d}.wav", wav(speak(line, rng))))
                members.append((f"{split}{index:04d}.json", json.dumps({"trans": label}).encode()))
            shards.append(write_tar(folder / name / f"{split}-{number:06d}.tar", members))
    splits = "".join(f'{split} = ["{split}-*.tar"]\n' for split in clips)
    task = folder / f"{name}.toml"
    task.write_text(TASK.format(name=name, splits=splits, kind=kind, prompt=prompt, extra=extra))
    return Spoken(folder, task, shards, said)
