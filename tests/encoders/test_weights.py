"""Strict loading of checkpoints: what fits is copied exactly, anything else is an error that names it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from xares_store.encoders.weights import checkpoint_path, load_weights, read_checkpoint, strip_prefix, tensors_of
from xares_store.errors import EncoderError


def tiny() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def saved(folder: Path, suffix: str, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"cfg": {"layers": 2}, "args": argparse.Namespace(lr=0.1), "model": tensors}, path)
    return path


def load(module: torch.nn.Module, path: Path, **options) -> None:
    tensors = tensors_of(read_checkpoint(path), keys=["model"], where=path)
    load_weights(module, strip_prefix(tensors, ["module."], module.state_dict()), where=path, **options)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".ckpt"])
def test_a_fitting_checkpoint_is_copied_exactly(tmp_path, suffix, prefix):
    source, target = tiny(), tiny()
    path = saved(tmp_path, suffix, {prefix + name: value for name, value in source.state_dict().items()})
    load(target, path)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_half_precision_is_widened(tmp_path, device):
    source = tiny().half()
    with torch.device(device):
        target = tiny()
    load(target, saved(tmp_path, ".pt", source.state_dict()))
    assert target[0].weight.dtype == torch.float32
    assert not any(tensor.is_meta for tensor in target.state_dict().values())
    assert torch.equal(target[0].weight, source[0].weight.float())


def changed(how: str) -> tuple[dict[str, torch.Tensor], str]:
    tensors = dict(tiny().state_dict())
    if how == "missing":
        del tensors["0.bias"]
        return tensors, r"1 missing: 0\.bias"
    if how == "unexpected":
        return tensors | {"head.weight": torch.ones(2)}, r"1 unexpected: head\.weight"
    if how == "misshapen":
        return tensors | {
            "0.weight": torch.ones(4, 2)
        }, r"1 of another shape: 0\.weight \(wanted \(4, 3\), found \(4, 2\)\)"
    if how == "nan":
        return tensors | {"0.bias": torch.tensor([0.0, 1.0, float("nan"), 2.0])}, r"NaN.*0\.bias"
    assert how == "integers"
    return tensors | {"0.bias": torch.arange(4)}, r"another kind of number: 0\.bias"


@pytest.mark.parametrize("how", ["missing", "unexpected", "misshapen", "nan", "integers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_wrong_checkpoint_is_named_and_changes_nothing(tmp_path, how, suffix):
    tensors, message = changed(how)
    module = tiny()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    path = saved(tmp_path, suffix, tensors)
    with pytest.raises(EncoderError, match=message) as caught:
        load(module, path)
    assert caught.value.where == str(path)
    for name, value in module.state_dict().items():
        assert torch.equal(before[name], value)


def test_all_differences_are_counted_and_a_few_named(tmp_path):
    path = saved(tmp_path, ".pt", {f"other.{i}": torch.ones(1) for i in range(9)})
    with pytest.raises(EncoderError, match=r"7 missing: .* and 2 more; 9 unexpected: other\.0.*other\.4 and 4 more"):
        load(tiny(), path)


def test_what_is_not_needed_is_ignored_only_by_name(tmp_path):
    path = saved(tmp_path, ".pt", tiny().state_dict() | {"decoder.a": torch.ones(1), "decoded": torch.ones(1)})
    with pytest.raises(EncoderError, match="1 unexpected: decoded"):
        load(tiny(), path, ignore=["decoder.*"])
    load(tiny(), path, ignore=["decode*"])


def test_a_needed_weight_is_never_ignored(tmp_path):
    source, target = tiny(), tiny()
    load(target, saved(tmp_path, ".pt", source.state_dict()), ignore=["*"])
    assert torch.equal(target[0].weight, source[0].weight)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_file_is_refused(tmp_path, suffix, damage):
    path = saved(tmp_path, suffix, tiny().state_dict())
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) * 2 // 3], "text": b"<html>404</html>", "empty": b""}[damage])
    with pytest.raises(EncoderError, match=r"cannot be read|no checkpoint") as caught:
        load(tiny(), path)
    assert caught.value.where == str(path)


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_no_code_of_the_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": tiny().state_dict(), "extra": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(EncoderError, match="run code"):
        load(tiny(), tmp_path / "trap.pt")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3}, 'no weights under "model"; it holds epoch'),
        ({"model": {"a": torch.ones(1), "b": "text"}}, "no tensors: b"),
        ({}, "no weights"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(EncoderError, match=re.escape(message)):
        load(tiny(), tmp_path / "x.pt")


def test_weights_lie_deeper(tmp_path):
    content = {"state": {"teacher": tiny().state_dict()}}
    assert list(tensors_of(content, keys=["model", "state.teacher"], where=tmp_path)) == list(tiny().state_dict())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "needs the file of a checkpoint"),
        (None, "needs the file of a checkpoint"),
        ("https://example.org/a.pt", "must be a local file"),
        ("hf:org/model", "must be a local file"),
        ("/nowhere/a.pt", "There is no checkpoint file /nowhere/a.pt"),
        ("/", "is a folder"),
    ],
)
def test_a_checkpoint_that_is_no_file_says_where_to_get_one(value, message):
    with pytest.raises(EncoderError, match=re.escape(message)) as caught:
        checkpoint_path(value, encoder="beats", source="Download a.pt (MIT).")
    assert "Download a.pt (MIT). Then: --encoder-arg checkpoint=FILE" in str(caught.value)


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pt").write_bytes(b"")
    assert checkpoint_path("~/a.pt", encoder="x", source="") == (tmp_path / "a.pt").resolve()
