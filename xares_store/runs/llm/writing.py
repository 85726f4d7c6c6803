"""Let a trained model write about many clips: frames are streamed, clips of like length share a batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from xares_store.errors import ProbeError
from xares_store.probes.llm.batches import micro_batches
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm, Written
from xares_store.probes.llm.ranks import Ranks
from xares_store.recipe import Recipe
from xares_store.runs.llm.answers import Form
from xares_store.runs.llm.material import Material, longer_than_written, shortened, training_rows

_HELD_BYTES = 64 << 20  # of frames as float32, sorted by length together
_HELD_CLIPS = 512


@dataclass(frozen=True)
class Labels:
    """The answers of a closed task.

    Attributes:
        names: as training texts write them, sorted.
        tokens: token ids of each.
    """

    names: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]


def labels_of(material: Material, model: AudioLm) -> Labels:
    """Return the labels that a closed task's training clips have; spellings that are scored as one label are one.

    With k folds these are the labels of the training clips of all folds together, so that a column means the same label in
    each of them. A fold may thus offer a label that its own training clips lack; none is there for test clips alone.
    """
    form = Form.of(material.task, "published" if model.gaps else "strict")
    target, features = material.features.target, material.features
    found: dict[str | tuple[str, ...], str] = {}
    for row in np.unique(np.concatenate([training_rows(fold, model.recipe) for fold in features.folds])).tolist():
        for text in target[row].train:
            for label in text.split(form.separator) if form.separator else (text,):
                if label.strip() and form.same(label):
                    found.setdefault(form.same(label), label.strip())
    names = tuple(sorted(found.values()))
    tokens = model.text.encode(names)
    return Labels(names, tuple(tokens[index] for index in range(len(names))))


def write_about(
    model: AudioLm,
    material: Material,
    rows: NDArray[np.int64],
    recipe: Recipe,
    *,
    room: int | None,
    progress: Callable[[int], None],
) -> tuple[list[Written], int]:
    """Write about clips.

    Args:
        model: trained.
        material: where their frames are.
        rows: which clips.
        recipe: how text is generated, and positions at once.
        room: most audio positions; what is longer is cut at its end.
        progress: called with the number of clips just done.

    Returns:
        What was written about each, in the order of ``rows``, and how many clips were cut.
    """
    generation = recipe.generation
    found: dict[int, Written] = {}
    cut = 0
    for held in _held(material, rows, recipe, room):
        cut += sum(one.cut for one in held)
        by_name = {id(one.example): one.row for one in held}
        batches = micro_batches(
            [one.example for one in held],
            lambda example: model.positions(example) + generation.max_new_tokens,
            recipe.training.frame_budget,
        )
        for batch in batches:
            written = _write(model, batch, recipe)
            for example, one in zip(batch, written, strict=True):
                found[by_name[id(example)]] = one
            progress(len(batch))
    return [found[row] for row in rows.tolist()], cut


def _write(model: AudioLm, batch: Sequence[Example], recipe: Recipe) -> list[Written]:
    """Write about a batch; where it does not fit into the accelerator's memory, about its halves."""
    generation = recipe.generation
    try:
        return model.write(
            batch, max_new_tokens=generation.max_new_tokens, repetition_penalty=generation.repetition_penalty
        )
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise ProbeError(
                "The accelerator's memory does not suffice to write about one clip.",
                where=batch[0].name,
                hint="Use --precision bf16, a --stride, or --device cpu.",
            ) from None
    half = len(batch) // 2  # not inside the handler: the error keeps what was being computed alive
    return _write(model, batch[:half], recipe) + _write(model, batch[half:], recipe)


def label_likelihoods(
    model: AudioLm,
    material: Material,
    rows: NDArray[np.int64],
    labels: Labels,
    recipe: Recipe,
    *,
    room: int | None,
    progress: Callable[[int], None],
) -> NDArray[np.float64]:
    """Return the log-likelihood of each label as the answer about each clip, ``(clips, labels)``.

    ``room`` is as in :func:`write_about`; a label of more tokens than an answer takes what is more from the audio.

    Raises:
        ProbeError: the longest label leaves no room for audio.
    """
    found: dict[int, NDArray[np.float64]] = {}
    longest = max(labels.tokens, key=len, default=())
    more = longer_than_written(len(longest), recipe)
    if room is not None and more:
        room -= more
        if room < 1:
            name = labels.names[labels.tokens.index(longest)]
            raise ProbeError(
                f"A label of {len(longest)} tokens leaves no room for audio in the decoder's context: {shortened(name)}.",
                where=f"task {material.task.name}",
                hint="Use a decoder with a longer context, leave the clip out with --where, or score without "
                "--score-labels.",
            )
    for held in _held(material, rows, recipe, room):
        for one in held:
            found[one.row] = model.label_scores(one.example, labels.tokens, budget=recipe.training.frame_budget)
            progress(1)
    return np.stack([found[row] for row in rows.tolist()])


def shared_writing(
    ranks: Ranks, rows: NDArray[np.int64], write: Callable[[NDArray[np.int64]], tuple[list[Written], int]]
) -> tuple[list[Written], int]:
    """Divide clips among the processes that were launched together; each of them returns everything."""
    written, cut = write(rows[ranks.rank :: ranks.size])
    mine = json.dumps([[[one.text, one.tokens, one.finished] for one in written], cut]).encode()
    everyone = [json.loads(data) for data in ranks.collect(mine)]
    found = [Written("", 0, False)] * len(rows)
    for rank, (texts, _) in enumerate(everyone):
        found[rank :: ranks.size] = [Written(*one) for one in texts]
    return found, sum(count for _, count in everyone)


def shared_likelihoods(
    ranks: Ranks, rows: NDArray[np.int64], n_labels: int, score: Callable[[NDArray[np.int64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Divide clips likewise for :func:`label_likelihoods`."""
    own = rows[ranks.rank :: ranks.size]
    mine = score(own) if len(own) else np.zeros((0, n_labels))
    found = np.empty((len(rows), n_labels))
    for rank, data in enumerate(ranks.collect(mine.tobytes())):
        found[rank :: ranks.size] = np.frombuffer(data).reshape(-1, n_labels)
    return found


@dataclass(frozen=True)
class _Clip:
    row: int
    example: Example
    cut: bool


def _held(material: Material, rows: NDArray[np.int64], recipe: Recipe, room: int | None) -> Iterator[Sequence[_Clip]]:
    """Read clips in storage order, as many at a time as are sorted together."""
    limit = None if room is None else room * recipe.projector.stride
    held: list[_Clip] = []
    size = 0
    for row, frames in material.frames.read(rows):
        used = frames if limit is None else frames[:limit]
        held.append(_Clip(row, material.question(row, used), len(used) < len(frames)))
        size += held[-1].example.frames.nbytes
        if size >= _HELD_BYTES or len(held) >= _HELD_CLIPS:
            yield held
            held, size = [], 0
    if held:
        yield held
