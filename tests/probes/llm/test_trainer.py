"""The optimiser loop: what a step computes, what is kept, what stops it, and that going on changes no bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.probes.llm.models import save_tiny
from tests.probes.llm.toy import COSINE, DIM, LINEAR, Toy, batch, batches, differences, run, score
from xares_store.catalog import load_recipe
from xares_store.errors import ConfigError, CorruptError, ProbeError
from xares_store.probes.hub import find_text_files
from xares_store.probes.llm import trainer, updates
from xares_store.probes.llm.checkpoint import TrainingFolder
from xares_store.probes.llm.decoder import load_decoder
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm
from xares_store.probes.llm.trainer import Paused, Progress, Trained, TrainPlan, train
from xares_store.probes.llm.updates import check_precision, ctrl_c_later

ROOT = Path(__file__).resolve().parents[3]


class Clock:
    """The trainer's clock, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def passes_at(self, stop: int) -> Any:
        """Return batches; the one of step ``stop`` comes after the time is up."""

        def late(first: int, last: int) -> Iterator[list[Example]]:
            for step in range(first, last):
                self.now += 100.0 * (step == stop)
                yield batch(step)

        return late


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(trainer, "time", made)
    return made


def close(one: Trained, other: Trained, tolerance: float = 1e-5) -> bool:
    same = np.allclose(one.losses, other.losses, atol=tolerance)
    return same and all(np.allclose(one.state[name], other.state[name], atol=tolerance) for name in one.state)


def plain(
    optimiser: torch.optim.Optimizer, model: Toy, steps: int, after: Any, *, max_norm: float | None
) -> list[float]:
    """The loop as everybody writes it: one forward pass, the mean loss, no division."""
    losses = []
    for step in range(steps):
        total, count = model.loss(batch(step))
        optimiser.zero_grad()
        (total / count).backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.trainable().values(), max_norm)
        optimiser.step()
        after(step)
        losses.append(float(total.detach()) / count)
    return losses


def test_adamw_with_a_linear_schedule_and_clipping_is_what_transformers_would_do(tmp_path: Path) -> None:
    from transformers import get_linear_schedule_with_warmup

    model = Toy()
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=0.05, weight_decay=0.1)
    schedule = get_linear_schedule_with_warmup(optimiser, num_warmup_steps=3, num_training_steps=20)
    losses = plain(optimiser, model, 20, lambda _: schedule.step(), max_norm=0.5)
    found = run(tmp_path, frame_budget=10_000)
    assert np.allclose(found.losses, losses, atol=1e-5)
    for name, value in model.trainable().items():
        assert np.allclose(found.state[name], value.detach().numpy(), atol=1e-5), name
    assert found.tokens.tolist() == [sum(len(e.target) + 1 for e in batch(step)) for step in range(20)]
    assert found.losses[-1] < found.losses[0]


@pytest.mark.parametrize("separators", [0, 2])
def test_the_gradient_is_that_of_the_mean_loss_of_all_learnt_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separators: int
) -> None:
    norms: list[float] = []
    update = updates.Updates.update

    def watched(self: updates.Updates, rate: float, factor: float) -> float | None:
        norm = update(self, rate, factor)
        norms.append(float(norm or 0))
        return norm

    monkeypatch.setattr(updates.Updates, "update", watched)
    run(tmp_path, Toy(separators=separators), steps=1)
    model = Toy(separators=separators)
    total, count = model.loss(batch(0))
    (total / count).backward()
    gradient = torch.cat([value.grad.flatten() for value in model.trainable().values() if value.grad is not None])
    assert norms == pytest.approx([float(gradient.norm())], rel=1e-5)


