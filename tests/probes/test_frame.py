"""The frame probe: golden run, equality with a plain loop, with other company and with other memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.store.conftest import ENCODER, TASK, address, put_part
from xares_store.errors import ProbeError
from xares_store.metrics.frames import f1_from_counts, segment_counts_published
from xares_store.probes import frame, frame_data
from xares_store.probes.frame import FrameJob, FrameSettings, clip_order, frame_logits, train_frames
from xares_store.probes.schedule import epoch_learning_rate
from xares_store.store import Store
from xares_store.store.stream import FrameSource

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "probes.json").read_text())
Rolls = list[np.ndarray]


def make_source(path: Path, clips: list[np.ndarray], per_part: int = 7) -> FrameSource:
    """A store of float32 frames, a few clips a part; clip i of the list is row i."""
    store = Store.create(path)
    for number, first in enumerate(range(0, len(clips), per_part)):
        each = clips[first : first + per_part]
        put_part(store, address(shard=f"s{number:03d}"), dim=each[0].shape[1], frames=each, dtype="float32", failures=0)
    parts = store.parts(ENCODER, TASK)
    tables = [part.clips() for part in parts]
    place = np.repeat(np.arange(len(parts)), [len(table) for table in tables])
    offset, count = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("offset", "n_frames"))
    return FrameSource(parts, place, offset, count)


class PooledF1:
    """Segment F1 as published, for a few probes at once."""

    def __init__(self, rolls: Rolls, pool: int, average: Any, models: int) -> None:
        self.rolls, self.pool, self.average = rolls, pool, average
        self.counts = np.zeros((models, 3, rolls[0].shape[1]), np.int64)

    def add(self, row: int, logits: np.ndarray) -> None:
        assert logits.shape == (len(self.rolls[row]), *self.counts.shape[::2])
        for model in range(len(self.counts)):
            self.counts[model] += segment_counts_published(self.rolls[row], logits[:, model], self.pool)

    def values(self) -> list[float]:
        return list(f1_from_counts(self.counts, self.average))


def scorer(rolls: Rolls, pool: int = 2, average: str = "macro") -> Callable[[int], PooledF1]:
    return lambda models: PooledF1(rolls, pool, average, models)


@pytest.fixture
def data(tmp_path: Path) -> tuple[FrameSource, Rolls, list[np.ndarray]]:
    """Forty clips of 3 to 30 frames in which three of six columns tell the classes, with noise."""
    rng = np.random.default_rng(3)
    rolls = [(rng.random((int(rng.integers(3, 31)), 3)) < 0.3).astype(np.uint8) for _ in range(40)]
    clips = [
        np.hstack([roll * 1.5, np.zeros_like(roll)]) + rng.standard_normal((len(roll), 6)).astype(np.float32)
        for roll in rolls
    ]
    clips = [values.astype(np.float32) for values in clips]
    return make_source(tmp_path / "s", clips), rolls, clips


def make_jobs(seeds: int = 2) -> list[FrameJob]:
    rows = np.arange(40)
    folds = [(rows[8:], rows[:8]), (rows[:29], rows[29:])]
    return [FrameJob(str(f), train, valid, seed) for f, (train, valid) in enumerate(folds) for seed in range(seeds)]


OPTIONS = FrameSettings(epochs=3, batch_size=5, learning_rates=(3e-2, 1e-2), positive_weight=2.5)
BLOCK = 5 * 20 * 6 * 4  # a batch or two


def train(data: Any, jobs: list[FrameJob], options: FrameSettings = OPTIONS, **more: Any) -> list[frame.FrameResult]:
    source, rolls, _ = data
    more = {"block_bytes": BLOCK, **more}
    return train_frames(source, rolls.__getitem__, 3, jobs, options, valid_score=scorer(rolls), **more)


def assert_same(one: frame.FrameResult, other: frame.FrameResult, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    assert (one.fold, one.seed, one.learning_rate) == (other.fold, other.seed, other.learning_rate)
    assert (one.best_epoch, one.valid_score) == (other.best_epoch, other.valid_score)
    for key, value in one.state.items():
        np.testing.assert_allclose(value, other.state[key], rtol=rtol, atol=atol, err_msg=key)
    for row, expected in zip(one.history, other.history, strict=True):
        np.testing.assert_allclose(row["train_loss"], expected["train_loss"], rtol=1e-5)


def test_golden_run(tmp_path: Path) -> None:
    case = GOLDEN["probe_frame"]
    sets = [case["train"], case["valid"], case["test"]]
    items = [item for part in sets for item in part]
    source = make_source(tmp_path / "s", [np.array(item["emb_DxT"], np.float32).T for item in items], per_part=50)
    rolls = [np.array(item["y"], np.uint8).T for item in items]
    rows = [np.arange(first, last) for first, last in pairwise(np.cumsum([0, *map(len, sets)]))]
    options = FrameSettings(epochs=case["epochs"], batch_size=case["batch_size"], learning_rates=(case["lr"],))
    score = scorer(rolls)
    (found,) = train_frames(
        source,
        rolls.__getitem__,
        case["dims"]["C"],
        [FrameJob("all", rows[0], rows[1], seed=0)],
        options,
        valid_score=score,
        shuffle=False,
        init=case["init"],
    )
    (history,) = found.history
    assert found.best_epoch == case["best_epoch_1based_first_maximum"]
    assert history["valid"] == pytest.approx([row["val_metric"] for row in case["validation"]], abs=1e-9)
    size, count = case["batch_size"], len(rows[0])
    weight = np.array([min(size, count - first) for first in range(0, count, size)])
    losses = np.array(case["train_loss_per_step"]).reshape(case["epochs"], -1)
    np.testing.assert_allclose(history["train_loss"], losses @ weight / count, rtol=1e-4)
    for key, value in case["weights_best_checkpoint"].items():
        np.testing.assert_allclose(found.state[key], value, rtol=1e-4, atol=1e-6)
    test = score(1)
    for row, logits in frame_logits(source, rows[2], [found.state]):
        test.add(row, logits)
    assert test.values() == pytest.approx([case["test_metric_best_checkpoint"]], abs=1e-9)


def plain_loop(data: Any, job: FrameJob, rate: float, options: FrameSettings) -> tuple[Any, list[float], list[float]]:
    """What a reader would write first: LayerNorm, Linear, BCE with logits, Adam, a checkpoint."""
    source, rolls, clips = data
    torch.manual_seed(job.seed)
    net = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 3))
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    weight = torch.tensor(options.positive_weight)
    best, losses, scores = (-1.0, 0, {}), [], []
    for epoch in range(1, options.epochs + 1):
        for group in optimiser.param_groups:
            group["lr"] = epoch_learning_rate(rate, epoch, options.epochs)
        total = 0.0
        for number, rows in enumerate(source.plan(job.train, epoch=epoch, batch=options.batch_size, block_bytes=BLOCK)):
            for batch in torch.from_numpy(rows[clip_order(len(rows), job.seed, epoch, number)]).split(
                options.batch_size
            ):
                x = torch.cat([torch.from_numpy(clips[row]) for row in batch])
                y = torch.cat([torch.from_numpy(rolls[row]).float() for row in batch])
                loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x), y, pos_weight=weight)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(batch)
        losses.append(total / len(job.train))
        score = PooledF1(rolls, 2, "macro", 1)
        with torch.no_grad():
            for row in job.valid:
                score.add(row, net(torch.from_numpy(clips[row])).unsqueeze(1).numpy())
        scores += score.values()
        if scores[-1] > best[0]:
            best = (scores[-1], epoch, {key: value.clone() for key, value in net.state_dict().items()})
    return best, losses, scores


def test_equal_to_plain_loops_for_all_folds_seeds_and_rates(data: Any) -> None:
    jobs = make_jobs()
    for job, found in [*zip(jobs, train(data, jobs), strict=True)][1:3]:
        kept = []
        for rate, row in zip(OPTIONS.learning_rates, found.history, strict=True):
            best, losses, scores = plain_loop(data, job, rate, OPTIONS)
            np.testing.assert_allclose(row["train_loss"], losses, rtol=1e-4)
            np.testing.assert_allclose(row["valid"], scores, rtol=1e-9)
            kept.append((rate, *best))
        rate, score, epoch, state = max(kept, key=lambda item: item[1])  # the first one among equals
        assert (found.learning_rate, found.best_epoch, found.valid_score) == (rate, epoch, pytest.approx(score))
        names = {"ln.weight": "0.weight", "ln.bias": "0.bias", "fc.weight": "1.weight", "fc.bias": "1.bias"}
        for key, value in found.state.items():
            np.testing.assert_allclose(value, state[names[key]].numpy(), rtol=1e-4, atol=1e-5)


def test_what_else_is_trained_changes_nothing(data: Any) -> None:
    jobs = make_jobs()[1:]
    together = train(data, jobs)
    for job, found in zip(jobs, together, strict=True):
        assert_same(train(data, [job])[0], found)
        alone = train(data, [job], replace(OPTIONS, learning_rates=(found.learning_rate,)))[0]
        for key, value in alone.state.items():
            np.testing.assert_allclose(value, found.state[key], rtol=1e-4, atol=1e-5)
    assert not np.allclose(together[0].state["fc.weight"], together[1].state["fc.weight"])


@pytest.mark.parametrize("slices", [7, 64])
def test_memory_changes_nothing(data: Any, monkeypatch: pytest.MonkeyPatch, slices: int) -> None:
    """Everything kept, nothing kept, and no block in memory at all: the same bits."""
    monkeypatch.setattr(frame_data, "slice_rows", lambda *_: slices)
    monkeypatch.setattr(frame, "slice_rows", lambda *_: slices)
    monkeypatch.setattr(frame_data, "WORK_BYTES", 0)
    jobs = make_jobs(seeds=1)
    wanted = train(data, jobs)
    source = data[0]
    states = [result.state for result in wanted]
    logits = dict(frame_logits(source, np.arange(40), states, block_bytes=BLOCK))
    for memory in (0, 12_000, 25_000, 40_000):
        for one, other in zip(train(data, jobs, memory_bytes=memory), wanted, strict=True):
            assert_same(one, other, rtol=0, atol=0)
        for row, found in frame_logits(source, np.arange(40), states, memory_bytes=memory, block_bytes=BLOCK):
            np.testing.assert_array_equal(found, logits[row])


def test_blocks_are_kept_on_disk_or_in_memory_as_the_budget_says(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_data, "WORK_BYTES", 0)
    source = data[0]
    rows = np.arange(40)
    size = source.float_bytes(rows)
    for memory, kept, loaded in [(0, 0, False), (BLOCK, 0, False), (6 * BLOCK, 1, True), (9 * size, size, True)]:
        reader = frame_data.FrameReader(source, 3, device="cpu", memory_bytes=memory, block_bytes=BLOCK)
        found = reader.keep(rows, 5)
        assert found == size if kept == size else (found > 0) == kept
        blocks = list(reader.blocks(source.plan(rows, batch=1, block_bytes=BLOCK)))
        assert {block._x is not None for block in blocks} == {loaded}


def test_slices_do_not_change_the_step(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is worked on in many slices is still one step with the mean over all its frames."""
    jobs = make_jobs(seeds=1)[:1]
    wanted = train(data, jobs)
    monkeypatch.setattr(frame, "slice_rows", lambda *_: 3)
    assert_same(train(data, jobs)[0], wanted[0])


