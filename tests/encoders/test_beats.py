"""BEATs: names and shapes of the published models, the computation written out plainly, and the encoder contract."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.encoders.checkpoints import (
    assert_clips_are_encoded_as_if_alone,
    assert_passes_check,
    noise,
    published,
    randomised,
    shapes_of,
)
from xares_store.encoders.beats import BASE, FBANK_MEAN, FBANK_STD, LARGE, SIZES, Beats, BeatsConfig, relative_buckets
from xares_store.encoders.encoder import Encoder, load_encoder
from xares_store.encoders.melfront import KaldiFbank
from xares_store.errors import EncoderError

SPEC = "beats"
CFG = {
    "embed_dim": 24, "encoder_layers": 3, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 4, "conv_pos": 8, "conv_pos_groups": 4, "deep_norm": True,
    "relative_position_embedding": True, "num_buckets": 16, "max_distance": 40, "gru_rel_pos": True,
    # settings of the training, which a checkpoint holds as well
    "dropout": 0.1, "encoder_layerdrop": 0.05, "finetuned_model": False, "layer_wise_gradient_decay_ratio": 0.6,
}  # fmt: skip
TINY = BeatsConfig(**{key: value for key, value in CFG.items() if hasattr(BASE, key)})


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return randomised(Beats(TINY))


def saved(folder: Path, model: dict[str, torch.Tensor] | None = None, cfg: dict | None = CFG, **other) -> str:
    path = folder / "beats.pt"
    content = {"model": weights() if model is None else model, **other}
    torch.save(content if cfg is None else content | {"cfg": cfg}, path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("beats"))


def load(checkpoint: str, **args: str) -> Encoder:
    return load_encoder(SPEC, args={"checkpoint": checkpoint, **args})


@pytest.mark.parametrize("size", ["base", "large"])
def test_names_and_shapes_are_those_of_the_published_model(size):
    shapes, parameters = published("beats", size)
    with torch.device("meta"):
        model = Beats(SIZES[size])
    assert shapes_of(model) == shapes
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_published_constants(checkpoint):
    assert (FBANK_MEAN, FBANK_STD) == (15.41663, 6.55582)
    fbank = load(checkpoint).module.fbank
    assert (fbank.width, fbank.hop, fbank.n_fft, fbank.gain) == (400, 160, 512, 2**15)
    assert fbank.mel.shape == (257, 128)
    for config, layers, dim in ((BASE, 12, 768), (LARGE, 24, 1024)):
        assert (config.encoder_layers, config.encoder_embed_dim, config.input_patch_size) == (layers, dim, 16)
        assert (config.num_buckets, config.max_distance, config.conv_pos) == (320, 800, 128)


@pytest.mark.parametrize(("buckets", "farthest"), [(320, 800), (16, 40), (32, 128)])
def test_buckets_equal_the_definition(buckets, farthest):
    found = relative_buckets(30, 900, buckets, farthest)
    half, exact = buckets // 2, buckets // 4
    for query in (0, 7, 29):
        for key in range(900):
            distance = abs(key - query)
            if distance < exact:
                bucket = distance
            else:
                share = np.log(np.float32(distance) / np.float32(exact)) / math.log(farthest / exact)
                bucket = min(exact + int(np.float32(share) * (half - exact)), half - 1)
            assert abs(int(found[query, key]) - bucket - half * (key > query)) <= (distance >= exact) * 0


def plainly(cfg: BeatsConfig, w: dict[str, torch.Tensor], audio: torch.Tensor, layers: int) -> torch.Tensor:
    """The computation of one clip in float64, token by token and head by head: (tokens, dim)."""
    w = {name: tensor.double() for name, tensor in w.items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[name + ".weight"] + w[name + ".bias"]

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    mel = KaldiFbank(128)(audio, torch.tensor([audio.shape[1]]))[0][0].double()
    mel = (mel - 15.41663) / (2 * 6.55582)
    kernel = w["patch_embedding.weight"][:, 0].flatten(1)
    tokens = torch.stack([
        mel[t * 16 : t * 16 + 16, f * 16 : f * 16 + 16].flatten() @ kernel.T
        for t in range(len(mel) // 16) for f in range(8)
    ])  # fmt: skip
    x = linear(norm(tokens, "layer_norm"), "post_extract_proj")
    direction, length = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"][0, 0]
    moved = torch.zeros_like(x)
    group = cfg.encoder_embed_dim // cfg.conv_pos_groups
    for tap in range(cfg.conv_pos):
        matrix = direction[:, :, tap] * length[tap] / direction[:, :, tap].norm()
        for token in range(len(x)):
            other = token + tap - cfg.conv_pos // 2
            if 0 <= other < len(x):
                for g in range(cfg.conv_pos_groups):
                    rows = slice(g * group, g * group + group)
                    moved[token, rows] += matrix[rows] @ x[other, rows]
    x = norm(x + gelu(moved + w["encoder.pos_conv.0.bias"]), "encoder.layer_norm")
    table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    position = table[relative_buckets(len(x), len(x), cfg.num_buckets, cfg.max_distance)]
    size, alpha = cfg.encoder_embed_dim // cfg.encoder_attention_heads, (2 * cfg.encoder_layers) ** 0.25
    for layer in range(layers):
        name = f"encoder.layers.{layer}."
        q, k, v = (linear(x, f"{name}self_attn.{part}_proj") for part in "qkv")
        mixed = torch.zeros_like(x)
        for head in range(cfg.encoder_attention_heads):
            at = slice(head * size, head * size + size)
            eight = linear(q[:, at], name + "self_attn.grep_linear")
            first, second = eight[:, :4].sum(1).sigmoid(), eight[:, 4:].sum(1).sigmoid()
            gate = first * (second * w[name + "self_attn.grep_a"][0, head, 0, 0] - 1) + 2
            scores = q[:, at] @ k[:, at].T / math.sqrt(size) + gate[:, None] * position[:, :, head]
            mixed[:, at] = scores.softmax(1) @ v[:, at]
        x = norm(x * alpha + linear(mixed, name + "self_attn.out_proj"), name + "self_attn_layer_norm")
        inner = linear(gelu(linear(x, name + "fc1")), name + "fc2")
        x = norm(x * alpha + inner, name + "final_layer_norm")
    return x


@pytest.mark.parametrize(("layer", "layers"), [("-1", 3), ("0", 0), ("2", 2)])
def test_the_computation_written_out_plainly(checkpoint, layer, layers):
    (audio,) = noise(16 * 160 * 2 + 400)
    expected = plainly(TINY, weights(), audio, layers).unflatten(0, (-1, 8))
    apart, valid = load(checkpoint, layer=layer, merge="concat").encode(audio)
    assert valid.tolist() == [2]
    torch.testing.assert_close(apart[0], expected.flatten(1).float(), rtol=1e-3, atol=1e-3)
    merged, _ = load(checkpoint, layer=layer).encode(audio)
    torch.testing.assert_close(merged[0], expected.mean(1).float(), rtol=1e-3, atol=1e-3)


def test_declares_what_it_returns(checkpoint):
    encoder = load(checkpoint)
    assert (encoder.sample_rate_hz, encoder.dim, encoder.hop_ms, encoder.max_length_s) == (16000, 32, 160.0, None)
    assert load(checkpoint, merge="concat").dim == 8 * 32
    assert encoder.encode(torch.zeros(1, 160_000))[1].tolist() == [62]  # 998 frames of 10 ms


def test_clips_are_encoded_as_if_alone(checkpoint):
    assert_clips_are_encoded_as_if_alone(load(checkpoint), 40_000, 160, 1, 12_345, 2_799, 5_360)


def test_long_clips_are_attended_to_in_windows(checkpoint):
    encoder = load(checkpoint, window_s="1.0")
    (audio,) = noise(5 * 16_000)
    frames, valid = encoder.encode(audio)
    assert valid.tolist() == [31]  # in windows of 6, 6, 6, 6 and 7 patches at most
    assert frames.shape == (1, 31, 32)
    assert_clips_are_encoded_as_if_alone(encoder, 50_000, 16_000, 33_000)


def test_three_minutes_keep_their_time(checkpoint):
    _, valid = load(checkpoint).encode(torch.zeros(1, 180 * 16_000))
    assert valid.tolist() == [(180 * 100 - 2) // 16]


def test_passes_check(checkpoint):
    assert_passes_check(SPEC, checkpoint=checkpoint)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder."])
def test_other_tools_files_are_understood(tmp_path, checkpoint, prefix):
    """Wrapped names, the classifier of a fine-tuned model and OpenBEATs' two constants change nothing."""
    model = {prefix + name: tensor for name, tensor in weights().items()}
    model |= {
        prefix + "predictor.weight": torch.ones(527, 32),
        prefix + "patch_embedding_pad.weight": torch.ones(1, 1, 16, 16),
        prefix + "raw2fbank_pad.weight": torch.ones(1, 1, 400),
        "decoder.decoder_pred.weight": torch.ones(3, 3),
    }
    (audio,) = noise(16_000)
    found = load(saved(tmp_path, model)).encode(audio)[0]
    torch.testing.assert_close(found, load(checkpoint).encode(audio)[0])


