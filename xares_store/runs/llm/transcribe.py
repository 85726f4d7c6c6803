"""Read what a trained projector hears in stored clips: listening by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from xares_store.device import resolve_device, set_threads
from xares_store.errors import ConfigError, CorruptError, ProbeError, did_you_mean
from xares_store.probes.llm.batches import micro_batches
from xares_store.probes.llm.decoder import decoder_shape, encode, find_decoder, load_tokenizer
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm, Written
from xares_store.recipe import Recipe
from xares_store.runs.features import task_named
from xares_store.runs.llm.prepare import audio_room
from xares_store.runs.llm.training import build, separator_of
from xares_store.runs.state import parts_of
from xares_store.store.layout import RunManifest
from xares_store.store.opened import Part
from xares_store.store.run import read_predictions, read_tensors
from xares_store.store.store import Store
from xares_store.targets import texts_of
from xares_store.task import Task

Home = tuple[str, str, int]  # split, shard and number of a part

_HELD_CLIPS = 256  # whose frames are read, and sorted by length, together


@dataclass(frozen=True)
class Transcription:
    """What a model wrote about a clip.

    Attributes:
        clip_id, split: which clip.
        text: what was written.
        reference: the clip's own texts, joined by " | "; None where its label has none.
        finished: whether the end came before the recipe's limit of tokens.
        cut: whether the clip was longer than the decoder's context and cut at its end.
    """

    clip_id: str
    split: str
    text: str
    reference: str | None
    finished: bool
    cut: bool


def transcribe(
    store: str | Path | Store,
    run: str,
    clip_ids: Sequence[str],
    *,
    task: str | None = None,
    prompt: str | None = None,
    decoder: str | None = None,
    device: str = "auto",
) -> list[Transcription]:
    """Write about clips with the model of a stored run.

    Args:
        store: folder of the store, or an open store.
        run: id of a run of the ``llm`` probe.
        clip_ids: clips as the view ``clips`` names them, or ``split/clip_id`` where several splits have one name.
        task: another task of the store whose clips are meant; the run's own when None.
        prompt: another question; the task's own when None. A clip is cut where question, frames and answer do not fit into
            the decoder's context together, as in evaluations.
        decoder: where the decoder is now; the name that the run recorded when None.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns:
        One entry a clip, in the order given.

    Raises:
        StoreError: there is no such run.
        ConfigError: the run is of another probe, a clip is not embedded for the task, or the run's model was never asked
            anything and a prompt is given.
        ProbeError: the decoder is not the one of the run, is not to be had, or has no room for any audio.

    Example:
        >>> transcribe("my.store", "librispeech-llm-strict-s42-0123456789abcdef", ["1089-134686-0000"])  # doctest: +SKIP
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    manifest = opened.read_run(run)
    if manifest.probe != "llm":
        raise ConfigError(
            f"The run is of the probe {manifest.probe}, which writes no text.",
            where=f"--run {run}",
            hint="See the runs that do: xares sql \"select run_id from runs where probe = 'llm'\".",
        )
    if not clip_ids:
        raise ConfigError(
            "Expected at least one clip.",
            hint='See their names: xares sql "select split, clip_id from clips limit 5".',
        )
    recipe = _recipe(manifest)
    if prompt is not None:
        _check_prompt(prompt, recipe)
    chosen = task_named(opened, task or manifest.task_address)
    parts = {
        (p.address.split, p.address.shard, p.address.sequence): p for p in parts_of(opened, manifest.encoder, chosen)
    }
    clips = _clips(opened, manifest, chosen, clip_ids, parts)
    files = find_decoder(decoder or str(manifest.details.get("decoder") or manifest.settings["decoder"]))
    if files.identity() != manifest.settings["decoder_identity"]:
        raise ProbeError(
            "The decoder is not the one that the run was made with: its weights, configuration or tokenizer differ.",
            where=f"--decoder {files.spec}",
            hint="Give the folder of the same decoder with --decoder.",
        )
    set_threads()
    tensors = read_tensors(opened.path, run)
    folds = _folds(opened, run, manifest, clips)
    dim = next(iter(parts.values())).manifest.dim
    asked = prompt if prompt is not None else getattr(chosen.target, "prompt", None)
    found: dict[int, Transcription] = {}
    for fold in dict.fromkeys(folds):
        rows = [row for row, name in enumerate(folds) if name == fold]
        model = _model(files, recipe, manifest, tensors, fold, dim, resolve_device(device))
        tokens = encode(model.text.tokenizer, [asked])[0] if recipe.prompt and asked else ()
        room = audio_room(decoder_shape(files), recipe, len(tokens), spec=files.spec)
        limit = None if room is None else room * recipe.projector.stride
        for first in range(0, len(rows), _HELD_CLIPS):
            held = {row: _example(clips[row], parts, tokens, limit) for row in rows[first : first + _HELD_CLIPS]}
            for row, one in _write(model, held, recipe).items():
                clip = clips[row]
                cut = len(held[row].frames) < int(clip["n_frames"])
                reference = _reference(chosen, clip)
                found[row] = Transcription(clip["clip_id"], clip["split"], one.text, reference, one.finished, cut)
    return [found[row] for row in range(len(clips))]


