"""How good a half-trained model is on validation clips: what chooses the epoch that is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xares_store.errors import MetricError, ProbeError
from xares_store.probes.llm.batches import micro_batches
from xares_store.probes.llm.decoder import OPTION
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm
from xares_store.recipe import Recipe
from xares_store.runs.llm.answers import Answers, Form, references_of
from xares_store.runs.llm.material import Material, longer_than_written
from xares_store.runs.llm.text_scores import UNITS, edit_counts
from xares_store.runs.llm.writing import write_about

SEED = 42


def selection_metric(material: Material) -> str:
    """Return the metric by which epochs are compared; characters for what has no metric of its own here."""
    name = material.task.metric.name
    return name if name in (*UNITS, "string_accuracy") else "icer"


def make_validate(
    model: AudioLm, materials: Sequence[Material], recipe: Recipe, *, published: bool, room: Callable[[int], int | None]
) -> Callable[[], float]:
    """Return a function that scores the model on validation clips, the mean over tasks.

    Texts are compared as those of test clips are. Under ``strict`` the model writes about some of the clips, the same
    ones every time, as it will about the test clips; of several references the best counts. Under ``published`` it is
    given a reference, each of a clip's by itself, and says the most likely token at each place, cut to the reference's
    length in letters, over all validation clips: optimistic, as the published tables were.

    Args:
        model: being trained.
        materials: a task each.
        recipe: how many clips are written about, and how.
        published: whether the protocol is ``published``.
        room: most audio positions beside a prompt of so many tokens; None without a limit.

    Raises:
        ProbeError: the published protocol, and a separator that is the end token: what is most likely at its place would
            end every text.
        MetricError: no validation clip of a task has a reference.
    """
    if published and model.separator == model.text.end:
        raise ProbeError(
            "The recipe separates audio and text with the decoder's end token, which would end every text that the "
            "published protocol compares on validation clips.",
            where=f"{OPTION} {model.text.spec}",
            hint="Give the recipe another separator or a decoder with another end token, or use --protocol strict.",
        )
    chosen = [_Chosen.of(material, recipe, "published" if published else "strict") for material in materials]

    def validate() -> float:
        scores = []
        for one in chosen:
            material = one.material
            if published:
                texts = _forced(model, one, recipe, room)
            else:
                written, _ = write_about(
                    model, material, one.rows, recipe, room=room(len(material.prompt)), progress=lambda _: None
                )
                texts = [answer.text for answer in written]
            scores.append(one.score(texts))
        return float(np.mean(scores))

    return validate


@dataclass(frozen=True)
class _Chosen:
    """The validation clips of a task that are asked about; ``rows`` and ``references`` go together."""

    material: Material
    form: Form
    rows: NDArray[np.int64]
    references: list[tuple[str, ...]]

    @classmethod
    def of(cls, material: Material, recipe: Recipe, protocol: str) -> _Chosen:
        task, target = material.task, material.features.target
        found = {row: references_of(task, target[row].test, protocol=protocol) for row in material.fold.valid.tolist()}
        rows = np.array([row for row, own in found.items() if own], np.int64)
        if not len(rows):
            raise MetricError(
                "Wanted a validation clip with a reference text, found none.",
                where=f"task {task.name}, fold {material.fold.name}",
                hint="Correct target.keys or target.test_keys in the task file.",
            )
        form = Form.of(task, protocol)
        if form.every_pair:
            pairs = [(row, (text,)) for row in rows.tolist() for text in found[row]]
            return cls(material, form, np.array([row for row, _ in pairs], np.int64), [own for _, own in pairs])
        if recipe.selection is not None and len(rows) > recipe.selection.clips:
            drawn = np.random.default_rng(SEED).choice(len(rows), recipe.selection.clips, replace=False)
            rows = rows[np.sort(drawn)]
        return cls(material, form, rows, [found[row] for row in rows.tolist()])

    def score(self, texts: list[str]) -> float:
        """Score a text for each of the rows."""
        item = np.repeat(np.arange(len(self.rows)), [len(own) for own in self.references])
        answers = Answers(self.form, self.rows, texts, self.references, item, [], n_corrupt=0, n_dropped=0)
        name = selection_metric(self.material)
        if name == "string_accuracy":
            return float(answers.of_items(answers.hits()).mean())
        counts = edit_counts(answers, UNITS[name])
        return float(max(0.0, 1.0 - counts[:, :3].sum() / max(1, counts[:, 3].sum())))


def _forced(model: AudioLm, chosen: _Chosen, recipe: Recipe, room: Callable[[int], int | None]) -> list[str]:
    """Return what is most likely at each place of each reference."""
    material, targets = chosen.material, [text for (text,) in chosen.references]
    tokens = model.text.encode(targets)
    limit = room(len(material.prompt) + longer_than_written(tokens.longest, recipe))
    limit = None if limit is None else limit * recipe.projector.stride
    places: dict[int, list[int]] = {}
    for index, row in enumerate(chosen.rows.tolist()):
        places.setdefault(row, []).append(index)
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

    for row, frames in material.frames.read(np.array(list(places), np.int64)):
        used = np.asarray(frames[:limit], np.float32)
        held += [(index, Example(used, material.prompt, tokens[index], material.name(row))) for index in places[row]]
        if len(held) >= 64:
            flush()
    if held:
        flush()
    return [found[index] for index in range(len(targets))]
