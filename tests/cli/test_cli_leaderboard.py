"""``xares leaderboard --suite`` as people, papers and programs read it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.store.conftest import predictions, run_record
from tests.toy import Toy
from xares_store.catalog import load_task
from xares_store.cli import main
from xares_store.cli.common import emit
from xares_store.runs.aggregates import suite_report
from xares_store.runs.leaderboard import leaderboard_rows
from xares_store.runs.mteb import write_mteb
from xares_store.runs.request import make_request, settings_for
from xares_store.store.store import Store


@pytest.fixture
def store(tmp_path: Path, toy: Toy) -> Path:
    """A store with k-NN scores of ESC-50 and of a task of one's own, in both protocols."""
    opened = Store.create(tmp_path / "s")
    for name in ("esc50", str(toy.task)):
        task = load_task(name)
        for protocol in ("strict", "published"):
            request = make_request(["knn"], 1, None, None, None, None, None, None, protocol, "cpu")
            record = run_record(
                None, encoder="dash_eng@00000000", task=task.name, task_address=task.address, probe="knn",
                probe_version="1", protocol=protocol, settings=settings_for(task, "knn", request),
                details={"metric_version": "1"}, n_test=2000,
            )  # fmt: skip
            assert opened.write_run(f"{task.name}-{protocol}", record, predictions(), None)
    return tmp_path / "s"


def test_programs_get_what_python_gets(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--store", str(store), "--suite", "xares", "--published", "--json"]) == 0
    shown = capsys.readouterr()
    columns, rows = leaderboard_rows(store, suite="xares", published=True)
    assert json.loads(shown.out) == [dict(zip(columns, row, strict=True)) for row in rows]
    assert "note: " in shown.err
    assert main(["leaderboard", "--store", str(store), "--suite", "xares", "--csv"]) == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    (overall,) = [
        record for record in records
        if (record["kind"], record["name"], record["protocol"], record["weights"])
        == ("average", "all", "strict", "test-size")
    ]  # fmt: skip
    assert (overall["partial"], overall["n_tasks"], overall["of_tasks"]) == ("True", "1", "20")
    assert "voxceleb1" in overall["missing"]


def test_people_see_a_table_a_protocol_and_what_is_missing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--store", str(store), "--suite", "xares", "--published", "--probe", "knn"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("xares, probe: knn, protocol: ") == 2
    assert "dasheng (published: X-ARES README)" in shown
    assert "0.5000 (partial, 1 of 20)" in shown
    assert "average, test-size weights" in shown
    assert "average, published weights" in shown
    assert "Missing: asvspoof2015" in shown
    assert "0.504 public tasks, 0.683 all tasks (reproduced within rounding)" in shown


def test_the_printed_scores_of_xares_llm_and_weights_of_ones_own(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "committee.toml").write_text("[weights]\nllm-mecat = 2\nllm-clotho = 1\n")
    command = ["leaderboard", "--store", str(store), "--suite", "task2", "--published", "--markdown"]
    assert main([*command, "--weights", str(tmp_path / "committee.toml")]) == 0
    shown = capsys.readouterr().out
    heads = (
        "Dasheng-Base (published: XARES-LLM README, mixture: task2)",
        "Whisper-Base (published: XARES-LLM README, mixture: task2)",
    )
    assert f"| task | domain | metric | {heads[0]} | {heads[1]} |" in shown
    assert "| llm-mecat | other | date | 0.6 | 0.624 |" in shown
    assert "| average, published weights | all | normalised | 0.2676 | 0.4352 |" in shown
    assert (
        "| average, committee weights | all | normalised | 0.4690 (partial, 2 of 5) | 0.5353 (partial, 2 of 5) |"
        in shown
    )
    assert "* committee: no weight for llm-aishell-1, llm-librispeech, llm-songdescriber" in shown
    assert main([*command, "--weights", str(tmp_path / "none.toml")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_task_file_is_a_suite_of_one(store: Path, toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--store", str(store), "--suite", str(toy.task), "--protocol", "strict"]) == 0
    shown = capsys.readouterr().out
    assert "toy, probe: knn, protocol: strict" in shown
    assert "no published weight for toy" in shown


def test_markdown_and_latex_can_be_pasted(store: Path, toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "leaderboard",
        "--store",
        str(store),
        "--suite",
        str(toy.task),
        "--suite",
        "esc50",
        "--protocol",
        "strict",
    ]
    assert main([*command, "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == [
        "**toy, esc50, probe: knn, protocol: strict**",
        "",
        "| task | domain | metric | dash_eng@00000000 |",
        "| --- | --- | --- | ---: |",
        "| toy | environment | accuracy | 0.5 |",
    ]
    assert main([*command, "--latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "% toy, esc50, probe: knn, protocol: strict",
        r"\begin{tabular}{lllr}",
        r"\hline",
        r"task & domain & metric & dash\_eng@00000000 \\",
        r"\hline",
    ]
    assert r"\end{tabular}" in lines
    assert all(line.startswith("%") for line in lines[lines.index(r"\end{tabular}") + 1 :] if line)
    assert main(["leaderboard", "--store", str(store), "--markdown"]) == 0
    assert "| esc50 | dash_eng@00000000 | knn | published |" in capsys.readouterr().out


def test_a_heading_in_brackets_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    emit(["task", "hubert[layer=6]@00000000"], [["a|b", 0.5]], title="lr: [bold]")
    shown = capsys.readouterr().out
    assert "hubert[layer=6]@00000000" in shown
    assert "lr: [bold]" in shown
    emit(["task"], [["a|b"]], fmt="markdown")
    assert r"| a\|b |" in capsys.readouterr().out


def test_mteb_files_are_written_on_request(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--store", str(store), "--suite", "xares", "--mteb", str(tmp_path / "cli")]) == 0
    assert "Wrote 2 results" in capsys.readouterr().err
    write_mteb(suite_report(store), tmp_path / "python")

    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json")}

    assert files(tmp_path / "cli") == files(tmp_path / "python")
    (tmp_path / "file").write_text("mine")
    assert main(["leaderboard", "--store", str(store), "--suite", "xares", "--mteb", str(tmp_path / "file")]) == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--published"], 2, "--published needs --suite"),
        (["--weights", "x.toml"], 2, "--weights needs --suite"),
        (["--mteb", "x"], 2, "--mteb needs --suite"),
        (["--suite", "xares", "--task", "esc50"], 2, "leave --task away"),
        (["--suite", "xaers"], 1, 'Did you mean "xares"?'),
    ],
)
def test_options_that_do_not_fit(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["leaderboard", "--store", str(store), *arguments]) == code
    assert message in capsys.readouterr().err
