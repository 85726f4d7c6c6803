"""The estimate of memory against what a real forward and backward pass keeps alive, and the recipes as they ship."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xares_store.catalog import load_recipe
from xares_store.probes.llm.decoder import Decoder, DecoderShape
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.memory import decoder_parameters, estimate, trained_parameters
from xares_store.probes.llm.model import AudioLm
from xares_store.recipe import Recipe

SMOL = DecoderShape(576, 1536, 30, 9, 3, 64, 49152, 2048, True)
QWEN = DecoderShape(896, 4864, 24, 14, 2, 64, 151936, 32768, True)
SMALL = DecoderShape(64, 176, 6, 4, 2, 16, 2000, 8192, True)
DIM = 32
SPEECH: dict[str, Any] = {  # 35 s at 50 Hz
    "dim": 768, "train_frames": 1750, "write_frames": 1750, "prompt_tokens": 20, "answer_tokens": 120,
    "memory_bytes": 1 << 30,
}  # fmt: skip


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still alive.

    Attributes:
        most: at the worst moment.
    """

    def __init__(self, model: AudioLm) -> None:
        super().__init__()
        self.now = self.most = 0
        old = [each for value in model.parameters() for each in (value, value.grad) if each is not None]
        self.known = {value.untyped_storage()._cdata for value in old}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def with_training(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def make(recipe: Recipe, shape: DecoderShape = SMALL) -> AudioLm:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    decoder = LlamaForCausalLM(config).eval().requires_grad_(False)
    loaded = Decoder(decoder, None, end=0, pad=0, shape=shape, spec="small")
    return AudioLm(loaded, recipe, dim=DIM, separator=None if recipe.separator is None else 1)


def clips(*frames: int) -> list[Example]:
    random = np.random.default_rng(0)
    return [Example(random.normal(size=(n, DIM)).astype(np.float32), (1,) * 5, (2,) * 20, str(n)) for n in frames]


def estimated(recipe: Recipe, examples: Sequence[Example]) -> dict[str, int]:
    found = estimate(
        SMALL,
        with_training(recipe, batch_size=len(examples), frame_budget=10_000),
        dim=DIM,
        train_frames=len(examples[0].frames),
        write_frames=len(examples[0].frames),
        prompt_tokens=5,
        answer_tokens=20,
        memory_bytes=0,
        device="cpu",
    )
    return found.parts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["xares-llm", "xares-asr"])
def test_what_a_real_pass_keeps_alive_is_estimated(name: str, checkpointing: bool, precision: str) -> None:
    recipe = with_training(load_recipe(name), gradient_checkpointing=checkpointing, precision=precision)
    model, examples = make(recipe).train(), clips(300, 300, 300, 200)
    for value in model.trainable().values():
        value.grad = torch.zeros_like(value)
    half = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    with Alive(model) as alive:
        with half:
            loss, _ = model.loss(examples)
        loss.backward()
    parts = estimated(recipe, examples)
    assert 0.85 < (parts["activations"] + parts["work"]) / alive.most < 1.4


def test_what_writing_keeps_alive_is_estimated() -> None:
    recipe = load_recipe("xares-llm")
    model, examples = make(recipe).eval(), clips(300, 300, 300, 200)
    layout = model._layout(examples, answers=False)
    with torch.no_grad(), Alive(model) as alive:
        model.decoder.generate(
            inputs_embeds=model._embedded(examples, layout),
            attention_mask=layout.attention,
            max_new_tokens=recipe.generation.max_new_tokens,
            min_new_tokens=recipe.generation.max_new_tokens,
            do_sample=False,
        )
    budget = len(examples) * (305 + recipe.generation.max_new_tokens)
    found = estimate(
        SMALL,
        with_training(recipe, frame_budget=budget),
        dim=DIM,
        train_frames=1,
        write_frames=300,
        prompt_tokens=5,
        answer_tokens=1,
        memory_bytes=0,
    )
    assert 0.85 < found.parts["cache"] / alive.most < 1.6


def test_trained_parameters_are_those_of_the_model() -> None:
    for name in ("xares-llm", "xares-asr"):
        recipe = load_recipe(name)
        model = make(recipe)
        trained = sum(value.numel() for value in model.trainable().values())
        assert trained_parameters(SMALL, recipe, DIM) == trained
        assert decoder_parameters(SMALL) + trained == sum(value.numel() for value in model.parameters())
    untied = DecoderShape(64, 176, 6, 4, 2, 16, 2000, 8192, False)
    assert decoder_parameters(untied) == sum(value.numel() for value in make(recipe, untied).text.model.parameters())


def test_xares_llm_as_shipped_fits_a_gpu_of_16_gb_and_12_gb_of_ram() -> None:
    recipe = load_recipe("xares-llm")
    assert recipe.training.gradient_checkpointing
    for dim, hz in ((768, 25), (768, 50), (4096, 100)):
        found = estimate(
            SMOL,
            recipe,
            dim=dim,
            train_frames=30 * hz,
            write_frames=120 * hz,
            prompt_tokens=40,
            answer_tokens=300,
            memory_bytes=1 << 30,
        )
        assert found.gpu_bytes < 8e9
        assert found.ram_bytes < 6e9


def test_what_decides_memory_moves_the_estimate() -> None:
    assert estimate(QWEN, load_recipe("xares-asr"), **SPEECH).gpu_bytes < 8e9  # as shipped, it fits a small GPU
    recipe = with_training(load_recipe("xares-asr"), gradient_checkpointing=False)
    whole = estimate(QWEN, recipe, **SPEECH)
    assert 16e9 < whole.gpu_bytes < 30e9
    for changes, least, most in (
        ({"frame_budget": 4096}, 10e9, 16e9),
        ({"gradient_checkpointing": True}, 4e9, 8e9),
        ({"precision": "bf16"}, 12e9, 20e9),
        ({"batch_size": 1}, 6e9, 11e9),
    ):
        assert least < estimate(QWEN, with_training(recipe, **changes), **SPEECH).gpu_bytes < most, changes
    more = estimate(QWEN, recipe, **SPEECH | {"memory_bytes": 3 << 30})
    assert more.parts["frames"] - whole.parts["frames"] == 2 << 30
    assert more.ram_bytes > whole.ram_bytes + 1e9  # it is not read while the decoder is loaded
    assert estimate(QWEN, recipe, **SPEECH | {"answer_tokens": 1200}).gpu_bytes > whole.gpu_bytes + 5e9
    long = estimate(QWEN, with_training(recipe, frame_budget=2048), **SPEECH | {"write_frames": 60_000})
    assert long.parts["cache"] > 10 * whole.parts["cache"] / 2


def test_on_the_cpu_everything_is_in_ram() -> None:
    recipe = load_recipe("xares-llm")
    found, other = estimate(SMOL, recipe, **SPEECH, device="cpu"), estimate(SMOL, recipe, **SPEECH)
    assert found.gpu_bytes == 0
    assert found.ram_bytes > other.gpu_bytes
    assert set(found.parts) == set(other.parts)
    assert found.parts["loading"] == 0
    assert other.parts["loading"] == other.parts["decoder"]
    assert estimate(SMOL, recipe, **SPEECH, device="cuda:1") == other
