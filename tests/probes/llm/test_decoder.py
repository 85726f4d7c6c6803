"""What makes a folder a decoder, and what of it decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.probes.llm.models import save_tiny
from tests.text_models import save_text_model, save_tokenizer
from xares_store.errors import ProbeError
from xares_store.probes.hub import find_text_files
from xares_store.probes.llm.decoder import find_decoder
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
