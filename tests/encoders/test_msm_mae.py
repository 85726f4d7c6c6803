"""MSM-MAE: names and shapes of the published models, blocks against PyTorch's own, and the encoder contract."""

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
from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.encoders.msm_mae import MsmMae
from xares_store.errors import EncoderError

DIM, COLUMNS = 128, 4  # units of 4 patches: 0.64 s


def weights(*, class_token: bool = True, patch: tuple[int, int] = (16, 16)) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return randomised(MsmMae(DIM, 2, patch, COLUMNS, class_token=class_token))


def saved(folder: Path, model: dict[str, torch.Tensor] | None = None, **other) -> str:
    path = folder / "checkpoint-100.pth"
    torch.save({"model": weights() if model is None else model, "epoch": 100, **other}, path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("msm_mae"))


def load(checkpoint: str, **args: str) -> Encoder:
    return load_encoder("msm_mae", args={"checkpoint": checkpoint, **args})


@pytest.mark.parametrize(("name", "columns"), [("80x512p16x16", 32), ("80x208p16x16", 13)])
def test_names_and_shapes_are_those_of_the_published_model(name, columns):
    shapes, parameters = published("msm_mae", name)
    with torch.device("meta"):
        model = MsmMae(768, 12, (16, 16), columns, class_token=True)
    assert shapes_of(model) == shapes
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.blocks[0].attn.heads == 12


def plainly(w: dict[str, torch.Tensor], audio: torch.Tensor, stats: tuple[float, float] | None) -> torch.Tensor:
    """The published runtime on one clip: (frames, rows, dim)."""
    filters = mel_filter_bank(201, 80, 50.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    power = spectrogram(
        audio[0].numpy(), window_function(400, "hann"), 400, 160, power=2.0, mel_filters=filters, mel_floor=0.0
    )
    mel = torch.from_numpy(np.log(power + np.finfo(np.float32).eps)).float()  # (80, frames)
    mean, std = (mel.mean(), mel.std()) if stats is None else stats
    mel = (mel - mean) / std
    frames, unit = mel.shape[1], COLUMNS * 16
    missing = unit - frames % unit
    mel = torch.nn.functional.pad(mel, (0, missing))
    found = []
    blocks = [torchs_block(w, f"blocks.{i}.") for i in range(2)]
    for start in range(0, mel.shape[1], unit):
        tokens = torch.stack([
            (w["patch_embed.proj.weight"][:, 0] * mel[f : f + 16, start + t : start + t + 16]).sum((1, 2))
            + w["patch_embed.proj.bias"]
            for f in range(0, 80, 16) for t in range(0, unit, 16)
        ])  # fmt: skip
        x = torch.cat([w["cls_token"][0], tokens])[None] + w["pos_embed"]
        for block in blocks:
            x = block(x)
        x = torch.nn.functional.layer_norm(x, (DIM,), w["norm.weight"], w["norm.bias"], 1e-6)[0, 1:]
        found += [torch.stack([x[row * COLUMNS + column] for row in range(5)]) for column in range(COLUMNS)]
    return torch.stack(found)[: len(found) - int(COLUMNS * missing / unit)]


@pytest.mark.parametrize("samples", [3_000, 10_240, 10_300, 25_000])
def test_equals_the_published_runtime(checkpoint, samples):
    (audio,) = noise(samples)
    with torch.inference_mode():
        expected = plainly(weights(), audio, None)
    found, valid = load(checkpoint).encode(audio)
    assert valid.tolist() == [len(expected)]
    torch.testing.assert_close(found[0], expected.flatten(1), rtol=1e-3, atol=1e-3)
    mean, _ = load(checkpoint, merge="mean").encode(audio)
    torch.testing.assert_close(mean[0], expected.mean(1), rtol=1e-3, atol=1e-3)


def test_fixed_statistics(checkpoint):
    (audio,) = noise(5_000)
    with torch.inference_mode():
        expected = plainly(weights(), audio, (-7.0, 4.0))
    found, _ = load(checkpoint, norm_mean="-7.0", norm_std="4.0").encode(audio)
    torch.testing.assert_close(found[0], expected.flatten(1), rtol=1e-3, atol=1e-3)


def test_ten_seconds_are_63_frames(checkpoint):
    """As the example of the published code says."""
    encoder = load(checkpoint)
    assert encoder.encode(torch.zeros(1, 160_000))[1].tolist() == [63]
    assert (encoder.dim, encoder.hop_ms, encoder.max_length_s) == (5 * DIM, 160.0, None)


@pytest.mark.parametrize(("patch", "hop_ms", "rows"), [((16, 8), 80.0, 5), ((80, 4), 40.0, 1)])
@pytest.mark.parametrize("class_token", [True, False])
def test_sizes_are_read_from_the_weights(tmp_path, patch, hop_ms, rows, class_token):
    encoder = load(saved(tmp_path, weights(patch=patch, class_token=class_token)))
    assert (encoder.hop_ms, encoder.dim) == (hop_ms, rows * DIM)
    assert_clips_are_encoded_as_if_alone(encoder, 16_000, 700)


def test_clips_are_encoded_as_if_alone(checkpoint):
    assert_clips_are_encoded_as_if_alone(load(checkpoint), 40_000, 160, 1, 12_345, 2_560, 10_240)


def test_passes_check(checkpoint):
    assert_passes_check("msm_mae", checkpoint=checkpoint)


def test_the_decoder_is_left_behind(tmp_path, checkpoint):
    decoder = {
        "mask_token": torch.ones(1, 1, 8),
        "decoder_pos_embed": torch.ones(1, 21, 8),
        "decoder_blocks.0.x": torch.ones(2),
    }
    assert load(saved(tmp_path, weights() | decoder)).fingerprint == load(checkpoint).fingerprint


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights().items() if key != name}


@pytest.mark.parametrize(("model", "message"), [
    (lambda: without("blocks.1.attn.q_bias"), "1 missing: blocks.1.attn.q_bias"),
    (lambda: without("patch_embed.proj.weight"), "missing: patch_embed.proj.weight"),
    (lambda: without("pos_embed"), "missing: pos_embed"),
    (lambda: weights() | {"blocks.0.attn.qkv.bias": torch.ones(3 * DIM)}, "1 unexpected: blocks.0.attn.qkv.bias"),
    (lambda: weights() | {"pos_embed": torch.ones(1, 23, DIM)}, "pos_embed (wanted (1, 21, 128), found (1, 23, 128))"),
])  # fmt: skip
def test_a_wrong_or_partial_checkpoint_is_refused(tmp_path, model, message):
    path = saved(tmp_path, model())
    with pytest.raises(EncoderError, match=re.escape(message)) as caught:
        load(path)
    assert caught.value.where == path


@pytest.mark.parametrize("args", [{"norm_mean": "1.0"}, {"norm_std": "1.0"}, {"norm_mean": "1.0", "norm_std": "0.0"}])
def test_statistics_go_together(checkpoint, args):
    with pytest.raises(EncoderError, match="norm_mean and norm_std go together"):
        load(checkpoint, **args)


def test_an_unknown_merge_is_refused(checkpoint):
    with pytest.raises(EncoderError, match="merge must be"):
        load(checkpoint, merge="max")


def test_without_a_checkpoint_it_says_where_to_get_one():
    with pytest.raises(EncoderError, match="msm_mae needs the file of a checkpoint") as caught:
        load_encoder("msm_mae")
    assert "github.com/nttcslab/msm-mae/releases" in str(caught.value)