def test_adam_with_a_cosine_of_epochs_is_what_the_clip_probes_do(tmp_path: Path) -> None:
    model = Toy()
    optimiser = torch.optim.Adam(model.trainable().values(), lr=0.02)
    rates = [0.02 - 0.45 * 0.02 * (1 - np.cos(np.pi * epoch / 3)) for epoch in range(3)]

    def after(step: int) -> None:
        optimiser.param_groups[0]["lr"] = rates[min(2, (step + 1) // 7)]

    losses = plain(optimiser, model, 20, after, max_norm=None)
    found = run(tmp_path, frame_budget=10_000, optimiser=COSINE, steps_per_epoch=7)
    assert np.allclose(found.losses, losses, atol=1e-5)
    assert [epoch["learning_rate"] for epoch in found.history] == pytest.approx(rates)
    assert [epoch["epoch"] for epoch in found.history] == [1, 2, 3]
    for epoch, part in zip(found.history, (slice(0, 7), slice(7, 14), slice(14, 20)), strict=True):
        assert epoch["loss"] == pytest.approx(np.average(found.losses[part], weights=found.tokens[part]))
        assert epoch["valid"] is None


@pytest.mark.parametrize("budget", [1, 13, 30])
def test_division_into_micro_batches_changes_rounding_only(tmp_path: Path, budget: int) -> None:
    whole, model = run(tmp_path / "whole", frame_budget=10_000), Toy()
    divided = run(tmp_path / "divided", model, frame_budget=budget)
    assert close(whole, divided)
    assert len(model.seen) > 20
    if budget == 1:
        assert {len(names) for names in model.seen} == {1}


def test_bf16_computes_losses_under_autocast_and_trains_float32(tmp_path: Path) -> None:
    types = []

    class Watched(Toy):
        def loss(self, examples: Sequence[Example]) -> tuple[Tensor, int]:
            types.append(self.projector(torch.zeros(1, DIM)).dtype)
            return super().loss(examples)

    half, whole = run(tmp_path / "half", Watched(), precision="bf16"), run(tmp_path / "whole")
    assert set(types) == {torch.bfloat16}
    assert {value.dtype for value in half.state.values()} == {np.dtype(np.float32)}
    assert not close(half, whole, 1e-6)
    assert close(half, whole, 0.2)


@pytest.mark.parametrize(("precision", "device"), [("fp16", "cpu"), ("fp16", "mps"), ("bf16", "mps"), ("fp8", "cuda")])
def test_a_precision_that_the_device_lacks_is_refused(precision: str, device: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used on .*\n.*--precision"):
        check_precision(precision, device)


def test_fp16_is_refused_on_the_cpu_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16"):
        run(tmp_path / "t", precision="fp16")
    assert not (tmp_path / "t").exists()


class Overflowing(Toy):
    """Its loss is infinite in the clips of some steps."""

    bad: tuple[int, ...] = ()
    factor = float("inf")

    def loss(self, examples: Sequence[Example]) -> tuple[Tensor, int]:
        total, count = super().loss(examples)
        step = int(examples[0].name.split("/")[1].split("-")[0])
        return total * self.factor if step in self.bad else total, count


def test_loss_scaling_skips_steps_and_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(trainer, "check_precision", lambda precision, device: None)
    monkeypatch.setitem(updates._TYPES, "fp16", torch.bfloat16)  # the scaling is what is looked at
    model = Overflowing()
    model.bad = (4, 5, 11)
    found = run(tmp_path / "t", model, precision="fp16", validate=score(model))
    assert found.skipped == 3
    assert np.isinf(found.losses).nonzero()[0].tolist() == [4, 5, 11]
    assert all(np.isfinite(value).all() for value in found.state.values())
    assert all(np.isfinite(epoch["loss"]) for epoch in found.history)

    for stop in (5, 12):  # the scale and Adam's own count go on as they were
        parts = Overflowing()
        parts.bad = model.bad
        with pytest.raises(Paused):
            run(
                tmp_path / "parts",
                parts,
                precision="fp16",
                validate=score(parts),
                batches=clock.passes_at(stop),
                deadline=clock.now + 1,
            )
    kept = TrainingFolder(tmp_path / "parts", "id").checkpoint()
    assert kept is not None
    assert kept.record["updates"]["scaler"]["scale"] == 65536 / 8
    assert kept.record["updates"]["updates"] == 10
    parts = Overflowing(seed=1)
    parts.bad = model.bad
    assert differences(found, run(tmp_path / "parts", parts, precision="fp16", validate=score(parts))) == []


def test_loss_scaling_that_skips_for_ever_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "check_precision", lambda precision, device: None)
    monkeypatch.setattr(trainer, "MAX_SKIPPED", 5)
    model = Overflowing()
    model.bad = tuple(range(20))
    with pytest.raises(ProbeError, match="6 steps in a row"):
        run(tmp_path, model, precision="fp16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_names_the_step_and_its_clips(tmp_path: Path, precision: str) -> None:
    def broken(first: int, last: int) -> Iterator[list[Example]]:
        for step in range(first, last):
            examples = batch(step)
            if step == 7:
                examples[1].frames[0, 0] = np.nan
            yield examples

    with pytest.raises(ProbeError, match=r"loss of step 8 is not finite") as caught:
        run(tmp_path / "t", batches=broken, frame_budget=1, precision=precision, checkpoint_s=0.0)
    assert caught.value.where == "step 8, clips train/7-1"
    # What was learnt before is kept: with the clip repaired the training goes on.
    plan = {"precision": precision, "frame_budget": 1}
    assert differences(run(tmp_path / "t", **plan), run(tmp_path / "whole", **plan)) == []


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    class Rooted(Toy):
        def loss(self, examples: Sequence[Example]) -> tuple[Tensor, int]:
            total, count = super().loss(examples)
            return total + (self.head.bias.sum() * 0).sqrt(), count

    model = Rooted()
    before = {name: value.detach().clone() for name, value in model.trainable().items()}
    with pytest.raises(ProbeError, match=r"gradient of step 1 is not finite"):
        run(tmp_path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.trainable().items())


def given(values: Sequence[float]) -> Any:
    left = iter(values)
    return lambda: next(left)


@pytest.mark.parametrize(
    ("values", "best"),
    [([0.1, 0.3, 0.3, 0.2], 2), ([float("nan"), 0.1, 0.3, float("nan")], 3), ([-3.0, float("inf"), -4.0, -5.0], 1)],
)
def test_the_first_strictly_best_epoch_is_kept_and_nothing_that_is_not_finite(
    tmp_path: Path, values: list[float], best: int
) -> None:
    found = run(tmp_path / "all", validate=given(values))
    assert found.best_epoch == best
    assert [epoch["valid"] for epoch in found.history] == [v if np.isfinite(v) else None for v in values]
    kept: dict[int, dict[str, np.ndarray]] = {}
    model = Toy()

    def keep() -> float:
        assert not model.training
        kept[len(kept) + 1] = {name: value.detach().numpy().copy() for name, value in model.trainable().items()}
        return 0.0

    run(tmp_path / "watched", model, validate=keep)
    assert all(np.array_equal(found.state[name], kept[best][name]) for name in found.state)
    assert not np.array_equal(kept[1]["head.bias"], kept[2]["head.bias"])


def test_without_one_finite_validation_no_epoch_can_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="all 4 epochs gave no finite number"):
        run(tmp_path, validate=lambda: float("nan"))


def test_without_validation_the_last_step_is_kept(tmp_path: Path) -> None:
    model = Toy()
    found = run(tmp_path, model)
    assert found.best_epoch is None
    assert all(np.array_equal(found.state[name], value.detach()) for name, value in model.trainable().items())
    assert not model.training


def test_a_deadline_pauses_with_a_checkpoint_and_the_next_call_goes_on(tmp_path: Path, clock: Clock) -> None:
    model = Toy(dropout=0.3)
    whole = run(tmp_path / "whole", model, validate=score(model))
    stops: list[int] = []
    for stop in (4, 12, 17):
        model = Toy(dropout=0.3, seed=9)  # what it starts from is in the checkpoint
        if not stops:
            model = Toy(dropout=0.3)
        with pytest.raises(Paused, match="of 20 steps") as caught:
            run(
                tmp_path / "t",
                model,
                validate=score(model),
                batches=clock.passes_at(stop),
                deadline=clock.now + 1,
            )
        stops.append(caught.value.step)
        assert [path.name for path in (tmp_path / "t").iterdir()] == ["checkpoint.safetensors"]
    assert stops == [5, 13, 18]
    model = Toy(dropout=0.3, seed=9)
    found = run(tmp_path / "t", model, validate=score(model), deadline=clock.now + 1)
    assert differences(whole, found) == []
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["finished.safetensors"]


@pytest.mark.parametrize(
    ("validate", "wanted"), [(None, [4, 8, 12, 16, 20]), (lambda: 0.0, [4, 6, 10, 12, 16, 18, 20])]
)
def test_checkpoints_are_written_so_many_seconds_apart_and_after_validation(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, validate: Any, wanted: list[int]
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(TrainingFolder, "save", lambda self, snapshot: saved.append(snapshot.record["step"]))

    def slow(first: int, last: int) -> Iterator[list[Example]]:
        for step in range(first, last):
            clock.now += 1.0
            yield batch(step)

    found = run(tmp_path, batches=slow, checkpoint_s=3.5, validate=validate)
    assert saved == wanted
    assert found.seconds == 20.0


def test_one_step_is_made_however_late_it_is(tmp_path: Path) -> None:
    for step in range(1, 4):
        with pytest.raises(Paused) as caught:
            run(tmp_path, deadline=0.0)
        assert caught.value.step == step


@pytest.mark.parametrize(("where", "next_step"), [("loss", 5), ("validate", 13), ("progress", 9), ("batches", 9)])
def test_ctrl_c_keeps_all_whole_steps_wherever_it_comes(tmp_path: Path, where: str, next_step: int) -> None:
    calls = [0]

    def interrupt(name: str, at: int) -> None:
        calls[0] += name == where
        if name == where and calls[0] == at:
            raise KeyboardInterrupt

    class Interrupted(Toy):
        def loss(self, examples: Sequence[Example]) -> tuple[Tensor, int]:
            interrupt("loss", 20)
            return super().loss(examples)

    def interrupted(first: int, last: int) -> Iterator[list[Example]]:
        for step in range(first, last):
            interrupt("batches", 9)
            yield batch(step)

    model = Interrupted(dropout=0.2)

    def validate() -> float:
        interrupt("validate", 2)
        return score(model)()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "t", model, validate=validate, batches=interrupted, progress=lambda _: interrupt("progress", 8))
    steps: list[int] = []
    fresh = Toy(dropout=0.2, seed=5)
    found = run(tmp_path / "t", fresh, validate=score(fresh), progress=lambda at: steps.append(at.step))
    assert steps[0] == next_step
    model = Toy(dropout=0.2)
    assert differences(run(tmp_path / "whole", model, validate=score(model)), found) == []


def test_ctrl_c_waits_for_the_end_of_an_update() -> None:
    done = []

    def update() -> None:
        with ctrl_c_later():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            done.append("update")

    with pytest.raises(KeyboardInterrupt):
        update()
    assert done == ["update"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_memory_that_runs_out_lowers_the_budget_for_good(tmp_path: Path) -> None:
    model = Toy(dropout=0.2, room=25)
    found = run(tmp_path / "t", model, frame_budget=10_000, steps=10, checkpoint_s=0.0)
    assert len(found.notes) >= 1
    assert all("frame_budget was lowered from" in note for note in found.notes)
    before, _, after = (
        found.notes[0].removeprefix("frame_budget was lowered from ").partition(" at ")[0].partition(" to ")
    )
    assert before == "10,000"
    assert int(after) < 6 * 16  # below what was tried at once, not by halves
    assert close(
        run(tmp_path / "roomy", Toy(), steps=10), run(tmp_path / "small", Toy(room=25), frame_budget=99, steps=10)
    )
    assert run(tmp_path / "roomy", Toy(), steps=10).notes == []


def test_a_lowered_budget_is_kept_when_training_goes_on(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(Paused):
        run(tmp_path, Toy(room=25), frame_budget=10_000, batches=clock.passes_at(12), deadline=clock.now + 1)
    notes = TrainingFolder(tmp_path, "id").checkpoint().record["notes"]
    assert notes
    model = Toy(room=25)
    found = run(tmp_path, model, frame_budget=10_000)
    assert found.notes == notes  # nothing had to be tried again
    assert "train/13-0" in [name for names in model.seen for name in names]


def test_one_clip_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"one clip with its text, \d+ positions, does not fit") as caught:
        run(tmp_path, Toy(room=6))
    assert "clips train/0-" in str(caught.value.where)
    assert "gradient_checkpointing" in str(caught.value.hint)


def test_a_finished_training_is_returned_at_once(tmp_path: Path) -> None:
    model = Toy()
    found = run(tmp_path, model, validate=score(model))
    again = run(tmp_path, batches=None, validate=None)
    assert differences(found, again) == []
    assert (again.seconds, again.notes) == (found.seconds, found.notes)
    stored = Trained.stored(found.state, found.losses, found.tokens)
    assert differences(found, stored) == ["history", "best_epoch"]


def test_a_finished_training_of_another_identity_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ProbeError, match="identity other, found one with id"):
        train(Toy(), batches, trainer_plan(), tmp_path, identity="other")


def trainer_plan() -> TrainPlan:
    return TrainPlan(20, 6, LINEAR, "fp32", 20, 1000.0, 3)


def test_a_damaged_checkpoint_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(Paused):
        run(tmp_path, deadline=0.0)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError, match=r"Remove .*: training then starts anew"):
        run(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Paused):
        run(tmp_path, deadline=0.0)
    model = Toy()
    model.head = nn.Linear(16, 4)
    with pytest.raises(ProbeError, match=r"not those of the model: first/head.bias"):
        run(tmp_path, model)
    model = Toy()
    model.head.requires_grad_(False)
    with pytest.raises(ProbeError, match="there are more than the model has"):
        run(tmp_path, model)


def test_another_torch_release_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.2.3")
        with pytest.raises(Paused):
            run(tmp_path, deadline=0.0)
    (note,) = run(tmp_path).notes
    assert note == f"Resumed at step 2 with torch {torch.__version__} after 1.2.3."


@pytest.mark.parametrize(("count", "message"), [(19, "found 19"), (21, "found more")])
def test_batches_that_end_early_or_late_are_an_error_and_are_closed(tmp_path: Path, count: int, message: str) -> None:
    closed = []

    class Short:
        """Unlike a generator, nobody closes it but the trainer."""

        def __init__(self, first: int, last: int) -> None:
            self.inner = batches(first, count)

        def __iter__(self) -> Iterator[list[Example]]:
            return self.inner

        def close(self) -> None:
            closed.append(True)

    with pytest.raises(ProbeError, match=message):
        run(tmp_path, batches=Short)
    assert closed == [True]


def test_progress_says_how_far_and_how_fast(tmp_path: Path) -> None:
    seen: list[Progress] = []
    found = run(tmp_path, steps=60, steps_per_epoch=25, progress=seen.append)
    assert [at.step for at in seen] == list(range(1, 61))
    assert {at.steps for at in seen} == {60}
    assert [at.epoch for at in seen] == [1] * 25 + [2] * 25 + [3] * 10
    assert seen[0].loss == pytest.approx(float(found.losses[0]))
    assert seen[-1].loss == pytest.approx(np.average(found.losses[10:], weights=found.tokens[10:]))
    assert all(at.tokens_per_s > 0 for at in seen[1:])


def test_random_numbers_follow_from_seed_and_step_and_the_callers_stay_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    model = Toy(dropout=0.3)
    torch.manual_seed(5)
    one = run(tmp_path / "one", model)
    assert torch.equal(torch.rand(3), wanted)
    assert differences(one, run(tmp_path / "two", Toy(dropout=0.3))) == []
    assert "losses" in differences(one, run(tmp_path / "three", Toy(dropout=0.3), seed=4))
    assert differences(run(tmp_path / "four"), run(tmp_path / "five", seed=4)) == []  # without dropout nothing is drawn

    def same(first: int, last: int) -> Iterator[list[Example]]:
        return (batch(0) for _ in range(first, last))

    still = COSINE.model_copy(update={"learning_rate": 1e-12})
    found = run(tmp_path / "six", Toy(dropout=0.3), batches=same, optimiser=still)
    assert len(set(found.losses.tolist())) == 20  # every step draws anew


def test_no_parameter_may_be_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"float32, found torch.float64 in head.bias"):
        run(tmp_path, Toy().double())


