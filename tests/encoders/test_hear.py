"""Modules of the HEAR interface through the adapter."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

import pytest
import torch

from tests.encoders.checkpoints import assert_passes_check
from xares_store.encoders.encoder import load_encoder
from xares_store.errors import EncoderError

HEAR = """
import torch

class Model(torch.nn.Module):
    sample_rate = 16000
    scene_embedding_size = 6
    timestamp_embedding_size = 6

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(800, 6)

def load_model(model_file_path=""):
    torch.manual_seed(0)
    model = Model()
    if model_file_path:
        model.load_state_dict(torch.load(model_file_path, weights_only=True))
    return model

def get_timestamp_embeddings(audio, model):
    audio = torch.nn.functional.pad(audio, (0, 800))
    frames = model.project(audio.unfold(1, 800, 400))
    times = torch.arange(frames.shape[1]) * 25.0
    return frames, times.repeat(len(audio), 1)

def get_scene_embeddings(audio, model):
    return get_timestamp_embeddings(audio, model)[0].mean(1)
"""


@pytest.fixture
def hear_file(encoder_file) -> Callable[..., str]:
    return lambda *changes, name="hear_enc.py": encoder_file(HEAR, *changes, name=name)


def test_a_file_is_an_encoder(hear_file):
    path = hear_file()
    encoder = load_encoder(path)
    assert (encoder.name, encoder.sample_rate_hz, encoder.dim, encoder.hop_ms) == ("hear_enc", 16000, 6, 25.0)
    assert not encoder.accepts_lengths
    frames, valid = encoder.encode(torch.zeros(2, 16000))
    assert (tuple(frames.shape), valid.tolist()) == ((2, 41, 6), [41, 41])
    assert load_encoder(f"hear:{path}").address == encoder.address


def test_passes_the_conformance_check(hear_file):
    assert_passes_check(f"hear:{hear_file()}")


def test_a_class_of_the_file_can_still_be_named(hear_file):
    with pytest.raises(EncoderError, match="no forward method"):
        load_encoder(hear_file() + ":Model")


def test_an_installed_module_is_an_encoder(hear_file, tmp_path, monkeypatch):
    hear_file(name="hear_package_of_this_test/base.py")
    (tmp_path / "hear_package_of_this_test" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load_encoder("hear:hear_package_of_this_test.base")
    assert encoder.name == "hear_package_of_this_test.base"
    assert sorted(encoder.record["parts"]["code"]) == ["__init__.py", "base.py"]
    for name in [key for key in sys.modules if key.startswith("hear_package_of_this_test")]:
        del sys.modules[name]


def test_weights_reach_load_model_and_count_by_content(hear_file, tmp_path):
    path = hear_file()
    weights = {"project.weight": torch.ones(6, 800), "project.bias": torch.zeros(6)}
    torch.save(weights, tmp_path / "one.pt")
    shutil.copy(tmp_path / "one.pt", tmp_path / "two.pt")
    torch.save(weights | {"project.bias": torch.ones(6)}, tmp_path / "three.pt")
    found = [load_encoder(f"hear:{path}@{tmp_path / name}") for name in ("one.pt", "two.pt", "three.pt")]
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint
    assert found[0].name == "hear_enc[weights=one.pt]"
    assert torch.equal(found[0].module.model.project.weight, torch.ones(6, 800))
    assert load_encoder(path, args={"weights": str(tmp_path / "one.pt")}).address == found[0].address


def test_code_counts(hear_file):
    before = load_encoder(hear_file())
    after = load_encoder(hear_file(("model.project(", "2 * model.project("), name="other.py"))
    assert before.record["parts"]["weights"] == after.record["parts"]["weights"]
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    "times", ["(torch.arange(frames.shape[1]) * 25.0).round()", "torch.arange(frames.shape[1]) * 25 + 12"]
)
def test_the_hop_is_that_of_the_times(hear_file, times):
    assert load_encoder(hear_file(("torch.arange(frames.shape[1]) * 25.0", times))).hop_ms == 25.0


def test_times_rounded_to_milliseconds_are_even(hear_file):
    change = ("audio.unfold(1, 800, 400)", "audio.unfold(1, 800, 371)")
    rounded = ("torch.arange(frames.shape[1]) * 25.0", "(torch.arange(frames.shape[1]) * 23.1875).round()")
    encoder = load_encoder(hear_file(change, rounded))
    assert encoder.hop_ms == pytest.approx(23.1875, abs=0.02)
    encoder.encode(torch.zeros(1, 60 * 16000))


BROKEN = {
    "uneven": (("* 25.0", "** 2 * 1.0"), r"times of the frames are not even: 0, 1, 4, 9, 16"),
    "falling": (("* 25.0", "* -25.0"), "not even"),
    "constant": (("* 25.0", "* 0.0"), "not even"),
    "not a number": (("* 25.0", "* float('nan')"), "not even"),
    "one row of times": (("times.repeat(len(audio), 1)", "times"), r"shapes \(1, \d+, 6\) and \(\d+,\)"),
    "no times": (("frames, times.repeat(len(audio), 1)", "frames"), "must return embeddings and times"),
    "few frames": (("return frames, times", "return frames[:, :1], times[:1]"), "returned 1 frames.*too few"),
    "no rate": (("sample_rate = 16000", "pass"), '"sample_rate"'),
    "no size": (("timestamp_embedding_size = 6", "pass"), '"timestamp_embedding_size"'),
    "no module": (("return model\n", "return {}\n"), "it returned a dict"),
    "wrong size": (("timestamp_embedding_size = 6", "timestamp_embedding_size = 7"), r"shape \(1, frames, 7\)"),
    "raises": (("frames = model", "raise KeyError('oops')\n    frames = model"), "KeyError: 'oops'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_module_is_refused(hear_file, name):
    change, message = BROKEN[name]
    with pytest.raises(EncoderError, match=message):
        load_encoder(hear_file(change)).encode(torch.zeros(1, 16000))


def test_a_hop_that_depends_on_the_length_is_refused(hear_file):
    encoder = load_encoder(hear_file(("* 25.0", "* (25.0 if len(frames[0]) < 100 else 26.0)")))
    with pytest.raises(EncoderError, match=r"26 ms apart for 80000 samples, and 25 ms"):
        encoder.encode(torch.zeros(1, 80_000))


def test_a_module_that_lacks_a_function_is_refused(hear_file):
    path = hear_file(
        ("def get_timestamp_embeddings", "def other"), ("get_timestamp_embeddings(audio, model)[0]", "audio")
    )
    with pytest.raises(EncoderError, match="lacks get_timestamp_embeddings"):
        load_encoder(f"hear:{path}")


def test_missing_weights_are_asked_for(hear_file):
    with pytest.raises(EncoderError, match=r'(?s)load_model needs "model_file_path".*hear:\.\.\.@'):
        load_encoder(hear_file(('model_file_path=""', "model_file_path")))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hear:", "names no HEAR module"),
        ("hear:a-b", "names no HEAR module"),
        ("hear:no_such_module_here", 'no module "no_such_module_here"'),
        ("hear:no/such/file.py", "does not exist"),
    ],
)
def test_a_spec_that_cannot_be_read_is_refused(spec, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(spec)


def test_impossible_arguments_are_refused(hear_file):
    path = hear_file()
    with pytest.raises(EncoderError, match='Did you mean "weights"'):
        load_encoder(path, args={"weight": "x"})
    with pytest.raises(EncoderError, match="given twice"):
        load_encoder(f"hear:{path}@a", args={"weights": "b"})
    with pytest.raises(EncoderError, match="max_length_s"):
        load_encoder(path, args={"max_length_s": "-1"})


def test_windows_are_used(hear_file):
    encoder = load_encoder(hear_file(), args={"max_length_s": "2"})
    assert int(encoder.encode(torch.zeros(1, 80_000))[1]) == pytest.approx(200, abs=4)