def test_statistics_of_another_corpus_are_used(tmp_path, checkpoint):
    (audio,) = noise(16_000)
    other = load(saved(tmp_path, cfg=CFG | {"fbank_mean": 14.0, "fbank_std": 5.0}))
    assert not torch.allclose(other.encode(audio)[0], load(checkpoint).encode(audio)[0], atol=1e-3)


def test_a_file_without_settings_needs_the_size(tmp_path):
    path = saved(tmp_path, cfg=None)
    with pytest.raises(EncoderError, match="holds no settings") as caught:
        load(path)
    assert "size=base" in str(caught.value)
    with pytest.raises(EncoderError, match="of another shape"):  # and then it is read as the published model
        load(path, size="base")


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights().items() if key != name}


@pytest.mark.parametrize(("model", "message"), [
    (lambda: without("encoder.layers.1.fc1.bias"), "1 missing: encoder.layers.1.fc1.bias"),
    (lambda: weights() | {"mask_token": torch.ones(1)}, "1 unexpected: mask_token"),
    (lambda: weights() | {"encoder.layers.0.self_attn.grep_a": torch.ones(1, 2, 1, 1)},
     "grep_a (wanted (1, 4, 1, 1), found (1, 2, 1, 1))"),
    (lambda: weights() | {"encoder.layers.2.self_attn.relative_attention_bias.weight": torch.ones(16, 4)},
     "Layer 2 of the checkpoint has another relative_attention_bias"),
])  # fmt: skip
def test_a_wrong_or_partial_checkpoint_is_refused(tmp_path, model, message):
    path = saved(tmp_path, model())
    with pytest.raises(EncoderError, match=re.escape(message)) as caught:
        load(path)
    assert caught.value.where == path


