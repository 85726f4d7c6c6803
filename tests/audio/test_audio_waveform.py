from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.material import encode, encoded
from xares_store.audio.wav import missing_bytes
from xares_store.audio.waveform import CropRule, DecodeError, crop_bounds, decode, resample
from xares_store.errors import AudioError, ConfigError

SUFFIXES = ["wav", "flac", "ogg", "mp3", "opus", "aiff", "au", "w64", "caf"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_decodes_to_one_float_channel(suffix: str, channels: int) -> None:
    rate_hz = 48000
    tone = 0.25 * np.sin(np.arange(rate_hz // 2) * 2 * np.pi * 440 / rate_hz).astype(np.float32)
    audio, found_hz = decode(encode(np.stack([tone] * channels, axis=1), rate_hz, suffix=suffix))
    assert (audio.dtype, audio.ndim, found_hz) == (np.float32, 1, rate_hz)
    assert abs(len(audio) - len(tone)) <= 3 * 1152  # a codec may pad to whole frames
    assert audio.std() == pytest.approx(tone.std(), rel=0.05)


def test_channels_are_averaged() -> None:
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25), np.zeros(100)], axis=1)
    audio, _ = decode(encode(stereo, 8000, subtype="FLOAT"))
    np.testing.assert_allclose(audio, 0.25 / 3, rtol=1e-6)


def test_float_samples_are_kept_exactly_even_beyond_one() -> None:
    wanted = np.array([0.1, -2.5, 3e-8, 1e6], dtype=np.float32)
    audio, _ = decode(encode(wanted, 8000, subtype="FLOAT"))
    np.testing.assert_array_equal(audio, wanted)


def test_a_stream_decodes_like_bytes() -> None:
    data = encoded(suffix="flac")
    np.testing.assert_array_equal(decode(data)[0], decode(io.BytesIO(data))[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_that_are_not_finite_are_refused(value: float, channels: int) -> None:
    audio = np.zeros((1000, channels), dtype=np.float32)
    audio[321, -1] = value
    with pytest.raises(DecodeError, match="Sample 321 of 1000") as raised:
        decode(encode(audio, 8000, subtype="FLOAT"))
    assert raised.value.kind == "not-finite"


@pytest.mark.parametrize("suffix", ["wav", "ogg", "aiff", "au"])
def test_no_samples_are_refused(suffix: str) -> None:
    with pytest.raises(DecodeError) as raised:
        decode(encode(np.zeros((0, 1)), 8000, suffix=suffix))
    assert raised.value.kind == "empty"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, I am a text file",
        b"\0" * 5000,
        b"RIFF\xff\xff\xff\xffWAVEfmt ",
        encoded()[:30],
        b"fLaC" + bytes(99),
    ],
)
def test_what_is_no_audio_is_refused(data: bytes) -> None:
    with pytest.raises(AudioError, match="decoded") as raised:
        decode(data)
    assert isinstance(raised.value, DecodeError)
    assert raised.value.kind == "undecodable"
    assert "0x" not in raised.value.message  # the same bytes give the same reason in every process


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_of_unknown_length_is_read_to_its_end(size: int) -> None:
    data = bytearray(encoded())
    place = data.index(b"data") + 4
    whole, _ = decode(bytes(data))
    data[place : place + 4] = size.to_bytes(4, "little")
    assert missing_bytes(data) == 0
    if size == 0xFFFFFFFF:
        assert len(decode(bytes(data))[0]) == len(whole)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_a_wav_cut_short_is_refused(part: float) -> None:
    data = encoded()
    with pytest.raises(DecodeError, match="cut short") as found:
        decode(data[: int(len(data) * part)])
    assert found.value.kind == "undecodable"
    assert decode(data + b"LIST\x04\0\0\0abcd")  # more behind the samples is no harm


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_flac_cut_short_is_refused(part: float) -> None:
    data = encoded(50_000, suffix="flac")
    with pytest.raises(DecodeError) as raised:
        decode(data[: int(len(data) * part)])
    assert raised.value.kind == "undecodable"


def test_a_stream_without_a_length_is_refused() -> None:
    data = bytearray(encoded(suffix="flac"))
    data[8 + 13] &= 0xF0  # STREAMINFO begins at byte 8; 36 bits from its byte 13.5 on count the samples
    data[8 + 14 : 8 + 18] = bytes(4)
    with pytest.raises(DecodeError, match="does not say how long"):
        decode(bytes(data))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "opus"])
def test_changed_bytes_give_audio_or_a_decode_error(suffix: str) -> None:
    data = encoded(20_000, 48000, suffix=suffix, channels=2)
    generator = np.random.default_rng(7)
    for _ in range(150):
        changed = bytearray(data)
        for at in generator.integers(0, min(len(data), 4000), 3):
            changed[at] = generator.integers(256)
        try:
            audio, rate_hz = decode(bytes(changed))
        except DecodeError:
            continue
        assert len(audio)
        assert np.isfinite(audio).all()
        assert rate_hz > 0


