"""The stacked probe for tags and for numbers: equal to a plain loop, and chosen by its own validation score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xares_store.errors import ProbeError
from xares_store.metrics.classification import average_precision
from xares_store.metrics.ranking import average_precisions
from xares_store.probes.losses import Loss, validation_scores
from xares_store.probes.mlp import MlpJob, MlpResult, MlpSettings, epoch_order, initial_state, train_mlp
from xares_store.probes.schedule import epoch_learning_rate

N, DIM, CLASSES = 90, 7, 5


def data(loss: Loss, seed: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, DIM)).astype(np.float32)
    mixed = x @ rng.standard_normal((DIM, CLASSES))
    if loss == "bce":
        return x, (mixed > 1.0).astype(np.uint8), CLASSES
    if loss == "mse":
        return x, (40 + 9 * mixed[:, 0]).astype(np.float32), 1
    return x, mixed.argmax(axis=1).astype(np.int64), CLASSES


def jobs(seeds: tuple[int, ...] = (0,)) -> list[MlpJob]:
    rows = np.arange(N)
    folds = {"a": (rows[:50], rows[50:70], rows[70:]), "b": (rows[25:], rows[:12], rows[12:25])}
    return [MlpJob(name, *split, seed=seed) for seed in seeds for name, split in folds.items()]


def plain(loss: Loss, x: np.ndarray, y: np.ndarray, n_outputs: int, job: MlpJob, options: MlpSettings) -> Any:
    """A loop of the building blocks of torch; returns the test outputs of the best epoch and the score of every epoch."""
    layer = torch.nn.Sequential(torch.nn.LayerNorm(DIM), torch.nn.Linear(DIM, n_outputs))
    state = initial_state(DIM, n_outputs, job.seed)
    layer.load_state_dict({"0.weight": state["ln.weight"], "0.bias": state["ln.bias"], "1.weight": state["fc.weight"], "1.bias": state["fc.bias"]})  # fmt: skip
    optimiser = torch.optim.Adam(layer.parameters(), lr=options.learning_rates[0])
    inputs, target = torch.from_numpy(x), torch.from_numpy(y)
    mean, scale = (
        (float(y[job.train].mean()), float(y[job.train].astype(np.float64).std()))
        if options.standardise
        else (0.0, 1.0)
    )
    criterion = torch.nn.BCEWithLogitsLoss() if loss == "bce" else torch.nn.MSELoss()
    scores, best, kept = [], -np.inf, None
    for epoch in range(1, options.epochs + 1):
        for group in optimiser.param_groups:
            group["lr"] = epoch_learning_rate(options.learning_rates[0], epoch, options.epochs)
        order = job.train[epoch_order(len(job.train), job.seed, epoch)]
        for start in range(0, len(order), options.batch_size):
            rows = order[start : start + options.batch_size]
            out = layer(inputs[rows])
            wanted = target[rows].float() if loss == "bce" else ((target[rows] - mean) / scale).unsqueeze(1)
            optimiser.zero_grad()
            criterion(out, wanted).backward()
            optimiser.step()
        with torch.no_grad():
            valid = layer(inputs[job.valid]).numpy() * scale + mean
            test = layer(inputs[job.test]).numpy() * scale + mean
        if loss == "bce":
            score = float(average_precision(y[job.valid], valid).mean())
        else:
            score = -float(np.square(valid[:, 0] - y[job.valid]).mean())
        scores.append(score)
        if score > best:
            best, kept = score, test
    return kept, scores


@pytest.mark.parametrize(("loss", "standardise"), [("bce", False), ("mse", False), ("mse", True)])
def test_each_probe_of_a_stack_is_what_a_plain_loop_trains(loss: Loss, standardise: bool) -> None:
    x, y, outputs = data(loss)
    options = MlpSettings(epochs=4, batch_size=8, learning_rates=(2e-2,), loss=loss, standardise=standardise)
    work = jobs(seeds=(0, 1))
    for job, result in zip(work, train_mlp(x, y, outputs, work, options), strict=True):
        expected, scores = plain(loss, x, y, outputs, job, options)
        np.testing.assert_allclose(result.outputs, expected, rtol=2e-3, atol=2e-4)
        sign = -1 if loss == "mse" else 1
        np.testing.assert_allclose(result.history[0]["valid"], [sign * score for score in scores], rtol=1e-3)
        assert result.valid_score == pytest.approx(sign * max(scores), rel=1e-3)
        assert result.best_epoch == 1 + int(np.argmax(scores))


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_stacking_changes_no_result(loss: Loss) -> None:
    x, y, outputs = data(loss)
    options = MlpSettings(epochs=3, batch_size=16, learning_rates=(1e-2, 1e-1), loss=loss, standardise=loss == "mse")
    work = jobs(seeds=(0, 1))
    together = train_mlp(x, y, outputs, work, options)
    apart = [train_mlp(x, y, outputs, [job], options)[0] for job in work]
    for one, other in zip(together, apart, strict=True):
        assert (one.learning_rate, one.best_epoch) == (other.learning_rate, other.best_epoch)
        np.testing.assert_allclose(one.outputs, other.outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_the_stored_weights_give_the_outputs(loss: Loss) -> None:
    x, y, outputs = data(loss)
    options = MlpSettings(epochs=2, learning_rates=(1e-2,), loss=loss, standardise=loss == "mse")
    job = jobs()[0]
    (result,) = train_mlp(x, y, outputs, [job], options)
    normed = torch.nn.functional.layer_norm(torch.from_numpy(x[job.test]), (DIM,)).numpy()
    state = result.state
    found = (normed * state["ln.weight"] + state["ln.bias"]) @ state["fc.weight"].T + state["fc.bias"]
    np.testing.assert_allclose(found, result.outputs, rtol=1e-4, atol=1e-4)


def test_numbers_on_a_large_scale_are_learnt_when_standardised_only() -> None:
    x, y, _ = data("mse")
    variance = float(np.var(y))

    def error(standardise: bool) -> float:
        options = MlpSettings(epochs=30, batch_size=8, learning_rates=(1e-2,), loss="mse", standardise=standardise)
        found: MlpResult = train_mlp(x, y, 1, jobs()[:1], options)[0]
        return float(np.square(found.outputs[:, 0] - y[jobs()[0].test]).mean())

    assert error(True) < 0.7 * variance  # LayerNorm takes a part of what seven numbers say
    assert error(False) > variance  # 120 steps of 0.01 do not reach a mean of 40


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.bool_, (12, 3)),
    hnp.arrays(np.float32, (12, 3), elements=st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, 2.0])),
)
def test_the_fast_average_precision_is_that_of_the_library(target: np.ndarray, scores: np.ndarray) -> None:
    np.testing.assert_allclose(average_precisions(target, scores), average_precision(target, scores), atol=1e-12)


def test_crops_vote_in_validation_and_a_model_that_diverged_is_no_number() -> None:
    items = np.array([0, 0, 1, 1])
    logits = np.array([[[3.0], [np.nan]], [[-9.0], [0.0]], [[0.5], [0.0]], [[0.4], [0.0]]], dtype=np.float32)
    target = np.array([[1], [1], [0], [0]], dtype=np.float32)
    scores = validation_scores("bce", logits, target, items)
    assert scores[0] == pytest.approx(0.5)  # mean probability 0.476 is below 0.61, although one crop is far above
    assert np.isnan(scores[1])
    numbers = np.array([[[1.0]], [[3.0]], [[5.0]], [[5.0]]], dtype=np.float32)
    assert validation_scores("mse", numbers, np.array([2.0, 2.0, 4.0, 4.0], dtype=np.float32), items) == [0.5]


@pytest.mark.parametrize(
    ("loss", "target", "outputs", "message"),
    [
        ("bce", np.zeros((N, 3), np.uint8), 4, "a row of 0 and 1 per clip"),
        ("bce", np.full((N, 4), 2, np.uint8), 4, "Wanted 0 and 1"),
        ("bce", np.zeros((N, 4), np.float32), 4, "uint8 targets, found float32"),
        ("mse", np.zeros(N, np.float32), 2, "Wanted 1 output"),
        ("mse", np.full(N, np.nan, np.float32), 1, "finite numbers"),
        ("mse", np.zeros(N, np.int64), 1, "float32 targets"),
    ],
)
def test_targets_that_do_not_fit_the_loss_are_refused(loss: Loss, target: Any, outputs: int, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        train_mlp(data("bce")[0], target, outputs, jobs(), MlpSettings(loss=loss))
