"""The conformance suite and its command."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.encoders.conftest import GOOD, MASKED
from xares_store.cli import main
from xares_store.cli.check import check as command
from xares_store.encoders.check import check

RETURN = "return self.conv(audio[:, None]).transpose(1, 2) * self.scale"


def outcomes(spec: str, **options) -> dict[str, bool | None]:
    return {result.name: result.ok for result in check(spec, long_minutes=0.2, **options)}


@pytest.mark.parametrize("spec", ["logmel", "modspec"])
def test_built_in_encoders_pass_everything(spec):
    found = outcomes(spec)
    assert found.pop("speed") is None
    assert found
    assert all(ok is True for ok in found.values()), found


def test_encoder_without_lengths_gets_a_note_and_a_short_clip_must_work(encoder_file):
    found = outcomes(encoder_file())
    assert found["padding"] is None
    assert found["very short"] is False  # a convolution over 320 samples cannot take 160
    assert [name for name, ok in found.items() if ok is False] == ["very short"]


BROKEN = {
    "output": (RETURN, "return self.conv(audio[:, None])"),
    "hop": ("hop_size_in_ms = 20", "hop_size_in_ms = 25"),
    "repeatable": ("* self.scale", "* self.scale + 0.1 * torch.rand(1)"),
    "batch": ("self.conv(audio[:, None])", "self.conv((audio / audio.std())[:, None])"),
    "silence": ("self.conv(audio[:, None])", "self.conv((audio / audio.square().mean(1, True).sqrt())[:, None])"),
    "clipped": (RETURN, "x = " + RETURN[7:] + "; return x / (audio.abs().max() < 1)"),
    "long": (RETURN, "assert audio.shape[1] < 160_000, 'too long for me'; " + RETURN),
    "identity": ("torch.manual_seed(seed)", "torch.seed()"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_promise_is_found_by_its_check(encoder_file, name):
    found = outcomes(encoder_file(GOOD, BROKEN[name]))
    assert found[name] is False


def test_failure_names_line_and_message(encoder_file):
    results = {r.name: r for r in check(encoder_file(GOOD, BROKEN["long"]), long_minutes=0.2)}
    assert "too long for me" in results["long"].found
    assert "enc.py, line 15" in results["long"].found


def test_running_out_of_memory_fails_one_check_only(encoder_file):
    source = GOOD.replace(
        RETURN, f"if audio.shape[1] > 160_000: raise torch.cuda.OutOfMemoryError('too much')\n        {RETURN}"
    )
    results = {r.name: r for r in check(encoder_file(source), long_minutes=0.2)}
    assert results["long"].ok is False
    assert "max_length_s" in results["long"].found
    assert results["speed"].ok is None


def test_encoder_that_does_not_load_fails_the_first_check_alone(encoder_file):
    seen = []
    results = check(encoder_file("import torch\nclass X(\n"), progress=seen.append)
    assert [r.ok for r in results] == [False]
    assert results == seen
    assert "SyntaxError" in results[0].found


def test_windows_are_used_for_the_long_clip(encoder_file):
    limit = ("self.output_dim = 8", "self.output_dim = 8; self.max_length_s = 2")
    found = outcomes(encoder_file(MASKED, limit))
    assert found["long"] is True
    assert found["hop"] is True


def test_length_of_the_long_clip_must_be_positive():
    with pytest.raises(ValueError, match="long_minutes"):
        check("logmel", long_minutes=0)


def test_command_prints_a_table_and_succeeds():
    result = CliRunner().invoke(command, ["logmel", "--long-minutes", "0.1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "logmel@" in result.output
    assert "FAIL" not in result.output


@pytest.mark.parametrize(
    ("spec", "argument", "said"),
    [("logmel", "nothere=1", 'no argument "nothere"'), ("logmel", "bands=-3", "found -3"), ("lgmel", "a=1", "logmel")],
)
def test_command_gives_one_error_and_no_table_for_what_cannot_be_loaded(capsys, spec, argument, said):
    assert main(["check", spec, "--encoder-arg", argument]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count(said) == 1
    assert "seconds" not in shown.err
    assert main(["check", spec, "--encoder-arg", argument, "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert row["ok"] is False


def test_command_exits_1_and_says_why(encoder_file):
    path = encoder_file(GOOD, BROKEN["hop"])
    result = CliRunner().invoke(
        command, [path, "--long-minutes", "0.1", "--device", "cpu", "--json", "--encoder-arg", "seed=3"]
    )
    assert result.exit_code == 1
    rows = {row["check"]: row for row in json.loads(result.stdout)}
    assert rows["hop"]["ok"] is False
    assert rows["speed"]["ok"] is None
    assert "declares a hop of 25 ms" in rows["hop"]["found"]
    assert "[seed=3]" in rows["class and attributes"]["found"]


@pytest.mark.parametrize("argument", ["seed", "=1"])
def test_command_refuses_a_malformed_argument(argument):
    result = CliRunner().invoke(command, ["logmel", "--encoder-arg", argument])
    assert result.exit_code != 0
    assert "key=value" in str(result.exception)
