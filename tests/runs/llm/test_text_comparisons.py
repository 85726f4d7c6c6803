"""Runs of written text in a store: errors by kind in SQL, and paired tests between encoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.toy import CLASSES, tone, wav, write_tar
from xares_store.metrics.statistics import paired_permutation_test
from xares_store.metrics.strings import string_macro_f1, string_map
from xares_store.metrics.swaps import paired_swap_test
from xares_store.metrics.text import error_counts, error_rate, iwer, normalise
from xares_store.runs.compare import compare
from xares_store.runs.embed import embed
from xares_store.runs.features import Features, load_features
from xares_store.runs.llm.text_scores import score_texts
from xares_store.runs.paired import paired_runs
from xares_store.store.store import Store
from xares_store.task import Task

TEXTS = ("a dog barks", "the wind blows", "rain; wind", "a bell", "two dogs bark loudly", "an engine runs")
SIDES = ("logmel", "modspec")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two encoders' embeddings of 24 clips in three folds."""
    root = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for fold in range(3):
        members = []
        for number in range(8):
            key = f"f{fold}c{number}"
            label = {"t": TEXTS[(fold + number) % 6], "several": [TEXTS[number % 6], "an engine runs"]}
            label["labels"] = ";".join(name for name in ("bee", "cat", "dog") if rng.random() < 0.5)
            members.append((f"{key}.wav", wav(tone(CLASSES[0], 0.2, 16000, rng))))
            members.append((f"{key}.json", json.dumps(label).encode()))
        write_tar(root / "data" / "texts" / f"fold{fold}.tar", members)
    (root / "texts.toml").write_text(make_task("iwer").to_toml())
    for encoder in SIDES:
        embed(encoder, [str(root / "texts.toml")], store=root / "s", data=root / "data", device="cpu", workers=0)
    return root / "s"


def make_task(metric: str, *, key: str = "t", closed: bool = False, n_classes: int = 0) -> Task:
    return Task.from_text(
        f"""
format = 1
name = "texts"
title = "Texts"
domain = "other"
[data.folds]
0 = ["fold0.tar"]
1 = ["fold1.tar"]
2 = ["fold2.tar"]
[target]
kind = "text"
keys = ["{key}"]
prompt = "Write."
{"closed = true" if closed else ""}
{'separator = ";"' if n_classes else ""}
[metric]
name = "{metric}"
{f"n_classes = {n_classes}" if n_classes else ""}
""",
        where="texts.toml",
        base=None,
    )


Write = Callable[[np.random.Generator, tuple[str, ...]], str]


def spoil(share: float) -> Write:
    """Write the first reference with some of its words wrong, left out or doubled."""

    def write(rng: np.random.Generator, references: tuple[str, ...]) -> str:
        words: list[str] = []
        for word in references[0].split():
            words += [word] if rng.random() >= share else [[], ["x"], [word, "y"]][rng.integers(3)]
        return " ".join(words)

    return write


def tags(share: float) -> Write:
    """Write the labels, some of them wrongly left out or put in."""

    def write(rng: np.random.Generator, references: tuple[str, ...]) -> str:
        wanted = references[0].split(";") if references else []
        return ";".join(name for name in ("bee", "cat", "dog") if (name in wanted) != (rng.random() < share))

    return write


def store_run(
    store: Store, task: Task, side: str, seed: int, write: Write, *, protocol: str = "strict", main: str | None = None
) -> tuple[str, Features]:
    """Score what an imagined model wrote, and store it as evaluations do."""
    encoder = next(name for name in store.encoders() if name.startswith(side))
    features = load_features(store, encoder, task, protocol=protocol, where=None)
    rng = np.random.default_rng([seed, SIDES.index(side)])
    texts = [[write(rng, features.target[row].test) for row in fold.test] for fold in features.folds]
    scored = score_texts(task, features, texts, protocol=protocol, captions=None)
    scores = [{**one, "metric": main or one["metric"]} if one["metric"] == task.metric.name else one for one in scored.scores]  # fmt: skip
    run = {
        "encoder": encoder, "task": task.name, "task_address": task.address, "audio_address": task.audio_address,
        "probe": "llm", "probe_version": 1, "protocol": protocol, "seed": seed, "settings": {"recipe": "made"},
        "where": None, "parts_digest": "0" * 64, "started": "2025-01-01T00:00:00+00:00", "seconds": 1.0, "device": "cpu",
        "versions": {}, "n_test": scored.n_test, "n_dropped": 0, "weight": 1.0, "main_metric": main or task.metric.name,
        "scores": scores, "details": scored.details,
    }  # fmt: skip
    store.put_task(task.address, task.to_toml())
    run_id = f"{task.fingerprint[:8]}-{side}-{seed}-{protocol}-{len(main or '')}"
    store.write_run(run_id, run, scored.predictions, scored.tensors)
    return run_id, features


