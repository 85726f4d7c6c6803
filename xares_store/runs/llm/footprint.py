"""Whether a training fits this machine: its memory is estimated before anything is loaded, and the budget lowered to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from xares_store.probes.llm.memory import MemoryEstimate, estimate
from xares_store.recipe import Recipe
from xares_store.runs.llm.material import Material, crop_frames
from xares_store.runs.llm.prepare import Prepared, check_context

_LEAST_BUDGET = 512  # what the budget is lowered to by itself: below, padding and short passes cost much time
_LEAST_GIVEN = 16
_MARGIN = 0.9  # of what is free


@dataclass(frozen=True)
class Footprint:
    """What a training takes and what there is.

    Attributes:
        recipe: with a frame budget that fits.
        estimate: with that budget.
        available: bytes that are free where the model will run.
        ram_available: bytes of RAM that are free.
        shared: the model runs in RAM, and both are the same bytes.
        notes: what a person should know.
    """

    recipe: Recipe
    estimate: MemoryEstimate
    available: int
    ram_available: int
    shared: bool
    notes: list[str]

    @property
    def words(self) -> str:
        """The estimate, for people."""
        ram = f"{self.estimate.ram_bytes / 1e9:.1f} GB of RAM"
        return f"{self.estimate.gpu_bytes / 1e9:.1f} GB of GPU memory, {ram}" if self.estimate.gpu_bytes else ram

    def lacking(self, share: float = 1.0) -> float:
        """Return how many bytes are lacking when this share of what is free may be used; 0 when it suffices."""
        gpu, ram = self.estimate.gpu_bytes, self.estimate.ram_bytes
        if self.shared:
            return max(0.0, gpu + ram - share * self.available)
        return max(0.0, gpu - share * self.available) + max(0.0, ram - share * self.ram_available)


def footprint(
    prepared: Prepared, materials: Sequence[Material], *, device: str, memory_bytes: int, given: bool
) -> Footprint:
    """Estimate a training's memory, and halve the frame budget while that is more than there is and halving helps.

    The budget divides a batch and changes no result beyond rounding.

    Args:
        prepared: recipe and decoder.
        materials: a task each.
        device: where the model will run.
        memory_bytes: for frames that are read ahead.
        given: the budget was asked for and stays.
    """
    recipe, available, shared = prepared.recipe, available_bytes(device), not device.startswith("cuda")
    ram = available if shared else available_bytes("cpu")
    sizes = _Sizes.of(prepared, materials)

    def found(budget: int) -> Footprint:
        training = recipe.training.model_copy(update={"frame_budget": budget})
        changed = recipe.model_copy(update={"training": training})
        estimated = sizes.estimate(prepared, changed, device=device, memory_bytes=memory_bytes)
        return Footprint(changed, estimated, available, ram, shared, [])

    budget = recipe.training.frame_budget
    choices = [budget] if given else list(_halved(budget, _LEAST_BUDGET))
    # The largest of those that lack least: where nothing is lacking, or where halving does not help any more.
    result = min(map(found, choices), key=lambda one: one.lacking(_MARGIN))
    chosen = result.recipe.training.frame_budget
    if chosen != budget:
        result.notes.append(
            f"The frame budget was lowered from {budget} to {chosen}: {available / 1e9:.1f} GB are free."
        )
    if lacking := result.lacking():
        least = min(found(smaller).lacking() for smaller in _halved(chosen, _LEAST_GIVEN))
        free = f"{available / 1e9:.1f} GB"
        if not shared:
            free += f" and {ram / 1e9:.1f} GB"
        advice = "a smaller --frame-budget takes less" if least < lacking else "a smaller --frame-budget would not help"
        result.notes.append(f"The training may take {result.words}, and {free} are free; {advice}.")
    return result


def _halved(budget: int, least: int) -> Iterator[int]:
    """Yield a budget, its half and so on, none but the first below ``least``."""
    yield budget
    while (budget := budget // 2) >= least:
        yield budget


def available_bytes(device: str) -> int:
    """Return how much memory is free where a model would run."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil

    return int(psutil.virtual_memory().available)


@dataclass(frozen=True)
class _Sizes:
    """The longest clips and texts of all tasks, which no budget changes."""

    dim: int
    train_frames: int
    write_frames: int
    prompt_tokens: int
    answer_tokens: int

    @classmethod
    def of(cls, prepared: Prepared, materials: Sequence[Material]) -> _Sizes:
        train_frames = write_frames = 1
        recipe = prepared.recipe
        for one in materials:
            room = check_context(prepared, len(one.prompt))
            crop = crop_frames(one, recipe, room)
            longest = int(one.frames.n_frames[one.rows].max())
            train_frames = max(train_frames, longest if crop is None else min(longest, crop))
            written = int(one.frames.n_frames[np.concatenate([one.fold.test, one.fold.valid])].max())
            write_frames = max(write_frames, written if room is None else min(written, room * recipe.projector.stride))
        return cls(
            dim=materials[0].frames.dim,
            train_frames=train_frames,
            write_frames=write_frames,
            prompt_tokens=max(len(one.prompt) for one in materials),
            answer_tokens=max(one.texts.longest for one in materials),
        )

    def estimate(self, prepared: Prepared, recipe: Recipe, *, device: str, memory_bytes: int) -> MemoryEstimate:
        return estimate(prepared.shape, recipe, **asdict(self), memory_bytes=memory_bytes, device=device)