def _check_prompt(prompt: str, recipe: Recipe) -> None:
    if not recipe.prompt:
        raise ConfigError(
            f'The run\'s recipe "{recipe.name}" asks no question: its model was never given one.',
            where="--prompt",
            hint="Leave it away, or name a run of a recipe with prompt = true, such as xares-llm.",
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"Expected text in UTF-8, found something else at letter {error.start + 1}.", where="--prompt"
        ) from None


def _write(model: AudioLm, held: dict[int, Example], recipe: Recipe) -> dict[int, Written]:
    """Write about clips, as many at once as the recipe's budget allows."""
    generation = recipe.generation
    row_of = {id(example): row for row, example in held.items()}
    found: dict[int, Written] = {}
    for batch in micro_batches(
        list(held.values()),
        lambda example: model.positions(example) + generation.max_new_tokens,
        recipe.training.frame_budget,
    ):
        written = model.write(
            batch, max_new_tokens=generation.max_new_tokens, repetition_penalty=generation.repetition_penalty
        )
        found |= {row_of[id(example)]: one for example, one in zip(batch, written, strict=True)}
    return found


def _clips(
    store: Store, manifest: RunManifest, task: Task, wanted: Sequence[str], parts: Mapping[Home, Part]
) -> list[dict[str, Any]]:
    """Return the rows of the clips, in the order given; clips of other parts than these do not belong to the task."""
    table: pa.Table = store.clip_table(manifest.encoder, task.audio_address)
    by_name: dict[str, list[int]] = {}
    columns = (table.column(name).to_pylist() for name in ("split", "clip_id", "shard", "sequence"))
    for row, (split, clip_id, shard, sequence) in enumerate(zip(*columns, strict=True)):
        if (split, shard, sequence) not in parts:
            continue
        by_name.setdefault(clip_id, []).append(row)
        by_name.setdefault(f"{split}/{clip_id}", []).append(row)
    rows: list[int] = []
    for name in wanted:
        matches = by_name.get(name, [])
        if len(matches) != 1:
            several = [f"{table.column('split')[row].as_py()}/{name}" for row in matches]
            raise ConfigError(
                f'Clip "{name}" is in several splits: {", ".join(several)}.'
                if several
                else f'No clip "{name}" is embedded for task "{task.name}".',
                where=store.path,
                hint="Name the split too."
                if several
                else did_you_mean(name, by_name, listing=f"It has, for example: {', '.join(list(by_name)[:3])}."),
            )
        rows += matches
    found: list[dict[str, Any]] = table.take(rows).to_pylist()
    return found


def _recipe(manifest: RunManifest) -> Recipe:
    try:
        return Recipe.model_validate(manifest.details["recipe"])
    except (KeyError, ValidationError) as error:
        raise CorruptError(
            f"The run does not say its recipe ({type(error).__name__}).", where=manifest.run_id
        ) from error


def _folds(store: Store, run: str, manifest: RunManifest, clips: Sequence[dict[str, Any]]) -> list[str]:
    """Return the fold whose model heard none of a clip in training; the first one for clips of no test fold."""
    names = [str(one["fold"]) for one in manifest.details["folds"]]
    if len(names) == 1:
        return names * len(clips)
    tested = read_predictions(store.path, run).select(["fold", "split", "key"]).to_pylist()
    fold_of = {(row["split"], row["key"]): row["fold"] for row in tested}
    return [fold_of.get((clip["split"], clip["key"]), names[0]) for clip in clips]


def _model(
    files: Any, recipe: Recipe, manifest: RunManifest, tensors: dict[str, np.ndarray], fold: str, dim: int, device: str
) -> AudioLm:
    separator = separator_of(recipe, load_tokenizer(files), protocol=manifest.protocol, spec=files.spec)
    model = build(files, recipe, dim=dim, separator=separator, protocol=manifest.protocol, seed=0, device=device)
    prefix = f"fold-{fold}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    model.load({name: value for name, value in own.items() if not name.startswith("history.")})
    return model


def _example(clip: dict[str, Any], parts: Mapping[Home, Part], prompt: tuple[int, ...], limit: int | None) -> Example:
    part = parts[clip["split"], clip["shard"], clip["sequence"]]
    first, n_frames = int(clip["offset"]), int(clip["n_frames"])
    used = n_frames if limit is None else min(n_frames, limit)
    frames = np.asarray(part.frames(slice(first, first + used)), np.float32)
    return Example(frames, prompt, (), f"{clip['split']}/{clip['clip_id']}")


def _reference(task: Task, clip: dict[str, Any]) -> str | None:
    if task.target.kind not in ("text", "transcript"):
        return None
    texts = texts_of(task, [clip["label"]], [f"{clip['split']}/{clip['clip_id']}"])[0].test
    return " | ".join(texts) or None
