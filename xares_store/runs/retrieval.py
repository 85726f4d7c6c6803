"""The retrieval probe as a run: recordings and captions of a task, training per fold and seed, scores per clip.

The text side is chosen with ``--text-encoder`` and ``--tokenizer``:

* ``scratch`` (the default) trains a text tower over tokens. Tokens are those of ``google-bert/bert-base-uncased`` under
  the published protocol and ``words`` of the training captions, which needs no download, under the strict one;
  ``--tokenizer`` names another folder or hub model.
* A folder or a hub model is a frozen text model. Its last hidden state is averaged over a caption's tokens; with
  ``#cls`` at the end of the name the first token is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from xares_store.device import resolve_device, set_threads
from xares_store.errors import ConfigError
from xares_store.fingerprint import fingerprint
from xares_store.metrics.registry import metric_for
from xares_store.metrics.retrieval import RetrievalRanks, retrieval_ranks
from xares_store.metrics.statistics import bootstrap_interval
from xares_store.probes.hub import TextFiles, find_text_files
from xares_store.protocol import Fold
from xares_store.runs.features import Features
from xares_store.runs.provenance import describe_device
from xares_store.runs.score import JOINED, Scored, prediction_table, score_entries
from xares_store.task import Task

if TYPE_CHECKING:
    from xares_store.probes.retrieval import RetrievalResult
    from xares_store.probes.text import TextVectors, TokenBags
    from xares_store.runs.request import Request

SCRATCH = "scratch"
WORDS = "words"
PUBLISHED_TOKENIZER = "google-bert/bert-base-uncased"
_DIRECTIONS = {"a2t_": "a2t", "t2a_": "t2a"}
_BLOCK_VALUES = 8_000_000  # similarities held at once


@dataclass(frozen=True)
class TextSide:
    """How captions become numbers.

    Attributes:
        encoder: ``scratch``, or a frozen text model as the user named it.
        tokenizer: ``words``, or a tokenizer as the user named it; None for a frozen model, which has its own.
        pooling: ``mean`` or ``cls``, for a frozen model.
        files: the tokenizer or model; None for ``words``.
    """

    encoder: str
    tokenizer: str | None
    pooling: str
    files: TextFiles | None

    def identity(self) -> dict[str, Any]:
        """Return what decides the numbers, by content: part of the identity of a run."""
        from xares_store.probes.text import WORDS_VERSION

        if self.files is None:
            return {"encoder": SCRATCH, "tokenizer": WORDS, "version": WORDS_VERSION}
        if self.encoder == SCRATCH:
            return {"encoder": SCRATCH, "tokenizer": self.files.identity()["sha256"]}
        return {"encoder": self.files.identity(), "pooling": self.pooling}


def text_side(text_encoder: str | None, tokenizer: str | None, protocol: str) -> TextSide:
    """Choose the text side and find its files.

    Args:
        text_encoder: ``scratch`` (or None), or a frozen text model.
        tokenizer: ``words``, or a tokenizer; None for the protocol's own.
        protocol: ``strict`` or ``published``.

    Raises:
        ConfigError: a tokenizer beside a frozen model.
        ProbeError: the files are not on this machine and cannot be downloaded.
    """
    encoder = text_encoder or SCRATCH
    if encoder == SCRATCH:
        chosen = tokenizer or _own_tokenizer(protocol)
        files = None if chosen == WORDS else find_text_files(chosen, weights=False, option="--tokenizer")
        return TextSide(SCRATCH, chosen, "mean", files)
    if tokenizer is not None:
        raise ConfigError(
            "A frozen text encoder comes with its own tokenizer.",
            where="--tokenizer",
            hint="Leave --tokenizer away, or use --text-encoder scratch.",
        )
    name, pooling = encoder, "mean"
    for suffix in ("mean", "cls"):
        if encoder.endswith(f"#{suffix}"):
            name, pooling = encoder.removesuffix(f"#{suffix}"), suffix
    return TextSide(encoder, None, pooling, find_text_files(name, weights=True, option="--text-encoder"))


def retrieval_settings(task: Task, request: Request) -> dict[str, Any]:
    """Return what the settings of the retrieval probe have beside epochs, batch size and learning rates.

    Returns:
        ``loss`` and ``text``; the latter names the text side by the content of its files, and says whether it is the
        protocol's own.

    Raises:
        ConfigError, ProbeError: see :func:`text_side`.
    """
    side = text_side(request.text_encoder, request.tokenizer, request.protocol)
    loss = "multi-positive" if request.protocol == "strict" else "published"
    own = side.encoder == SCRATCH and side.tokenizer == _own_tokenizer(request.protocol)
    return {"loss": loss, "text": {**side.identity(), "own": own}}


def _own_tokenizer(protocol: str) -> str:
    return PUBLISHED_TOKENIZER if protocol == "published" else WORDS


def retrieval_outcomes(
    task: Task,
    request: Request,
    settings: dict[str, Any],
    seeds: Sequence[int],
    features: Features,
    progress: Callable[[int, int], None],
) -> tuple[dict[int | None, Scored], str]:
    """Train the retrieval probe for every seed and fold, and score each seed.

    Args:
        task: its metrics decide the checkpoint and the scores.
        request: protocol, device and text side.
        settings: epochs, batch_size, learning_rates, and what :func:`retrieval_settings` gives.
        seeds: seeds to train.
        features: pooled vectors; ``target`` holds the captions of each clip. Under ``strict``, crops of a recording
            become one vector, the mean over all their frames.
        progress: called with (done, total) epochs.

    Returns:
        What each seed scored, and the device it was computed on.

    Raises:
        ConfigError, ProbeError: the text side cannot be used, or training diverged.
    """
    from xares_store.probes.retrieval import RetrievalJob, RetrievalSettings, train_retrieval

    device = resolve_device(request.device)
    set_threads()
    side = text_side(request.text_encoder, request.tokenizer, request.protocol)
    items = _Items.of(features, whole=request.protocol == "strict" and features.cropped)
    options = RetrievalSettings(
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        learning_rates=tuple(settings["learning_rates"]),
        loss=settings["loss"],
    )
    whole_ranks = request.protocol == "published"
    main = metric_for(task.metric.name)
    sign = 1.0 if main.best > main.worst else -1.0

    def score(audio: np.ndarray, text: np.ndarray, clip: np.ndarray) -> float:
        return sign * _value(main.name, retrieval_ranks(audio, text, clip), whole=whole_ranks)

    steps = options.epochs * len(options.learning_rates)
    results: dict[int, list[_Tested]] = {seed: [] for seed in seeds}
    for f, fold in enumerate(features.folds):
        train, valid, test = (items.rows_of(side_rows) for side_rows in (fold.train, fold.valid, fold.test))
        text, words = _encoded(side, items, train, device)
        for s, seed in enumerate(seeds):
            before = (f * len(seeds) + s) * steps
            found = train_retrieval(
                items.values,
                text,
                items.clip_of_caption,
                RetrievalJob(fold.name, train, valid, test, seed),
                options,
                score=score,
                device=device,
                progress=_after(progress, before, steps * len(features.folds) * len(seeds)),
            )
            results[seed].append(_tested(fold, items, test, found, words, main.name, sign))
    scored: dict[int | None, Scored] = {
        seed: _scored(task, features, items, tested, side, whole_ranks) for seed, tested in results.items()
    }
    return scored, describe_device(device)


@dataclass(frozen=True)
class _Items:
    """What is ranked: clips, or whole recordings, with their captions laid end to end."""

    values: np.ndarray  # (items, dim) float32
    first: np.ndarray  # (items,) row of the item's first clip in the features
    item_of: np.ndarray  # (clips,) the item of each clip
    captions: tuple[str, ...]
    clip_of_caption: np.ndarray  # (captions,) the item of each caption
    whole: bool

    @classmethod
    def of(cls, features: Features, *, whole: bool) -> _Items:
        n_clips = len(features.values)
        first, item_of, values = np.arange(n_clips), np.arange(n_clips), features.values
        if whole:
            _, first, item_of = np.unique(features.recording, return_index=True, return_inverse=True)
            values = _mean_over_crops(features.values, features.n_frames, item_of, len(first))
        own = [features.target[row] for row in first]
        counts = [len(captions) for captions in own]
        return cls(
            values=np.ascontiguousarray(values, dtype=np.float32),
            first=first,
            item_of=item_of,
            captions=tuple(caption for captions in own for caption in captions),
            clip_of_caption=np.repeat(np.arange(len(own)), counts).astype(np.int64),
            whole=whole,
        )

    def rows_of(self, clips: np.ndarray) -> np.ndarray:
        """Items of some clips, each once."""
        return np.unique(self.item_of[clips]).astype(np.int64)


def _mean_over_crops(values: np.ndarray, n_frames: np.ndarray, item_of: np.ndarray, n_items: int) -> np.ndarray:
    """Mean over all frames of a recording, from the means over its crops."""
    weight = n_frames.astype(np.float64)
    total = np.zeros((n_items, values.shape[1]))
    np.add.at(total, item_of, values * weight[:, None])
    return total / np.bincount(item_of, weights=weight, minlength=n_items)[:, None]


@dataclass(frozen=True)
class _Tested:
    """One fold of one seed after training; the embeddings are gone."""

    rows: np.ndarray  # (items,) rows of the scored items in the features
    ranks: RetrievalRanks
    answers: list[str]  # the caption that each item is told to have
    details: dict[str, Any]
    tensors: dict[str, np.ndarray]


def _tested(
    fold: Fold, items: _Items, test: np.ndarray, result: RetrievalResult, words: Sequence[str], metric: str, sign: float
) -> _Tested:
    from xares_store.probes.retrieval import places

    clip = places(test, items.clip_of_caption[result.captions])
    ranks = retrieval_ranks(result.audio, result.text, clip)
    answers = [items.captions[result.captions[column]] for column in _answers(result, clip, ranks)]
    history = [{**row, "valid": [None if v is None else sign * v for v in row["valid"]]} for row in result.history]
    details = {
        "fold": fold.name,
        "learning_rate": result.learning_rate,
        "epoch": result.best_epoch,
        "valid": sign * result.valid_score,
        "valid_metric": metric,
        "history": history,
    }
    tensors = {f"fold-{fold.name}.{name}": value for name, value in result.state.items()}
    if words:  # a token id says nothing without them; a file of tensors keeps text as bytes
        tensors[f"fold-{fold.name}.text.words"] = np.frombuffer("\n".join(words).encode(), dtype=np.uint8)
    return _Tested(items.first[test], ranks, answers, details, tensors)


def _answers(result: RetrievalResult, clip: np.ndarray, ranks: RetrievalRanks) -> list[int]:
    """Column of the caption nearest to each clip; as in ranking, a wrong one wins a tie."""
    hit = ranks.hits(1, "a2t") > 0
    found: list[int] = []
    step = max(1, _BLOCK_VALUES // len(clip))
    for first in range(0, len(result.audio), step):
        rows = np.arange(first, min(first + step, len(result.audio)))
        similarity = result.audio[rows] @ result.text.T
        right = clip[None, :] == rows[:, None]
        similarity[right != hit[rows][:, None]] = -np.inf
        found += similarity.argmax(axis=1).tolist()
    return found


def _scored(
    task: Task, features: Features, items: _Items, folds: Sequence[_Tested], side: TextSide, whole_ranks: bool
) -> Scored:
    main = metric_for(task.metric.name)
    tables: list[pa.Table] = []
    for fold, one in zip(features.folds, folds, strict=True):
        columns = {"value": _per_clip(main.name, one.ranks)} if main.per_item else {}
        tables.append(
            prediction_table(
                features,
                fold,
                one.rows,
                vote=items.whole,
                target=[JOINED.join(features.target[row]) for row in one.rows],
                prediction=one.answers,
                correct=one.ranks.hits(1, "a2t") > 0,
                **columns,
            )
        )
    counts = [one.ranks.n_clips for one in folds]
    scores: list[dict[str, Any]] = []
    for name in task.metric.names:
        values = [_value(name, one.ranks, whole=whole_ranks) for one in folds]
        if metric_for(name).per_item:
            clips = [_per_clip(name, one.ranks) for one in folds]
            overall = bootstrap_interval(np.concatenate(clips), strata=np.repeat(np.arange(len(folds)), counts))
            intervals = [bootstrap_interval(one) for one in clips] if len(folds) > 1 else [overall]
            scores += score_entries(name, features.folds, values, counts, intervals, overall)
        else:
            scores += score_entries(name, features.folds, values, counts, [None] * len(folds), None)
    details = {
        "folds": [one.details for one in folds],
        "text": {"encoder": side.encoder, "tokenizer": side.tokenizer},
    }
    tensors = {name: value for one in folds for name, value in one.tensors.items()}
    return Scored(scores, pa.concat_tables(tables), sum(counts), details, tensors)


def _direction(metric: str) -> tuple[str, Any]:
    """Divide a metric's name into what is measured and the direction, None for the mean of both."""
    return metric.removeprefix("a2t_").removeprefix("t2a_"), _DIRECTIONS.get(metric[:4])


