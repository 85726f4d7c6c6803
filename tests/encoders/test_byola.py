"""BYOL-A: names and shapes of the published model, the computation written out plainly, and the encoder contract."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from tests.encoders.checkpoints import (
    assert_clips_are_encoded_as_if_alone,
    assert_passes_check,
    noise,
    published,
    randomised,
    shapes_of,
)
from xares_store.encoders.byola import ByolA
from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.errors import EncoderError


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return randomised(ByolA(base=4, hidden=12, dim=80))


def saved(folder: Path, content: dict) -> str:
    path = folder / "byola.pth"
    torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("byola"), weights())


def load(checkpoint: str, **args: str) -> Encoder:
    return load_encoder("byola", args={"checkpoint": checkpoint, **args})


def test_names_and_shapes_are_those_of_the_published_model():
    shapes, parameters = published("byola", "3072")
    with torch.device("meta"):
        model = ByolA()
    assert shapes_of(model) == shapes
    assert sum(p.numel() for p in model.parameters()) == parameters


def log_mel(audio: torch.Tensor) -> torch.Tensor:
    """The published front end through another library: (frames, 64)."""
    filters = mel_filter_bank(513, 64, 60.0, 7800.0, 16000, norm="slaney", mel_scale="slaney")
    power = spectrogram(
        audio[0].numpy(), window_function(1024, "hann"), 1024, 160, power=2.0, mel_filters=filters, mel_floor=0.0
    )
    return torch.from_numpy(np.log(power + np.finfo(np.float32).eps).T)


def plainly(w: dict[str, torch.Tensor], audio: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    w = {name: tensor.double() for name, tensor in w.items()}
    x = ((log_mel(audio).double() - mean) / std).T[None, None]
    for conv, norm in ((0, 1), (4, 5)):
        x = F.conv2d(x, w[f"features.{conv}.weight"], w[f"features.{conv}.bias"], padding=1)
        by = [w[f"features.{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.max_pool2d(((x - by[0]) / (by[1] + 1e-5).sqrt() * by[2] + by[3]).relu(), 2)
    frames = torch.stack([x[0, :, :, t].T.flatten() for t in range(x.shape[3])])  # band after band
    inner = (frames @ w["fc.0.weight"].T + w["fc.0.bias"]).relu()
    return torch.cat([frames, (inner @ w["fc.3.weight"].T + w["fc.3.bias"]).relu()], dim=1)


@pytest.mark.parametrize(("args", "mean", "std"), [
    ({}, -9.660292, 4.7219563), ({"norm_mean": "-5.0", "norm_std": "2.5"}, -5.0, 2.5),
])  # fmt: skip
def test_the_computation_written_out_plainly(checkpoint, args, mean, std):
    (audio,) = noise(9_000)
    found, valid = load(checkpoint, **args).encode(audio)
    assert valid.tolist() == [(1 + 9_000 // 160) // 4]
    torch.testing.assert_close(found[0], plainly(weights(), audio, mean, std).float(), rtol=1e-3, atol=1e-3)


def test_declares_what_it_returns(checkpoint):
    encoder = load(checkpoint)
    assert (encoder.sample_rate_hz, encoder.dim, encoder.hop_ms, encoder.max_length_s) == (16000, 80, 40.0, None)


def test_clips_are_encoded_as_if_alone(checkpoint):
    assert_clips_are_encoded_as_if_alone(load(checkpoint), 20_000, 160, 1, 12_345, 479, 480, 1_121, 1_280)


@pytest.mark.parametrize("frames", [4, 40, 100])
def test_segments_leave_no_seam(monkeypatch, checkpoint, frames):
    encoder, (audio,) = load(checkpoint), noise(30_123)
    whole = encoder.encode(audio)[0]
    monkeypatch.setattr("xares_store.encoders.byola._SEGMENT", frames)
    torch.testing.assert_close(encoder.encode(audio)[0], whole)
    assert_clips_are_encoded_as_if_alone(encoder, 20_000, 160, 12_345)


def test_passes_check(checkpoint):
    assert_passes_check("byola", checkpoint=checkpoint)


@pytest.mark.parametrize("wrap", [
    lambda w: {"model": w},
    lambda w: {"state_dict": {"model." + name: tensor for name, tensor in w.items()}},
    lambda w: {"module." + name: tensor for name, tensor in w.items()},
])  # fmt: skip
def test_other_tools_files_are_understood(tmp_path, checkpoint, wrap):
    (audio,) = noise(8_000)
    found = load(saved(tmp_path, wrap(weights())))
    torch.testing.assert_close(found.encode(audio)[0], load(checkpoint).encode(audio)[0])
    assert found.fingerprint == load(checkpoint).fingerprint


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights().items() if key != name}


@pytest.mark.parametrize(("content", "message"), [
    (lambda: without("features.5.running_var"), "1 missing: features.5.running_var"),
    (lambda: without("fc.0.weight"), "missing: fc.0.weight"),
    (lambda: weights() | {"head.weight": torch.ones(1)}, "1 unexpected: head.weight"),
    (lambda: weights() | {"fc.3.bias": torch.ones(2)}, "fc.3.bias (wanted (16,), found (2,))"),
    (lambda: weights() | {"features.1.running_var": torch.full((4,), float("nan"))}, "NaN"),
    (lambda: {"epoch": 3}, "holds no weights"),
])  # fmt: skip
def test_a_wrong_or_partial_checkpoint_is_refused(tmp_path, content, message):
    path = saved(tmp_path, content())
    with pytest.raises(EncoderError, match=re.escape(message)) as caught:
        load(path)
    assert caught.value.where == path


@pytest.mark.parametrize("value", ["0", "-1.0"])
def test_an_impossible_deviation_is_refused(checkpoint, value):
    with pytest.raises(EncoderError, match="norm_std must be above 0"):
        load(checkpoint, norm_std=value)


def test_without_a_checkpoint_it_says_where_to_get_one():
    with pytest.raises(EncoderError, match="byola needs the file of a checkpoint") as caught:
        load_encoder("byola")
    assert "AudioNTT2022-BYOLA-64x96d2048.pth" in str(caught.value)
