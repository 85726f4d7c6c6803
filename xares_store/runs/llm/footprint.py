"""Whether a training fits this machine: its memory is estimated before anything is loaded, and the budget lowered to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xares_store.probes.llm.memory import MemoryEstimate, estimate
from xares_store.recipe import Recipe
from xares_store.runs.llm.material import Material, crop_frames
from xares_store.runs.llm.prepare import Prepared, check_context

_LEAST_BUDGET = 512
_MARGIN = 0.9  # of what is free


@dataclass(frozen=True)
class Footprint:
    """What a training takes and what there is.

    Attributes:
        recipe: with a frame budget that fits.
        estimate: with that budget.
        available: bytes that are free where the model will run.
        notes: what a person should know.
    """

    recipe: Recipe
    estimate: MemoryEstimate
    available: int
    notes: list[str]

    @property
    def words(self) -> str:
        """The estimate, for people."""
        ram = f"{self.estimate.ram_bytes / 1e9:.1f} GB of RAM"
        return f"{self.estimate.gpu_bytes / 1e9:.1f} GB of GPU memory, {ram}" if self.estimate.gpu_bytes else ram


def footprint(
    prepared: Prepared, materials: Sequence[Material], *, device: str, memory_bytes: int, given: bool
) -> Footprint:
    """Estimate a training's memory, and halve the frame budget while that is more than there is.

    The budget divides a batch and changes no result beyond rounding.

    Args:
        prepared: recipe and decoder.
        materials: a task each.
        device: where the model will run.
        memory_bytes: for frames that are read ahead.
        given: the budget was asked for and stays.
    """
    recipe, available = prepared.recipe, available_bytes(device)
    while True:
        found = _estimate(prepared, recipe, materials, device, memory_bytes)
        needed = found.gpu_bytes or found.ram_bytes
        budget = recipe.training.frame_budget
        if needed <= _MARGIN * available or given or budget // 2 < _LEAST_BUDGET:
            break
        training = recipe.training.model_copy(update={"frame_budget": budget // 2})
        recipe = recipe.model_copy(update={"training": training})
    result = Footprint(recipe, found, available, [])
    if recipe.training.frame_budget != prepared.recipe.training.frame_budget:
        result.notes.append(
            f"The frame budget was lowered from {prepared.recipe.training.frame_budget} to {recipe.training.frame_budget}: "
            f"{available / 1e9:.1f} GB are free."
        )
    if needed > available:
        result.notes.append(
            f"The training may take {result.words}, and {available / 1e9:.1f} GB are free; a smaller --frame-budget takes less."
        )
    return result


def available_bytes(device: str) -> int:
    """Return how much memory is free where a model would run."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _estimate(
    prepared: Prepared, recipe: Recipe, materials: Sequence[Material], device: str, memory_bytes: int
) -> MemoryEstimate:
    train_frames = write_frames = 1
    for one in materials:
        room = check_context(prepared, len(one.prompt))
        crop = crop_frames(one, recipe, room)
        longest = int(one.frames.n_frames[one.rows].max())
        train_frames = max(train_frames, longest if crop is None else min(longest, crop))
        written = int(one.frames.n_frames[np.concatenate([one.fold.test, one.fold.valid])].max())
        write_frames = max(write_frames, written if room is None else min(written, room * recipe.projector.stride))
    return estimate(
        prepared.shape,
        recipe,
        dim=materials[0].frames.dim,
        train_frames=train_frames,
        write_frames=write_frames,
        prompt_tokens=max(len(one.prompt) for one in materials),
        answer_tokens=max(one.texts.longest for one in materials),
        memory_bytes=memory_bytes,
        device=device,
    )