def copied(made: Path, tmp_path: Path) -> Store:
    return Store.open(shutil.copytree(made, tmp_path / "s"))


def rows_of(store: Store, run: str) -> list[dict[str, Any]]:
    found = store.predictions(run).to_pylist()
    return sorted(found, key=lambda row: (row["fold"], row["split"], row["clip_id"]))


def test_errors_by_kind_can_be_asked_for_in_sql(made: Path, tmp_path: Path) -> None:
    store, task = copied(made, tmp_path), make_task("iwer")
    run, _ = store_run(store, task, "logmel", 1, spoil(0.4))
    (total,) = store.sql(
        "select sum(substitutions) as s, sum(deletions) as d, sum(insertions) as i, sum(reference_units) as n, "
        "count(*) as clips from predictions where run_id = $run",
        {"run": run},
    ).to_pylist()
    rows = rows_of(store, run)
    counts = error_counts(*([normalise(row[name]) for row in rows] for name in ("target", "prediction")))
    sums = [sum(getattr(one, name) for one in counts) for name in ("substitutions", "deletions", "insertions", "units")]
    assert [total["s"], total["d"], total["i"], total["n"]] == sums
    assert min(sums) > 0
    assert total["clips"] == 24
    (worst,) = store.sql(
        "select clip_id from predictions where run_id = $run "
        "order by (substitutions + deletions + insertions) / reference_units desc, clip_id limit 1",
        {"run": run},
    ).to_pylist()
    rate = {row["clip_id"]: error_rate([one]) for row, one in zip(rows, counts, strict=True)}
    assert rate[worst["clip_id"]] == max(rate.values())
    (score,) = store.sql("select score, metric from leaderboard where task = 'texts' and probe = 'llm'").to_pylist()
    folds = sorted({row["fold"] for row in rows})
    each = [[one for row, one in zip(rows, counts, strict=True) if row["fold"] == fold] for fold in folds]
    assert score["score"] == pytest.approx(np.mean([1 - error_rate(one) for one in each]))
    assert score["metric"] == "iwer"


@pytest.mark.parametrize("seeds", [1, 2])
def test_error_rates_are_compared_by_swapping_what_was_written(made: Path, tmp_path: Path, seeds: int) -> None:
    store, task = copied(made, tmp_path), make_task("iwer")
    runs = {side: [store_run(store, task, side, seed, spoil(share))[0] for seed in range(seeds)] for side, share in zip(SIDES, (0.2, 0.4), strict=True)}  # fmt: skip
    (row,) = compare(store, *SIDES)
    assert (row.task, row.probe, row.metric, row.n) == ("texts", "llm", "iwer", 24)
    assert (row.low, row.high) == (None, None)
    tables = {side: [rows_of(store, run) for run in runs[side]] for side in SIDES}

    def score(texts: list[list[str]]) -> float:
        found = []
        for seed in range(seeds):
            rows = tables["logmel"][seed]
            for fold in sorted({row["fold"] for row in rows}):
                mine = [number for number, row in enumerate(rows) if row["fold"] == fold]
                found.append(
                    iwer([rows[number]["target"] for number in mine], [texts[seed][number] for number in mine])
                )
        return float(np.mean(found))

    written = {side: [[row["prediction"] for row in one] for one in tables[side]] for side in SIDES}
    assert row.a == pytest.approx(score(written["logmel"]))
    assert row.difference == pytest.approx(score(written["logmel"]) - score(written["modspec"]))

    def difference(swap: np.ndarray) -> float:
        sides = []
        for one, other in (SIDES, SIDES[::-1]):
            sides.append([[b if marked else a for a, b, marked in zip(first, second, swap, strict=True)] for first, second in zip(written[one], written[other], strict=True)])  # fmt: skip
        return score(sides[0]) - score(sides[1])

    _, test = paired_runs(store, task, "iwer", runs["logmel"], runs["modspec"])
    assert test is not None
    assert (test.difference, test.p_value) == pytest.approx((row.difference, row.p))
    slow = paired_swap_test(difference, 24, permutations=150)
    assert row.p == pytest.approx(slow.p_value, abs=0.1)
    (back,) = compare(store, *SIDES[::-1])
    assert back.difference == pytest.approx(-row.difference)
    assert back.p == pytest.approx(row.p, abs=0.02)


