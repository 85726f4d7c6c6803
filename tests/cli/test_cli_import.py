"""``xares import`` from the command line, and straight on to a score."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.importer.material import class_folder, write_csv, write_files
from xares_store.cli import main


def test_import_then_embed_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data, store = class_folder(tmp_path / "source", each=8), tmp_path / "data", str(tmp_path / "s")
    assert main(["import", str(source), "--name", "pets", "--out", str(data), "--folds", "4"]) == 0
    printed = capsys.readouterr()
    assert "single-label, 3 classes, 24 clips, splits made here" in printed.out
    assert printed.out.splitlines()[-1] == str(data / "pets.toml")
    assert f"xares embed --encoder logmel --task {data / 'pets.toml'} --data {data}" in printed.err
    task = ["--task", str(data / "pets.toml"), "--store", store]
    assert main(["embed", "--encoder", "logmel", *task, "--data", str(data), "--workers", "0"]) == 0
    assert main(["evaluate", *task, "--probe", "knn"]) == 0
    assert "pets" in capsys.readouterr().out


def test_json_holds_everything_and_a_second_run_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = class_folder(tmp_path / "source")
    arguments = ["import", str(source), "--name", "pets", "--out", str(tmp_path / "data"), "--json"]
    assert main([*arguments, "--dry-run"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "data").exists()
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    second = json.loads(capsys.readouterr().out)
    assert (first["clips"], first["kind"], len(first["splits"])) == (18, "single-label", 5)
    assert dry["splits"] == first["splits"] == second["splits"]
    assert (dry["dry_run"], first["reused_shards"], second["reused_shards"]) == (True, 0, 5)


def test_options_reach_the_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_files(tmp_path / "source", [f"{n}.wav" for n in range(12)])
    rows = [
        {"f": f"{n}.wav", "what": "a|b" if n % 2 else "c", "who": f"s{n // 2}", "part": ["seen", "new"][n > 7]}
        for n in range(12)
    ]
    write_csv(source / "m.csv", rows)
    assert main([
        "import", str(source / "m.csv"), "--name", "x", "--out", str(tmp_path / "data"), "--path-column", "f",
        "--label-column", "what", "--separator", "|", "--group-column", "who", "--split-column", "part",
        "--split-as", "seen=train", "--split-as", "new=test", "--crop", "0.1", "--domain", "music", "--title", "X!",
        "--shard-size", "3", "--json",
    ]) == 0  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["labels"]) == ("multi-label", ["a", "b", "c"])
    assert [(s["name"], s["clips"], s["shards"], s["groups"]) for s in report["splits"]] == [
        ("train", 8, 3, 4),
        ("test", 4, 2, 2),
    ]
    text = (tmp_path / "data" / "x.toml").read_text()
    assert 'title = "X!"' in text
    assert "crop_s = 0.1" in text


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--shard-size", "many"], 1, "1000 or 256MB"),
        (["--split-as", "test"], 2, "NAME=test"),
        (["--split", "0.8", "0.1", "0.3"], 1, "add up to 1"),
        (["--group-column", "speeker"], 1, "no column"),
    ],
)
def test_wrong_options_give_a_message_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], code: int, message: str
) -> None:
    source = class_folder(tmp_path / "source")
    assert main(["import", str(source), "--name", "x", "--out", str(tmp_path / "data"), *extra]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_written_and_says_how_to_go_on(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "source", each=60)
    script = (
        "import sys, time\nfrom xares_store.importer import examine\ndecode = examine.decode\n"
        "examine.decode = lambda data: (time.sleep(0.02), decode(data))[1]\n"
        "from xares_store.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    arguments = [
        "import",
        str(source),
        "--name",
        "x",
        "--out",
        str(tmp_path / "data"),
        "--shard-size",
        "4",
        "--workers",
        "1",
    ]
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "data").glob("x/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "go on where it stopped" in errors
    assert "Traceback" not in errors
    assert main(arguments) == 0
