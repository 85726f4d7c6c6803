"""Sentence vectors: against the golden vectors with real weights, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.probes.caption_models import packed_encoder, tiny_encoder
from tests.text_models import save_text_model, save_tokenizer
from xares_store.errors import ProbeError
from xares_store.probes import hub, sentence
from xares_store.probes.sentence import SENTENCE_ENCODER, SentenceEncoder, find_sentence_encoder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "captioning.json").read_text())
SENTENCES = ["a dog barks", "the loud bird sings", "", "a dog barks", "rain, rain falls soft"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder(tmp_path_factory.mktemp("encoder")))


def test_cosines_as_the_reference() -> None:
    found = packed_encoder()
    assert found.name in GOLDEN["sentence_encoder"]
    vectors = SentenceEncoder(found).embed(GOLDEN["cosine_matrix"]["sentences"])
    np.testing.assert_allclose(vectors @ vectors.T, GOLDEN["cosine_matrix"]["expected"], atol=1e-5)


def test_a_copy_of_known_weights_is_known_and_another_is_named_by_its_content(tmp_path: Path) -> None:
    found = packed_encoder()
    assert (found.name, found.published, found.longest) == ("all-MiniLM-L6-v2", False, 256)
    own = tiny_encoder(tmp_path / "mine")
    assert own.name.startswith("mine@")
    assert own.name != tiny_encoder(tmp_path / "mine", seed=1).name
    assert own.longest == 32


def test_the_name_on_the_hub_is_the_published_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    save_text_model(tmp_path / "hub")

    def from_hub(spec: str, weights: bool, option: str, extras: object) -> Path:
        asked.append((spec, weights, option, extras))
        return tmp_path / "hub"

    monkeypatch.setattr(hub, "_from_hub", from_hub)
    found = find_sentence_encoder()
    assert asked == [
        (SENTENCE_ENCODER, True, "--sentence-encoder", (sentence._SETTINGS, sentence._POOLING, sentence._MODULES))
    ]
    assert (found.name, found.published) == ("paraphrase-TinyBERT-L6-v2", True)
    revision = find_sentence_encoder(f"{SENTENCE_ENCODER}@other")
    assert (revision.name, revision.published) == ("paraphrase-TinyBERT-L6-v2@other", False)
    (tmp_path / "hub" / "tokenizer_config.json").unlink()
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    assert find_sentence_encoder().longest == 128
    assert find_sentence_encoder("org/other").longest == 512
    assert find_sentence_encoder("org/other").identity() != find_sentence_encoder().identity()


def test_a_vector_is_the_mean_of_the_last_hidden_state(tiny: SentenceEncoder) -> None:
    found = tiny.embed(SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    np.testing.assert_array_equal(found[0], found[3])
    for text, vector in zip(SENTENCES, found, strict=True):
        inputs = tiny._tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            mean = tiny._model(**inputs).last_hidden_state[0].mean(dim=0).double().numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
        np.testing.assert_allclose(vector, tiny.embed([text])[0], atol=1e-6)


def test_weighted_vectors_depend_on_the_corpus_and_plain_weights_change_nothing(
    tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted = tiny.embed_weighted(SENTENCES)
    np.testing.assert_array_equal(weighted[0], weighted[3])
    assert np.abs(weighted[0] - tiny.embed_weighted(SENTENCES[:3])[0]).max() > 1e-6
    np.testing.assert_allclose(tiny.embed_weighted(SENTENCES[::-1])[::-1], weighted, atol=1e-6)
    monkeypatch.setattr(sentence, "tfidf_weights", lambda ids, table, **_: [np.ones(len(one)) for one in ids])
    np.testing.assert_allclose(tiny.embed_weighted(SENTENCES), tiny.embed(SENTENCES), atol=1e-6)


def test_long_sentences_are_cut_where_the_encoder_says(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "m")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5, "do_lower_case": True}))
    found = find_sentence_encoder(str(folder))
    assert (found.longest, found.lower) == (5, True)
    encoder = SentenceEncoder(found)
    np.testing.assert_array_equal(*encoder.embed(["a dog barks loud", "A dog bark sings"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
            "asks for something",
        ),
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.b.Dense"}], "lists Dense"),
        ("modules.json", [{"name": 1}], "list of modules"),
        ("modules.json", 3, "list of modules"),
        ("sentence_bert_config.json", [], "JSON object"),
    ],
)
def test_an_encoder_that_does_something_else_is_refused(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    folder = save_text_model(tmp_path / "m")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ProbeError, match=message):
        find_sentence_encoder(str(folder))


def test_an_encoder_that_is_not_there_names_the_option(tmp_path: Path) -> None:
    for spec in (str(tmp_path / "nowhere"), str(save_tokenizer(tmp_path / "only"))):
        with pytest.raises(ProbeError) as error:
            find_sentence_encoder(spec)
        assert "--sentence-encoder" in str(error.value)


def test_weights_that_lack_or_break_are_refused(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    partial = {name: value for name, value in state.items() if "layer.1" not in name}
    save_file(partial, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProbeError, match=r"lacks .* weights"):
        SentenceEncoder(find_sentence_encoder(str(folder)))
    broken = {name: torch.full_like(value, torch.nan) for name, value in state.items()}
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProbeError, match="NaN, Inf or zeros"):
        SentenceEncoder(find_sentence_encoder(str(folder))).embed(["a dog"])


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ProbeError, match="empty caption"):
        SentenceEncoder(find_sentence_encoder(str(folder)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    encoder = SentenceEncoder(find_sentence_encoder(str(folder)))
    assert encoder.embed(["a dog"]).shape == (1, 16)
    with pytest.raises(ProbeError, match="padding, start and end"):
        encoder.embed_weighted(["a dog"])
    with pytest.raises(ProbeError, match="found none"):
        encoder.embed([])
