"""Dasheng and CED: the published front end, names, shapes and outputs, and weights that fit exactly or are refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.audio_utils import mel_filter_bank

from tests.encoders import patches
from tests.encoders.checkpoints import GOLDEN, assert_clips_are_encoded_as_if_alone, assert_passes_check, published
from xares_store.encoders import patch_transformer as pt
from xares_store.encoders.ced import CedEncoder
from xares_store.encoders.dasheng import DashengEncoder
from xares_store.encoders.encoder import load_encoder
from xares_store.encoders.hub import checkpoint_file
from xares_store.encoders.published import PublishedEncoder
from xares_store.errors import EncoderError

CLASSES: dict[str, type[PublishedEncoder]] = {"dasheng": DashengEncoder, "ced": CedEncoder}
TINY = "16x2x2"
OUTPUTS = json.loads((GOLDEN / "patch_transformer.json").read_text())["outputs"]


def on_hub(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name tensors of the network as on the hub."""
    if name == "ced":
        head = {"outputlayer.0.weight": torch.ones(16), "outputlayer.1.weight": torch.ones(5, 16)}
        return {f"encoder.{key}": value for key, value in tensors.items()} | head
    return {f"encoder.{key.replace('init_bn.', 'init_bn.1.')}": value for key, value in tensors.items()}


@pytest.fixture(params=CLASSES)
def tiny(request, tmp_path) -> tuple[str, Path]:
    """Name of an encoder, and tiny weights for it in the format of the hub."""
    network = pt.PatchTransformer(CLASSES[request.param].shape_of(TINY))
    save_file(on_hub(request.param, patches.weights(network.state_dict())), tmp_path / "model.safetensors")
    return request.param, tmp_path / "model.safetensors"


def load(name: str, path: Path, **args: str):
    return load_encoder(name, args={"checkpoint": str(path), "size": TINY, **args})


# The front end.


def test_front_end_is_the_published_one():
    assert (pt.RATE_HZ, pt.WINDOW, pt.HOP, pt.MELS) == (16000, 512, 160, 64)
    assert (pt.LOW_HZ, pt.HIGH_HZ, pt.AMIN, pt.TOP_DB) == (0.0, 8000.0, 1e-10, 120.0)
    expected = mel_filter_bank(257, 64, 0.0, 8000.0, 16000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(pt.LogMel().mel.mel.numpy(), expected, atol=1e-5)
    torch.testing.assert_close(pt.LogMel().mel.window, torch.hann_window(512), atol=1e-6, rtol=0)


def test_log_mel_equals_the_published_one():
    decibels, valid = pt.LogMel()(patches.audio(16000), torch.tensor([16000]))
    assert (int(valid), decibels.shape[2]) == (OUTPUTS["log_mel"]["frames"],) * 2
    for frame, expected in OUTPUTS["log_mel"]["columns"].items():
        np.testing.assert_allclose(decibels[0, :, int(frame)], expected, atol=5e-3)


def test_log_mel_of_a_clip_knows_nothing_of_its_neighbours():
    quiet, loud = 1e-4 * patches.audio(4000), 10 * patches.audio(16000)
    batch = torch.cat([torch.nn.functional.pad(quiet, (0, 12000), value=0.5), loud])
    log_mel = pt.LogMel()
    together, valid = log_mel(batch, torch.tensor([4000, 16000]))
    alone, counts = log_mel(quiet, torch.tensor([4000]))
    assert valid.tolist() == [26, 101]
    torch.testing.assert_close(together[0, :, : int(counts)], alone[0])
    assert float(alone.min()) < float(together[1].max()) - 100


def test_decibels_have_both_floors():
    log_mel = pt.LogMel()
    silence, _ = log_mel(torch.zeros(1, 4000), torch.tensor([4000]))
    assert float(silence.max()) == float(silence.min()) == pytest.approx(-100.0)
    click = torch.zeros(1, 16000)
    click[0, 8000] = 1e3
    decibels, _ = log_mel(click, torch.tensor([16000]))
    assert float(decibels.min()) == pytest.approx(float(decibels.max()) - 120.0, abs=1e-3)


# The networks.


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, cls in CLASSES.items() for size in cls.sizes])
def test_every_parameter_has_its_published_name_and_shape(name, size):
    expected, parameters = published("patch_transformer", f"{name}-{size}")
    with torch.device("meta"):
        state = pt.PatchTransformer(CLASSES[name].shape_of(size)).state_dict()
    ours = {key.replace("init_bn.", "init_bn.1.") if name == "dasheng" else key: value for key, value in state.items()}
    encoder_part = {key: shape for key, shape in expected.items() if not key.startswith("outputlayer.")}
    assert {f"encoder.{key}": tuple(value.shape) for key, value in ours.items()} == encoder_part
    assert sum(math.prod(shape) for shape in expected.values()) == parameters


