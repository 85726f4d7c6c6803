"""The named families of Transformers models: only their own checkpoints, and only whole ones."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.encoders.checkpoints import assert_passes_check
from tests.encoders.test_hf_encoders import LAYER_NORM, POSITIONS, WAVE, WHISPER
from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.errors import EncoderError

# Each as its published checkpoint is: wav2vec 2.0 and data2vec with the heads of their training, Whisper with its decoder.
TINY = {
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration", WHISPER),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForPreTraining", WAVE | POSITIONS | LAYER_NORM),
    "data2vec": ("Data2VecAudioConfig", "Data2VecAudioForCTC", WAVE | {"vocab_size": 7}),
    "hubert": ("HubertConfig", "HubertModel", WAVE | POSITIONS),
    "wavlm": ("WavLMConfig", "WavLMModel", WAVE | POSITIONS),
}
PARTS = {
    "missing": r"lacks 1 weight, which would be random: .*layers\.1\..*k_proj\.weight",
    "shape": r"holds 1 weight of another shape: .*k_proj\.weight \(wanted \(32, 32\), found \(32, 31\)\)",
    "extra": r"holds 1 weight that the encoder has no place for: .*layers\.7\.extra",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("families")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (config, model, settings) in TINY.items():
            made = getattr(transformers, model)(getattr(transformers, config)(**settings))
            made.save_pretrained(root / name)
            extractor = (
                transformers.WhisperFeatureExtractor if name == "whisper" else transformers.Wav2Vec2FeatureExtractor
            )
            extractor().save_pretrained(root / name)
    return root


def load(name: str, folder: Path, **args: str) -> Encoder:
    return load_encoder(name, args={"checkpoint": str(folder), **args})


def changed(models: Path, name: str, folder: Path, how: str) -> Path:
    """Copy a checkpoint and remove, misshape or add one weight of its second layer."""
    shutil.copytree(models / name, folder / name)
    file = folder / name / "model.safetensors"
    weights = load_file(file)
    key = next(key for key in weights if re.search(r"encoder\.layers\.1\.(self_attn|attention)\.k_proj\.weight", key))
    if how == "missing":
        del weights[key]
    elif how == "shape":
        weights[key] = weights[key][:, 1:].contiguous()
    else:
        weights[key.partition(".layers.")[0] + ".layers.7.extra"] = torch.ones(2)
    save_file(weights, file, metadata={"format": "pt"})
    return folder / name


@pytest.mark.parametrize("name", TINY)
def test_family_passes_the_conformance_check(models, name):
    assert_passes_check(name, checkpoint=str(models / name))


@pytest.mark.parametrize("name", TINY)
def test_checkpoints_in_the_format_of_the_first_years_load(models, tmp_path, name):
    """As most of the published ones are: saved by torch, the convolution of positions with its old names."""
    shutil.copytree(models / name, tmp_path / name)
    weights = load_file(tmp_path / name / "model.safetensors")
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in weights.items()
    }
    assert (old.keys() != weights.keys()) == (name in ("wav2vec2", "hubert", "wavlm"))
    (tmp_path / name / "model.safetensors").unlink()
    torch.save(old, tmp_path / name / "pytorch_model.bin")
    assert load(name, tmp_path / name).fingerprint == load(name, models / name).fingerprint


@pytest.mark.parametrize("name", TINY)
def test_windows_are_10_s_and_may_be_longer(models, name):
    encoder = load(name, models / name)
    assert encoder.max_length_s == 10.0
    assert encoder.name == f"{name}[checkpoint={name}]"
    assert encoder.record["origin"] == {"checkpoint": str(models / name), "revision": None}
    longer = load(name, models / name, max_length_s="30")
    assert longer.max_length_s == 30.0
    assert longer.fingerprint == load_encoder(f"hf:{models / name}").fingerprint != encoder.fingerprint


def test_moving_a_checkpoint_leaves_the_identity(models, tmp_path):
    shutil.copytree(models / "hubert", tmp_path / "elsewhere")
    assert load("hubert", tmp_path / "elsewhere").fingerprint == load("hubert", models / "hubert").fingerprint


def test_layer_is_in_the_name(models):
    assert load("wavlm", models / "wavlm", layer="2").name == "wavlm[checkpoint=wavlm,layer=2]"
    assert load("wavlm", models / "wavlm", layer="-1").name == "wavlm[checkpoint=wavlm]"


@pytest.mark.parametrize(
    ("name", "other"), [("wav2vec2", "hubert"), ("hubert", "wav2vec2"), ("whisper", "wavlm"), ("data2vec", "wav2vec2")]
)
def test_a_checkpoint_of_another_family_is_refused(models, name, other):
    with pytest.raises(EncoderError, match=rf'(?s)another family: wanted "{name}.*says "{other}"'):
        load(name, models / other)


def test_weights_of_another_family_under_a_false_configuration_are_refused(models, tmp_path):
    shutil.copytree(models / "hubert", tmp_path / "model")
    shutil.copy(models / "wav2vec2" / "config.json", tmp_path / "model")
    with pytest.raises(EncoderError, match="does not fit Wav2Vec2Model"):
        load("wav2vec2", tmp_path / "model")


@pytest.mark.parametrize("how", PARTS)
@pytest.mark.parametrize("name", TINY)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(models, tmp_path, name, how):
    folder = changed(models, name, tmp_path, how)
    with pytest.raises(EncoderError, match=f"(?s){PARTS[how]}.*{re.escape(str(folder))}"):
        load(name, folder)


@pytest.mark.parametrize("how", PARTS)
def test_the_same_holds_without_a_name(models, tmp_path, how):
    folder = changed(models, "hubert", tmp_path, how)
    with pytest.raises(EncoderError, match=PARTS[how]):
        load_encoder(f"hf:{folder}")


def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(models, tmp_path):
    shutil.copytree(models / "hubert", tmp_path / "hubert")
    file = tmp_path / "hubert" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 2}))
    with pytest.raises(EncoderError, match=r"no place for: .*layers\.2\."):
        load("hubert", tmp_path / "hubert")


@pytest.mark.parametrize("how", ["missing", "shape"])
def test_the_decoder_of_whisper_may_be_anything(models, tmp_path, how):
    shutil.copytree(models / "whisper", tmp_path / "whisper")
    file = tmp_path / "whisper" / "model.safetensors"
    weights = load_file(file)
    decoder = [key for key in weights if ".decoder." in key]
    assert decoder
    for key in decoder:
        if how == "missing":
            del weights[key]
        else:
            weights[key] = torch.ones(3)
    save_file(weights, file, metadata={"format": "pt"})
    assert load("whisper", tmp_path / "whisper").fingerprint == load("whisper", models / "whisper").fingerprint


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a checkpoint at all"])
def test_a_damaged_file_is_refused_by_name(models, tmp_path, content):
    shutil.copytree(models / "hubert", tmp_path / "hubert")
    (tmp_path / "hubert" / "model.safetensors").write_bytes(content)
    with pytest.raises(EncoderError, match=r"(?s)cannot be loaded.*hubert \(model\.safetensors\)"):
        load("hubert", tmp_path / "hubert")


def test_a_file_cut_short_is_refused_by_name(models, tmp_path):
    shutil.copytree(models / "hubert", tmp_path / "hubert")
    file = tmp_path / "hubert" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EncoderError, match=r"(?s)cannot be loaded.*hubert \(model\.safetensors\)"):
        load("hubert", tmp_path / "hubert")


def test_impossible_arguments_are_refused(models):
    with pytest.raises(EncoderError, match='Did you mean "checkpoint"'):
        load_encoder("hubert", args={"checkpont": "x"})
    with pytest.raises(EncoderError, match=r"(?s)is a file; wanted a folder.*config\.json"):
        load("hubert", models / "hubert" / "model.safetensors")
    with pytest.raises(EncoderError, match="does not exist"):
        load("hubert", models / "nothing")
    with pytest.raises(EncoderError, match="A folder has no revisions"):
        load("hubert", models / "hubert", revision="main")


def test_without_network_the_message_says_which_files_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    with pytest.raises(EncoderError, match=r"(?s)model\.safetensors.*checkpoint=/folder"):
        load_encoder("wavlm")


def test_default_weights_and_revision_reach_the_loader(monkeypatch):
    asked = []

    def stop(source: str, **options: object) -> None:
        asked.append((source, options.get("revision")))
        raise OSError("stop here")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", stop)
    for args in ({}, {"revision": "abc"}, {"checkpoint": "org/model"}, {"checkpoint": "org/model", "revision": "v1"}):
        with pytest.raises(EncoderError, match="stop here"):
            load_encoder("hubert", args=args)
    assert asked == [
        ("facebook/hubert-base-ls960", "dba3bb02fda4248b6e082697eee756de8fe8aa8a"),
        ("facebook/hubert-base-ls960", "abc"),
        ("org/model", None),
        ("org/model", "v1"),
    ]
