"""How good a half-trained model is on validation clips: what chooses the epoch that is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xares_store.metrics.text import icer, iwer, string_accuracy
from xares_store.probes.llm.batches import micro_batches
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm
from xares_store.recipe import Recipe
from xares_store.runs.llm.material import Material
from xares_store.runs.llm.writing import write_about

_SCORES: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "iwer": iwer,
    "icer": icer,
    "string_accuracy": string_accuracy,
}
SEED = 42


def selection_metric(material: Material) -> str:
    """Return the metric by which epochs are compared; characters for what has no metric of its own here."""
    name = material.task.metric.name
    return name if name in _SCORES else "icer"


def make_validate(
    model: AudioLm, materials: Sequence[Material], recipe: Recipe, *, published: bool, room: Callable[[int], int | None]
) -> Callable[[], float]:
    """Return a function that scores the model on validation clips, the mean over tasks.

    Under ``strict`` it writes some of the clips, the same ones every time, as it will the test clips. Under
    ``published`` it is given the whole reference and says the most likely token at each place, cut to the reference's length
    in letters, over all validation clips: optimistic, as the published tables were.
    """
    chosen = []
    for material in materials:
        rows = material.fold.valid
        if not published and recipe.selection is not None and len(rows) > recipe.selection.clips:
            drawn = np.random.default_rng(SEED).choice(len(rows), recipe.selection.clips, replace=False)
            rows = rows[np.sort(drawn)]
        chosen.append(rows)

    def validate() -> float:
        scores = []
        for material, rows in zip(materials, chosen, strict=True):
            targets = [material.features.target[row].test[0] for row in rows.tolist()]
            if published:
                texts = _forced(model, material, rows.tolist(), targets, recipe, room(len(material.prompt)))
            else:
                written, _ = write_about(
                    model, material, rows, recipe, room=room(len(material.prompt)), progress=lambda _: None
                )
                texts = [one.text for one in written]
            scores.append(_SCORES[selection_metric(material)](targets, texts))
        return float(np.mean(scores))

    return validate


def _forced(
    model: AudioLm, material: Material, rows: Sequence[int], targets: Sequence[str], recipe: Recipe, room: int | None
) -> list[str]:
    limit = None if room is None else room * recipe.projector.stride
    tokens = model.text.encode(targets)
    place = {row: index for index, row in enumerate(rows)}
    found: dict[int, str] = {}
    held: list[tuple[int, Example]] = []

    def flush() -> None:
        index_of = {id(example): index for index, example in held}
        examples = [example for _, example in held]
        for batch in micro_batches(examples, model.positions, recipe.training.frame_budget):
            for example, text in zip(batch, model.teacher_forced(batch), strict=True):
                index = index_of[id(example)]
                found[index] = text[: len(targets[index])]
        held.clear()

    for row, frames in material.frames.read(np.asarray(rows, np.int64)):
        used = np.asarray(frames[:limit], np.float32)
        held.append((place[row], Example(used, material.prompt, tokens[place[row]], material.name(row))))
        if len(held) >= 64:
            flush()
    if held:
        flush()
    return [found[index] for index in range(len(rows))]
