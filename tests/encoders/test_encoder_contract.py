"""What ``Encoder.encode`` promises for any encoder, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from tests.encoders.conftest import GOOD, MASKED
from xares_store.encoders.encoder import load_encoder
from xares_store.errors import EncoderError


def noise(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A zero-padded batch of seeded noise, and its lengths."""
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(n, generator=generator) for n in lengths]
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor(lengths)


def assert_each_as_alone(encoder, lengths):
    audio, counts = noise(*lengths)
    frames, valid = encoder.encode(audio, counts)
    assert frames.dtype == torch.float32
    assert valid.dtype == torch.int64
    for row, n in enumerate(lengths):
        alone, one = encoder.encode(audio[row : row + 1, :n])
        assert int(valid[row]) == int(one[0])
        torch.testing.assert_close(frames[row, : int(valid[row])], alone[0, : int(one[0])], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", [GOOD, MASKED], ids=["audio only", "audio and mask"])
def test_a_clip_is_encoded_as_if_alone(encoder_file, source):
    assert_each_as_alone(load_encoder(encoder_file(source)), (16000, 9000, 640, 16000, 320))


def test_lengths_convention_gets_lengths(encoder_file):
    encoder = load_encoder(
        encoder_file(
            GOOD,
            ("forward(self, audio)", "forward(self, audio, lengths)"),
            (
                "return self.conv(audio[:, None]).transpose(1, 2) * self.scale",
                "return self.conv(audio[:, None]).transpose(1, 2), lengths // 320",
            ),
        )
    )
    assert encoder.accepts_lengths
    assert encoder.record["convention"] == "audio, lengths"
    assert_each_as_alone(encoder, (16000, 9000))


def test_optional_second_argument_of_another_meaning_is_left_alone(encoder_file):
    encoder = load_encoder(encoder_file(GOOD, ("forward(self, audio)", "forward(self, audio, layer=None)")))
    assert encoder.record["convention"] == "audio"


def test_encoder_without_lengths_never_sees_padding(encoder_file):
    # The mean over the whole input would show any padding.
    encoder = load_encoder(
        encoder_file(GOOD, ("self.conv(audio[:, None])", "self.conv((audio - audio.mean(1, True))[:, None])"))
    )
    assert not encoder.accepts_lengths
    assert_each_as_alone(encoder, (16000, 9000, 9000, 4000))


def test_mask_that_does_not_keep_padding_out_is_found_and_not_relied_on(encoder_file):
    leaking = MASKED.replace(
        "features = self.conv(audio[:, None])", "features = self.conv((audio - audio.mean(1, True))[:, None])"
    )
    encoder = load_encoder(encoder_file(leaking))
    assert not encoder.accepts_lengths
    assert "changes by" in encoder.record["padding"]
    assert_each_as_alone(encoder, (16000, 9000, 4000))


def test_mask_that_miscounts_frames_is_not_relied_on(encoder_file):
    encoder = load_encoder(
        encoder_file(MASKED, ("sum(1) // 320", "sum(1) // 320 - (audio_attention_mask == 0).any(1).long()"))
    )
    assert "valid frames when padded" in encoder.record["padding"]
    assert_each_as_alone(encoder, (16000, 9000))


def test_no_mask_back_means_all_frames_are_valid_and_no_padding(encoder_file):
    encoder = load_encoder(encoder_file(MASKED, ("return features, mask.long()", "return features, None")))
    assert not encoder.accepts_lengths
    assert_each_as_alone(encoder, (16000, 9000))


def test_refusing_unequal_lengths_is_no_error(encoder_file):
    encoder = load_encoder(
        encoder_file(MASKED, ("        lengths =", "        assert audio_attention_mask.all()\n        lengths ="))
    )
    assert encoder.record["padding"].startswith("refused unequal lengths")
    assert_each_as_alone(encoder, (16000, 9000))


@pytest.mark.parametrize("source", [GOOD, MASKED], ids=["audio only", "audio and mask"])
def test_long_audio_is_cut_into_windows_and_joined(encoder_file, source):
    limit = ("self.output_dim =", "self.max_length_s = 0.5\n        self.output_dim =")
    whole, windowed = load_encoder(encoder_file(source, name="whole.py")), load_encoder(encoder_file(source, limit))
    assert windowed.max_length_s == 0.5
    # Windows fall on frame borders, so that an encoder without context gives the same frames.
    audio, lengths = noise(30_000, 8_000, 20_000, 8_320)
    frames, valid = windowed.encode(audio, lengths)
    expected, counts = whole.encode(audio, lengths)
    assert torch.equal(valid, counts)
    for row, n in enumerate(counts.tolist()):
        torch.testing.assert_close(frames[row, :n], expected[row, :n], rtol=1e-4, atol=1e-5)


def test_no_window_is_longer_than_declared(encoder_file):
    encoder = load_encoder(
        encoder_file(
            GOOD,
            ("self.output_dim =", "self.max_length_s = 0.5\n        self.output_dim ="),
            ("        return", "        assert audio.shape[1] <= 8000, audio.shape\n        return"),
        )
    )
    for samples in (7999, 8000, 8001, 8319, 16001, 160_007):
        assert int(encoder.encode(torch.zeros(1, samples))[1][0]) == pytest.approx(samples / 320, abs=2)


def test_one_clip_may_come_without_batch_axis():
    encoder = load_encoder("logmel")
    assert torch.equal(encoder.encode(torch.ones(800))[0], encoder.encode(torch.ones(1, 800))[0])


@pytest.mark.parametrize(
    ("audio", "lengths"),
    [
        ((2, 3, 4), None),
        ((0, 100), None),
        ((2, 0), None),
        ((2, 100), [100]),
        ((2, 100), [100, 101]),
        ((2, 100), [100, 0]),
    ],
)
def test_audio_of_a_wrong_shape_is_the_callers_error(audio, lengths):
    with pytest.raises(ValueError, match="must be"):
        load_encoder("logmel").encode(torch.zeros(audio), None if lengths is None else torch.tensor(lengths))


RETURN = "return self.conv(audio[:, None]).transpose(1, 2) * self.scale"
BROKEN = {
    "raises": ("raise ValueError('my own message')", r"ValueError: my own message.*enc\.py, line 15"),
    "axes swapped": ("return self.conv(audio[:, None])", r"\(2, frames, 8\).*returned a tensor of shape \(2, 8, 50\)"),
    "wrong dimension": ("return self.conv(audio[:, None]).transpose(1, 2)[..., :5]", r"shape \(2, 50, 5\)"),
    "pooled": ("return self.conv(audio[:, None]).mean(2)", r"returned a tensor of shape \(2, 8\)"),
    "one clip lost": ("return self.conv(audio[:1, None]).transpose(1, 2)", r"shape \(1, 50, 8\)"),
    "no frames": ("return torch.zeros(len(audio), 0, 8)", r"shape \(2, 0, 8\)"),
    "none": ("return None", "returned a NoneType"),
    "dictionary": ("return {'x': audio}", "returned a dict"),
    "three things": ("return audio, audio, audio", "a tuple of 3 things"),
    "integers": ("return torch.zeros(len(audio), 50, 8, dtype=torch.long)", r"torch\.int64"),
    "nan": (
        "x = torch.zeros(len(audio), 50, 8); x[1, 7, 3] = float('nan'); return x",
        r"NaN or infinity: 1 of 100 frames, first in frame 7 of clip 1",
    ),
    "infinity": ("return (1 / torch.zeros(len(audio), 50, 8))", "100 of 100 frames"),
    "mask of samples": ("return torch.zeros(len(audio), 50, 8), torch.ones_like(audio)", r"mask of shape \(2, 16000\)"),
    "mask with holes": (
        "return torch.zeros(len(audio), 50, 8), (torch.arange(50) % 2).repeat(len(audio), 1)",
        "do not all come first",
    ),
    "no valid frame": (
        "return torch.zeros(len(audio), 50, 8), torch.zeros(len(audio))",
        r"50 frames, of which \[0, 0\] are valid",
    ),
    "too many valid frames": ("return torch.zeros(len(audio), 50, 8), torch.full((len(audio),), 51)", r"\[51, 51\]"),
    "text as mask": ("return torch.zeros(len(audio), 50, 8), 'all'", "a str, not a mask"),
}


def test_an_error_deep_inside_a_library_names_the_users_line(encoder_file):
    with pytest.raises(EncoderError, match=r"(?s)audio of shape \(1, 100\).*enc\.py, line 15"):
        load_encoder(encoder_file()).encode(torch.zeros(1, 100))


@pytest.mark.parametrize(("body", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_output_is_refused(encoder_file, body, message):
    encoder = load_encoder(encoder_file(GOOD, (RETURN, body)))
    with pytest.raises(EncoderError, match=f"(?s){message}"):
        encoder.encode(torch.zeros(2, 16000))


def test_values_behind_the_valid_frames_do_not_matter(encoder_file):
    body = "x = torch.zeros(len(audio), 50, 8); x[:, 40:] = float('nan'); return x, torch.full((len(audio),), 40)"
    frames, valid = load_encoder(encoder_file(GOOD, (RETURN, body))).encode(torch.zeros(2, 16000))
    assert valid.tolist() == [40, 40]
    assert torch.isfinite(frames[:, :40]).all()


def test_half_precision_becomes_float32(encoder_file):
    encoder = load_encoder(
        encoder_file(
            GOOD, ("* self.scale", "* torch.tensor(1.0).half()"), (".transpose(1, 2)", ".transpose(1, 2).half()")
        )
    )
    assert encoder.encode(torch.zeros(1, 16000))[0].dtype == torch.float32
    assert encoder.raw_dtype == "float16"


@pytest.mark.parametrize(
    "error", ["torch.cuda.OutOfMemoryError('x')", "RuntimeError('CUDA error: out of memory')", "MemoryError()"]
)
def test_running_out_of_memory_passes_through_as_one_kind(encoder_file, error):
    encoder = load_encoder(encoder_file(GOOD, (RETURN, f"raise {error}")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        encoder.encode(torch.zeros(2, 16000))


def test_encoder_cannot_leave_eval_mode(encoder_file):
    encoder = load_encoder(encoder_file(GOOD, (RETURN, "assert not self.training; self.train(); " + RETURN)))
    first, second = (encoder.encode(torch.ones(1, 640))[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("leave", ["raise SystemExit(0)", "raise GeneratorExit"])
def test_leaving_the_process_is_a_failure(encoder_file, leave):
    # Else a script's sys.exit(0) ends `xares embed` with exit code 0 and nothing embedded.
    encoder = load_encoder(encoder_file(GOOD, (RETURN, leave)))
    with pytest.raises(EncoderError, match=leave.partition(" ")[2].partition("(")[0]):
        encoder.encode(torch.zeros(2, 16000))


@pytest.mark.parametrize(
    ("change", "found"), [('.to("meta")', "a tensor without data"), (".to_sparse()", "a tensor of torch.sparse")]
)
def test_tensors_that_hold_no_frames_are_refused(encoder_file, change, found):
    encoder = load_encoder(encoder_file(GOOD, (RETURN, f"x = {RETURN[7:]}; return x{change}")))
    with pytest.raises(EncoderError, match=found):
        encoder.encode(torch.zeros(2, 16000))


@pytest.mark.parametrize("lengths", [None, (16000, 8000)])
def test_a_module_that_works_in_place_leaves_the_audio_alone(encoder_file, lengths):
    encoder = load_encoder(encoder_file(GOOD, (RETURN, f"audio.mul_(2); {RETURN}")))
    audio, _ = noise(16000, 16000)
    before = audio.clone()
    counts = None if lengths is None else torch.tensor(lengths)
    first, second = (encoder.encode(audio, counts)[0] for _ in range(2))
    assert torch.equal(audio, before)
    assert torch.equal(first, second)