def _per_clip(metric: str, ranks: RetrievalRanks) -> np.ndarray:
    """Value of each clip of a metric that is a mean over clips."""
    name, direction = _direction(metric)
    if name == "map_at_10":
        return ranks.per_clip(ranks.precision_at_10, direction)
    k = int(name.removeprefix("recall_at_"))
    return ranks.per_clip(lambda way: ranks.hits(k, way), direction)


def _value(metric: str, ranks: RetrievalRanks, *, whole: bool) -> float:
    name, direction = _direction(metric)
    if name == "mean_rank":
        return ranks.mean_rank(direction)
    if name == "median_rank":
        return ranks.median_rank(direction, whole=whole)
    return float(_per_clip(metric, ranks).mean())


def _encoded(
    side: TextSide, items: _Items, train: np.ndarray, device: str
) -> tuple[TokenBags | TextVectors, tuple[str, ...]]:
    """Turn all captions into numbers; only ``words`` depends on which clips train, and has a vocabulary to keep."""
    from xares_store.probes.text import WordTokenizer

    if side.files is None:
        chosen = np.flatnonzero(np.isin(items.clip_of_caption, train)).tolist()
        tokenizer = WordTokenizer.fit(items.captions[row] for row in chosen)
        return tokenizer(items.captions), tokenizer.words
    digest = fingerprint(side.identity())
    if side.encoder == SCRATCH:
        return _bags(side.files, digest, items.captions), ()
    return _vectors(side.files, digest, side.pooling, device, items.captions), ()


# One entry each: the captions of a task serve all its folds, seeds and audio encoders. The digest is there to tell
# files apart that were changed in place.
@lru_cache(maxsize=1)
def _bags(files: TextFiles, digest: str, captions: tuple[str, ...]) -> TokenBags:
    from xares_store.probes.text import pretrained_bags

    return pretrained_bags(files, captions)


@lru_cache(maxsize=1)
def _vectors(files: TextFiles, digest: str, pooling: Any, device: str, captions: tuple[str, ...]) -> TextVectors:
    from xares_store.probes.text import TextVectors, embed_captions

    return TextVectors(embed_captions(files, captions, pooling=pooling, device=device))


def _after(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(before + done, total)