@pytest.mark.parametrize("name", ["steps", "steps_per_epoch", "frame_budget"])
def test_a_plan_of_nothing_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProbeError, match="at least one step"):
        run(tmp_path, **{name: 0})


@pytest.mark.parametrize("name", ["xares-llm", "xares-asr"])
def test_the_audio_language_model_is_trained_and_goes_on_bit_for_bit(tmp_path: Path, clock: Clock, name: str) -> None:
    recipe = load_recipe(name)
    files = find_text_files(str(save_tiny(tmp_path / "decoder")), weights=True, option="--decoder")

    def make() -> AudioLm:
        return AudioLm(load_decoder(files, device="cpu"), recipe, dim=DIM, separator=1 if recipe.separator else None)

    def until(stop: int) -> Trained:
        batches, deadline = clock.passes_at(stop), clock.now + 1
        return train(make(), batches, trainer_plan(), tmp_path / name, identity="id", deadline=deadline)

    whole = train(make(), batches, trainer_plan(), tmp_path / "whole", identity="id")
    assert whole.losses[-1] < whole.losses[0]
    for stop in (3, 11):
        with pytest.raises(Paused):
            until(stop)
    assert differences(whole, until(99)) == []
    undivided = train(
        make(), batches, TrainPlan(20, 6, LINEAR, "fp32", 4096, 1000.0, 3), tmp_path / "undivided", identity="id"
    )
    if recipe.lora is None:
        assert close(whole, undivided, 1e-4)


