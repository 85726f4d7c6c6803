"""The stacked MLP probe: golden run, equality with separate and plain training, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.errors import ProbeError
from xares_store.probes import clips, mlp, stack
from xares_store.probes.mlp import MlpJob, MlpSettings, epoch_order, train_mlp
from xares_store.probes.schedule import epoch_learning_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "probes.json").read_text())


def make_data(n=120, dim=24, n_classes=5, seed=0, separation=0.6):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, n_classes, n)
    centre = rng.normal(size=(n_classes, dim)) * separation
    return (centre[target] + rng.normal(size=(n, dim))).astype(np.float32), target


def make_jobs(n=120, folds=3, seeds=2, uneven=True):
    """Folds of different sizes, so that models run out of batches at different steps."""
    fold = np.arange(n) % folds
    jobs = []
    for number in range(folds):
        valid, test = fold == (number + 1) % folds, fold == number
        train = np.flatnonzero(~(valid | test))
        train = train[: len(train) - 7 * number] if uneven else train
        jobs += [MlpJob(str(number), train, np.flatnonzero(valid), np.flatnonzero(test), seed) for seed in range(seeds)]
    return jobs


def plain_loop(features, target, n_classes, job, rate, options):
    """What a reader would write first: LayerNorm, Linear, cross entropy, Adam, a checkpoint."""
    x, y = torch.from_numpy(features), torch.from_numpy(target)
    torch.manual_seed(job.seed)
    net = torch.nn.Sequential(torch.nn.LayerNorm(features.shape[1]), torch.nn.Linear(features.shape[1], n_classes))
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    best, losses, scores = (-1.0, 0, {}), [], []
    for epoch in range(1, options.epochs + 1):
        for group in optimiser.param_groups:
            group["lr"] = epoch_learning_rate(rate, epoch, options.epochs)
        order = torch.from_numpy(job.train[epoch_order(len(job.train), job.seed, epoch)])
        total = 0.0
        for rows in order.split(options.batch_size):
            loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        losses.append(total / len(order))
        with torch.no_grad():
            score = (net(x[job.valid]).argmax(-1) == y[job.valid]).double().mean().item()
        scores.append(score)
        if score > best[0]:
            best = (score, epoch, {key: value.clone() for key, value in net.state_dict().items()})
    net.load_state_dict(best[2])
    with torch.no_grad():
        probabilities = net(x[job.test]).softmax(-1).numpy()
    return best, losses, scores, probabilities


def assert_same(one, other, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-6, **tolerance}
    assert (one.fold, one.seed, one.learning_rate, one.best_epoch) == (
        other.fold,
        other.seed,
        other.learning_rate,
        other.best_epoch,
    )
    assert one.valid_score == other.valid_score
    np.testing.assert_allclose(one.outputs, other.outputs, **tolerance)
    for key, value in one.state.items():
        np.testing.assert_allclose(value, other.state[key], **tolerance)
    for row, expected in zip(one.history, other.history, strict=True):
        assert row["valid"] == expected["valid"]
        np.testing.assert_allclose(row["train_loss"], expected["train_loss"], rtol=1e-5)


@pytest.mark.parametrize("case", GOLDEN["lr_schedule"], ids=lambda case: f"{case['epochs']}-epochs")
def test_schedule(case):
    found = [epoch_learning_rate(case["lr"], epoch, case["epochs"]) for epoch in range(1, case["epochs"] + 1)]
    assert found == pytest.approx(case["lr_used_in_epoch_1_to_n"], rel=1e-12)


@pytest.mark.parametrize("epoch", [0, 4])
def test_schedule_refuses_other_epochs(epoch):
    with pytest.raises(ProbeError):
        epoch_learning_rate(1e-3, epoch, 3)


def test_parameter_counts():
    cases = [case for case in GOLDEN["linear_probe_params"] if case["out"] is not None]
    assert len(cases) == 4
    for case in cases:
        assert stack.parameter_count(case["in"], case["out"]) == case["expected"]


def test_golden_run():
    case = GOLDEN["probe_clip"]
    parts = [case["train"], case["valid"], case["test"]]
    items = [item for part in parts for item in part]
    features = np.stack([np.mean(np.array(item["emb_DxT"]), axis=1) for item in items]).astype(np.float32)
    target = np.array([item["y"] for item in items])
    bounds = np.cumsum([0, *map(len, parts)])
    rows = [np.arange(first, last) for first, last in pairwise(bounds)]
    options = MlpSettings(epochs=case["epochs"], batch_size=case["batch_size"], learning_rates=(case["lr"],))
    (found,) = train_mlp(
        features,
        target,
        case["dims"]["C"],
        [MlpJob("all", *rows, seed=0)],
        options,
        shuffle=False,
        init={key: np.array(value) for key, value in case["init"].items()},
    )
    (history,) = found.history
    assert found.best_epoch == case["best_epoch_1based_first_maximum"]
    assert history["valid"] == pytest.approx([row["val_metric"] for row in case["validation"]], abs=1e-9)
    size = case["batch_size"]
    steps = -(-len(rows[0]) // size)
    count = np.array([min(size, len(rows[0]) - step * size) for step in range(steps)])
    per_step = np.array(case["train_loss_per_step"]).reshape(case["epochs"], steps)
    np.testing.assert_allclose(history["train_loss"], per_step @ count / count.sum(), rtol=1e-4)
    for key, value in case["weights_best_checkpoint"].items():
        np.testing.assert_allclose(found.state[key], value, rtol=1e-4, atol=1e-6)
    accuracy = np.mean(found.outputs.argmax(axis=1) == target[rows[2]])
    assert accuracy == pytest.approx(case["test_metric_best_checkpoint"], abs=1e-9)


def test_equals_the_plain_loop():
    features, target = make_data()
    jobs = make_jobs()
    options = MlpSettings(epochs=6, batch_size=8, learning_rates=(3e-3, 3e-2))
    for job, found in zip(jobs, train_mlp(features, target, 5, jobs, options), strict=True):
        runs = [plain_loop(features, target, 5, job, rate, options) for rate in options.learning_rates]
        for row, (_, losses, scores, _) in zip(found.history, runs, strict=True):
            assert row["valid"] == scores
            np.testing.assert_allclose(row["train_loss"], losses, rtol=1e-4)
        chosen = int(np.argmax([best[0] for best, *_ in runs]))
        (score, epoch, weights), _, _, probabilities = runs[chosen]
        assert (found.learning_rate, found.best_epoch) == (options.learning_rates[chosen], epoch)
        assert found.valid_score == score
        np.testing.assert_allclose(found.outputs, probabilities, rtol=1e-4, atol=1e-6)
        names = {"ln.weight": "0.weight", "ln.bias": "0.bias", "fc.weight": "1.weight", "fc.bias": "1.bias"}
        for key, name in names.items():
            np.testing.assert_allclose(found.state[key], weights[name].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("uneven", [False, True])
def test_stacked_equals_separate(uneven):
    features, target = make_data()
    jobs = make_jobs(uneven=uneven)
    options = MlpSettings(epochs=5, batch_size=16, learning_rates=(1e-3, 1e-2, 1e-1))
    together = train_mlp(features, target, 5, jobs, options)
    for job, found in zip(jobs, together, strict=True):
        (alone,) = train_mlp(features, target, 5, [job], options)
        assert_same(found, alone)
    assert len({found.learning_rate for found in together}) > 1 or len({found.best_epoch for found in together}) > 1


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_any_mixture_of_sizes_equals_separate(sizes, batch_size, seed):
    features, target = make_data(60, 6, 3, seed=1)
    jobs = [
        MlpJob(str(number), np.arange(size), np.arange(40, 50), np.arange(50, 60), seed)
        for number, size in enumerate(sizes)
    ]
    options = MlpSettings(epochs=2, batch_size=batch_size, learning_rates=(1e-2,))
    for job, found in zip(jobs, train_mlp(features, target, 3, jobs, options), strict=True):
        (alone,) = train_mlp(features, target, 3, [job], options)
        assert_same(found, alone, atol=1e-5)


def test_slices_change_nothing():
    features, target = make_data()
    jobs = make_jobs()
    options = MlpSettings(epochs=3, batch_size=16, learning_rates=(1e-3, 1e-2, 1e-1))
    whole = train_mlp(features, target, 5, jobs, options)
    one_model = 4 * stack.BUFFERS_PER_MODEL * stack.parameter_count(24, 5)
    calls = []
    for models in (1, 2, 5, 7):
        calls.clear()
        cut = train_mlp(
            features,
            target,
            5,
            jobs,
            options,
            stack_bytes=models * one_model,
            progress=lambda done, total: calls.append((done, total)),
        )
        for one, other in zip(cut, whole, strict=True):
            assert_same(one, other)
        assert len(calls) == calls[-1][1] == calls[-1][0]
        assert len(calls) > options.epochs  # there was more than one slice


def test_scoring_in_blocks_changes_nothing(monkeypatch):
    features, target = make_data()
    jobs = make_jobs()
    options = MlpSettings(epochs=3, learning_rates=(1e-3, 1e-2))
    recordings = np.arange(len(target)) // 2
    target = target[recordings * 2]
    for items in (None, recordings):
        monkeypatch.undo()
        whole = train_mlp(features, target, 5, jobs, options, recordings=items)
        monkeypatch.setattr(clips, "_BLOCK_VALUES", 100)
        for one, other in zip(train_mlp(features, target, 5, jobs, options, recordings=items), whole, strict=True):
            assert_same(one, other)


def test_starts_where_torch_starts():
    torch.manual_seed(3)
    linear = torch.nn.Linear(24, 5)
    state = mlp.initial_state(24, 5, seed=3)
    torch.testing.assert_close(state["fc.weight"], linear.weight.detach())
    torch.testing.assert_close(state["fc.bias"], linear.bias.detach())


def test_reads_arrays_that_must_not_be_written():
    features, target = make_data()
    job = make_jobs(seeds=1)[0]
    expected = train_mlp(features, target, 5, [job], MlpSettings(epochs=2))
    recordings = np.arange(len(target))
    for array in (features, target, recordings, job.train, job.valid, job.test):
        array.flags.writeable = False
    found = train_mlp(features, target, 5, [job], MlpSettings(epochs=2), recordings=recordings)
    assert_same(found[0], expected[0])


def test_order_depends_on_seed_and_epoch_alone():
    assert sorted(epoch_order(50, 0, 1)) == list(range(50))
    assert epoch_order(50, 0, 1).tolist() == epoch_order(50, 0, 1).tolist()
    assert epoch_order(50, 0, 1).tolist() != epoch_order(50, 0, 2).tolist()
    assert epoch_order(50, 0, 1).tolist() != epoch_order(50, 1, 1).tolist()


def test_nothing_of_the_test_clips_reaches_training():
    features, target = make_data()
    jobs = make_jobs(seeds=1)
    before = train_mlp(features, target, 5, jobs[:1], MlpSettings(epochs=3))
    features[jobs[0].test] *= -5
    target[jobs[0].test] = -1
    after = train_mlp(features, target, 5, jobs[:1], MlpSettings(epochs=3))
    np.testing.assert_array_equal(before[0].state["fc.weight"], after[0].state["fc.weight"])
    assert before[0].valid_score == after[0].valid_score


@pytest.mark.parametrize(
    "case", GOLDEN["best_checkpoint_selection"], ids=lambda case: str(case["val_metric_per_epoch"])
)
def test_first_strictly_best_epoch_is_kept(case, monkeypatch):
    # NaN in the first epoch stays for ever in the reference; here NaN is never best.
    scores = [case["sign"] * float(value) for value in case["val_metric_per_epoch"]]
    kept = int(np.nanargmax(scores)) + 1
    if not np.isnan(scores[0]):
        assert kept == case["kept_epoch"]["value"]
    left = iter(scores)
    monkeypatch.setattr(clips.Clips, "scores", lambda self, rows, weight, bias: [next(left)])
    features, target = make_data()
    (found,) = train_mlp(features, target, 5, make_jobs(seeds=1)[:1], MlpSettings(epochs=len(scores)))
    assert found.best_epoch == kept


def test_equal_learning_rates_first_in_the_grid_wins():
    features, target = make_data(separation=30.0)
    options = MlpSettings(epochs=8, learning_rates=(3e-2, 1e-2, 1e-1))
    (found,) = train_mlp(features, target, 5, make_jobs(seeds=1)[:1], options)
    assert [max(row["valid"]) for row in found.history] == [1.0, 1.0, 1.0]
    assert found.learning_rate == 3e-2


def test_diverged_rate_is_never_chosen_and_alone_is_an_error():
    features, target = make_data()
    job = make_jobs(seeds=1)[0]
    mixed = MlpSettings(epochs=3, batch_size=8, learning_rates=(1e38, 1e-2))
    (found,) = train_mlp(features, target, 5, [job], mixed)
    assert found.learning_rate == 1e-2
    assert np.isfinite(found.outputs).all()
    assert None in found.history[0]["valid"]
    json.dumps(found.history, allow_nan=False)
    with pytest.raises(ProbeError, match=r"1e\+38.*\n.*fold 0, seed 0"):
        train_mlp(features, target, 5, [job], replace(mixed, learning_rates=(1e38,)))


def test_crops_of_a_recording_vote_in_validation():
    # One confident crop outvotes two hesitant ones; single crops would score 1 of 3.
    x = torch.tensor([[3.0, 0.0], [0.0, 0.2], [0.0, 0.2], [0.0, 9.0]])
    target = torch.tensor([0, 0, 0, 1])
    weight, bias = torch.eye(2).unsqueeze(0), torch.zeros(1, 2)
    rows = np.arange(4)
    single = clips.Clips(x, target, 2, None)
    voted = clips.Clips(x, target, 2, np.array([9, 9, 9, 4]))
    assert single.scores(rows, weight, bias) == [0.5]
    assert voted.scores(rows, weight, bias) == [1.0]
    assert np.isnan(voted.scores(rows, weight * torch.inf, bias)[0])


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rates": ()},
        {"learning_rates": (0.0,)},
        {"learning_rates": (float("nan"),)},
        {"learning_rates": (1e-3, 1e-3)},
    ],
    ids=str,
)
def test_unusable_settings(change):
    with pytest.raises(ProbeError):
        MlpSettings(**change)


def test_unusable_input():
    features, target = make_data()
    job = make_jobs(seeds=1)[0]
    empty = np.array([], dtype=np.int64)
    bad = features.copy()
    bad[5, 3] = np.nan
    unknown = target.copy()
    unknown[job.train[0]] = 5
    for call, message in [
        (lambda: train_mlp(bad, target, 5, [job], MlpSettings()), "row 5"),
        (lambda: train_mlp(features, unknown, 5, [job], MlpSettings()), "0 to 4"),
        (lambda: train_mlp(features, target, 1, [job], MlpSettings()), "2 classes"),
        (lambda: train_mlp(features, target[1:], 5, [job], MlpSettings()), "one class index"),
        (lambda: train_mlp(features.astype(np.float64), target, 5, [job], MlpSettings()), "float32"),
        (lambda: train_mlp(features, target.astype(np.int32), 5, [job], MlpSettings()), "int64"),
        (lambda: train_mlp(features, target, 5, [replace(job, valid=empty)], MlpSettings()), "none in valid"),
        (lambda: train_mlp(features, target, 5, [replace(job, test=job.test + 999)], MlpSettings()), "0 to 119"),
        (lambda: train_mlp(features, target, 5, [job], MlpSettings(), recordings=target[1:]), "recording id"),
    ]:
        with pytest.raises(ProbeError, match=message):
            call()


def test_a_batch_larger_than_the_training_clips_is_all_of_them():
    # Memory for the batch that was asked for would be 8 TB here, and 10**20 does not fit a tensor at all.
    features, target = make_data(60, 8, 3)
    jobs = make_jobs(60, 3, 1)
    runs = [
        train_mlp(features, target, 3, jobs, MlpSettings(epochs=3, batch_size=size, learning_rates=(1e-2,)))
        for size in (60, 10**12, 10**20)
    ]
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(one.outputs, other.outputs)