@pytest.mark.parametrize(("change", "message"), [
    ({"activation_fn": "relu"}, "never published: activation_fn=relu"),
    ({"gru_rel_pos": False}, "never published: gru_rel_pos=False"),
    ({"encoder_attention_heads": 5}, "do not divide"),
    ({"encoder_layers": "3"}, '"encoder_layers" of the checkpoint must be a positive int; found \'3\''),
    ({"encoder_layers": 0}, "must be a positive int; found 0"),
    ({"deep_norm": 1}, "must be a bool; found 1"),
    ({"fbank_std": 0.0}, "must be a positive float; found 0.0"),
])  # fmt: skip
def test_settings_that_were_never_published_are_refused(tmp_path, change, message):
    with pytest.raises(EncoderError, match=re.escape(message)):
        load(saved(tmp_path, cfg=CFG | change))


@pytest.mark.parametrize(("args", "message"), [
    ({"layer": "4"}, "There is no layer 4; the model has 3."),
    ({"layer": "-5"}, "There is no layer -5"),
    ({"merge": "max"}, 'merge must be "mean" or "concat"'),
    ({"size": "huge"}, 'size must be "base" or "large"'),
    ({"window_s": "0.1"}, "must hold a patch of 160 ms"),
])  # fmt: skip
def test_impossible_arguments_are_refused(checkpoint, args, message):
    with pytest.raises(EncoderError, match=re.escape(message)):
        load(checkpoint, **args)


def test_without_a_checkpoint_it_says_where_to_get_one():
    with pytest.raises(EncoderError, match="beats needs the file of a checkpoint") as caught:
        load_encoder(SPEC)
    assert "github.com/microsoft/unilm" in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path, checkpoint):
    path = tmp_path / "cut.pt"
    path.write_bytes(Path(checkpoint).read_bytes()[:5000])
    with pytest.raises(EncoderError, match="cannot be read"):
        load(str(path))


def test_plain_norm_is_a_matter_of_the_settings(tmp_path, checkpoint):
    (audio,) = noise(16_000)
    plain = load(saved(tmp_path, cfg=CFG | {"deep_norm": False}))
    assert plain.module.model.encoder.layers[0].alpha == 1.0
    assert dataclasses.replace(TINY, deep_norm=False) == plain.module.model.encoder.config
    assert not torch.allclose(plain.encode(audio)[0], load(checkpoint).encode(audio)[0], atol=1e-3)