def test_one_long_recording_among_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rolls = [(rng.random((n, 2)) < 0.5).astype(np.uint8) for n in (900, 5, 5, 5)]
    clips = [(roll @ np.ones((2, 4)) + rng.standard_normal((len(roll), 4))).astype(np.float32) for roll in rolls]
    source = make_source(tmp_path / "s", clips)
    rows = np.arange(4)
    options = FrameSettings(epochs=2, batch_size=1, learning_rates=(1e-2,))
    results = []
    for memory in (1 << 30, 4000):
        monkeypatch.setattr(frame_data, "WORK_BYTES", 0)
        results += train_frames(
            source,
            rolls.__getitem__,
            2,
            [FrameJob("a", rows, rows, 0)],
            options,
            valid_score=scorer(rolls),
            memory_bytes=memory,
            block_bytes=400,
        )
    assert_same(*results, rtol=0, atol=0)


def test_nothing_that_no_job_names_reaches_training(data: Any) -> None:
    source, rolls, clips = data
    rows = np.arange(40)
    job = FrameJob("a", rows[:20], rows[20:30], 1)
    before = train(data, [job])[0]
    changed = [*rolls[:30], *(1 - roll for roll in rolls[30:])]
    after = train((source, changed, clips), [job])[0]
    assert_same(before, after, rtol=0, atol=0)


