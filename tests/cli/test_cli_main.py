"""The command line as a whole: help, exit codes, messages without tracebacks, output for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.toy import ENCODER, Toy, tone, wav, write_tar
from xares_store.cli import COMMANDS, cli, main
from xares_store.runs.embed import embed
from xares_store.store.store import Store


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xares_store", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def test_help_shows_what_each_command_says_of_itself() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    with cli.make_context("xares", ["--help"], resilient_parsing=True) as context:
        for name, (_, line) in COMMANDS.items():
            command = cli.get_command(context, name)
            assert command is not None
            assert command.help is not None
            assert command.help.split("\n\n")[0].replace("\n", " ") == line
            assert name in shown
    for name in COMMANDS:
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_options_are_spelled_the_same_everywhere() -> None:
    """The same word means the same thing: one help text for --store, --data, --device, --json and --csv."""
    texts: dict[str, set[str]] = {}
    with cli.make_context("xares", ["--help"], resilient_parsing=True) as context:
        for name in COMMANDS:
            command = cli.get_command(context, name)
            group = [command, *getattr(command, "commands", {}).values()]
            for option in (
                option for one in group for option in one.params if option.name in ("store", "data", "device")
            ):  # type: ignore[union-attr]
                texts.setdefault(option.opts[0], set()).add(option.help)  # type: ignore[attr-defined]
    assert set(texts) == {"--store", "--data", "--device"}
    assert all(len(found) == 1 for found in texts.values()), texts


def test_a_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalute"]) == 2
    assert '"evaluate"' in capsys.readouterr().err


@pytest.fixture
def store(toy: Toy, encoder_file: Path, tmp_path: Path) -> Path:
    embed(str(encoder_file), [str(toy.task)], store=tmp_path / "s", data=toy.root, workers=0)
    return tmp_path / "s"


def test_the_environment_names_store_and_data(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    env = {"XARES_STORE": str(tmp_path / "env.store"), "XARES_DATA_HOME": str(toy.root)}
    done = run("embed", "--encoder", encoder_file, "--task", toy.task, "--workers", 0, **env)
    assert done.returncode == 0, done.stderr
    assert "36 clips" in done.stdout
    assert json.loads(run("sql", "select count(*) as n from clips", "--json", **env).stdout) == [{"n": 36}]


def test_output_for_programs_is_complete(store: Path) -> None:
    done = run("evaluate", "--store", store, "--probe", "knn", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["task"] == "toy"
    assert 0 <= row["low"] <= row["score"] <= row["high"] <= 1
    board = list(csv.DictReader(io.StringIO(run("leaderboard", "--store", store, "--csv").stdout)))
    assert float(board[0]["score"]) == pytest.approx(row["score"])
    assert board[0]["protocol"] == "strict"


def test_rows_that_differ_in_settings_alone_say_how(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--store", str(store), "--probe", "knn"]) == 0
    capsys.readouterr()
    assert main(["leaderboard", "--store", str(store)]) == 0
    assert "settings" not in capsys.readouterr().out
    assert main(["evaluate", "--store", str(store), "--probe", "knn", "--k", "3"]) == 0
    capsys.readouterr()
    assert main(["leaderboard", "--store", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "k: 3" in shown
    assert "k: 5" in shown
    assert "temperature" not in shown


def test_dry_run_writes_nothing(toy: Toy, encoder_file: Path, tmp_path: Path) -> None:
    done = run(
        "embed",
        "--encoder",
        encoder_file,
        "--task",
        toy.task,
        "--data",
        toy.root,
        "--store",
        tmp_path / "s",
        "--dry-run",
    )
    assert done.returncode == 0, done.stderr
    assert "hours" in done.stdout
    assert not (tmp_path / "s").exists()


def bad_audio(kind: str, shard: Path) -> None:
    label = b'{"kind": "hum"}'
    good = wav(tone("hum", 0.3, 16000, np.random.default_rng(0)))
    if kind == "truncated tar":
        content = shard.read_bytes()
        shard.write_bytes(content[: len(content) // 3])
        return
    members = {
        "text named wav": [("x.wav", b"hello"), ("x.json", label)],
        "empty audio": [("x.wav", wav(np.zeros(0, np.float32))), ("x.json", label)],
        "nan samples": [("x.wav", wav(np.full(999, np.nan, np.float32), subtype="FLOAT")), ("x.json", label)],
        "json missing": [("x.wav", good)],
        "json malformed": [("x.wav", good), ("x.json", b"{")],
        "duplicate keys": [("x.wav", good), ("x.json", label), ("x.wav", good), ("x.json", label)],
    }[kind]
    write_tar(shard, members)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("truncated tar", "fold1.tar"), ("text named wav", "x"), ("empty audio", "x"), ("nan samples", "x"),
        ("json missing", "x"), ("json malformed", "x"), ("duplicate keys", "x.wav"),
    ],
)  # fmt: skip
def test_bad_audio_is_named_and_costs_nothing_else(
    toy: Toy, encoder_file: Path, tmp_path: Path, kind: str, word: str
) -> None:
    bad_audio(kind, toy.shards[1])
    done = run(
        "embed",
        "--encoder",
        encoder_file,
        "--task",
        toy.task,
        "--data",
        toy.root,
        "--store",
        tmp_path / "s",
        "--workers",
        0,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert Store.open(tmp_path / "s").verify() == []
    assert Store.open(tmp_path / "s").clips().num_rows == 27


BAD_ENCODERS = {
    "raises": ENCODER.replace("        pad =", '        raise ValueError("no")\n        pad ='),
    "wrong shape": ENCODER.replace("return torch.log1p((frames @ self.weight).abs() * 10)", "return frames.mean(1)"),
    "wrong dim": ENCODER.replace("output_dim = 24", "output_dim = 25"),
    "nan": ENCODER.replace("return torch", "return float('nan') * torch"),
    "wrong hop": ENCODER.replace("hop_size_in_ms = 20", "hop_size_in_ms = 25"),
    "no rate": ENCODER.replace("    sampling_rate = 16000\n", ""),
    "syntax": "def forward(:\n",
}


@pytest.mark.parametrize("kind", BAD_ENCODERS)
def test_a_bad_encoder_is_refused_before_anything_is_stored(toy: Toy, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(BAD_ENCODERS[kind])
    done = run(
        "embed", "--encoder", path, "--task", toy.task, "--data", toy.root, "--store", tmp_path / "s", "--workers", 0
    )
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s" / "store.json").exists() or Store.open(tmp_path / "s").parts() == []
    assert run("check", path, "--long-minutes", "0.1").returncode == 1


def test_names_and_stores_that_do_not_fit(toy: Toy, encoder_file: Path, store: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(store, newer)
    (newer / "store.json").write_text(json.dumps({"name": "xares-store", "format": 99, "id": "0" * 32, "created": "x"}))
    cases = {
        ("embed", "--encoder", encoder_file, "--task", "esc5O", "--data", toy.root, "--store", store): "esc50",
        ("embed", "--encoder", "logmell", "--task", toy.task, "--data", toy.root, "--store", store): "logmel",
        ("embed", "--encoder", encoder_file, "--task", toy.task, "--data", tmp_path / "none", "--store", store): "none",
        ("evaluate", "--store", tmp_path / "none"): "none",
        ("evaluate", "--store", newer): "99",
        ("sql", "select 1", "--store", newer): "99",
        ("evaluate", "--store", toy.root): "store.json",
        ("sql", "select * from klips", "--store", store): "clips",
        ("sql", "select * from '/etc/passwd'", "--store", store): "error",
        ("evaluate", "--store", store, "--where", "1; drop table x"): "error",
        ("compare", "a", "b", "--store", store): "BandEncoder",
        ("store", "rm", "--store", store, "--encoder", "nobody", "--yes"): "nobody",
    }
    for arguments, word in cases.items():
        done = run(*arguments)
        assert done.returncode == 1, (arguments, done.stdout)
        assert word in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr, (arguments, done.stderr)
    assert Store.open(store).verify() == []


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from xares_store.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_no_room_for_files_is_one_message_and_the_same_command_goes_on_later(
    toy: Toy, encoder_file: Path, tmp_path: Path
) -> None:
    """As on a full disk, in a store that holds something already."""
    store = tmp_path / "s"
    command = ["--task", toy.task, "--data", toy.root, "--store", store, "--workers", 0, "--batch-seconds", 5]
    first = run("embed", "--encoder", encoder_file, *command)
    assert first.returncode == 0, first.stderr
    before = {part.path: part.manifest.digest for part in Store.open(store).parts()}
    smallest = min(path.stat().st_size for path in store.rglob("c/0/0"))
    other = ["embed", "--encoder", encoder_file, "--encoder-arg", "seed=1", *command]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(smallest), *map(str, other)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: ")
    assert "Nothing that was committed before is touched" in done.stderr
    assert "Traceback" not in done.stderr
    assert Store.open(store).verify() == []
    assert before.items() <= {part.path: part.manifest.digest for part in Store.open(store).parts()}.items()
    again = run(*other)
    assert again.returncode == 0, again.stderr
    assert Store.open(store).clips().num_rows == 2 * toy.clips


def test_a_closed_pipe_ends_quietly(store: Path) -> None:
    command = f"{sys.executable} -m xares_store sql --store {store} 'select * from clips, range(20000)' --csv | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("\n") == 1