@pytest.mark.parametrize("metric", ["string_map", "string_macro_f1"])
def test_written_labels_are_compared_by_swapping_them(made: Path, tmp_path: Path, metric: str) -> None:
    store, task = copied(made, tmp_path), make_task(metric, key="labels", closed=True, n_classes=6)
    runs = {side: store_run(store, task, side, 0, tags(share))[0] for side, share in zip(SIDES, (0.05, 0.3), strict=True)}  # fmt: skip
    (row,) = compare(store, *SIDES)
    assert (row.metric, row.n) == (metric, 24)
    assert row.difference > 0
    n, test = paired_runs(store, task, metric, [runs["logmel"]], [runs["modspec"]])
    assert test is not None
    assert row.p == test.p_value
    wanted, a, b = ([one[name] for one in rows_of(store, runs[side])] for side, name in (("logmel", "target"), ("logmel", "prediction"), ("modspec", "prediction")))  # fmt: skip
    function = string_map if metric == "string_map" else string_macro_f1

    def difference(swap: np.ndarray) -> float:
        one = [y if marked else x for x, y, marked in zip(a, b, swap, strict=True)]
        other = [x if marked else y for x, y, marked in zip(a, b, swap, strict=True)]
        return function(wanted, one, n_classes=6) - function(wanted, other, n_classes=6)

    slow = paired_swap_test(difference, n, permutations=1000)
    assert test.difference == pytest.approx(slow.difference)
    assert test.p_value == pytest.approx(slow.p_value, abs=0.05)
    assert paired_runs(store, task, metric, [runs["logmel"]], [runs["logmel"]])[1].p_value == 1.0  # type: ignore[union-attr]


def test_labels_that_differ_by_white_space_alone_differ_when_published(made: Path, tmp_path: Path) -> None:
    store, task = copied(made, tmp_path), make_task("string_map", key="labels", closed=True, n_classes=8)

    def spaced(rng: np.random.Generator, references: tuple[str, ...]) -> str:
        return references[0].replace(";", "; ") if references else ""

    for protocol in ("strict", "published"):
        store_run(store, task, "logmel", 0, tags(0.0), protocol=protocol)
        store_run(store, task, "modspec", 0, spaced, protocol=protocol)
    rows = {row.protocol: row for row in compare(store, *SIDES)}
    assert rows["strict"].p == 1.0
    assert rows["strict"].difference == 0.0
    assert rows["published"].difference > 0
    assert rows["published"].p is not None
    assert rows["published"].p < 1.0


def test_means_over_items_are_compared_by_their_values(made: Path, tmp_path: Path) -> None:
    store, task = copied(made, tmp_path), make_task("string_accuracy", key="several")
    runs = {side: store_run(store, task, side, 0, spoil(share))[0] for side, share in zip(SIDES, (0.05, 0.5), strict=True)}  # fmt: skip
    (row,) = compare(store, *SIDES)
    values = {side: [one["value"] for one in rows_of(store, runs[side])] for side in SIDES}
    fold = [one["fold"] for one in rows_of(store, runs["logmel"])]
    test = paired_permutation_test(values["logmel"], values["modspec"], strata=fold)
    assert (row.difference, row.p) == pytest.approx((test.difference, test.p_value))
    assert row.low is not None
    assert row.low <= row.difference <= row.high  # type: ignore[operator]


def test_scores_of_different_stand_ins_are_not_compared(made: Path, tmp_path: Path) -> None:
    """What a score was made with stands in its name; a mean over items with such a name is one still."""
    store, task = copied(made, tmp_path), make_task("string_accuracy", key="several")
    store_run(store, task, "logmel", 0, spoil(0.1), main="fense[small,no-checker]")
    store_run(store, task, "modspec", 0, spoil(0.4), main="fense[large,no-checker]")
    with pytest.raises(ValueError, match="No task has predictions of both"):
        compare(store, *SIDES)
    store_run(store, task, "modspec", 1, spoil(0.4), main="fense[small,no-checker]")
    (row,) = compare(store, *SIDES)
    assert row.metric == "fense[small,no-checker]"
    assert row.low is not None


def test_a_run_without_any_label_cannot_be_swapped(made: Path, tmp_path: Path) -> None:
    store, task = copied(made, tmp_path), make_task("string_map", key="none", closed=True, n_classes=2)
    runs = [store_run(store, task, side, 0, tags(0.3))[0] for side in SIDES]
    assert paired_runs(store, task, "string_map", runs[:1], runs[1:]) == (24, None)
    assert set(store.predictions(runs[0])["target"].to_pylist()) == {""}
