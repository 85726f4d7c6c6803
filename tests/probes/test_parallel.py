"""Pieces of training side by side: the same results in the same order, and an end to all when one fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch

from tests.probes.test_mlp_losses import data, jobs
from xares_store.probes.mlp import MlpSettings, train_mlp
from xares_store.probes.parallel import StoppedError, side_by_side


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_pieces_run_at_the_same_time_with_one_torch_thread_each(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=20)

    def piece(number: int, stop: threading.Event) -> tuple[int, int]:
        meeting.wait()  # breaks unless both are running
        return number, torch.get_num_threads()

    assert side_by_side([partial(piece, 0), partial(piece, 1)], threads=2) == [(0, 1), (1, 1)]
    assert torch.get_num_threads() == 2


def test_results_stand_in_the_order_of_the_pieces(two_threads: None) -> None:
    def piece(number: int, stop: threading.Event) -> int:
        time.sleep(0.02 * (3 - number % 4))
        return number

    assert side_by_side([partial(piece, number) for number in range(8)], threads=2) == list(range(8))


def test_one_failure_stops_the_others_and_is_the_one_that_is_raised(two_threads: None) -> None:
    stopped = threading.Event()

    def waits(stop: threading.Event) -> None:
        assert stop.wait(20)
        stopped.set()
        raise StoppedError

    def fails(stop: threading.Event) -> None:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        side_by_side([waits, fails], threads=2)
    assert stopped.is_set()
    assert torch.get_num_threads() == 2


def test_an_interruption_while_waiting_stops_the_threads(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []

    def waits(stop: threading.Event) -> None:
        stopped.append(stop.wait(20))
        raise StoppedError

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        side_by_side([waits, waits], threads=2)
    assert stopped == [True, True]


def test_threads_change_no_result(two_threads: None) -> None:
    x, y, outputs = data("cross-entropy")
    options = MlpSettings(epochs=3, batch_size=16, learning_rates=(1e-2, 1e-1, 1e-3))
    work = jobs(seeds=(0, 1, 2))
    steps: list[tuple[int, int]] = []
    many = train_mlp(x, y, outputs, work, options, progress=lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[-1][0] == steps[-1][1]
    torch.set_num_threads(1)
    for one, other in zip(many, train_mlp(x, y, outputs, work, options), strict=True):
        assert (one.fold, one.seed, one.learning_rate, one.best_epoch) == (
            other.fold, other.seed, other.learning_rate, other.best_epoch,
        )  # fmt: skip
        assert [row["learning_rate"] for row in one.history] == list(options.learning_rates)
        np.testing.assert_allclose(one.outputs, other.outputs, rtol=1e-4, atol=1e-6)
