"""The encoders that come with the package: their promises on any audio, and what they hear."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.encoders.builtin import CARDS
from xares_store.encoders.encoder import load_encoder
from xares_store.encoders.logmel import LogMelEncoder, band_log_power, mel_matrix
from xares_store.encoders.modspec import MODULATION_HZ
from xares_store.errors import EncoderError

WEIGHTLESS = [name for name, card in CARDS.items() if card.needs == "nothing"]
ENCODERS = {name: load_encoder(name) for name in WEIGHTLESS}
RATE_HZ = 16000


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_unequal_clips_may_be_padded_together(name):
    assert ENCODERS[name].accepts_lengths
    assert ENCODERS[name].record["padding"] == "invariant"


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(WEIGHTLESS),
    lengths=st.lists(st.integers(1, 20_000), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_a_clip_is_encoded_as_if_alone(name, lengths, seed):
    encoder = ENCODERS[name]
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(len(lengths), max(lengths), generator=generator)  # noise behind the ends too: it must not count
    frames, valid = encoder.encode(audio, torch.tensor(lengths))
    for row, n in enumerate(lengths):
        alone, counts = encoder.encode(audio[row : row + 1, :n])
        assert int(counts[0]) == int(valid[row]) == math.ceil(n / (encoder.hop_ms * RATE_HZ / 1000))
        torch.testing.assert_close(frames[row, : int(valid[row])], alone[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", WEIGHTLESS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-30, 1e4])
def test_constant_audio_gives_finite_frames(name, value):
    frames, _ = ENCODERS[name].encode(torch.full((1, RATE_HZ), value))
    assert torch.isfinite(frames).all()
    assert frames.abs().max() < 50


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_ten_minutes_are_encoded_at_once(name):
    encoder = ENCODERS[name]
    frames, valid = encoder.encode(torch.zeros(1, 600 * RATE_HZ))
    assert int(valid[0]) == frames.shape[1] == 600_000 / encoder.hop_ms


def test_blocks_leave_no_seam(monkeypatch):
    audio, lengths = torch.randn(2, RATE_HZ, generator=torch.Generator().manual_seed(0)), torch.tensor([16000, 9000])
    whole = LogMelEncoder()(audio, lengths)[0]
    monkeypatch.setattr("xares_store.encoders.logmel._BLOCK_FRAMES", 7)
    torch.testing.assert_close(LogMelEncoder()(audio, lengths)[0], whole)


def test_log_power_equals_a_direct_computation():
    audio = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    window, mel = torch.hann_window(400), mel_matrix(8, 512, RATE_HZ, 40.0, 8000.0)
    found, valid = band_log_power(audio, torch.tensor([1000]), window, mel, 160, 1e-3)
    assert int(valid[0]) == 7
    padded = np.zeros(6 * 160 + 400)
    padded[:1000] = audio[0]
    for frame in range(7):
        power = np.abs(np.fft.rfft(padded[frame * 160 : frame * 160 + 400] * window.numpy(), 512)) ** 2
        np.testing.assert_allclose(found[0, frame], np.log(power @ mel.numpy() + 1e-3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bands", [1, 8, 64, 128])
def test_every_mel_band_hears_something(bands):
    mel = mel_matrix(bands, 512, RATE_HZ, 40.0, 8000.0)
    assert mel.shape == (257, bands)
    assert (mel >= 0).all()
    torch.testing.assert_close(mel.sum(0), torch.ones(bands))


def test_a_tone_lights_its_band():
    time_s = torch.arange(RATE_HZ) / RATE_HZ
    loudest = [
        int(ENCODERS["logmel"].encode(torch.sin(2 * math.pi * hz * time_s))[0][0].mean(0).argmax())
        for hz in (200, 1000, 5000)
    ]
    assert loudest == sorted(loudest)
    assert len(set(loudest)) == 3


@pytest.mark.parametrize("hz", MODULATION_HZ)
def test_modulation_is_heard_at_its_own_rate(hz):
    time_s = torch.arange(4 * RATE_HZ) / RATE_HZ
    noise = torch.randn(len(time_s), generator=torch.Generator().manual_seed(0))
    steady = 0.1 * noise
    moving = steady * (1 + 0.9 * torch.sin(2 * math.pi * hz * time_s))
    pooled = [ENCODERS["modspec"].encode(clip)[0][0].mean(0) for clip in (steady, moving)]
    gain = (pooled[1] - pooled[0])[127:].reshape(len(MODULATION_HZ), 16).mean(1)
    assert int(gain.argmax()) == MODULATION_HZ.index(hz)
    assert gain.max() > 0.3


@pytest.mark.parametrize("args", [{"bands": "0"}, {"bands": "999"}, {"hop_ms": "0.01"}, {"hop_ms": "10.03"}])
def test_impossible_settings_are_refused(args):
    with pytest.raises(EncoderError, match="must be"):
        load_encoder("logmel", args=args)


def test_settings_change_what_is_declared():
    encoder = load_encoder("logmel", args={"bands": "80", "hop_ms": "20"})
    assert (encoder.dim, encoder.hop_ms, encoder.name) == (80, 20.0, "logmel[bands=80,hop_ms=20]")