@pytest.mark.parametrize(
    "case", GOLDEN["best_checkpoint_selection"], ids=lambda case: str(case["val_metric_per_epoch"])
)
def test_first_strictly_best_epoch_is_kept(case: Any, data: Any) -> None:
    scores = [case["sign"] * float(value) for value in case["val_metric_per_epoch"]]
    left = iter(scores)

    class Given:
        def add(self, row: int, logits: np.ndarray) -> None:
            pass

        def values(self) -> list[float]:
            return [next(left)]

    source, rolls, _ = data
    options = FrameSettings(epochs=len(scores), batch_size=8, learning_rates=(1e-2,))
    (found,) = train_frames(source, rolls.__getitem__, 3, make_jobs(1)[:1], options, valid_score=lambda models: Given())
    assert found.best_epoch == int(np.nanargmax(scores)) + 1  # NaN is never the best


def test_diverged_rate_is_never_chosen_and_alone_is_an_error(data: Any) -> None:
    job = make_jobs(1)[0]
    mixed = replace(OPTIONS, learning_rates=(1e38, 1e-2))
    (found,) = train(data, [job], mixed)
    assert found.learning_rate == 1e-2
    assert all(np.isfinite(value).all() for value in found.state.values())
    assert None in found.history[0]["valid"]
    json.dumps(found.history, allow_nan=False)
    with pytest.raises(ProbeError, match=r"1e\+38.*\n.*fold 0, seed 0"):
        train(data, [job], replace(mixed, learning_rates=(1e38,)))


def test_progress_counts_epochs_of_all_folds(data: Any) -> None:
    seen: list[tuple[int, int]] = []
    train(data, make_jobs(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_unusable_settings_and_input(data: Any) -> None:
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ProbeError, match="positive weight"):
            replace(OPTIONS, positive_weight=weight)
    with pytest.raises(ProbeError):
        replace(OPTIONS, epochs=0)
    job = make_jobs(1)[0]
    with pytest.raises(ProbeError, match="none in valid"):
        train(data, [replace(job, valid=np.array([], np.int64))])
    with pytest.raises(ProbeError, match="0 to 39"):
        train(data, [replace(job, train=np.array([40]))])
