"""ATST-Frame: names and shapes of the published models, blocks against PyTorch's own, and the encoder contract."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from tests.encoders.checkpoints import (
    assert_clips_are_encoded_as_if_alone,
    assert_passes_check,
    noise,
    published,
    randomised,
    shapes_of,
    torchs_block,
)
from xares_store.encoders.atst import AtstFrame
from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.errors import EncoderError

DIM, PLACES = 128, 30  # positions reach 1.2 s
TEACHER = "model.teacher.encoder."


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return randomised(AtstFrame(DIM, 3, PLACES), seed)


def saved(folder: Path, teacher: dict[str, torch.Tensor] | None = None, **other) -> str:
    """A file as the training writes it: a student that differs, heads, optimiser state and settings."""
    path = folder / "atstframe.ckpt"
    state = {"model.student.encoder." + name: tensor for name, tensor in weights(1).items()}
    state |= {TEACHER + name: tensor for name, tensor in (weights() if teacher is None else teacher).items()}
    state |= {"model.student.predictor.0.weight": torch.ones(2), "model.teacher.projector.0.weight": torch.ones(2)}
    torch.save({"state_dict": state, "epoch": 9, "hyper_parameters": {"arch": "base"}, **other}, path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("atst"))


def load(checkpoint: str, **args: str) -> Encoder:
    return load_encoder("atst", args={"checkpoint": checkpoint, **args})


@pytest.mark.parametrize(("size", "dim", "heads"), [("base", 768, 12), ("small", 384, 6)])
def test_names_and_shapes_are_those_of_the_published_model(size, dim, heads):
    shapes, parameters = published("atst", size)
    with torch.device("meta"):
        model = AtstFrame(dim, 12)
    assert shapes_of(model) == shapes
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.blocks[0].attn.heads == heads


def plainly(w: dict[str, torch.Tensor], audio: torch.Tensor, blocks: int) -> torch.Tensor:
    """The published code on one clip below the longest window: (frames, blocks * dim)."""
    filters = mel_filter_bank(513, 64, 60.0, 7800.0, 16000, norm=None, mel_scale="htk")
    power = spectrogram(
        audio[0].numpy(), window_function(1024, "hann"), 1024, 160, power=2.0, mel_filters=filters, mel_floor=0.0
    )
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    decibels = np.maximum(decibels, decibels.max() - 80)
    mel = torch.from_numpy((decibels + 79.6482) / (50.6842 + 79.6482) * 2 - 1).float()  # (64, frames)
    patches = torch.stack([mel[:, t : t + 4].flatten() for t in range(0, mel.shape[1] - 3, 4)])
    x = patches @ w["patch_embed.patch_embed.weight"].T + w["patch_embed.patch_embed.bias"]
    x = (x + w["pos_embed"][0, 1 : len(x) + 1])[None]
    found = []
    for index in range(3):
        x = torchs_block(w, f"blocks.{index}.")(x)
        found.append(torch.nn.functional.layer_norm(x, (DIM,), w["norm_frame.weight"], w["norm_frame.bias"], 1e-6)[0])
    return torch.cat(found[-blocks:], dim=1)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("samples", [640, 11_111, 18_000])
def test_equals_the_published_code(checkpoint, samples, blocks):
    (audio,) = noise(samples)
    audio[:, : samples // 3] *= 1e-5  # quiet enough to meet the floor of 80 dB
    with torch.inference_mode():
        expected = plainly(weights(), audio, blocks)
    encoder = load(checkpoint, blocks=str(blocks))
    found, valid = encoder.encode(audio)
    assert encoder.dim == blocks * DIM
    assert valid.tolist() == [len(expected)] == [(1 + samples // 160) // 4]
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-3)


def test_declares_what_it_returns(checkpoint):
    encoder = load(checkpoint)
    assert (encoder.sample_rate_hz, encoder.dim, encoder.hop_ms, encoder.max_length_s) == (16000, DIM, 40.0, None)


def test_clips_are_encoded_as_if_alone(checkpoint):
    assert_clips_are_encoded_as_if_alone(load(checkpoint), 40_000, 160, 1, 12_345, 479, 480, 19_200, 19_840)


def test_windows_keep_time_and_reach_no_further_than_the_positions(checkpoint):
    frames, valid = load(checkpoint).encode(torch.zeros(1, 60 * 16_000))
    assert valid.tolist() == [60 * 25]
    assert frames.shape == (1, 1500, DIM)


def test_passes_check(checkpoint):
    assert_passes_check("atst", checkpoint=checkpoint)


def test_the_teacher_alone_is_the_same_encoder(tmp_path, checkpoint):
    torch.save(weights(), tmp_path / "teacher.pt")
    assert load(str(tmp_path / "teacher.pt")).fingerprint == load(checkpoint).fingerprint


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights().items() if key != name}


@pytest.mark.parametrize(("teacher", "message"), [
    (lambda: without("blocks.2.mlp.fc2.bias"), "1 missing: blocks.2.mlp.fc2.bias"),
    (lambda: without("pos_embed"), "missing: pos_embed"),
    (lambda: weights() | {"prompt_embed": torch.ones(1, 1, DIM)}, "1 unexpected: prompt_embed"),
    (lambda: weights() | {"patch_embed.patch_embed.weight": torch.ones(DIM, 64)},
     "patch_embed.patch_embed.weight (wanted (128, 256), found (128, 64))"),
])  # fmt: skip
def test_a_wrong_or_partial_checkpoint_is_refused(tmp_path, teacher, message):
    path = saved(tmp_path, teacher())
    with pytest.raises(EncoderError, match=re.escape(message)) as caught:
        load(path)
    assert caught.value.where == path


def test_a_student_alone_is_no_encoder(tmp_path):
    path = tmp_path / "student.ckpt"
    torch.save({"state_dict": {"model.student.encoder." + name: tensor for name, tensor in weights().items()}}, path)
    with pytest.raises(EncoderError, match="missing: mask_embed, pos_embed"):
        load(str(path))


@pytest.mark.parametrize("blocks", ["0", "4", "-1"])
def test_blocks_that_are_not_there(checkpoint, blocks):
    with pytest.raises(EncoderError, match=f"blocks must be 1 to 3; found {blocks}"):
        load(checkpoint, blocks=blocks)


def test_without_a_checkpoint_it_says_where_to_get_one():
    with pytest.raises(EncoderError, match="atst needs the file of a checkpoint") as caught:
        load_encoder("atst")
    assert "atstframe_base.ckpt" in str(caught.value)
