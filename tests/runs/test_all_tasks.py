"""Every public and private task of X-ARES runs end to end on shards in its published format."""

from __future__ import annotations

import json
import math
import tarfile
from pathlib import Path

import pytest

from tests.published import FACTS, make_shards, patterns
from tests.toy import write_tar
from xares_store.catalog import load_task, load_tasks
from xares_store.errors import ProbeError
from xares_store.kinds import PROBES_OF_KIND
from xares_store.runs.embed import EmbedReport, embed
from xares_store.runs.evaluate import EvaluateReport, evaluate
from xares_store.store.store import Store
from xares_store.targets import texts_of

# librispeech and its sibling are made of the same files.
SHARED = {"librispeech"}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EmbedReport, EvaluateReport]:
    """Embed and evaluate all 28 tasks with the built-in encoder, as a user of the suite would."""
    root = tmp_path_factory.mktemp("suite")
    data, store = root / "data", root / "s.store"
    for name, facts in FACTS.items():
        if name not in SHARED:
            clips = 6 if "folds" in facts else 24
            make_shards(facts, data / load_task(name).folder, clips=clips)
    _add_transcripts(data / "librispeech")
    tasks = ["xares", "speechocean762"]
    embedded = embed("logmel", tasks, store=store, data=data, device="cpu", workers=0)
    evaluated = evaluate(store, tasks=tasks, seeds=1, epochs=2, device="cpu")
    return store, embedded, evaluated


def _add_transcripts(folder: Path) -> None:
    """LibriSpeech's JSON holds the reader's gender and the transcript: one set of files serves two tasks."""
    for path in folder.glob("*.tar"):
        members: list[tuple[str, bytes]] = []
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                content = stream.read()
                if member.name.endswith(".json"):
                    content = json.dumps({**json.loads(content), "trans": "MISTER QUILTER"}).encode()
                members.append((member.name, content))
        write_tar(path, members)


def test_nothing_fails_and_nothing_is_left_out(suite: tuple[Path, EmbedReport, EvaluateReport]) -> None:
    _, embedded, evaluated = suite
    assert embedded.ok
    assert embedded.skipped_tasks == []
    assert set(embedded.batch_s) == set(FACTS)
    assert evaluated.failed == []
    assert {result.task for result in evaluated.results} == set(FACTS) - {"librispeech"}
    (note,) = [note for note in evaluated.notes if "is not evaluated" in note]
    assert '"librispeech"' in note


@pytest.mark.parametrize("name", sorted(set(FACTS) - {"librispeech"}))
def test_a_task_is_scored_with_every_metric_of_its_file(
    suite: tuple[Path, EmbedReport, EvaluateReport], name: str
) -> None:
    path, _, evaluated = suite
    task, facts = load_task(name), FACTS[name]
    fitting = set(PROBES_OF_KIND[task.target.kind])
    if not facts["do_knn"]:
        fitting -= {"knn"}
    results = [result for result in evaluated.results if result.task == name]
    assert {result.probe for result in results} == fitting
    store = Store.open(path)
    for result in results:
        run = store.read_run(result.run_id)
        assert run.main_metric == facts["metric"]
        overall = {score.metric: score for score in run.scores if score.fold is None}
        assert set(overall) == set(task.metric.names)
        assert all(math.isfinite(score.value) for score in run.scores)
        main = overall[task.metric.name]
        assert main.low is not None
        assert main.high is not None
        assert main.low - 1e-9 <= main.value <= main.high + 1e-9
        folds = [score.fold for score in run.scores if score.metric == run.main_metric and score.fold is not None]
        # A pool becomes five folds under strict; the others are tested as their publisher divided them.
        assert len(folds) == (len(facts["folds"]) if "folds" in facts else 5 if task.data.pool else 1)
        predictions = store.predictions(result.run_id)
        assert len(predictions) == run.n_test > 0
        assert None not in predictions["target"].to_pylist()
        assert None not in predictions["prediction"].to_pylist()


def test_transcripts_are_stored_and_wait_for_a_language_model(
    suite: tuple[Path, EmbedReport, EvaluateReport],
) -> None:
    path, *_ = suite
    found = Store.open(path).sql(
        "select distinct label->>'trans' as trans from clips where task = $task",
        {"task": load_task("librispeech").audio_address},
    )
    assert found["trans"].to_pylist() == ["MISTER QUILTER"]
    with pytest.raises(ProbeError, match="a language model has to write"):
        evaluate(path, tasks=["librispeech"])


def test_a_task_over_the_same_audio_reuses_its_frames(suite: tuple[Path, EmbedReport, EvaluateReport]) -> None:
    """The gender of a reader, as a language model answers it, needs no embedding of its own."""
    path, *_ = suite
    before = len(Store.open(path).parts())
    report = embed("logmel", ["llm-librispeech-gender"], store=path, data=path.parent / "data", device="cpu", workers=0)
    assert (report.ok, report.parts, report.reused_shards, report.bad_labels) == (True, 0, 3, [])
    assert len(Store.open(path).parts()) == before
    task = load_task("llm-librispeech-gender")
    labels = Store.open(path).sql("select label from clips where task = $task", {"task": task.audio_address})
    texts = labels["label"].to_pylist()
    assert {one.test for one in texts_of(task, texts, [str(row) for row in range(len(texts))])} == {("M",), ("F",)}


def test_the_shards_are_the_published_ones() -> None:
    for task in load_tasks(["xares", "speechocean762"]):
        named = {pattern for group in task.split_patterns().values() for pattern in group}
        assert named == set(patterns(FACTS[task.name])), task.name


def test_the_published_protocol_runs_too(suite: tuple[Path, EmbedReport, EvaluateReport]) -> None:
    path, *_ = suite
    names = ["desed", "maestro", "fsd50k", "speechocean762", "esc50", "liveenv"]
    report = evaluate(path, tasks=names, seeds=1, epochs=1, protocol="published", device="cpu")
    assert report.failed == []
    assert {result.task for result in report.results} == set(names)
    assert all(math.isfinite(result.value) for result in report.results)
