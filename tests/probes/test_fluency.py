"""The error checker: its probabilities, and every file that must not be taken for one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.probes.caption_models import tiny_checker
from tests.text_models import save_text_model, save_tokenizer
from xares_store.errors import ProbeError
from xares_store.fingerprint import sha256_file
from xares_store.probes import fluency, hub
from xares_store.probes.fluency import FluencyModel, find_fluency_model

CAPTIONS = ["a dog barks", "The LOUD bird, sings!", "", "rain falls and a", "a dog barks."]


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    return tiny_checker(tmp_path / "c")


@pytest.fixture
def file(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "c" / "checker.ckpt"
    torch.save(content, path)
    return path


def model_of(spec: Path | str) -> FluencyModel:
    files = find_fluency_model(str(spec))
    assert files is not None
    return FluencyModel(files)


def by_hand(content: dict[str, Any], folder: Path, caption: str) -> float:
    """The same computation with the model built from its configuration."""
    tokenizer = transformers.BertTokenizerFast.from_pretrained(str(folder))
    state = {
        name.removeprefix("encoder."): value for name, value in content["state_dict"].items() if "encoder." in name
    }
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=19, max_position_embeddings=32, **sizes)
    bert = transformers.BertModel(config).eval()
    bert.load_state_dict({name: value for name, value in state.items() if name != "embeddings.position_ids"})
    with torch.no_grad():
        first = bert(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0, 0]
        logits = content["state_dict"]["clf.weight"] @ first + content["state_dict"]["clf.bias"]
    return float(torch.sigmoid(logits)[-1])


def test_the_last_output_at_the_first_token_of_cleaned_text(file: Path, content: dict[str, Any]) -> None:
    found = model_of(file).error_probability(CAPTIONS)
    cleaned = ["a dog barks", "the loud bird sings", "", "rain falls and a", "a dog barks"]
    expected = [by_hand(content, file.parent, caption) for caption in cleaned]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0] == found[4]
    assert np.ptp(found) > 0.01


def test_a_tokenizer_that_keeps_capitals_sees_none(file: Path) -> None:
    path = file.parent / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": False}))
    assert np.ptp(model_of(file).error_probability(["A Dog BARKS", "a dog barks"])) == 0


def test_a_caption_is_judged_by_itself_and_cut_where_told(file: Path) -> None:
    model = model_of(file)
    together = model.error_probability(CAPTIONS)
    np.testing.assert_allclose([model.error_probability([text])[0] for text in CAPTIONS], together, atol=1e-6)
    long = ["a dog barks loud", "a dog barks soft rain"]
    assert np.ptp(model.error_probability(long)) > 0
    assert np.ptp(model.error_probability(long, longest=5)) == 0
    assert model.error_probability(["rain " * 99]).shape == (1,)


def test_loading_leaves_the_random_state_alone(file: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model_of(file)
    assert torch.equal(torch.rand(3), expected)


def test_the_same_weights_from_a_folder_from_safetensors_and_with_a_configuration(
    file: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    expected = model_of(file).error_probability(CAPTIONS)
    np.testing.assert_array_equal(model_of(file.parent).error_probability(CAPTIONS), expected)
    folder = save_tokenizer(tmp_path / "saved")
    save_file(content["state_dict"], folder / "model.safetensors")
    np.testing.assert_array_equal(model_of(folder / "model.safetensors").error_probability(CAPTIONS), expected)
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 24}
    config = {"model_type": "bert", "vocab_size": 19, "max_position_embeddings": 32, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(model_of(folder).error_probability(CAPTIONS), expected)
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    assert np.abs(model_of(folder).error_probability(CAPTIONS) - expected).max() > 1e-6


def test_what_it_is_follows_from_its_content(file: Path, tmp_path: Path) -> None:
    first = find_fluency_model(str(file))
    assert first is not None
    assert first.name.startswith("checker@")
    assert not first.published
    copy = Path(shutil.copytree(file.parent, tmp_path / "copy"))
    again = find_fluency_model(str(copy / "checker.ckpt"))
    assert again is not None
    assert again.identity() == first.identity()
    torch.save(tiny_checker(copy, seed=1), copy / "checker.ckpt")
    other = find_fluency_model(str(copy / "checker.ckpt"))
    assert other is not None
    assert other.identity() != first.identity()
    assert other.name != first.name
    before = other.identity()
    (copy / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    retokenised = find_fluency_model(str(copy / "checker.ckpt"))
    assert retokenised is not None
    assert retokenised.identity() != before


def test_the_published_checkpoint_is_found_where_tools_keep_it_and_verified(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("FENSE_DATA", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ProbeError) as error:
        find_fluency_model()
    assert "releases/download/V0.1/echecker_clotho_audiocaps_base.ckpt" in str(error.value)
    assert "--fluency-model none" in str(error.value)
    kept = tmp_path / "home" / ".cache" / "torch" / "hub" / "fense_data" / "echecker_clotho_audiocaps_base.ckpt"
    shutil.copytree(file.parent, kept.parent)
    (kept.parent / "checker.ckpt").rename(kept)
    with pytest.raises(ProbeError, match="not the published") as error:
        find_fluency_model()
    assert str(kept) in str(error.value)
    monkeypatch.setitem(fluency._PUBLISHED, "echecker_clotho_audiocaps_base", sha256_file(kept))
    found = find_fluency_model()
    assert found is not None
    assert found.weights == (kept,)
    assert found.published
    by_path = find_fluency_model(str(kept))
    assert by_path is not None
    assert by_path.published
    monkeypatch.setenv("FENSE_DATA", str(tmp_path / "elsewhere"))
    assert find_fluency_model() is not None


def test_published_digests() -> None:
    assert fluency._PUBLISHED == {
        "echecker_clotho_audiocaps_base": "1a719f090af70614bbdb9f9437530b7e133c48cfa4a58d964de0d47fc974a2fa",
        "echecker_clotho_audiocaps_tiny": "90ed0ac5033ec497ec66d4f68588053813e085671136dae312097c96c504f673",
    }


def test_none_is_no_checker_and_another_name_is_looked_for_on_the_hub(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_fluency_model("none") is None
    asked = []

    def from_hub(spec: str, weights: bool, option: str, extras: object) -> Path:
        asked.append((spec, weights))
        return save_text_model(tmp_path / "hub")

    monkeypatch.setattr(hub, "_from_hub", from_hub)
    found = find_fluency_model("org/checker@v1")
    assert found is not None
    assert (found.name, asked) == ("checker@v1", [("org/checker@v1", True)])
    lonely = tmp_path / "lonely" / "checker.ckpt"
    lonely.parent.mkdir()
    shutil.copy(file, lonely)
    alone = find_fluency_model(str(lonely))
    assert alone is not None
    assert alone.tokenizer.spec == "google-bert/bert-base-uncased"
    assert asked[1:] == [("google-bert/bert-base-uncased", False)]

    def offline(*_: object) -> Path:
        raise ProbeError("it is not to be had.")

    monkeypatch.setattr(hub, "_from_hub", offline)
    with pytest.raises(ProbeError, match="no tokenizer beside it, and it is not to be had"):
        find_fluency_model(str(lonely))


@pytest.mark.parametrize(
    "spec", ["echecker_clotho_audiocaps_bas", "./nowhere", "/nowhere/x.ckpt", "x/y.ckpt", "folder"]
)
def test_what_is_not_there_says_where_to_get_it(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ProbeError) as error:
        find_fluency_model(spec)
    assert "--fluency-model" in str(error.value)
    if spec.endswith("bas"):
        assert 'Did you mean "echecker_clotho_audiocaps_base"' in str(error.value)


def test_two_checkpoints_in_a_folder_are_one_too_many(file: Path) -> None:
    shutil.copy(file, file.with_name("second.pt"))
    with pytest.raises(ProbeError, match="found 2"):
        find_fluency_model(str(file.parent))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("encoder.embeddings.LayerNorm.weight"),
            "1 missing .encoder.embeddings.LayerNorm.weight",
        ),
        (lambda state: state.pop("clf.bias"), "1 missing .clf.bias"),
        (lambda state: state.update({"clf.extra": torch.zeros(1)}), "1 left over .clf.extra"),
        (lambda state: state.update({f"more{n}": torch.zeros(1) for n in range(7)}), "7 left over .* and 2 more"),
        (lambda state: state.update({"clf.bias": torch.zeros(2)}), "1 of another shape .clf.bias"),
        (lambda state: state.pop("clf.weight"), "KeyError 'clf.weight'"),
        (lambda state: state.pop("encoder.embeddings.word_embeddings.weight"), "not that of an error checker"),
        (lambda state: state.update({"clf.bias": "text"}), "names and tensors"),
        (lambda state: state.update({"clf.weight": torch.tensor(1.0)}), "not that of an error checker"),
    ],
)
def test_wrong_weights_are_named(file: Path, content: dict[str, Any], change: Any, message: str) -> None:
    change(content["state_dict"])
    torch.save(content, file)
    with pytest.raises(ProbeError, match=message):
        model_of(file)


def test_a_size_that_shapes_do_not_tell_asks_for_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c" / "checker.ckpt"
    content = tiny_checker(path.parent, hidden=16)
    torch.save(content, path)
    with pytest.raises(ProbeError, match=r"put config\.json beside it"):
        model_of(path)


def test_a_tokenizer_of_another_model_is_refused(file: Path) -> None:
    (file.parent / "tokenizer.json").unlink()
    save_tokenizer(file.parent, [f"word{number}" for number in range(99)])
    with pytest.raises(ProbeError, match="104 tokens, the error checker 19"):
        model_of(file)


def test_nan_is_not_a_probability(file: Path, content: dict[str, Any]) -> None:
    content["state_dict"]["clf.bias"][:] = torch.nan
    torch.save(content, file)
    with pytest.raises(ProbeError, match="returned NaN"):
        model_of(file).error_probability(["a dog"])


class Bomb:
    """Runs code when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_no_code_of_a_checkpoint_runs(file: Path, content: dict[str, Any], tmp_path: Path) -> None:
    torch.save({**content, "hparams": Bomb(tmp_path / "ran")}, file)
    with pytest.raises(ProbeError, match="would run code"):
        model_of(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["checker.ckpt", "checker.safetensors"])
def test_damaged_files_are_refused(file: Path, name: str) -> None:
    data = file.read_bytes()
    path = file.with_name(name)
    for damaged in (b"", b"not a checkpoint", data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ProbeError, match="checkpoint"):
            model_of(path)
    torch.save([1, 2], file)
    with pytest.raises(ProbeError, match="found a list"):
        model_of(file)
