"""Products by the faster library: the numbers of torch, for any shape, view and size, and in a stack of probes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_store.probes import products
from xares_store.probes.losses import Loss
from xares_store.probes.mlp import MlpJob, MlpSettings, train_mlp

N, DIM, CLASSES = 80, 9, 4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 3))
def test_any_shape_and_view(rows: int, inner: int, columns: int, transposed: bool, skipped: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    first = torch.randn(rows, inner + skipped, generator=generator)[:, skipped:]
    second = torch.randn(inner, columns, generator=generator).T if transposed else torch.randn(columns, inner)
    before = products._LARGE
    products._LARGE = 0
    try:
        found = products.product(first, second)
    finally:
        products._LARGE = before
    torch.testing.assert_close(found, first @ second.T)
    assert found.is_contiguous()


def test_a_large_product_is_what_torch_gives() -> None:
    first, second = torch.randn(300, 768), torch.randn(40, 768)
    torch.testing.assert_close(products.product(first, second), first @ second.T, rtol=1e-4, atol=1e-4)


def test_without_the_library_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LARGE", 0)
    monkeypatch.setattr(products, "_onednn", lambda: None)
    first, second = torch.randn(3, 5), torch.randn(2, 5)
    assert not products.is_large(10_000, 10_000, 10_000, first.device)
    assert torch.equal(products.product(first, second), first @ second.T)


def test_an_operator_that_is_gone_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        @staticmethod
        def _linear_pointwise(first: torch.Tensor, second: torch.Tensor, *_: object) -> torch.Tensor:
            return first @ second.T + 1

    try:
        for operators in (object(), Wrong()):
            products._onednn.cache_clear()
            monkeypatch.setattr(torch.ops, "mkldnn", operators)
            assert products._onednn() is None
    finally:
        monkeypatch.undo()
        products._onednn.cache_clear()


@pytest.mark.parametrize("loss", ["cross-entropy", "bce", "mse"])
def test_one_by_one_trains_what_a_stack_trains(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, DIM)).astype(np.float32)
    mixed = x @ rng.standard_normal((DIM, CLASSES))
    y = {
        "cross-entropy": mixed.argmax(axis=1),
        "bce": (mixed > 1).astype(np.uint8),
        "mse": mixed[:, 0].astype(np.float32),
    }[loss]
    rows = np.arange(N)
    jobs = [MlpJob(str(size), rows[:size], rows[50:65], rows[65:], seed) for size in (50, 31, 31) for seed in (0, 1)]
    options = MlpSettings(epochs=3, batch_size=8, learning_rates=(1e-2, 3e-2), loss=loss)
    outputs = 1 if loss == "mse" else CLASSES
    stacked = train_mlp(x, y, outputs, jobs, options)
    monkeypatch.setattr(products, "_LARGE", 0)
    if not products.is_large(1, 1, 1, torch.device("cpu")):
        pytest.skip("this build of torch has no oneDNN: a thing would be compared with itself")
    for one, other in zip(train_mlp(x, y, outputs, jobs, options), stacked, strict=True):
        assert (one.learning_rate, one.best_epoch) == (other.learning_rate, other.best_epoch)
        np.testing.assert_allclose(one.outputs, other.outputs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.history[1]["train_loss"], other.history[1]["train_loss"], rtol=1e-5)
