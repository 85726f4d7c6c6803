"""What makes a folder a decoder, and what of it decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.probes.llm.models import VOCABULARY, save_tiny
from tests.text_models import save_text_model
from xares_store.catalog import load_recipe
from xares_store.errors import ProbeError
from xares_store.probes.hub import find_text_files
from xares_store.probes.llm.decoder import Decoder, DecoderShape, decoder_shape, find_decoder, load_decoder
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.memory import trained_parameters
from xares_store.probes.llm.model import AudioLm, Written
from xares_store.quiet import quiet_transformers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("decoder"))


def _write(folder: Path, name: str, **changed: Any) -> None:
    """Change settings in a JSON file of a model; None takes one out."""
    path = folder / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    content |= changed
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _load(folder: Path) -> Decoder:
    return load_decoder(find_decoder(str(folder)), device="cpu")


def _other(folder: Path, config: Any) -> Path:
    """Save a causal language model of another type, with the tiny one's tokenizer."""
    from transformers import AutoModelForCausalLM

    save_tiny(folder)
    torch.manual_seed(0)
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(vocab_size=9, n_positions=64, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)


def _bert(**changed: Any) -> Any:
    from transformers import BertConfig

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(vocab_size=9, max_position_embeddings=64, **{"is_decoder": True, **shape, **changed})


def _opt(**changed: Any) -> Any:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=9,
        hidden_size=8,
        ffn_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **changed,
    )


def test_an_adapter_beside_the_decoder_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / "decoder")
    find_decoder(str(folder))
    with quiet_transformers():
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
        adapted.save_pretrained(folder)
    assert (folder / "config.json").is_file()
    with pytest.raises(ProbeError, match=r"(?s)adapter.*merge_and_unload"):
        find_decoder(str(folder))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "transformers_weights", "other.safetensors"),
        ("config.json", "configuration_files", ["config.4.0.0.json"]),
        ("tokenizer_config.json", "fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
    ],
)
def test_files_beyond_the_identity_are_refused(tmp_path: Path, name: str, key: str, value: Any) -> None:
    folder = save_tiny(tmp_path / "decoder")
    _write(folder, name, **{key: value})
    with pytest.raises(ProbeError, match=f'{name} has "{key}"'):
        find_decoder(str(folder))


def test_other_text_models_are_refused_alike(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ProbeError, match="adapter"):
        find_text_files(str(folder), weights=True, option="--text-encoder")
    find_text_files(str(folder), weights=False, option="--tokenizer")  # its tokenizer alone is what it is


@pytest.mark.parametrize("option", ["--decoder", "--tokenizer"])
def test_the_home_of_nobody(option: str) -> None:
    with pytest.raises(ProbeError, match="~nosuch-user/x does not exist"):
        find_text_files("~nosuch-user/x", weights=True, option=option)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama", "opt"])