KILLED = """
import os, random, signal, sys, time, json
from pathlib import Path
from tests.probes.llm.toy import Toy, run, score, batch
os.fsync = lambda handle: None  # slow, and of use only when the machine itself goes down
def slow(first, last):
    for step in range(first, last):
        time.sleep(0.001)
        yield batch(step)
def go(folder):
    model = Toy(dropout=0.3)
    run(Path(folder), model, validate=score(model), batches=slow, steps=25, checkpoint_s=0.0)
go(sys.argv[1])  # imports what is imported late
began = time.perf_counter()
go(sys.argv[1] + "-again")
span = time.perf_counter() - began
random.seed(int(sys.argv[4]))
kills = rounds = 0
while kills < int(sys.argv[3]):
    folder = f"{sys.argv[2]}-{rounds}"
    rounds += 1
    while True:
        child = os.fork()
        if not child:
            go(folder)
            os._exit(0)
        if kills < int(sys.argv[3]):
            time.sleep(random.uniform(0, span / 2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
print(json.dumps([kills, rounds, span]))
"""


@pytest.mark.slow
def test_a_training_killed_at_random_moments_ends_bit_for_bit_as_uninterrupted(tmp_path: Path) -> None:
    # One process that has imported torch forks those that are killed: a kill costs a moment instead of seconds.
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "whole"), str(tmp_path / "killed"), "30", "11"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == 30
    wanted = run(tmp_path / "whole", batches=None, steps=25)
    folders = sorted(tmp_path.glob("killed-*"))
    assert len(folders) >= 1
    for folder in folders:
        assert [path.name for path in folder.iterdir()] == ["finished.safetensors"]
        assert differences(wanted, run(folder, batches=None, steps=25)) == []
    assert len(wanted.history) == 5
    assert wanted.best_epoch is not None
