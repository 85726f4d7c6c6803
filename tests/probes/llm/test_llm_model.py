"""The projector and the decoder together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.probes.llm.models import VOCABULARY, save_tiny
from xares_store.catalog import load_recipe
from xares_store.errors import ProbeError
from xares_store.probes.llm.decoder import Decoder, decoder_shape, find_decoder, load_decoder
from xares_store.probes.llm.dropout import ClipDropout, Clips
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm
from xares_store.probes.llm.projector import make_projector
from xares_store.probes.llm.selftest import check_decoder
from xares_store.quiet import quiet_transformers
from xares_store.recipe import Projector, Recipe

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "llm_probes.json").read_text())
RECIPES = ("xares-asr", "xares-llm")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("decoder"), num_hidden_layers=2, hidden_size=16, intermediate_size=32)


def _decoder(folder: Path) -> Decoder:
    return load_decoder(find_decoder(str(folder)), device="cpu")


def _model(folder: Path, recipe: Recipe | str, *, dim: int = 5, gaps: bool = False, seed: int = 1) -> AudioLm:
    chosen = load_recipe(recipe) if isinstance(recipe, str) else recipe
    decoder = _decoder(folder)
    separator = None if chosen.separator is None else decoder.token(chosen.separator)
    return AudioLm(decoder, chosen, dim=dim, separator=separator, gaps=gaps, seed=seed)


def _examples(recipe: str, lengths: tuple[int, ...] = (9, 4, 6)) -> list[Example]:
    rng = np.random.default_rng(0)
    prompt = (6, 7) if recipe == "xares-llm" else ()
    answers = [(2, 3), (5,), (4, 5, 2)]
    return [
        Example(rng.normal(size=(n, 5)).astype(np.float32), prompt, answer, f"clip-{n}")
        for n, answer in zip(lengths, answers, strict=True)
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_of_a_batch_is_the_sum_over_its_clips(tiny: Path, recipe: str) -> None:
    model, examples = _model(tiny, recipe), _examples(recipe)
    total, tokens = model.loss(examples)
    alone = [model.loss([example]) for example in examples]
    assert tokens == sum(count for _, count in alone) == (9 if recipe == "xares-llm" else 12)
    assert total.item() == pytest.approx(sum(loss.item() for loss, _ in alone), rel=1e-5)


def test_loss_is_the_mean_that_transformers_computes(tiny: Path) -> None:
    model, examples = _model(tiny, "xares-asr"), _examples("xares-asr")[:1]
    total, tokens = model.loss(examples)
    layout = model._layout(examples, answers=True)
    found = model.decoder(
        inputs_embeds=model._embedded(examples, layout), attention_mask=layout.attention, labels=layout.labels
    )
    assert total.item() / tokens == pytest.approx(found.loss.item(), rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_written_does_not_depend_on_the_batch(tiny: Path, recipe: str) -> None:
    model, examples = _model(tiny, recipe), _examples(recipe)
    with torch.no_grad():
        model.audio_projector.weight.mul_(20) if recipe == "xares-llm" else model.audio_projector.proj.weight.mul_(20)
    together = model.write(examples, max_new_tokens=6, repetition_penalty=1.1)
    assert together == [model.write([example], max_new_tokens=6, repetition_penalty=1.1)[0] for example in examples]
    assert len({one.text for one in together}) > 1  # the audio is heard


@pytest.mark.parametrize("recipe", RECIPES)
def test_first_token_written_is_what_training_predicts(tiny: Path, recipe: str) -> None:
    """The place before the answer sees the same in generation as in training, whatever the padding."""
    model, examples = _model(tiny, recipe), _examples(recipe)
    with torch.no_grad():
        layout, logits = model._forward(examples)
        for row, example in enumerate(examples):
            first = logits[row, -(len(example.target) + 2)].argmax().item()
            written = model.write([example], max_new_tokens=1, repetition_penalty=1.0)[0]
            expected = "" if first == 0 else model.text.decode([first])
            assert written.text == expected
    assert layout.attention.shape[1] > 0


def test_published_layout_changes_what_padded_clips_see(tiny: Path) -> None:
    examples = _examples("xares-llm")
    strict, published = _model(tiny, "xares-llm"), _model(tiny, "xares-llm", gaps=True)
    longest, shorter = examples[:1], examples[1:2]
    assert strict.loss(longest)[0].item() == pytest.approx(published.loss(longest)[0].item(), rel=1e-5)
    alone = published.loss(shorter)[0].item()
    padded = published.loss([*longest, *shorter])[0].item() - published.loss(longest)[0].item()
    assert abs(alone - padded) > 1e-4


def test_repetition_penalty_counts_written_tokens_only(tiny: Path) -> None:
    model, examples = _model(tiny, "xares-llm"), _examples("xares-llm")
    with torch.no_grad():
        model.text.model.get_output_embeddings().weight[0].zero_()  # so that the end does not come at once
    plain = model.write(examples, max_new_tokens=8, repetition_penalty=1.0)
    strong = model.write(examples, max_new_tokens=8, repetition_penalty=50.0)
    assert [one.text.split()[:1] for one in plain] == [one.text.split()[:1] for one in strong]
    for one, other in zip(strong, plain, strict=True):
        assert len(set(one.text.split())) >= len(set(other.text.split()))
    assert [one.text for one in plain] != [one.text for one in strong]


def test_penalty_counts_every_written_token_also_of_padded_clips(tiny: Path) -> None:
    """A clip beside a much longer one is written about as alone: its padding exempts none of its words."""
    model = _model(tiny, "xares-llm")
    with torch.no_grad():
        model.text.model.get_output_embeddings().weight[0].zero_()  # so that the end does not come at once
    rng = np.random.default_rng(3)
    clips = [Example(rng.normal(size=(n, 5)).astype(np.float32), (6, 7), (), str(n)) for n in (40, 3, 12, 2, 30)]
    for penalty in (1.3, 2.0):
        together = model.write(clips, max_new_tokens=12, repetition_penalty=penalty)
        alone = [model.write([clip], max_new_tokens=12, repetition_penalty=penalty)[0] for clip in clips]
        assert together == alone
    assert together != model.write(clips, max_new_tokens=12, repetition_penalty=1.0)


def test_dropout_belongs_to_the_clip(tiny: Path) -> None:
    model = _model(tiny, "xares-llm")
    examples = [replace(example, number=number) for number, example in enumerate(_examples("xares-llm"), 5)]
    with torch.no_grad():
        for name, value in model.trainable().items():
            if "lora_B" in name:
                value.normal_()  # as after some steps: at the start LoRA adds nothing
    plain = model.loss(examples)[0].item()
    model.train()
    together = model.loss(examples)[0].item()
    assert together == pytest.approx(sum(model.loss([example])[0].item() for example in examples), rel=1e-5)
    assert together == model.loss(examples)[0].item()
    assert together == pytest.approx(model.loss(examples[::-1])[0].item(), rel=1e-5)
    assert abs(together - plain) > 1e-3
    other = [replace(example, number=example.number + 9) for example in examples]
    assert abs(model.loss(other)[0].item() - together) > 1e-4
    model.eval()
    assert model.loss(examples)[0].item() == plain


def test_share_that_is_dropped() -> None:
    clips = Clips(1, [4], torch.ones(1, 500, dtype=torch.bool))
    layer = ClipDropout(0.25, 0, clips)
    found = layer(torch.ones(1, 500, 40))
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert found.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert not torch.equal(found, ClipDropout(0.25, 1, clips)(torch.ones(1, 500, 40)))
    layer.eval()
    assert torch.equal(layer(found), found)


def test_likelihood_behind_a_sliding_window(tmp_path: Path) -> None:
    """A window cannot be said by one mask for all layers, so labels pass one by one."""
    from transformers import MistralConfig, MistralForCausalLM

    folder = save_tiny(tmp_path / "window")
    torch.manual_seed(0)
    MistralForCausalLM(
        MistralConfig(
            vocab_size=9, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=128, sliding_window=4, initializer_range=0.5, eos_token_id=0,
        )
    ).save_pretrained(folder)  # fmt: skip
    model = _model(folder, "xares-llm")
    check_decoder(model)
    example = _examples("xares-llm")[0]
    labels = [(2,), (2, 3, 4), (5, 4), (7, 7, 7, 7, 7)]
    found = model.label_scores(example, labels, budget=40)
    expected = [-model.loss([replace(example, target=label)])[0].item() for label in labels]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_decoders_are_tried_before_training(tiny: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(tiny, recipe)
    check_decoder(model)
    forward = model.text.model.model.forward

    def sees_everything(*args: Any, **options: Any) -> Any:
        """Mix what comes later into every position."""
        options["inputs_embeds"] = options["inputs_embeds"] + options["inputs_embeds"].mean(dim=1, keepdim=True)
        return forward(*args, **options)

    monkeypatch.setattr(model.text.model.model, "forward", sees_everything)
    with pytest.raises(ProbeError, match="no causal language model"):
        check_decoder(model)

    def shifts(*args: Any, **options: Any) -> Any:
        """Depend on how many positions there are."""
        length = options["inputs_embeds"].shape[1]
        options["inputs_embeds"] = options["inputs_embeds"] * length
        return forward(*args, **options)

    monkeypatch.setattr(model.text.model.model, "forward", shifts)
    with pytest.raises(ProbeError, match="is padded"):
        check_decoder(model)

    def fails(*args: Any, **options: Any) -> Any:
        raise ValueError("what is this")

    monkeypatch.setattr(model.text.model.model, "forward", fails)
    with pytest.raises(ProbeError, match="what is this"):
        check_decoder(model)
    monkeypatch.setattr(model.text.model.model, "forward", forward)
    with torch.no_grad():
        model.text.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ProbeError, match="not finite"):
        check_decoder(model)


@pytest.mark.parametrize("recipe", RECIPES)
def test_likelihood_of_labels(tiny: Path, recipe: str) -> None:
    model = _model(tiny, recipe)
    example = _examples(recipe)[0]
    labels = [(2,), (2, 3), (5, 4, 3), (7,), (4, 4)]
    found = model.label_scores(example, labels)
    separator = 0.0
    if recipe == "xares-asr":  # the separator is learnt, and no part of a label
        nothing = model.label_scores(example, [()])[0]
        separator = -model.loss([Example(example.frames, (), (), "")])[0].item() - nothing
    for label, score in zip(labels, found, strict=True):
        loss = model.loss([Example(example.frames, example.prompt, label, "")])[0].item()
        assert score + separator == pytest.approx(-loss, rel=1e-4)
    np.testing.assert_allclose(model.label_scores(example, labels, budget=14), found, rtol=1e-5)


def test_only_projector_and_lora_are_trained(tiny: Path) -> None:
    model = _model(save_tiny_one(tiny), "xares-llm")
    assert sorted(model.trainable()) == sorted(GOLDEN["xares_llm_trainable_names_tiny"])
    before = {name: value.clone() for name, value in model.decoder.named_parameters() if not value.requires_grad}
    model.train()
    model.loss(_examples("xares-llm"))[0].backward()
    assert all(value.grad is not None for value in model.trainable().values())
    assert all(value.grad is None for value in model.parameters() if not value.requires_grad)
    assert before


def save_tiny_one(folder: Path) -> Path:
    return save_tiny(folder.parent / "one-layer")


def test_numbers_of_parameters() -> None:
    lora = GOLDEN["lora"]
    recipe = load_recipe("xares-llm")
    assert recipe.lora is not None
    assert (recipe.lora.r, recipe.lora.alpha / recipe.lora.r) == (lora["r"], lora["scaling"])
    for dim, expected in lora["projector_parameters"].items():
        projector = make_projector(recipe.projector, int(dim), lora["decoder_shape"]["hidden"], 1536)
        assert sum(value.numel() for value in projector.parameters()) == expected
    gated = load_recipe("xares-asr").projector
    for dim, expected in ((768, 11_839_872), (1024, 14_330_240)):
        assert sum(value.numel() for value in make_projector(gated, dim, 896, 4864).parameters()) == expected
    small = make_projector(gated, 5, 8, 16)
    assert sum(value.numel() for value in small.parameters()) == GOLDEN["asr_llm_labels"]["trainable_parameters"]


def test_lora_of_the_published_decoder() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    lora, shape = GOLDEN["lora"], GOLDEN["lora"]["decoder_shape"]
    config = LlamaConfig(
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        vocab_size=shape["vocab"],
        tie_word_embeddings=shape["tied"],
    )
    with torch.device("meta"):
        base = LlamaForCausalLM(config)
        assert sum(value.numel() for value in base.parameters()) == lora["base_parameters"]
        with quiet_transformers():
            adapted = get_peft_model(
                base, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            )
    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    assert sum(value.numel() for value in trained.values()) == lora["lora_parameters"]
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert sorted(modules) == lora["adapted_modules"]


def test_activation_checkpointing_changes_no_gradient(tiny: Path) -> None:
    recipe = load_recipe("xares-llm")
    assert recipe.lora is not None
    plain = recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update={"gradient_checkpointing": False}),
            "lora": recipe.lora.model_copy(update={"dropout": 0.0}),
        }
    )
    checked = plain.model_copy(update={"training": recipe.training})
    gradients = []
    for one in (plain, checked):
        model = _model(tiny, one)
        model.train()
        model.loss(_examples("xares-llm"))[0].backward()
        gradients.append({name: value.grad.clone() for name, value in model.trainable().items()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name])


def test_text_is_written_as_precisely_as_it_was_learnt(tiny: Path) -> None:
    recipe = load_recipe("xares-llm")
    half = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "bf16"})})
    example = _examples("xares-llm")[0]
    whole, rounded = (_model(tiny, one).label_scores(example, [(2,), (3,)]) for one in (recipe, half))
    assert (whole != rounded).all()
    np.testing.assert_allclose(whole, rounded, atol=0.2)
    single = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "fp16"})})
    np.testing.assert_array_equal(_model(tiny, single).label_scores(example, [(2,), (3,)]), whole)


def test_the_separator_is_no_part_of_what_is_written(tiny: Path) -> None:
    model = _model(tiny, "xares-asr")
    assert model.text.decode([1, 2]) == "<|vision_end|> hello"  # no special token of this vocabulary
    assert model._said([1, 2, 1, 3]) == "hello world"


def test_state_comes_back(tiny: Path) -> None:
    one, other = _model(tiny, "xares-llm", seed=1), _model(tiny, "xares-llm", seed=2)
    examples = _examples("xares-llm")
    assert one.loss(examples)[0].item() != other.loss(examples)[0].item()
    other.load({name: value.detach().numpy() for name, value in one.trainable().items()})
    assert one.loss(examples)[0].item() == other.loss(examples)[0].item()
    with pytest.raises(ProbeError, match="do not belong"):
        other.load({"audio_projector.weight": np.zeros((16, 5), np.float32)})


@pytest.mark.parametrize("how", ["stack", "mean"])
def test_stride_shortens_the_audio(tiny: Path, how: str) -> None:
    recipe = load_recipe("xares-llm")
    strided = recipe.model_copy(update={"projector": Projector(kind="linear", stride=3, combine=how)})
    model, examples = _model(tiny, strided), _examples("xares-llm")
    assert [model.positions(example) for example in examples] == [3 + 2 + 2 + 1, 2 + 2 + 1 + 1, 2 + 2 + 3 + 1]
    assert model.audio_projector.weight.shape == (16, 15 if how == "stack" else 5)
    assert np.isfinite(model.loss(examples)[0].item())


def test_decoder_is_described_before_it_is_loaded(tiny: Path) -> None:
    shape = decoder_shape(find_decoder(str(tiny)))
    assert (shape.hidden, shape.inner, shape.layers, shape.vocabulary) == (16, 32, 2, len(VOCABULARY))
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.context, shape.tied) == (2, 1, 8, 256, False)


def test_decoders_that_cannot_be_used(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="--decoder"):
        find_decoder(str(tmp_path / "nothing"))
    broken = save_tiny(tmp_path / "broken")
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    save_file({n: v for n, v in weights.items() if "q_proj" not in n}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ProbeError, match="q_proj"):
        load_decoder(find_decoder(str(broken)), device="cpu")
    endless = save_tiny(tmp_path / "endless")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (endless / name).is_file():
            content = json.loads((endless / name).read_text())
            content.pop("eos_token", None)
            (endless / name).write_text(json.dumps(content))
    with pytest.raises(ProbeError, match="no end token"):
        load_decoder(find_decoder(str(endless)), device="cpu")
    other = save_tiny(tmp_path / "other", words=("more", "words"))
    (other / "model.safetensors").write_bytes((save_tiny(tmp_path / "small") / "model.safetensors").read_bytes())
    with pytest.raises(ProbeError, match=r"shape|loaded"):
        load_decoder(find_decoder(str(other)), device="cpu")


def test_a_decoder_of_code_is_not_run(tiny: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "code")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProbeError, match="cannot be used"):
        decoder_shape(find_decoder(str(folder)))


def test_every_vector_is_used() -> None:
    """The contrastive entries are those of the retrieval probe; the defects listed are the reference's own."""
    here = {"asr_llm_labels", "asr_llm_loss_check", "xares_llm_inputs", "position_ids", "lora"}
    here |= {"xares_llm_trainable_names_tiny"}
    elsewhere = {"contrastive_probe_params", "contrastive_probe_forward", "xares_llm_encoder_state_defects"}
    assert set(GOLDEN) == here | elsewhere