def test_nothing_is_random_in_training(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "decoder"
    if kind == "gpt2":
        _other(folder, _gpt2())
        _write(folder, "config.json", embd_pdrop=None, attn_pdrop=None, resid_pdrop=None)  # 0.1, unless it is said
    elif kind == "bert":
        _other(folder, _bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    elif kind == "llama":
        save_tiny(folder, attention_dropout=0.5)
    else:
        _other(folder, _opt(dropout=0.5, attention_dropout=0.5, layerdrop=0.5))
    decoder = _load(folder)
    ids = torch.tensor([[2, 3, 4, 5, 2, 3]])
    with torch.no_grad():
        quiet = decoder.model(input_ids=ids).logits
        decoder.model.train()
        for _ in range(4):
            torch.testing.assert_close(decoder.model(input_ids=ids).logits, quiet)


def _text(folder: Path, recipe: str) -> list[Written]:
    model = AudioLm(_load(folder), load_recipe(recipe), dim=5, separator=1, seed=1)
    with torch.no_grad():
        next(model.audio_projector.parameters()).mul_(20)
    rng = np.random.default_rng(0)
    clips = [Example(rng.normal(size=(n, 5)).astype(np.float32), (6, 7), (2,), f"clip-{n}") for n in (9, 4, 6)]
    return model.write(clips, max_new_tokens=8, repetition_penalty=1.1)


@pytest.mark.parametrize("recipe", ["xares-asr", "xares-llm"])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_settings_for_sampling_decide_nothing(tmp_path: Path, name: str, recipe: str) -> None:
    folder = save_tiny(tmp_path / "decoder", hidden_size=16, num_hidden_layers=2)
    plain = _text(folder, recipe)
    assert max(one.tokens for one in plain) > 3
    written = {token for one in plain for token in one.text.split()}
    _write(
        folder,
        name,
        do_sample=True,
        temperature=2.0,
        num_beams=2,
        max_new_tokens=3,
        max_length=4,
        no_repeat_ngram_size=1,
        forced_bos_token_id=5,
        forced_eos_token_id=0,
        suppress_tokens=sorted(VOCABULARY[token] for token in written),
        begin_suppress_tokens=[2, 3],
    )
    assert _text(folder, recipe) == plain


def _with_weights(folder: Path, *names: str) -> Path:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights |= {name: torch.zeros(4) for name in names}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_left_over_weights_are_named(tmp_path: Path) -> None:
    names = ["score.weight", "value.bias", "value.weight", "zone.weight"]
    folder = _with_weights(save_tiny(tmp_path / "headed"), *names)
    with pytest.raises(ProbeError, match=r"left over.*score.weight, value.bias, value.weight and 1 more"):
        _load(folder)
    shallow = save_tiny(tmp_path / "shallow", num_hidden_layers=2)
    _write(shallow, "config.json", num_hidden_layers=1)
    with pytest.raises(ProbeError, match=r"left over.*model\.layers\.1\."):
        _load(shallow)


def test_constants_of_old_checkpoints_may_be_left_over(tmp_path: Path) -> None:
    names = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "attn.bias", "attention.masked_bias", "position_ids")
    _load(_with_weights(save_tiny(tmp_path / "old"), *(f"model.layers.0.self_attn.{name}" for name in names)))


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "decoder")
    _write(folder, "config.json", vocab_size=30)
    with pytest.raises(ProbeError, match=r"of another shape: lm_head.weight \(\(9, 8\) in the file, \(30, 8\) in"):
        _load(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": "abc"}, "hidden_size.*expected int, got str .value: 'abc'"),
        ({"num_hidden_layers": 0}, "Sizes .* 1 at least: layers = 0"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, '"llama".*quantized'),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    folder = save_tiny(tmp_path / "decoder")
    _write(folder, "config.json", **changed)
    with pytest.raises(ProbeError, match=f"(?s){message}") as found:
        decoder_shape(find_decoder(str(folder)))
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mamba", '"mamba".*without attention are not supported'),
        ("rwkv", '"rwkv".*without attention are not supported'),
        ("bert", '"bert".*every token sees'),
        ("roberta", '"roberta".*every token sees'),
        ("t5", '"t5".*an encoder with a decoder'),
        ("bart", '"bart".*an encoder with a decoder'),
        ("distilbert", '"distilbert".*no causal language model'),
    ],
)
def test_models_that_are_no_decoder_are_refused_by_type(tmp_path: Path, kind: str, message: str) -> None:
    from transformers import AutoConfig

    folder = save_tiny(tmp_path / "decoder")
    AutoConfig.for_model(kind).save_pretrained(folder)
    with pytest.raises(ProbeError, match=message):
        decoder_shape(find_decoder(str(folder)))


def test_bert_as_a_decoder_is_one(tmp_path: Path) -> None:
    _bert().save_pretrained(save_tiny(tmp_path / "decoder"))
    assert decoder_shape(find_decoder(str(tmp_path / "decoder"))).hidden == 8


def test_width_is_that_of_the_token_table(tmp_path: Path) -> None:
    folder = _other(tmp_path / "decoder", _opt(word_embed_proj_dim=6))
    shape = decoder_shape(find_decoder(str(folder)))
    assert (shape.hidden, shape.width) == (8, 6)
    assert _load(folder).shape == shape
    assert DecoderShape(576, 1536, 30, 9, 3, 64, 49152, 2048, True).width == 576


def test_a_projector_writes_into_the_token_table_and_not_into_positions(tmp_path: Path) -> None:
    recipe = load_recipe("xares-asr").model_copy(update={"lora": None})
    model = AudioLm(_load(_other(tmp_path / "decoder", _opt(word_embed_proj_dim=6))), recipe, dim=5, separator=1)
    loss, tokens = model.loss([Example(np.ones((3, 5), np.float32), (), (2, 3), "clip")])
    assert torch.isfinite(loss)
    assert tokens == 4
    counted = sum(value.numel() for value in model.trainable().values())
    assert counted == trained_parameters(model.text.shape, recipe, 5)
