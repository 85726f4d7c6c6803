"""Read what a trained projector hears in stored clips: listening by text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from xares_store.device import resolve_device, set_threads
from xares_store.errors import ConfigError, CorruptError, ProbeError, did_you_mean
from xares_store.probes.llm.decoder import encode, find_decoder
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm
from xares_store.recipe import Recipe
from xares_store.runs.features import task_named
from xares_store.runs.llm.training import build, separator_of
from xares_store.runs.state import parts_of
from xares_store.store.layout import RunManifest
from xares_store.store.opened import Part
from xares_store.store.run import read_predictions, read_tensors
from xares_store.store.store import Store
from xares_store.targets import texts_of
from xares_store.task import Task

_BATCH = 8


@dataclass(frozen=True)
class Transcription:
    """What a model wrote about a clip.

    Attributes:
        clip_id, split: which clip.
        text: what was written.
        reference: the clip's own texts, joined by " | "; None where its label has none.
        finished: whether the end came before the recipe's limit of tokens.
    """

    clip_id: str
    split: str
    text: str
    reference: str | None
    finished: bool


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
        prompt: another question; the task's own when None.
        decoder: where the decoder is now; the name that the run recorded when None.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns:
        One entry a clip, in the order given.

    Raises:
        StoreError: there is no such run.
        ConfigError: the run is of another probe, or a clip is not embedded.
        ProbeError: the decoder is not the one of the run, or is not to be had.

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
    chosen = task_named(opened, task or manifest.task_address)
    clips = _clips(opened, manifest, chosen, clip_ids)
    recipe = _recipe(manifest)
    files = find_decoder(decoder or str(manifest.details.get("decoder") or manifest.settings["decoder"]))
    if files.identity() != manifest.settings["decoder_identity"]:
        raise ProbeError(
            "The decoder is not the one that the run was made with: its weights, configuration or tokenizer differ.",
            where=f"--decoder {files.spec}",
            hint="Give the folder of the same decoder with --decoder.",
        )
    set_threads()
    parts = {
        (p.address.split, p.address.shard, p.address.sequence): p for p in parts_of(opened, manifest.encoder, chosen)
    }
    tensors = read_tensors(opened.path, run)
    folds = _folds(opened, run, manifest, clips)
    found: dict[int, Transcription] = {}
    for fold in dict.fromkeys(folds):
        rows = [row for row, name in enumerate(folds) if name == fold]
        model = _model(
            files, recipe, manifest, tensors, fold, next(iter(parts.values())).manifest.dim, resolve_device(device)
        )
        asked = prompt if prompt is not None else getattr(chosen.target, "prompt", None)
        tokens = encode(model.text.tokenizer, [asked])[0] if recipe.prompt and asked else ()
        for first in range(0, len(rows), _BATCH):
            part_rows = rows[first : first + _BATCH]
            written = model.write(
                [_example(clips, row, parts, tokens) for row in part_rows],
                max_new_tokens=recipe.generation.max_new_tokens,
                repetition_penalty=recipe.generation.repetition_penalty,
            )
            for row, one in zip(part_rows, written, strict=True):
                clip = clips[row]
                found[row] = Transcription(
                    clip["clip_id"], clip["split"], one.text, _reference(chosen, clip), one.finished
                )
    return [found[row] for row in range(len(clips))]


def _clips(store: Store, manifest: RunManifest, task: Task, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the clips, in the order given."""
    table: pa.Table = store.clip_table(manifest.encoder, task.audio_address)
    by_name: dict[str, list[int]] = {}
    for row, (split, clip_id) in enumerate(
        zip(table.column("split").to_pylist(), table.column("clip_id").to_pylist(), strict=True)
    ):
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
    from xares_store.probes.llm.decoder import load_tokenizer

    separator = separator_of(recipe, load_tokenizer(files), protocol=manifest.protocol, spec=files.spec)
    model = build(files, recipe, dim=dim, separator=separator, protocol=manifest.protocol, seed=0, device=device)
    prefix = f"fold-{fold}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    model.load({name: value for name, value in own.items() if not name.startswith("history.")})
    return model


def _example(clips: Sequence[dict[str, Any]], row: int, parts: dict[Any, Part], prompt: tuple[int, ...]) -> Example:
    clip = clips[row]
    part = parts[clip["split"], clip["shard"], clip["sequence"]]
    first = int(clip["offset"])
    frames = np.asarray(part.frames(slice(first, first + int(clip["n_frames"]))), np.float32)
    return Example(frames, prompt, (), f"{clip['split']}/{clip['clip_id']}")


def _reference(task: Task, clip: dict[str, Any]) -> str | None:
    if task.target.kind not in ("text", "transcript"):
        return None
    texts = texts_of(task, [clip["label"]], [f"{clip['split']}/{clip['clip_id']}"])[0].test
    return " | ".join(texts) or None