@pytest.mark.parametrize("config", ["dasheng-base", "ced-base", "ced-small"])
def test_the_list_of_parameters_has_the_size_of_the_published_file(config):
    found = json.loads((GOLDEN / "patch_transformer.json").read_text())["configs"][config]
    assert 4 * found["parameters"] / 1e6 == pytest.approx(found["megabytes"], abs=0.6)


def test_dimensions_are_the_published_ones():
    base = {name: cls.shape_of("base") for name, cls in CLASSES.items()}
    assert {name: (shape.dim, shape.hop_ms, shape.longest_s) for name, shape in base.items()} == {
        "dasheng": (768, 40.0, 10.08),
        "ced": (768, 160.0, 10.08),
    }
    assert [CLASSES["dasheng"].shape_of(size).heads for size in ("base", "0.6B", "1.2B")] == [12, 16, 24]
    assert [CLASSES["ced"].shape_of(size).heads for size in ("tiny", "mini", "small", "base")] == [3, 4, 6, 12]


def test_output_equals_that_of_the_published_network(tiny):
    name, path = tiny
    frames, valid = load(name, path).encode(patches.audio(16000))
    assert int(valid) == OUTPUTS[name]["frames"]
    for row, expected in OUTPUTS[name]["rows"].items():
        np.testing.assert_allclose(frames[0, int(row)], expected, atol=5e-5)


def test_passes_the_conformance_check(tiny):
    assert_passes_check(tiny[0], checkpoint=str(tiny[1]), size=TINY)


def test_a_clip_is_encoded_as_if_alone(tiny):
    assert_clips_are_encoded_as_if_alone(load(*tiny), 16000, 9000, 700, 100, 1)


# Weights.


def test_both_published_formats_load_to_the_same_encoder(tiny, tmp_path):
    name, path = tiny
    encoder = load(name, path)
    assert load(name, path.parent).fingerprint == encoder.fingerprint
    first = {
        key.removeprefix("encoder.").replace("init_bn.1.", "init_bn.").replace("init_bn.", "init_bn.1."): value
        for key, value in load_file(path).items()
    }
    first |= {
        "front_end.0.spectrogram.window": torch.hann_window(512),
        "front_end.0.mel_scale.fb": pt.LogMel().mel.mel,
    }
    content = {"model": first, "config": {"n_mels": 64, "hop_size": 160, "f_max": 8000}} if name == "dasheng" else first
    torch.save(content, tmp_path / "first.pt")
    again = load(name, tmp_path / "first.pt")
    assert again.fingerprint == encoder.fingerprint
    assert again.record["origin"]["file"] == "first.pt"


def test_other_weights_are_another_encoder(tiny):
    name, path = tiny
    before, tensors = load(name, path), load_file(path)
    tensors["encoder.norm.bias"] += 1
    save_file(tensors, path)
    assert load(name, path).fingerprint != before.fingerprint


def without(key: str):
    return lambda tensors: {name: value for name, value in tensors.items() if name != key}


