"""What `transcribe` writes about a clip is what the evaluation wrote about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.probes.llm.models import save_tiny
from tests.runs.llm.material import LETTERS, Llm, make_anew, write_recipe
from tests.runs.llm.test_llm_failures import write_folded
from xares_store.cli import cli
from xares_store.errors import ConfigError, ProbeError
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm
from xares_store.runs.embed import embed
from xares_store.runs.evaluate import evaluate
from xares_store.runs.llm.options import LlmOptions
from xares_store.runs.llm.transcribe import transcribe
from xares_store.store.run import read_predictions
from xares_store.store.store import Store


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    found = make_anew(tmp_path_factory.mktemp("llm"))
    data = found.root / "data"
    embed("logmel", [str(write_folded(data))], store=found.store, data=data)
    return found


def _run(store: Store, task: str | Path, recipe: Path, **options: Any) -> str:
    return (
        evaluate(store, tasks=[str(task)], probes=["llm"], llm=LlmOptions(recipe=str(recipe), **options))
        .results[0]
        .run_id
    )


def _predicted(store: Store, run: str) -> dict[str, str]:
    return {
        f"{row['split']}/{row['clip_id']}": row["prediction"] for row in read_predictions(store.path, run).to_pylist()
    }


def test_each_clip_is_written_by_the_model_of_its_fold(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    recipe = write_recipe(tmp_path, llm.decoder, name="learns", joint=False, steps=20)
    run = _run(store, llm.root / "data" / "folded.toml", recipe)
    predicted = _predicted(store, run)
    assert len(predicted) == 18
    assert len(set(predicted.values())) > 1
    names = sorted(predicted, key=lambda name: name[::-1])  # folds mixed
    assert [one.text for one in transcribe(store, run, names)] == [predicted[name] for name in names]


def test_clips_are_cut_to_the_context_as_in_evaluations(llm: Llm, tmp_path: Path) -> None:
    decoder = save_tiny(tmp_path / "short", words=tuple(LETTERS), max_position_embeddings=14)  # three places for audio
    store = llm.fresh(tmp_path / "s")
    run = _run(store, llm.spelling, write_recipe(tmp_path, decoder, name="short", joint=True, steps=2))
    (fold,) = store.read_run(run).details["folds"]
    predicted = _predicted(store, run)
    found = transcribe(store, run, list(predicted))
    assert [one.text for one in found] == list(predicted.values())
    assert sum(one.cut for one in found) == fold["cut"] > 0
    with pytest.raises(ProbeError, match="sees 14 positions"):
        transcribe(store, run, ["test0000"], prompt="hello world good day")
    whole = _run(store, llm.spelling, llm.joint, max_steps=2)
    assert not any(one.cut for one in transcribe(store, whole, list(predicted)))
    result = CliRunner().invoke(
        cli, ["transcribe", "--run", run, "--store", str(store.path), "--json", *predicted], standalone_mode=False
    )
    assert [row["cut"] for row in json.loads(result.stdout)] == [one.cut for one in found]


def test_frames_that_reach_the_model_depend_on_the_prompt(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = save_tiny(tmp_path / "short", words=tuple(LETTERS), max_position_embeddings=14)
    store = llm.fresh(tmp_path / "s")
    run = _run(store, llm.spelling, write_recipe(tmp_path, decoder, name="short", joint=True, steps=2))
    seen = _watch(monkeypatch)
    transcribe(store, run, ["test0000"])
    transcribe(store, run, ["test0000"], prompt="hello world good")
    assert [[len(one.frames) for one in batch] for batch in seen] == [[3 * 16], [16]]


def _watch(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """Return a list that fills with the batches that models write about."""
    seen: list[list[Example]] = []
    write = AudioLm.write

    def watched(self: AudioLm, examples: Sequence[Example], **generation: Any) -> Any:
        if examples[0].name.startswith("test/"):  # a decoder is tried on clips of its own when it is loaded
            seen.append(list(examples))
        return write(self, examples, **generation)

    monkeypatch.setattr(AudioLm, "write", watched)
    return seen


def test_batches_follow_the_budget(llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = llm.fresh(tmp_path / "s")
    names = [f"test{index:04d}" for index in range(8)]
    batches, texts = [], []
    for budget in (16, 4096):
        recipe = write_recipe(tmp_path, llm.decoder, name=f"budget{budget}", joint=True, steps=2, budget=budget)
        run = _run(store, llm.spelling, recipe)
        with monkeypatch.context() as patch:
            seen = _watch(patch)
            texts.append([one.text for one in transcribe(store, run, names)])
        batches.append([len(batch) for batch in seen])
    assert batches == [[1] * 8, [8]]
    assert texts[0] == texts[1]


def test_prompts_and_clips_that_cannot_be(llm: Llm, tmp_path: Path) -> None:
    store = llm.fresh(tmp_path / "s")
    silent = _run(store, llm.spelling, llm.alone, max_steps=2)
    with pytest.raises(ConfigError, match="asks no question"):
        transcribe(store, silent, ["test0000"], prompt="spell")
    run = _run(store, llm.spelling, llm.joint, max_steps=2)
    with pytest.raises(ConfigError, match="UTF-8"):
        transcribe(store, run, ["test0000"], prompt="sp\udcffell")
    narrow = tmp_path / "spelling.toml"  # the same audio, of which another task takes less
    narrow.write_text(llm.spelling.read_text().replace('valid = ["valid-*.tar"]\n', ""))
    other = _run(store, narrow, llm.joint, max_steps=2)
    task = store.read_run(other).task_address
    assert transcribe(store, run, ["valid0000"], task=store.read_run(run).task_address)[0].split == "valid"
    with pytest.raises(ConfigError, match=r'No clip "valid0000"'):
        transcribe(store, other, ["valid0000"], task=task)
