"""Learning rates of steps, and where epochs begin and end."""

from __future__ import annotations

import pytest
import torch

from xares_store.probes.llm.schedule import epoch_count, epoch_steps, learning_rate
from xares_store.recipe import Optimiser


def linear(warmup: int) -> Optimiser:
    return Optimiser(name="adamw", learning_rate=1e-4, schedule="linear", warmup_steps=warmup)


@pytest.mark.parametrize(("steps", "warmup"), [(10_000, 200), (7, 0), (5, 4), (5, 5), (3, 9), (1, 0)])
def test_linear_is_the_schedule_of_transformers(steps: int, warmup: int) -> None:
    from transformers import get_linear_schedule_with_warmup

    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = get_linear_schedule_with_warmup(optimiser, num_warmup_steps=warmup, num_training_steps=steps)
    wanted = []
    for _ in range(steps):
        wanted.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    found = [learning_rate(linear(warmup), step, steps=steps, steps_per_epoch=4) for step in range(steps)]
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-18)


def test_the_published_cosine_is_constant_inside_an_epoch() -> None:
    # Ten epochs at 1e-3, as measured on the tool that published them.
    rates = [1.0e-3, 9.779754323e-4, 9.140576475e-4, 8.145033635e-4, 6.890576475e-4]
    rates += [5.5e-4, 4.109423525e-4, 2.854966365e-4, 1.859423525e-4, 1.220245667e-4]
    cosine = Optimiser(name="adam", learning_rate=1e-3, schedule="cosine-epochs")
    found = [learning_rate(cosine, step, steps=68, steps_per_epoch=7) for step in range(68)]  # the last epoch is short
    assert found == pytest.approx([rate for rate in rates for _ in range(7)][:68], rel=1e-9)


@pytest.mark.parametrize(("steps", "per_epoch"), [(1, 1), (1, 5), (10, 5), (11, 5), (14, 5)])
def test_epochs_hold_every_step_once(steps: int, per_epoch: int) -> None:
    epochs = [epoch_steps(epoch, steps, per_epoch) for epoch in range(1, epoch_count(steps, per_epoch) + 1)]
    assert [step for epoch in epochs for step in epoch] == list(range(steps))
    assert all(0 < len(epoch) <= per_epoch for epoch in epochs)
    assert len(epoch_steps(len(epochs) + 1, steps, per_epoch)) == 0
