"""Weights of one's own for the average over a suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from xares_store.catalog import load_tasks, suites
from xares_store.errors import ConfigError
from xares_store.runs.aggregates import suite_report
from xares_store.runs.leaderboard import leaderboard_rows
from xares_store.runs.published import published_lines
from xares_store.runs.weights import read_weights
from xares_store.store.store import Store

TASK2 = suites()["task2"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "s")


def test_a_file_names_one_more_average(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "committee.toml"
    path.write_text("[weights]\nllm-mecat = 3\nllm-clotho = 1.0\nllm-librispeech = 0\n")
    report = suite_report(store, "task2", published=True, weights=path)
    line = report.lines[0]
    assert (line.encoder, [one.weights for one in line.averages[:2]]) == ("Dasheng-Base", ["published", "committee"])
    average = line.averages[1]
    assert average.value == pytest.approx((3 * 0.60 + 0.207) / 4)
    assert (average.n_tasks, average.missing) == (3, ("llm-aishell-1", "llm-songdescriber"))
    assert (
        "committee: no weight for llm-aishell-1, llm-songdescriber, which do not count in its averages." in report.notes
    )
    columns, rows = leaderboard_rows(store, suite="task2", published=True, weights=path)
    assert (columns, rows) == report.rows()
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    assert {record["weights"] for record in records if record["kind"] == "average"} == {"published", "committee"}


def test_a_mapping_does_too_and_equal_weights_are_the_plain_mean() -> None:
    tasks = load_tasks(["task2"])
    line = published_lines(tasks, weights=read_weights(dict.fromkeys(TASK2, 2), TASK2))[0]
    found = {one.weights: one.value for one in line.averages if one.scope == "all"}
    assert found["given"] == pytest.approx(found["published"])
    assert {one.weights for one in published_lines(tasks)[0].averages} == {"published"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[weights]\nllm-mecta = 1\n", '"llm-mecta" is no task of this suite.*llm-mecat'),
        ("[weights]\nllm-esc-50 = 1\n", '"llm-esc-50" is no task of this suite'),
        ("[weights]\nllm-mecat = -1\n", "at least 0 for llm-mecat, found -1"),
        ("[weights]\nllm-mecat = inf\n", "found inf"),
        ("[weights]\nllm-mecat = nan\n", "found nan"),
        ("[weights]\nllm-mecat = true\n", "found True"),
        ('[weights]\nllm-mecat = "1"\n', "found '1'"),
        ("[weights]\nllm-mecat = 0\n", "at least one weight above 0"),
        ("[weights]\n", "at least one weight above 0"),
        ("llm-mecat = 1\n", r"one table called \[weights\], found llm-mecat"),
        ("[weights]\nllm-mecat = 1\n[more]\n", r"found weights, more"),
        ("weights = 3\n", r"one table called \[weights\]"),
        ("", "found nothing"),
        ("[weights", "Not valid TOML"),
        ("\xff", "not UTF-8"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        read_weights(path, TASK2)
    assert "w.toml" in str(caught.value)


def test_names_that_cannot_be_used(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_weights(tmp_path / "none.toml", TASK2)
    (tmp_path / "published.toml").write_text("[weights]\nllm-mecat = 1\n")
    with pytest.raises(ConfigError, match="Give the file another name"):
        suite_report(store, "task2", weights=tmp_path / "published.toml")
    with pytest.raises(ConfigError, match="average over a suite"):
        leaderboard_rows(store, weights={"llm-mecat": 1.0})