def test_a_header_that_promises_too_much_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xares_store.audio.waveform._TRUSTED_SAMPLES", 1000)
    monkeypatch.setattr("xares_store.audio.waveform._BLOCK_SAMPLES", 512)
    data = encoded(5000, channels=2, suffix="flac")
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        wanted = file.read(dtype="float32", always_2d=True).mean(axis=1, dtype=np.float32)
    np.testing.assert_array_equal(decode(data)[0], wanted)
    monkeypatch.setattr("xares_store.audio.waveform._MAX_SAMPLES", 4000)
    with pytest.raises(DecodeError) as raised:
        decode(data)
    assert raised.value.kind == "too-long"


def test_an_equal_rate_leaves_the_audio_alone() -> None:
    audio = np.ones(10, dtype=np.float32)
    assert resample(audio, 16000, 16000) is audio


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 16000), (8000, 16000), (22050, 24000), (96000, 16000)])
def test_resampling_keeps_a_tone_and_removes_what_would_alias(from_hz: int, to_hz: int) -> None:
    time_s = np.arange(from_hz) / from_hz
    tone = np.sin(2 * np.pi * 1000 * time_s).astype(np.float32)
    changed = resample(tone, from_hz, to_hz)
    assert changed.dtype == np.float32
    assert abs(len(changed) - to_hz) <= 1
    wanted = np.sin(2 * np.pi * 1000 * np.arange(len(changed)) / to_hz)
    middle = slice(to_hz // 10, -to_hz // 10)
    np.testing.assert_allclose(changed[middle], wanted[middle], atol=1e-3)
    if from_hz > to_hz:
        high = np.sin(2 * np.pi * 0.49 * from_hz * time_s).astype(np.float32)
        assert np.abs(resample(high, from_hz, to_hz)[middle]).max() < 1e-3


def test_resampling_one_sample_away_is_refused() -> None:
    with pytest.raises(DecodeError) as raised:
        resample(np.ones(1, dtype=np.float32), 44100, 16000)
    assert raised.value.kind == "empty"


def test_the_published_cropping() -> None:
    cases = json.loads((Path(__file__).parents[1] / "golden" / "frames.json").read_text())["cropping"]
    assert len(cases) == 5
    for case in cases:
        n_samples, crop = case["n_samples"], case["crop"]
        bounds = crop_bounds(n_samples, 1, crop_s=float(crop), tail="drop", min_tail_s=0.5)
        # The one wanted difference: a recording shorter than a crop is kept whole there is, not padded to a crop.
        lengths = case["lengths_out"] if n_samples >= crop else [n_samples]
        assert [end - start for start, end in bounds] == lengths
        assert [start + 1 for start, _ in bounds] == case["first_values"]


RULES = st.sampled_from(["drop", "keep"])


@given(
    n_samples=st.integers(1, 200_000),
    rate_hz=st.sampled_from([100, 8000, 16000, 44100]),
    crop_s=st.one_of(st.none(), st.floats(0.02, 30)),
    tail=RULES,
    min_tail_s=st.floats(0.001, 2),
)
def test_crops_are_consecutive_and_of_the_stated_length(
    n_samples: int, rate_hz: int, crop_s: float | None, tail: str, min_tail_s: float
) -> None:
    bounds = crop_bounds(n_samples, rate_hz, crop_s=crop_s, tail=tail, min_tail_s=min_tail_s)
    assert bounds[0][0] == 0
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(bounds))
    assert all(start < end for start, end in bounds)
    end = bounds[-1][1]
    if crop_s is None:
        assert bounds == [(0, n_samples)]
        return
    size = int(crop_s * rate_hz)
    assert all(end - start == size for start, end in bounds[:-1])
    if tail == "keep":
        assert end == n_samples
        last = end - bounds[-1][0]
        if len(bounds) > 1:
            assert min(size, min_tail_s * rate_hz) <= last < size + max(min_tail_s * rate_hz, 1)
    elif n_samples >= size:
        assert len(bounds) == n_samples // size
        assert end == len(bounds) * size
    else:
        assert bounds == [(0, n_samples)]


@pytest.mark.parametrize(
    ("n_samples", "tail", "wanted"),
    [
        (100, "keep", [(0, 100)]),
        (104, "keep", [(0, 104)]),
        (105, "keep", [(0, 100), (100, 105)]),
        (204, "keep", [(0, 100), (100, 204)]),
        (99, "keep", [(0, 99)]),
        (199, "drop", [(0, 100)]),
        (1, "drop", [(0, 1)]),
    ],
)
def test_the_tail(n_samples: int, tail: str, wanted: list[tuple[int, int]]) -> None:
    assert crop_bounds(n_samples, 10, crop_s=10.0, tail=tail, min_tail_s=0.5) == wanted


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match="no sample"):
        crop_bounds(10, 100, crop_s=0.001, tail="drop", min_tail_s=0.5)
    with pytest.raises(ConfigError, match="'pad'"):
        crop_bounds(10, 100, crop_s=1, tail="pad", min_tail_s=0.5)
    assert CropRule().crop_s is None
