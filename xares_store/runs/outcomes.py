"""Running a probe: train or look up for all folds and seeds at once, and score each seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xares_store.device import resolve_device, set_threads
from xares_store.probes.knn import knn_predict, neighbours
from xares_store.protocol import Fold
from xares_store.runs.clip_scores import score_multilabel, score_regression
from xares_store.runs.features import Features
from xares_store.runs.provenance import describe_device
from xares_store.runs.request import Request
from xares_store.runs.score import Scored, score_run
from xares_store.task import Task

if TYPE_CHECKING:
    from xares_store.probes.losses import Loss


def outcomes(
    task: Task,
    probe: str,
    request: Request,
    settings: dict[str, Any],
    seeds: list[int | None],
    features: Features,
    vote: bool,
    progress: Callable[[int, int], None],
) -> tuple[dict[int | None, Scored], str]:
    """Train or look up, for all seeds at once, and score each.

    Args:
        task: labels and metric.
        probe: a name in :data:`~xares_store.probes.probe.PROBES`.
        request: protocol and device.
        settings: complete settings of the probe.
        seeds: seeds to train; ``[None]`` for a probe without seeds.
        features: clips, targets and folds.
        vote: score recordings instead of crops.
        progress: called with (done, total) steps of training.

    Returns:
        What each seed scored, and the device it was computed on.
    """
    if probe == "frame":
        from xares_store.runs.frames import frame_outcomes

        return frame_outcomes(task, request, settings, [seed for seed in seeds if seed is not None], features, progress)
    if probe == "retrieval":
        from xares_store.runs.retrieval import retrieval_outcomes

        return retrieval_outcomes(
            task, request, settings, [seed for seed in seeds if seed is not None], features, progress
        )
    kind = task.target.kind
    score: Callable[..., Scored]
    if kind == "single-label":
        score = partial(score_run, features, labels=task.labels, metrics=task.metric.names, vote=vote)
    else:
        score = partial(score_multilabel if kind == "multi-label" else score_regression, task, features, vote=vote)
    if probe == "knn":
        probabilities = [
            knn_predict(features.values, features.target, len(task.labels), fold.knn_train, fold.test, **settings)
            for fold in features.folds
        ]
        details = {
            "folds": [
                {"fold": f.name, "neighbours": neighbours(len(f.knn_train), settings["k"])} for f in features.folds
            ]
        }
        return {None: score(probabilities, details=details)}, describe_device("cpu")
    return _train(
        task, request, settings, [seed for seed in seeds if seed is not None], features, vote, progress, score
    )


_LOSSES: dict[str, Loss] = {"single-label": "cross-entropy", "multi-label": "bce", "regression": "mse"}


def _train(
    task: Task,
    request: Request,
    settings: dict[str, Any],
    seeds: list[int],
    features: Features,
    vote: bool,
    progress: Callable[[int, int], None],
    score: Callable[..., Scored],
) -> tuple[dict[int | None, Scored], str]:
    from xares_store.probes.mlp import MlpJob, MlpSettings, train_mlp

    device = resolve_device(request.device)
    set_threads()

    def job(fold: Fold, seed: int) -> MlpJob:
        return MlpJob(fold=fold.name, train=fold.train, valid=fold.valid, test=fold.test, seed=seed)

    outcome = train_mlp(
        features.values,
        features.target,
        len(task.labels) or 1,
        [job(fold, seed) for seed in seeds for fold in features.folds],
        MlpSettings(
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            learning_rates=tuple(settings["learning_rates"]),
            loss=_LOSSES[task.target.kind],
            # The published definition learns the numbers as they are.
            standardise=request.protocol == "strict",
        ),
        device=device,
        recordings=features.recording if vote else None,
        progress=progress,
    )
    found: dict[int | None, Scored] = {}
    for seed in seeds:
        mine = {result.fold: result for result in outcome if result.seed == seed}
        ordered = [mine[fold.name] for fold in features.folds]
        found[seed] = score(
            [result.outputs for result in ordered],
            details={
                "folds": [
                    {
                        "fold": result.fold,
                        "learning_rate": result.learning_rate,
                        "epoch": result.best_epoch,
                        "valid": float(result.valid_score),
                        "history": result.history,
                    }
                    for result in ordered
                ]
            },
            tensors={
                f"fold-{result.fold}.{name}": np.asarray(value, dtype=np.float32)
                for result in ordered
                for name, value in result.state.items()
            },
        )
    return found, describe_device(device)
