"""The fingerprint: equal for equal content wherever it lies, different for anything that may change an embedding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.encoders.conftest import GOOD
from xares_store.encoders.encoder import load_encoder
from xares_store.encoders.identity import display_name, weights_sha256
from xares_store.errors import EncoderError
from xares_store.fingerprint import canonical_json


def fingerprint(path: str, **args: str) -> str:
    return load_encoder(path, args=args).fingerprint


def test_same_content_in_another_folder_under_another_name_is_the_same_encoder(encoder_file, tmp_path):
    source = "from helper import FACTOR\n" + GOOD
    path = encoder_file(source)
    encoder_file("FACTOR = 1\n", name="helper.py")
    elsewhere = tmp_path / "moved" / "renamed.py"
    elsewhere.parent.mkdir()
    shutil.copy(path, elsewhere)
    shutil.copy(tmp_path / "helper.py", elsewhere.parent)
    assert load_encoder(path).address == load_encoder(str(elsewhere)).address


def test_other_weights_under_the_same_class_name_are_another_encoder(encoder_file):
    source = GOOD.replace("manual_seed(seed)", "manual_seed(int(Path(__file__).with_name('seed.txt').read_text()))")
    path = encoder_file("from pathlib import Path\n" + source)
    seed = Path(path).with_name("seed.txt")
    seed.write_text("1")
    first = load_encoder(path)
    seed.write_text("2")
    second = load_encoder(path)
    assert first.name == second.name
    assert first.record["parts"]["code"] == second.record["parts"]["code"]
    assert first.fingerprint != second.fingerprint


CHANGES = {
    "code": ("* self.scale", "* self.scale * 2"),
    "hop": ("hop_size_in_ms = 20", "hop_size_in_ms = 40"),
    "rate": ("sampling_rate = 16000", "sampling_rate = 8000"),
    "window": ("self.output_dim = dim", "self.output_dim = dim; self.max_length_s = 10"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_content_is_another_encoder(encoder_file, change):
    before, after = fingerprint(encoder_file()), fingerprint(encoder_file(GOOD, change, name="other.py"))
    assert before != after


def test_arguments_are_part_of_the_identity_even_when_they_change_no_weight(encoder_file):
    path = encoder_file()
    assert len({fingerprint(path), fingerprint(path, scale="2.0"), fingerprint(path, seed="1")}) == 3
    assert fingerprint(path, scale="2.0") == fingerprint(path, scale=" 2.00")


def test_a_checkpoint_counts_by_content_and_not_by_path(encoder_file, tmp_path):
    path = encoder_file(GOOD, ("seed: int = 0", "seed: int = 0, checkpoint: str = ''"))
    for name, text in (("one.pt", "a"), ("two.pt", "a"), ("three.pt", "b")):
        (tmp_path / name).write_text(text)
    found = [fingerprint(path, checkpoint=str(tmp_path / name)) for name in ("one.pt", "two.pt", "three.pt", "none.pt")]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_word_stays_a_word_when_a_file_has_its_name(encoder_file, tmp_path, monkeypatch):
    path = encoder_file(GOOD, ("seed: int = 0", "seed: int = 0, size: str = ''"))
    before = fingerprint(path, size="base")
    (tmp_path / "base").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert fingerprint(path, size="base") == before


def test_changed_neighbour_module_is_another_encoder(encoder_file, tmp_path):
    path = encoder_file("import helper\n" + GOOD)
    helper = tmp_path / "helper.py"
    helper.write_text("FACTOR = 1\n")
    before = fingerprint(path)
    helper.write_text("FACTOR = 2\n")
    assert fingerprint(path) != before


def test_a_neighbour_that_is_not_imported_does_not_count(encoder_file, tmp_path):
    path = encoder_file()
    before = fingerprint(path)
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert fingerprint(path) == before


def test_package_of_neighbours_counts_file_by_file(encoder_file, tmp_path):
    encoder_file("from .inner import X\n", name="parts/__init__.py")
    encoder_file("X = 1\n", name="parts/inner.py")
    encoder = load_encoder(encoder_file("from parts import X\n" + GOOD))
    assert sorted(encoder.record["parts"]["code"]) == ["<encoder>", "parts/__init__.py", "parts/inner.py"]


def test_code_of_a_builtin_covers_the_modules_it_uses():
    assert sorted(load_encoder("modspec").record["parts"]["code"]) == ["<encoder>", "logmel.py"]


def test_record_is_json():
    assert canonical_json(load_encoder("modspec").record)


class Loose(torch.nn.Module):
    def __init__(self, fill: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("saved", torch.zeros(2))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)
        self.plain = torch.zeros(2)
        self.listed = [torch.nn.Linear(1, 1, bias=False)]
        self.table = {"a": torch.zeros(2).numpy()}
        torch.nn.init.constant_(self.listed[0].weight, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.saved.add_(1),
        lambda m: m.unsaved.add_(1),
        lambda m: m.plain.add_(1),
        lambda m: m.listed[0].weight.data.add_(1),
        lambda m: m.table["a"].__iadd__(1),
    ],
    ids=["buffer", "unsaved buffer", "plain tensor", "module in a list", "array in a dictionary"],
)
def test_every_tensor_counts_wherever_a_module_keeps_it(change):
    module = Loose()
    before = weights_sha256(module)
    assert weights_sha256(Loose()) == before
    change(module)
    assert weights_sha256(module) != before


def test_dtype_and_shape_count_beside_bytes():
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(8, dtype=torch.float16), torch.zeros(4, dtype=torch.int32)]
    found = set()
    for value in zeros:
        module = torch.nn.Module()
        module.register_buffer("x", value)
        found.add(weights_sha256(module))
    assert len(found) == len(zeros)


def test_unusual_tensors_are_hashed():
    module = torch.nn.Module()
    module.register_buffer("scalar", torch.tensor(3))
    module.register_buffer("brain", torch.ones(3, dtype=torch.bfloat16))
    module.register_buffer("strided", torch.arange(6).reshape(2, 3).T)
    module.register_buffer("complex", torch.ones(2, dtype=torch.complex64).conj())
    module.register_buffer("empty", torch.zeros(0))
    assert len(weights_sha256(module)) == 64


def test_weights_without_values_are_refused():
    with pytest.raises(EncoderError, match=r'"bias" has a shape but no values'):
        weights_sha256(torch.nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize(
    ("base", "args", "expected"),
    [
        ("MyEncoder", {}, "MyEncoder"),
        ("my model/ü@3", {}, "my-model-3"),
        ("E", {"b": True, "a": 2}, "E[a=2,b=true]"),
        ("E", {"path": "/data/models/big.pt"}, "E[path=big.pt]"),
        ("E", {"x": "a,b]c@d"}, "E[x=a-bc-d]"),
        ("..", {}, "encoder"),
    ],
)
def test_names_are_safe_in_paths_and_readable(base, args, expected):
    assert display_name(base, args) == expected
