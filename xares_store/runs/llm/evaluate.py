"""Evaluate tasks with the LLM-projector probe: train once, write about the test clips of each task, score, store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from xares_store.device import launched_processes, resolve_device, set_threads
from xares_store.errors import XaresError
from xares_store.probes.llm.decoder import load_tokenizer
from xares_store.probes.llm.ranks import Ranks, local_device
from xares_store.probes.llm.trainer import Paused
from xares_store.runs.features import Features, load_features
from xares_store.runs.llm.footprint import Footprint, footprint
from xares_store.runs.llm.material import Material, make_material
from xares_store.runs.llm.prepare import Prepared, check_context, prepare
from xares_store.runs.llm.stored import Known, remove_training, stored_training, training_folder
from xares_store.runs.llm.text_scores import Likelihood, score_texts
from xares_store.runs.llm.training import Taught, separator_of, teach
from xares_store.runs.llm.writing import (
    label_likelihoods,
    labels_of,
    shared_likelihoods,
    shared_writing,
    write_about,
)
from xares_store.runs.progress import Meter
from xares_store.runs.provenance import describe_device
from xares_store.runs.request import Request
from xares_store.runs.result import EvaluateReport, result_of, run_record
from xares_store.runs.score import Scored
from xares_store.store.layout import TRAINING
from xares_store.store.store import Store
from xares_store.task import Task


@dataclass
class _Written:
    """What is known of one task once its folds were written about."""

    hypotheses: list[list[str]] = field(default_factory=list)
    likelihoods: list[np.ndarray] = field(default_factory=list)
    labels: tuple[str, ...] = ()
    details: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def evaluate_llm(
    store: Store,
    encoder: str,
    tasks: Sequence[Task],
    request: Request,
    report: EvaluateReport,
    *,
    deadline: float | None,
    quiet: bool,
) -> None:
    """Train and score the LLM-projector probe on some tasks of one encoder; what is stored is not computed again.

    Args:
        store: where embeddings are and runs go.
        encoder: its address.
        tasks: whose targets are text.
        request: options.
        report: results and notes are added to it.
        deadline: ``time.monotonic()`` at which training pauses.
        quiet: draw no progress bar.

    A training that fails is named in ``report.failed`` with its tasks, and the others go on. Where it is the only one, or
    where several processes train together and have to end together, its error is raised instead.

    Raises:
        Paused: the deadline passed; the same call goes on.
        XaresError: an option cannot be used, or the only training failed.
    """
    trainings, failed = prepare(store, encoder, tasks, request)
    seeds = [seed for seed in request.seeds_of("llm") if seed is not None]
    stops = launched_processes() > 1 or (len(trainings) + len(failed)) * len(seeds) == 1

    def fail(members: Sequence[Task], error: XaresError) -> None:
        if stops:
            raise error
        entry = (encoder, ", ".join(task.name for task in members), str(error))
        if entry not in report.failed:  # every seed may fail alike
            report.failed.append(entry)

    for members, error in failed:
        fail(members, error)
    for prepared in trainings:
        _note_alone(prepared, trainings, report)
        features: list[Features] = []
        told: set[int] = set()
        for seed in seeds:
            try:
                missing = _missing(store, prepared, request, seed, report)
                if missing:
                    features = features or _features(store, prepared, request)
                    _load_captions(prepared)
                    _Evaluation(store, prepared, request, seed, features, report, deadline, quiet, told).run(missing)
            except Paused:
                raise
            except XaresError as error:
                fail(prepared.tasks, error)


def _missing(store: Store, prepared: Prepared, request: Request, seed: int, report: EvaluateReport) -> list[int]:
    """Return the tasks that have no run yet; those that have one are results."""
    missing = []
    for number in range(len(prepared.tasks)):
        run_id = prepared.run_id(number, request, seed)
        if store.has_run(run_id):
            report.results.append(result_of(store.read_run(run_id), reused=True))
        else:
            missing.append(number)
    return missing


def _load_captions(prepared: Prepared) -> None:
    """Load the models of the metrics, so that a wrong file shows now and not after a training; they stay loaded."""
    if prepared.captions is not None:
        _ = prepared.captions.encoder, prepared.captions.checker


def _note_alone(prepared: Prepared, trainings: Sequence[Prepared], report: EvaluateReport) -> None:
    """Say that a joint recipe trains a task alone because of its folds."""
    alike = [other for other in trainings if other.recipe.name == prepared.recipe.name]
    if prepared.recipe.joint and len(alike) > 1 and prepared.tasks[0].data.splits is None:
        name = prepared.tasks[0].name
        report.notes.append(
            f"{prepared.encoder} {name} llm: it has folds instead of fixed splits, and was trained alone, not with the others."
        )


def _features(store: Store, prepared: Prepared, request: Request) -> list[Features]:
    found = []
    for task in prepared.tasks:
        found.append(
            load_features(store, prepared.encoder, task, protocol=request.protocol, where=request.where, pooled=False)
        )
        store.put_task(task.address, task.to_toml())
    return found


@dataclass
class _Evaluation:
    """One training with one seed, and the runs that come of it."""

    store: Store
    prepared: Prepared
    request: Request
    seed: int
    features: list[Features]
    report: EvaluateReport
    deadline: float | None
    quiet: bool
    told: set[int]  # budgets whose notes were given with another fold or seed
    ranks: Ranks = field(init=False)
    footprint: Footprint = field(init=False)
    first_run: str | None = field(init=False, default=None)  # whose file of weights the other tasks' runs share

    def run(self, missing: Sequence[int]) -> None:
        """Train, write about the tasks that have no run, and store them."""
        set_threads()
        self.ranks = Ranks(torch.device(self._device()))
        started = datetime.now(UTC).isoformat(timespec="seconds")
        identity = f"{self.prepared.training_id(self.request)}-s{self.seed}"
        folder = self.store.path / TRAINING / identity
        with training_folder(folder) if self.ranks.first else contextlib.nullcontext():
            self._run(folder, identity, started, missing)
            seeded = ((number, self.request, self.seed) for number in range(len(self.features)))
            if self.ranks.first and all(self.store.has_run(self.prepared.run_id(*one)) for one in seeded):
                remove_training(folder)

    def _run(self, folder: Path, identity: str, started: str, missing: Sequence[int]) -> None:
        known = stored_training(self.store, self.prepared.training_id(self.request), self.seed)
        written = {number: _Written() for number in missing}
        n_folds = len(self.features[0].folds)
        for place in range(n_folds):
            began = time.perf_counter()
            taught, materials = self._taught(place, folder, identity, known)
            share = (time.perf_counter() - began) / len(self.prepared.tasks)
            for number in missing:
                self._write(taught, materials[number], written[number], share)
                if place == n_folds - 1:
                    self._store(number, written[number], started, taught)

    def _taught(self, place: int, folder: Path, identity: str, known: Known) -> tuple[Taught, list[Material]]:
        prepared, request = self.prepared, self.request
        tokenizer = load_tokenizer(prepared.decoder)
        materials = [
            make_material(task, one, one.folds[place], prepared.recipe, tokenizer)
            for task, one in zip(prepared.tasks, self.features, strict=True)
        ]
        separator = separator_of(prepared.recipe, tokenizer, protocol=request.protocol, spec=prepared.decoder.spec)
        fold = materials[0].fold.name
        own = known.of_fold(fold)
        size = footprint(
            prepared,
            materials,
            device=self._device(),
            memory_bytes=request.memory_bytes,
            given=request.llm.frame_budget is not None,
        )
        self.footprint = size
        self._announce(size, separator.name, trains=not own)
        prepared = replace(prepared, wanted=replace(prepared.wanted, recipe=size.recipe))
        title = f"{prepared.mixture} ({size.words}): training" + (f" {fold}" if len(self.features[0].folds) > 1 else "")
        with Meter(title, total=1.0, quiet=self.quiet) as meter:
            before = 0.0

            def progress(now: Any) -> None:
                nonlocal before
                meter.advance(
                    now.step / now.steps - before,
                    note=f"step {now.step} of {now.steps}, loss {now.loss:.3f}, {now.tokens_per_s:,.0f} tokens/s",
                )
                before = now.step / now.steps

            taught = teach(
                prepared,
                materials,
                request,
                self.seed,
                folder / fold,
                identity=f"{identity}/{fold}",
                separator=separator,
                device=self._device(),
                deadline=self.deadline,
                progress=progress,
                known=own or None,
            )
        if own:
            taught = replace(taught, trained=known.complete(taught.trained, fold))
        return taught, materials

    def _announce(self, size: Footprint, separator: str | None, *, trains: bool) -> None:
        """Say what is known before a training starts, which may take days: in the report, and at once to whoever watches."""
        recipe, budget = self.prepared.recipe, size.recipe.training.frame_budget
        notes = list(size.notes) if trains and budget not in self.told else []
        self.told.add(budget)
        if separator != recipe.separator:
            notes.append(
                f'The decoder\'s vocabulary has no token "{recipe.separator}"; its end token {separator} separates audio and text.'
            )
        said = [note for note in notes if self._say(f"{self.prepared.encoder} {self.prepared.mixture} llm: {note}")]
        if self.quiet or not self.ranks.first:
            return
        console = Console(stderr=True, soft_wrap=True)
        if trains:
            console.print(f"{self.prepared.mixture}: training may take {size.words}.", markup=False, highlight=False)
        for note in said:
            console.print(f"warning: {note}", markup=False, highlight=False)

    def _say(self, note: str) -> bool:
        """Put a note into the report once, whatever tasks, folds and seeds it is true of."""
        new = note not in self.report.notes
        if new:
            self.report.notes.append(note)
        return new

    def _device(self) -> str:
        return local_device(resolve_device(self.request.device))

    def _write(self, taught: Taught, material: Material, written: _Written, seconds: float) -> None:
        began = time.perf_counter()
        recipe, model = self.footprint.recipe, taught.model
        rows, room = material.fold.test, check_context(self.prepared, len(material.prompt))
        scored_labels = "score_labels" in self.prepared.settings(material.task, self.request)
        passes = 2 if scored_labels else 1
        with Meter(f"{material.task.name}: writing", total=passes * len(rows), quiet=self.quiet) as meter:
            advance: Callable[[int], None] = meter.advance
            answers, cut = shared_writing(
                self.ranks,
                rows,
                lambda mine: write_about(model, material, mine, recipe, room=room, progress=advance),
            )
            written.hypotheses.append([answer.text for answer in answers])
            if scored_labels:
                labels = labels_of(material, model)
                written.labels = labels.names
                written.likelihoods.append(
                    shared_likelihoods(
                        self.ranks,
                        rows,
                        len(labels.names),
                        lambda mine: label_likelihoods(
                            model, material, mine, labels, recipe, room=room, progress=advance
                        ),
                    )
                )
        fold, trained = material.fold.name, taught.trained
        position = list(taught.course.materials).index(material)
        written.details.append(
            {
                "fold": fold,
                "steps": len(trained.losses),
                "loss": float(np.mean(trained.losses[-50:])) if len(trained.losses) else None,
                "epoch": trained.best_epoch,
                "history": trained.history,
                "tokens": int(trained.tokens.sum()),
                "train_clips": len(material.rows),
                "train_texts": len(material.texts),
                "train_texts_filtered": material.filtered,
                "crop_frames": taught.course.crop_frames[position],
                "unfinished": sum(not answer.finished for answer in answers),
                "cut": cut,
                "notes": [*self.footprint.notes, *trained.notes],
            }
        )
        written.notes += trained.notes
        prefix = f"fold-{fold}."
        written.tensors |= {prefix + name: value for name, value in trained.state.items()}
        written.tensors[prefix + "history.loss"] = trained.losses
        written.tensors[prefix + "history.tokens"] = trained.tokens
        written.seconds += seconds + time.perf_counter() - began

    def _store(self, number: int, written: _Written, started: str, taught: Taught) -> None:
        prepared, request = self.prepared, self.request
        task, features = prepared.tasks[number], self.features[number]
        scored = score_texts(
            task,
            features,
            written.hypotheses,
            protocol=request.protocol,
            captions=prepared.captions,
            details={
                "folds": written.details,
                "decoder": prepared.decoder.spec,
                "recipe": self.footprint.recipe.model_dump(mode="json", exclude_none=True, exclude={"mixtures"}),
                "separator": taught.separator.name,
                "memory": asdict(self.footprint.estimate) | {"available": self.footprint.available},
            },
            likelihood=Likelihood(written.labels, written.likelihoods) if written.likelihoods else None,
            tensors=written.tensors,
        )
        run_id = prepared.run_id(number, request, self.seed)
        record = run_record(
            prepared.encoder,
            task,
            "llm",
            request,
            prepared.settings(task, request),
            self.seed,
            prepared.digests[number],
            scored,
            n_dropped=features.dropped,
            started=started,
            seconds=written.seconds,
            device=describe_device(str(taught.model.device)),
        )
        if self.ranks.first:
            self.store.write_run(run_id, record, scored.predictions, scored.tensors, same_probe_as=self.first_run)
            self.first_run = run_id
        self.ranks.gather([0.0])  # the others read what the first one wrote
        self.report.results.append(result_of(self.store.read_run(run_id), reused=False))
        self._notes(task, written, scored)

    def _notes(self, task: Task, written: _Written, scored: Scored) -> None:
        place = f"{self.prepared.encoder} {task.name} llm"
        cut = sum(one["cut"] for one in written.details)
        if cut:  # the same clips with every seed
            self._say(f"{place}: {cut} test clips were longer than the decoder's context and cut at their end.")
        if len(self.request.seeds_of("llm")) > 1:
            place += f" seed {self.seed}"
        endless = sum(one["unfinished"] for one in written.details)
        if endless:
            limit = self.prepared.recipe.generation.max_new_tokens
            self._say(f"{place}: {endless} answers reached {limit} tokens without an end.")
        for score in scored.scores:
            if score["metric"].startswith("likelihood_") and score["fold"] is None:
                self._say(f"{place}: {score['metric']} {score['value']:.3f}, beside what was written freely.")
        for note in written.notes:
            self._say(f"{place}: {note}")
