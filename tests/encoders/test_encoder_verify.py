"""The quick measurements: hop, repeatability, neighbours."""

from __future__ import annotations

import pytest
import torch

from tests.encoders.conftest import GOOD, MASKED
from xares_store.encoders.encoder import load_encoder
from xares_store.encoders.verify import check_hop, measure_hop, relative_error, verify_quick
from xares_store.errors import EncoderError


@pytest.mark.parametrize("source", [GOOD, MASKED], ids=["audio only", "audio and mask"])
def test_a_good_encoder_passes(encoder_file, source):
    verify_quick(load_encoder(encoder_file(source)))


@pytest.mark.parametrize("name", ["logmel", "modspec"])
def test_built_in_encoders_pass(name):
    verify_quick(load_encoder(name))


@pytest.mark.parametrize("declared", [10, 19, 21, 40])
def test_wrong_hop_is_refused_with_both_numbers(encoder_file, declared):
    encoder = load_encoder(encoder_file(GOOD, ("hop_size_in_ms = 20", f"hop_size_in_ms = {declared}")))
    with pytest.raises(EncoderError, match=rf"(?s)declares a hop of {declared} ms.*measured hop of 20 ms"):
        verify_quick(encoder)


def test_hop_within_rounding_is_accepted(encoder_file):
    encoder = load_encoder(encoder_file(GOOD, ("hop_size_in_ms = 20", "hop_size_in_ms = 20.1")))
    assert check_hop(encoder) == pytest.approx(20.0)


def test_padding_inside_the_encoder_is_found(encoder_file):
    padded = ("audio[:, None]", "torch.nn.functional.pad(audio, (0, 480_000 - audio.shape[1]))[:, None]")
    encoder = load_encoder(encoder_file(GOOD, padded))
    with pytest.raises(EncoderError, match="number of frames must grow"):
        verify_quick(encoder)


def test_a_constant_number_of_extra_frames_is_found(encoder_file):
    encoder = load_encoder(
        encoder_file(GOOD, ("audio[:, None]", "torch.nn.functional.pad(audio, (0, 48_000))[:, None]"))
    )
    with pytest.raises(EncoderError, match="more time than there is"):
        verify_quick(encoder)


def test_randomness_is_found(encoder_file):
    encoder = load_encoder(encoder_file(GOOD, ("* self.scale", "* self.scale + 0.1 * torch.rand(1)")))
    with pytest.raises(EncoderError, match="gave two embeddings"):
        verify_quick(encoder)


@pytest.mark.parametrize(
    "change",
    [
        ("self.conv(audio[:, None])", "self.conv((audio / audio.std())[:, None])"),
        (
            "self.conv(audio[:, None])",
            "torch.nn.functional.batch_norm(self.conv(audio[:, None]), None, None, training=True)",
        ),
    ],
    ids=["scaled by the whole batch", "batch statistics"],
)
def test_leaking_neighbours_are_found(encoder_file, change):
    encoder = load_encoder(encoder_file(GOOD, change))
    with pytest.raises(EncoderError, match="depends on its neighbours"):
        verify_quick(encoder)


@pytest.mark.parametrize("stride", [160, 321, 1000])
def test_hop_is_measured_to_the_sample(encoder_file, stride):
    encoder = load_encoder(encoder_file(GOOD, ("320, stride=320", f"400, stride={stride}")))
    assert measure_hop(encoder) == pytest.approx(stride / 16, rel=1e-9)


def test_hop_is_measured_inside_a_short_window(encoder_file):
    source = MASKED.replace("self.output_dim = 8", "self.output_dim = 8; self.max_length_s = 0.4")
    assert load_encoder(encoder_file(source)).hop_ms == pytest.approx(20.0, rel=1e-9)


def test_relative_error_is_that_of_the_worst_frame():
    wanted = torch.ones(4, 2)
    found = wanted.clone()
    found[2] = 1.25
    assert relative_error(wanted, found) == pytest.approx(0.25)
    assert relative_error(wanted, wanted) == 0.0


@pytest.mark.parametrize("error", ["MemoryError()", "torch.cuda.OutOfMemoryError('CUDA out of memory. Tried 2 GiB')"])
def test_too_little_memory_is_a_sentence(encoder_file, error):
    encoder = load_encoder(encoder_file(GOOD, ("return self.conv", f"raise {error}; return self.conv")))
    with pytest.raises(EncoderError, match=r"memory of cpu does not hold(.|\n)*--device"):
        verify_quick(encoder)
