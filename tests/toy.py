"""Small labelled audio made in a moment, in the shard format of the benchmarks."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

CLASSES = ("hum", "hiss", "chirp")


def tone(kind: str, seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """One clip of a class: easy to tell apart, never twice the same."""
    time = np.arange(round(seconds * rate)) / rate
    noise = rng.standard_normal(len(time)) * 0.02
    if kind == "hum":
        return (0.3 * np.sin(2 * np.pi * rng.uniform(100, 200) * time) + noise).astype(np.float32)
    if kind == "hiss":
        return (rng.standard_normal(len(time)) * rng.uniform(0.05, 0.3)).astype(np.float32)
    return (0.3 * np.sin(2 * np.pi * (500 + rng.uniform(800, 1600) * time) * time) + noise).astype(np.float32)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar with these members, in order and with fixed times, so that equal content gives equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith(".gz") else "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def wav(audio: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> bytes:
    """Encode a waveform as wav bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


@dataclass
class Toy:
    """A generated task: the data root, the task file, and the shards."""

    root: Path
    task: Path
    shards: list[Path]
    clips: int


@pytest.fixture
def make_toy(tmp_path: Path) -> Callable[..., Toy]:
    """Build a toy task: k folds of clips in three classes."""

    def build(
        *, folds: int = 4, per_fold: int = 9, name: str = "toy", seed: int = 0, seconds: tuple[float, float] = (0.2, 0.6),
        extra: str = "", audio: str = "", equal: bool = False,
    ) -> Toy:  # fmt: skip
        rng = np.random.default_rng(seed)
        root = tmp_path / f"{name}-data"
        shards = []
        for fold in range(folds):
            members: list[tuple[str, bytes]] = []
            for index in range(per_fold):
                kind = CLASSES[index % len(CLASSES)]
                length = seconds[1] if equal else float(rng.uniform(*seconds))
                key = f"f{fold}c{index:03d}"
                members.append((f"{key}.wav", wav(tone(kind, length, 16000, rng))))
                members.append((f"{key}.json", json.dumps({"kind": kind, "take": index}).encode()))
            shards.append(write_tar(root / name / f"fold{fold}.tar", members))
        listing = ", ".join(f'"{fold}" = ["fold{fold}.tar"]' for fold in range(folds))
        text = f"""
format = 1
name = "{name}"
title = "Toy"
domain = "environment"
[data]
folds = {{ {listing} }}
{audio}
[target]
kind = "single-label"
key = "kind"
labels = ["hum", "hiss", "chirp"]
[metric]
name = "accuracy"
[probe.mlp]
epochs = 10
batch_size = 8
learning_rates = [0.01]
[probe.knn]
k = 5
temperature = 0.07
{extra}
"""
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return Toy(root, path, shards, folds * per_fold)

    return build


@pytest.fixture
def toy(make_toy: Callable[..., Toy]) -> Toy:
    """The default toy task: 4 folds of 9 clips."""
    return make_toy()


ENCODER = '''
import torch

class BandEncoder(torch.nn.Module):
    """Energies of a few random projections of 20 ms frames; fixed weights, so deterministic."""

    sampling_rate = 16000
    output_dim = 24
    hop_size_in_ms = 20

    def __init__(self, seed: int = 0):
        super().__init__()
        weight = torch.randn(320, 24, generator=torch.Generator().manual_seed(seed)) / 18
        self.weight = torch.nn.Parameter(weight)

    def forward(self, audio):
        pad = -audio.shape[1] % 320
        frames = torch.nn.functional.pad(audio, (0, pad)).unflatten(1, (-1, 320))
        return torch.log1p((frames @ self.weight).abs() * 10)
'''


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    """A user's own encoder in a file."""
    path = tmp_path / "enc.py"
    path.write_text(ENCODER)
    return path
