"""Captions as tokens or vectors: words, tokenizers and frozen models from folders and the hub, offline."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests.text_models import PIECES, save_text_model, save_tokenizer
from xares_store.errors import ProbeError
from xares_store.probes import hub, text
from xares_store.probes.hub import find_text_files
from xares_store.probes.text import TokenBags, WordTokenizer, embed_captions, pretrained_bags, words_of

CAPTIONS = ["A dog barks.", "the bird sings", "rain, soft rain", "xyzzy", "A dog barks."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text") / "bert")


def model_of(folder, option="--text-encoder"):
    return find_text_files(str(folder), weights=True, option=option)


def test_bags_are_taken_in_any_order_and_as_often_as_wanted():
    bags = TokenBags.of([[5, 5, 1], [2], [0, 3]], vocabulary=6)
    token, offsets = bags.take(np.array([2, 0, 2]))
    assert len(bags) == 3
    assert token.tolist() == [0, 3, 5, 5, 1, 0, 3]
    assert offsets.tolist() == [0, 2, 5]


@pytest.mark.parametrize(("captions", "message"), [([[1], []], "caption 1"), ([[6]], "0 to 5"), ([[-1]], "0 to 5")])
def test_bags_refuse_what_cannot_be_embedded(captions, message):
    with pytest.raises(ProbeError, match=message):
        TokenBags.of(captions, vocabulary=6)


def test_words_come_from_several_training_captions_and_the_rest_is_unknown():
    tokenizer = WordTokenizer.fit(["The dog barks", "the DOG, dog, runs", "a cat", "a bird"])
    assert tokenizer.words == ("[UNK]", "a", "dog", "the")
    bags = tokenizer(["A dog dog meows", "...", "THE ｄｏｇ"])
    assert [bags.take(np.array([row]))[0].tolist() for row in range(3)] == [[1, 2, 2, 0], [0], [3, 2]]
    assert bags.vocabulary == 4


@given(st.text())
def test_any_text_becomes_words_without_space_or_capitals(caption):
    for word in words_of(caption):
        assert word == word.strip() != ""
        assert word == word.lower()


def test_pretrained_tokens_include_the_special_ones_and_no_padding(bert):
    bags = pretrained_bags(find_text_files(str(bert), weights=False, option="--tokenizer"), CAPTIONS)
    vocabulary = (bert / "vocab.txt").read_text().split()
    assert bags.vocabulary == len(vocabulary)
    words = [[vocabulary[i] for i in bags.take(np.array([row]))[0]] for row in range(len(CAPTIONS))]
    assert words[0] == ["[CLS]", "a", "dog", "bark", "##s", ".", "[SEP]"]
    assert words[3] == ["[CLS]", "[UNK]", "[SEP]"]


def test_vectors_are_the_mean_over_tokens_of_each_caption_alone(bert, monkeypatch):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(bert))
    model = transformers.AutoModel.from_pretrained(str(bert)).eval()
    expected = {}
    for caption in CAPTIONS:
        with torch.inference_mode():
            hidden = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        expected[caption] = (hidden.mean(0).numpy(), hidden[0].numpy())
    for budget in (8192, 1):
        monkeypatch.setattr(text, "_TOKENS_PER_BATCH", budget)
        for column, pooling in enumerate(("mean", "cls")):
            found = embed_captions(model_of(bert), CAPTIONS, pooling=pooling)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, [expected[one][column] for one in CAPTIONS], rtol=1e-4, atol=1e-5)


def test_equal_captions_are_embedded_once(bert, monkeypatch):
    seen = []
    plain = text.load_text_model

    def counting(files):
        model = plain(files)
        model.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        return model

    monkeypatch.setattr(text, "load_text_model", counting)
    embed_captions(model_of(bert), CAPTIONS * 3)
    assert sum(seen) == len(set(CAPTIONS))


def test_a_caption_longer_than_the_model_takes_is_cut(bert):
    found = embed_captions(model_of(bert), ["dog " * 100, "dog " * 30])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_identity_is_content_not_place(bert, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(bert, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "_name_or_path": "x", "transformers_version": "9"}))
    os.utime(copy / "model.safetensors", (1, 1))
    assert model_of(copy).identity() == model_of(bert).identity()
    other_weights = save_text_model(tmp_path / "seed", seed=1)
    other_words = save_text_model(tmp_path / "words", [*PIECES[:-1], ";"])
    shutil.copy(bert / "model.safetensors", other_words)
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1.0}))
    digests = {model_of(one).identity()["sha256"] for one in (bert, other_weights, other_words, copy)}
    assert len(digests) == 4
    assert model_of(bert).identity()["model"] == "bert"
    tokenizer = find_text_files(str(bert), weights=False, option="--tokenizer")
    assert tokenizer.identity() != find_text_files(str(other_words), weights=False, option="--tokenizer").identity()
    assert tokenizer.identity() == find_text_files(str(other_weights), weights=False, option="--tokenizer").identity()


def test_weights_changed_in_place_are_another_identity(tmp_path):
    folder = save_text_model(tmp_path / "m")
    before = model_of(folder).identity()
    save_text_model(folder, seed=2)
    os.utime(folder / "model.safetensors", (5, 5))
    assert model_of(folder).identity() != before


def test_a_torch_archive_is_read_when_there_is_nothing_safer(bert, tmp_path):
    files = model_of(save_text_model(tmp_path / "bin", safetensors=False))
    assert not files.safetensors
    assert model_of(bert).safetensors
    np.testing.assert_allclose(
        embed_captions(files, CAPTIONS), embed_captions(model_of(bert), CAPTIONS), rtol=1e-5, atol=1e-6
    )


def test_a_torch_archive_with_code_is_refused_and_not_run(tmp_path):
    folder = save_text_model(tmp_path / "bad", safetensors=False)
    witness = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (witness,)

    torch.save({"embeddings.word_embeddings.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ProbeError, match="cannot be loaded"):
        embed_captions(model_of(folder), CAPTIONS)
    assert not witness.exists()


def test_a_model_that_brings_its_own_code_is_refused(bert, tmp_path):
    folder = tmp_path / "code"
    shutil.copytree(bert, folder)
    witness = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(witness)!r}, 'w')\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProbeError, match="cannot be loaded"):
        embed_captions(model_of(folder), CAPTIONS)
    assert not witness.exists()


def test_missing_weights_are_an_error(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "partial"
    shutil.copytree(bert, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    embed_captions(model_of(folder), CAPTIONS)  # the pooler is not used
    kept.pop(next(name for name in kept if "layer.1" in name))
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProbeError, match="lacks 1 weights"):
        embed_captions(model_of(folder), CAPTIONS)


@pytest.mark.parametrize(
    ("gone", "message"),
    [("config.json", "config.json is not there"), ("model.safetensors", "a weight file"), ("vocab", "a tokenizer")],
)
def test_an_incomplete_folder_is_named(bert, tmp_path, gone, message):
    folder = tmp_path / "part"
    shutil.copytree(bert, folder)
    for name in ["vocab.txt", "tokenizer.json"] if gone == "vocab" else [gone]:
        (folder / name).unlink()
    with pytest.raises(ProbeError, match=message):
        model_of(folder)


def test_shards_of_weights_are_all_needed_and_stay_in_the_folder(bert, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(ProbeError, match=r"model-2.safetensors is not there"):
        model_of(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(ProbeError, match="not usable"):
        model_of(folder)
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert model_of(folder).weights == ("model-1.safetensors",)


def test_a_vocabulary_with_its_configuration_is_enough_for_a_tokenizer(tmp_path):
    folder = save_tokenizer(tmp_path / "vocab")
    (folder / "tokenizer.json").unlink()
    bags = pretrained_bags(find_text_files(str(folder), weights=False, option="--tokenizer"), ["a dog"])
    assert bags.token.tolist() == [2, 5, 7, 3]


class Hub:
    """What the hub answers, and what was asked of it."""

    def __init__(self, monkeypatch, *, cached: Path | None = None, remote: Path | None = None, names=()):
        self.cached, self.remote, self.names = cached, remote, names
        self.asked: list[tuple[str, object]] = []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(
            huggingface_hub.HfApi, "model_info", lambda _self, name, **options: self.info(name, options)
        )

    def download(self, name, *, revision=None, local_files_only=False, allow_patterns=None, etag_timeout=None):
        if local_files_only:
            if self.cached is None:
                raise FileNotFoundError("not in the cache")
            return str(self.cached)
        self.asked.append(("download", (name, revision, allow_patterns)))
        return str(self.remote)

    def info(self, name, options):
        self.asked.append(("info", (name, options["revision"])))
        assert options["timeout"] <= 10
        if self.remote is None:
            raise OSError("Name or service not known")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=one) for one in self.names])


def test_what_is_in_the_cache_is_used_without_asking_the_hub(bert, monkeypatch):
    service = Hub(monkeypatch, cached=bert)
    assert find_text_files("org/name", weights=True, option="--text-encoder").folder == bert
    assert service.asked == []


def test_a_cache_without_the_weights_is_completed(bert, tmp_path, monkeypatch):
    names = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "own.py", "x/y.bin"]
    service = Hub(monkeypatch, cached=save_tokenizer(tmp_path / "t"), remote=bert, names=names)
    assert find_text_files("org/name@v1", weights=True, option="--text-encoder").folder == bert
    assert service.asked == [
        ("info", ("org/name", "v1")),
        ("download", ("org/name", "v1", ["vocab.txt", "config.json", "model.safetensors"])),
    ]


def test_shards_are_downloaded_with_their_index():
    present = ["config.json", "tokenizer.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"]
    wanted = hub._wanted(present, True)
    assert wanted == ["tokenizer.json", "config.json", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


def test_offline_is_an_error_that_says_what_to_put_where(monkeypatch):
    service = Hub(monkeypatch)
    with pytest.raises(ProbeError) as error:
        find_text_files("google-bert/bert-base-uncased", weights=False, option="--tokenizer")
    message = str(error.value)
    assert "Name or service not known" in message
    assert "--tokenizer /folder" in message
    assert "tokenizer.json" in message
    assert "hf download google-bert/bert-base-uncased" in message
    assert [what for what, _ in service.asked] == ["info"]  # one request, no download that tries again


def test_a_folder_that_does_not_exist_is_not_looked_for_on_the_hub(monkeypatch):
    service = Hub(monkeypatch)
    with pytest.raises(ProbeError, match="does not exist"):
        find_text_files("./nowhere", weights=False, option="--tokenizer")
    assert service.asked == []


def test_a_tokenizer_of_another_model_is_named(tmp_path):
    folder = save_text_model(tmp_path / "m")
    other = save_tokenizer(tmp_path / "other", [*PIECES, *(f"word{number}" for number in range(9))])
    shutil.copytree(other, folder, dirs_exist_ok=True)
    with pytest.raises(ProbeError, match=r"BertModel cannot embed captions: index out of range"):
        embed_captions(model_of(folder), ["a word8"])
