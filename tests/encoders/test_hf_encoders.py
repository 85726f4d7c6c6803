"""Transformers models, offline: tiny random ones saved to a folder and loaded back through the spec."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.encoders.verify import verify_quick
from xares_store.errors import EncoderError

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
WAVE = TINY | {"conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 2}
POSITIONS = {"num_conv_pos_embeddings": 8}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 80, "vocab_size": 50, "pad_token_id": 1,
    "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip
# name -> (configuration, model, its arguments, feature extractor)
MODELS = {
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model", WAVE | POSITIONS, "Wav2Vec2FeatureExtractor", {}),
    "wav2vec2-large": (
        "Wav2Vec2Config",
        "Wav2Vec2Model",
        WAVE | POSITIONS | LAYER_NORM,
        "Wav2Vec2FeatureExtractor",
        {},
    ),
    "hubert": ("HubertConfig", "HubertModel", WAVE | POSITIONS, "Wav2Vec2FeatureExtractor", {}),
    "wavlm": ("WavLMConfig", "WavLMModel", WAVE | POSITIONS, "Wav2Vec2FeatureExtractor", {"do_normalize": False}),
    "data2vec": ("Data2VecAudioConfig", "Data2VecAudioModel", WAVE, "Wav2Vec2FeatureExtractor", {}),
    "whisper": ("WhisperConfig", "WhisperModel", WHISPER, "WhisperFeatureExtractor", {}),
    "ast": ("ASTConfig", "ASTModel", TINY | {"max_length": 256}, "ASTFeatureExtractor", {"max_length": 256}),
    "w2v-bert": ("Wav2Vec2BertConfig", "Wav2Vec2BertModel", TINY, "SeamlessM4TFeatureExtractor", {}),
}
HOP_MS = dict.fromkeys(MODELS, 20.0) | {"ast": 100.0}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with one tiny model a family."""
    root = tmp_path_factory.mktemp("models")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (config, model, settings, extractor, options) in MODELS.items():
            made = getattr(transformers, model)(getattr(transformers, config)(**settings))
            made.save_pretrained(root / name)
            getattr(transformers, extractor)(**options).save_pretrained(root / name)
    return root


def load(models: Path, name: str, **args: str) -> Encoder:
    return load_encoder(f"hf:{models / name}", args=args)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_family_keeps_the_contract(models, name):
    encoder = load(models, name)
    assert (encoder.name, encoder.sample_rate_hz, encoder.dim) == (name, 16000, 32)
    assert encoder.hop_ms == pytest.approx(HOP_MS[name], rel=1e-6)
    verify_quick(encoder)