DAMAGE = {
    "missing": (without("encoder.blocks.1.attn.qkv.weight"), r"1 missing: blocks\.1\.attn\.qkv\.weight"),
    "a whole block missing": (
        lambda tensors: {name: value for name, value in tensors.items() if ".blocks.1." not in name},
        r"12 missing: blocks\.1\.norm1\.weight",
    ),
    "unexpected": (lambda t: t | {"encoder.blocks.2.norm1.bias": torch.ones(16)}, r"1 unexpected: .*blocks\.2\.norm1\.bias"),
    "another shape": (
        lambda tensors: tensors | {"encoder.norm.weight": torch.ones(17)},
        r"1 of another shape: norm\.weight \(wanted \(16,\), found \(17,\)\)",
    ),
    "fewer positions": (
        lambda tensors: tensors | {"encoder.time_pos_embed": torch.ones(1, 16, 1, 25)},
        r"of another shape: time_pos_embed",
    ),
    "not finite": (lambda tensors: tensors | {"encoder.norm.bias": torch.full((16,), math.nan)}, r"NaN.*norm\.bias"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tiny, damage):
    name, path = tiny
    change, message = DAMAGE[damage]
    save_file(change(load_file(path)), path)
    with pytest.raises(EncoderError, match=f"(?s){message}.*{re.escape(str(path))}"):
        load(name, path)


def test_a_checkpoint_of_another_size_is_refused(tiny):
    name, path = tiny
    with pytest.raises(EncoderError, match="of another shape"):
        load_encoder(name, args={"checkpoint": str(path), "size": "32x2x2"})


def test_a_checkpoint_of_the_other_family_is_refused(tiny):
    name, path = tiny
    with pytest.raises(EncoderError, match=r"of another shape: .*patch_embed\.proj\.weight"):
        load("ced" if name == "dasheng" else "dasheng", path)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("file", ["model.safetensors", "model.pt"])
def test_a_damaged_file_is_refused_by_name(name, file, tmp_path):
    (tmp_path / file).write_bytes(b"\x80\x02not a checkpoint")
    with pytest.raises(EncoderError, match=f"(?s)checkpoint.*{re.escape(str(tmp_path / file))}"):
        load(name, tmp_path / file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"config": {"hop_size": 320}}, "hop_size = 320.*160"),
        ({"front_end.0.mel_scale.fb": torch.ones(257, 64)}, r"front_end\.0\.mel_scale\.fb"),
        ({"front_end.0.spectrogram.window": torch.ones(400)}, r"front_end\.0\.spectrogram\.window"),
    ],
)
def test_another_front_end_is_refused(tmp_path, content, message):
    network = pt.PatchTransformer(DashengEncoder.shape_of(TINY))
    config = content.pop("config", {})
    torch.save({"model": network.state_dict() | content, "config": config}, tmp_path / "model.pt")
    with pytest.raises(EncoderError, match=message):
        load("dasheng", tmp_path / "model.pt")


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "model.pt")
    with pytest.raises(EncoderError, match="Python objects"):
        load("dasheng", tmp_path / "model.pt")


# Arguments and the hub.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"size": "huge"}, "size must be"),
        ({"size": "16x2x3"}, "size must be"),
        ({"size": "16x2x2"}, "give checkpoint=PATH"),
        ({"max_length_s": "11"}, "max_length_s must be"),
        ({"max_length_s": "0.01"}, "max_length_s must be"),
        ({"sise": "base"}, 'Did you mean "size"'),
        ({"checkpoint": "/nowhere/model.pt", "size": TINY}, "There is no checkpoint /nowhere/model.pt"),
    ],
)
def test_impossible_arguments_are_refused(args, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder("dasheng", args=args)


def test_a_folder_without_weights_says_which_file_to_put_there(tmp_path):
    with pytest.raises(EncoderError, match=r"(?s)holds no model\.safetensors.*Put model\.safetensors there"):
        load("ced", tmp_path)


def test_without_network_the_message_says_which_file_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        EncoderError, match=r"(?s)mispeech/dasheng-0\.6B cannot be fetched.*checkpoint=/path/model\.safetensors"
    ):
        checkpoint_file("mispeech/dasheng-0.6B", "", "model.safetensors", encoder="dasheng")


def test_the_hub_is_asked_for_the_model_of_the_size(monkeypatch, tiny):
    name, path = tiny
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    sizes = CLASSES[name].sizes | {"small": (16, 2, 2), "base": (16, 2, 2)}
    monkeypatch.setattr(CLASSES[name], "sizes", sizes)
    load_encoder(name)
    load_encoder(name, args={"size": "small", "revision": "abc"})
    assert asked == [
        (f"mispeech/{name}-base", "model.safetensors", None),
        (f"mispeech/{name}-small", "model.safetensors", "abc"),
    ]
