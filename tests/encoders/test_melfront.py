"""Published mel front ends: equal to independent implementations, and deaf to what lies behind a clip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from xares_store.encoders.melfront import (
    CentredMel,
    KaldiFbank,
    hz_to_mel,
    hz_triangles,
    mel_to_hz,
    mel_triangles,
    mirrored,
)

RATE_HZ = 16000


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "hz", "mel"), [
    ("htk", 700.0, 2595 * math.log10(2)), ("htk", 0.0, 0.0), ("slaney", 200.0, 3.0), ("slaney", 1000.0, 15.0),
    ("slaney", 6400.0, 42.0),
])  # fmt: skip
def test_mel_scales(scale, hz, mel):
    found = hz_to_mel(torch.tensor([hz], dtype=torch.float64), scale)
    assert float(found) == pytest.approx(mel, abs=1e-9)
    assert float(mel_to_hz(found, scale)) == pytest.approx(hz, abs=1e-9)


@pytest.mark.parametrize(("bands", "n_fft", "low", "high"), [(64, 1024, 60.0, 7800.0), (80, 400, 50.0, 8000.0)])
@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_hz_triangles_equal_the_librarys(bands, n_fft, low, high, scale):
    expected = mel_filter_bank(
        n_fft // 2 + 1, bands, low, high, RATE_HZ, norm="slaney" if scale == "slaney" else None, mel_scale=scale
    )
    np.testing.assert_allclose(hz_triangles(bands, n_fft, RATE_HZ, low, high, scale), expected, atol=1e-7)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_kaldi_triangles_equal_the_librarys():
    expected = mel_filter_bank(257, 128, 20.0, 8000.0, RATE_HZ, mel_scale="kaldi", triangularize_in_mel_space=True)
    found = mel_triangles(128, 512, RATE_HZ, 20.0, 8000.0)
    np.testing.assert_allclose(found[:-1], expected[:-1], atol=1e-6)
    assert (found[-1] == 0).all()


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_kaldi_fbank_equals_the_librarys():
    audio = noise(9_000)
    found, valid = KaldiFbank(128)(audio, torch.tensor([9_000]))
    filters = mel_filter_bank(257, 128, 20.0, 8000.0, RATE_HZ, mel_scale="kaldi", triangularize_in_mel_space=True)
    expected = spectrogram(
        audio[0].numpy() * 2.0**15, window_function(400, "povey", periodic=False), frame_length=400, hop_length=160,
        fft_length=512, power=2.0, center=False, preemphasis=0.97, mel_filters=filters, log_mel="log",
        mel_floor=1.192092955078125e-07, remove_dc_offset=True,
    ).T  # fmt: skip
    assert found.shape[1] == int(valid[0]) == len(expected) == 1 + (9_000 - 400) // 160
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)


def test_one_kaldi_frame_step_by_step():
    audio = noise(400)[0].double() + 0.3
    frame = audio.numpy() * 32768
    frame = frame - frame.mean()
    frame = np.array([frame[n] - 0.97 * frame[max(n - 1, 0)] for n in range(400)])
    frame = frame * np.array([(0.5 - 0.5 * math.cos(2 * math.pi * n / 399)) ** 0.85 for n in range(400)])
    energy = (np.abs(np.fft.rfft(frame, 512)) ** 2) @ mel_triangles(128, 512, RATE_HZ, 20.0, 8000.0).double().numpy()
    found, _ = KaldiFbank(128)(audio[None].float(), torch.tensor([400]))
    np.testing.assert_allclose(found[0, 0], np.log(np.maximum(energy, 2.0**-23)), rtol=1e-3, atol=1e-3)


def test_kaldi_silence_is_the_smallest_logarithm():
    found, _ = KaldiFbank(128)(torch.zeros(1, 800), torch.tensor([800]))
    torch.testing.assert_close(found, torch.full_like(found, math.log(2.0**-23)))


@pytest.mark.parametrize(("bands", "n_fft", "low", "high", "scale"), [
    (64, 1024, 60.0, 7800.0, "htk"), (64, 1024, 60.0, 7800.0, "slaney"), (80, 400, 50.0, 8000.0, "slaney"),
])  # fmt: skip
def test_centred_mel_equals_the_librarys(bands, n_fft, low, high, scale):
    audio = noise(7_000)
    found, valid = CentredMel(bands, n_fft=n_fft, hop=160, low_hz=low, high_hz=high, scale=scale)(
        audio, torch.tensor([7_000])
    )
    filters = mel_filter_bank(
        n_fft // 2 + 1, bands, low, high, RATE_HZ, norm="slaney" if scale == "slaney" else None, mel_scale=scale
    )
    expected = spectrogram(
        audio[0].numpy(), window_function(n_fft, "hann"), n_fft, 160, power=2.0, center=True, pad_mode="reflect",
        mel_filters=filters, mel_floor=0.0,
    ).T  # fmt: skip
    assert found.shape[1] == int(valid[0]) == len(expected) == 1 + 7_000 // 160
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40, 64])
@pytest.mark.parametrize("margin", [1, 5, 33])
def test_mirroring_equals_numpys(length, margin):
    audio = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    found = mirrored(audio, torch.tensor([length, 64]), margin)
    for row, n in enumerate((length, 64)):
        expected = np.pad(audio[row, :n].numpy(), margin, mode="reflect")
        np.testing.assert_array_equal(found[row, : n + 2 * margin], expected)
        assert (found[row, n + 2 * margin :] == 0).all()


@pytest.mark.parametrize("front", [
    KaldiFbank(128), CentredMel(64, n_fft=1024, hop=160, low_hz=60.0, high_hz=7800.0, scale="htk"),
])  # fmt: skip
def test_what_lies_behind_a_clip_is_not_heard(front):
    clips = [noise(n, n) for n in (4_000, 400, 1_759)]
    batch = torch.randn(3, 4_000, generator=torch.Generator().manual_seed(1))
    for row, clip in enumerate(clips):
        batch[row, : clip.shape[1]] = clip
    found, valid = front(batch, torch.tensor([clip.shape[1] for clip in clips]))
    for row, clip in enumerate(clips):
        alone, count = front(clip, torch.tensor([clip.shape[1]]))
        assert int(valid[row]) == int(count[0]) == alone.shape[1]
        torch.testing.assert_close(found[row, : int(valid[row])], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("front", [
    KaldiFbank(128), CentredMel(80, n_fft=400, hop=160, low_hz=50.0, high_hz=8000.0, scale="slaney"),
])  # fmt: skip
def test_blocks_leave_no_seam(monkeypatch, front):
    audio, lengths = noise(8_000), torch.tensor([8_000])
    whole = front(audio, lengths)[0]
    monkeypatch.setattr("xares_store.encoders.melfront._BLOCK_FRAMES", 7)
    torch.testing.assert_close(front(audio, lengths)[0], whole)