@pytest.mark.parametrize("name", MODELS)
def test_very_short_and_long_audio(models, name):
    encoder = load(models, name)
    assert int(encoder.encode(noise(160))[1][0]) >= 1
    seconds = 65
    assert int(encoder.encode(noise(seconds * 16000))[1][0]) == pytest.approx(seconds * 1000 / encoder.hop_ms, rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_a_clip_is_encoded_as_if_alone(models, name):
    encoder = load(models, name)
    lengths = [24_000, 300, 10_007]
    batch = torch.zeros(3, max(lengths))
    for row, n in enumerate(lengths):
        batch[row, :n] = noise(n, row)
    frames, valid = encoder.encode(batch, torch.tensor(lengths))
    for row, n in enumerate(lengths):
        alone, counts = encoder.encode(batch[row : row + 1, :n])
        assert int(counts[0]) == int(valid[row])
        torch.testing.assert_close(frames[row, : int(valid[row])], alone[0, : int(counts[0])], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-large", "hubert", "wavlm", "data2vec"])
@pytest.mark.parametrize("layer", [None, 0, 2])
def test_waveform_models_equal_the_library(models, name, layer):
    """The normalisation and the layer are those of the feature extractor and the model themselves."""
    audio = noise(16_000)
    found, _ = load(models, name, **({} if layer is None else {"layer": str(layer)})).encode(audio * 3 + 0.2)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(models / name)
    model = transformers.AutoModel.from_pretrained(models / name).eval()
    inputs = extractor((audio[0] * 3 + 0.2).numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        output = model(inputs["input_values"], output_hidden_states=True)
    expected = output.last_hidden_state if layer is None else output.hidden_states[layer]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_whisper_keeps_the_frames_over_the_clip(models):
    audio = noise(16_000 * 3 + 100)
    found, valid = load(models, "whisper").encode(audio)
    assert valid.tolist() == [151]  # 3.00625 s in frames of 20 ms
    extractor = transformers.AutoFeatureExtractor.from_pretrained(models / "whisper")
    model = transformers.AutoModel.from_pretrained(models / "whisper").eval().get_encoder()
    inputs = extractor(audio[0].numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        expected = model(inputs["input_features"]).last_hidden_state
    assert expected.shape[1] == 1500
    torch.testing.assert_close(found, expected[:, :151], rtol=1e-3, atol=1e-4)


def test_whisper_windows_are_30_s(models):
    encoder = load(models, "whisper")
    assert encoder.max_length_s == 30.0
    audio = noise(16_000 * 60)
    joined, valid = encoder.encode(audio)
    assert valid.tolist() == [3000]
    for index, part in enumerate(audio.split(16_000 * 30, dim=1)):
        alone = encoder.encode(part)[0][0]
        torch.testing.assert_close(joined[0, index * 1500 : (index + 1) * 1500], alone, rtol=1e-3, atol=1e-4)


def test_whisper_decoder_is_left_behind(models):
    parameters = load(models, "whisper").record["parameters"]
    whole = sum(p.numel() for p in transformers.AutoModel.from_pretrained(models / "whisper").parameters())
    assert parameters < whole


def test_ast_patches_are_averaged_over_frequency(models):
    audio = noise(16_000 * 2)
    found, valid = load(models, "ast").encode(audio)
    assert valid.tolist() == [20]
    with warnings.catch_warnings():  # its filter bank warns about filters narrower than a bin
        warnings.simplefilter("ignore")
        extractor = transformers.AutoFeatureExtractor.from_pretrained(models / "ast")
    model = transformers.AutoModel.from_pretrained(models / "ast").eval()
    inputs = extractor(audio[0].numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        tokens = model(inputs["input_values"]).last_hidden_state.numpy()[0, 2:]
    expected = np.stack([tokens[column::25].mean(0) for column in range(20)])  # 12 rows of 25 columns
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_layer_is_in_name_and_identity(models):
    last, sixth = load(models, "hubert"), load(models, "hubert", layer="2")
    assert (last.name, sixth.name) == ("hubert", "hubert[layer=2]")
    assert last.fingerprint != sixth.fingerprint
    for same in ("-1", "last", "3"):
        assert load(models, "hubert", layer=same).address == last.address
    assert load(models, "hubert", layer="-2").address == sixth.address


@pytest.mark.parametrize("layer", ["4", "-5", "1.5", "first", "true"])
def test_impossible_layer_is_refused(models, layer):
    with pytest.raises(EncoderError, match=r"(?s)no layer.*3 layers.*layer=3"):
        load(models, "hubert", layer=layer)


def test_unknown_argument_is_refused(models):
    with pytest.raises(EncoderError, match='Did you mean "layer"'):
        load(models, "hubert", layers="4")


@pytest.mark.parametrize(("name", "value"), [("hubert", "0"), ("hubert", "long"), ("whisper", "31"), ("ast", "3")])
def test_impossible_window_is_refused(models, name, value):
    with pytest.raises(EncoderError, match="max_length_s must be"):
        load(models, name, max_length_s=value)


def test_window_can_be_shortened(models):
    assert load(models, "hubert", max_length_s="10").max_length_s == 10.0


def test_identity_is_that_of_the_content(models, tmp_path):
    before = load(models, "hubert")
    moved = tmp_path / "hubert"
    shutil.copytree(models / "hubert", moved)
    assert load_encoder(f"hf:{moved}").address == before.address
    weights = load_file(moved / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.0.attention.k_proj.weight"))
    weights[name] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(f"hf:{moved}").fingerprint != before.fingerprint


def test_changed_preprocessing_is_another_encoder(models, tmp_path):
    shutil.copytree(models / "hubert", tmp_path / "hubert")
    file = tmp_path / "hubert" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_normalize": False}))
    assert load_encoder(f"hf:{tmp_path / 'hubert'}").fingerprint != load(models, "hubert").fingerprint


def test_missing_weights_are_refused_and_not_made_up(models, tmp_path):
    shutil.copytree(models / "hubert", tmp_path / "hubert")
    file = tmp_path / "hubert" / "model.safetensors"
    weights = {key: value for key, value in load_file(file).items() if "k_proj" not in key}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"lacks 6 weights.*k_proj"):
        load_encoder(f"hf:{tmp_path / 'hubert'}")


def test_a_lacking_unused_weight_leaves_the_identity_stable(models, tmp_path):
    shutil.copytree(models / "hubert", tmp_path / "hubert")
    file = tmp_path / "hubert" / "model.safetensors"
    weights = {key: value for key, value in load_file(file).items() if "masked_spec_embed" not in key}
    save_file(weights, file, metadata={"format": "pt"})
    assert len({load_encoder(f"hf:{tmp_path / 'hubert'}").fingerprint for _ in range(2)}) == 1


def test_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(EncoderError, match=r"(?s)cannot be loaded.*hf:"):
        load_encoder(f"hf:{tmp_path}")


def test_without_network_the_message_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    with pytest.raises(EncoderError, match=r"(?s)cannot be loaded.*Without network, download it first"):
        load_encoder("hf:no-such-organisation/no-such-model@main")


def test_code_in_a_model_folder_is_never_run(models, tmp_path):
    folder = tmp_path / "hubert"
    shutil.copytree(models / "hubert", folder)
    (folder / "trap.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Model: ...\nclass Config: ...\n"
    )
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"auto_map": {"AutoModel": "trap.Model", "AutoConfig": "trap.Config"}}
    file.write_text(json.dumps(config))
    with contextlib.suppress(EncoderError):  # refusing is as good as ignoring
        load_encoder(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()
