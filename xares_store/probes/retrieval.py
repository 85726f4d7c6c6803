"""The retrieval probe: an audio tower and a text tower, trained so that a clip lies near its captions.

    audio   pooled vector -> LayerNorm(D) -> Linear(D, 1024) -> GELU -> Linear(1024, 1024)
    text    token -> table (vocabulary, 1024) -> Linear -> GELU -> Linear, then the mean over the caption's tokens
    or      sentence vector -> LayerNorm(E) -> Linear(E, 1024) -> GELU -> Linear(1024, 1024)

Two facts make the trained text tower cheap without changing what it computes. A token's vector depends on the token
alone, and the second linear map commutes with the mean: so the first layer runs once per distinct token of a batch and
the second once per caption. And a row of the table whose token never occurs in a training caption has gradient 0 in
every step, for which Adam without decay takes a step of exactly 0: only rows of training tokens enter the optimiser,
the others keep their initial values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from xares_store.errors import ProbeError
from xares_store.probes.clips import tensor_of
from xares_store.probes.mlp import epoch_order
from xares_store.probes.schedule import epoch_learning_rate
from xares_store.probes.text import TextVectors, TokenBags
from xares_store.probes.towers import TABLE, Towers, initial_state

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Loss = Literal["multi-positive", "published"]
Score = Callable[[FloatArray, FloatArray, IndexArray], float]

_SIDES = ("train", "valid", "test")
_MAX_SCALE = 100.0  # of the multi-positive loss


@dataclass(frozen=True)
class RetrievalSettings:
    """What decides the training besides the data, the fold and the seed.

    Args:
        epochs: passes over the training captions, at least 1.
        batch_size: (clip, caption) pairs per step, at least 1; the last batch of an epoch may be smaller.
        learning_rates: grid of initial rates; the one with the best validation score is used.
        loss: ``multi-positive`` (:func:`multi_positive_loss`) or ``published`` (:func:`published_loss`).
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rates: tuple[float, ...] = (1e-3,)
    loss: Loss = "multi-positive"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ProbeError(
                f"Wanted at least 1 epoch and batches of at least 1 pair, found {self.epochs} and {self.batch_size}."
            )
        rates = self.learning_rates
        if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates) or len(set(rates)) != len(rates):
            raise ProbeError(f"Wanted distinct learning rates above 0, found {list(rates)}.")
        if self.loss not in get_args(Loss):
            raise ProbeError(f'Wanted the loss "multi-positive" or "published", found "{self.loss}".')


@dataclass(frozen=True)
class RetrievalJob:
    """One fold and seed to train: row indices into the clips.

    Args:
        fold: name of the fold, for results and messages.
        train: clips whose captions are learnt from.
        valid: clips that choose the epoch and the learning rate.
        test: clips to rank, with their captions.
        seed: initial weights and order of batches follow from it.
    """

    fold: str
    train: IndexArray
    valid: IndexArray
    test: IndexArray
    seed: int


@dataclass
class RetrievalResult:
    """The trained probe of one job.

    Attributes:
        fold: name of the fold.
        seed: the seed.
        learning_rate: the rate of the grid with the best validation score.
        best_epoch: 1-based epoch whose weights were kept.
        valid_score: validation score of these weights.
        history: per rate ``{"learning_rate", "valid", "train_loss"}``, the latter two one value per epoch; ``None``
            where there is no number.
        audio: embeddings of the job's test clips, ``(test clips, 1024)`` float32 of length 1, in the job's order.
        text: the same of their captions, ``(test captions, 1024)``.
        captions: ``(test captions,)`` which captions they are: rows of the texts given, ascending.
        state: the weights, named as in :func:`xares_store.probes.towers.initial_state`, and ``text.token_ids``: which
            token each row of ``text.table`` belongs to.
    """

    fold: str
    seed: int
    learning_rate: float
    best_epoch: int
    valid_score: float
    audio: FloatArray
    text: FloatArray
    captions: IndexArray
    state: dict[str, npt.NDArray[Any]]
    history: list[dict[str, Any]] = field(default_factory=list)


def published_loss(audio: Tensor, text: Tensor, log_scale: Tensor, *, regularise: bool = True) -> Tensor:
    """Contrastive loss of the published protocol: every other pair of the batch is a negative.

    ``S = exp(t) A T'`` without normalising; the mean of the cross entropies of ``S`` and ``S'`` against the diagonal;
    plus ``mean|A| / ||A||_F + mean|T| / ||T||_F``, which no scaling of the embeddings changes.

    Args:
        audio: ``(pairs, width)`` embeddings of the clips, a row a pair.
        text: ``(pairs, width)`` embeddings of the captions.
        log_scale: ``t``, a scalar; trained, starts at ln(1 / 0.07).
        regularise: whether to add the last two terms.

    Returns:
        A scalar.
    """
    logits = log_scale.exp() * (audio @ text.T)
    target = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    if regularise:
        loss = loss + audio.abs().mean() / audio.norm() + text.abs().mean() / text.norm()
    return loss


def multi_positive_loss(audio: Tensor, text: Tensor, clip: Tensor, log_scale: Tensor) -> Tensor:
    """Contrastive loss in which all captions of a clip that are in the batch are its positives.

    With L2-normalised embeddings and ``S = exp(t) A T'`` over the distinct clips ``k`` and the captions ``j``
    of a batch, ``P(k)`` the captions of clip ``k`` and ``k(j)`` the clip of caption ``j``:

        audio to text   -mean_k  1/|P(k)| sum_{j in P(k)}  log softmax_j(S_kj)
        text to audio   -mean_j  log softmax_k(S_k(j),j)

    and the loss is the mean of both. The first is the form of the supervised contrastive loss with the sum outside the
    logarithm (L_out in Khosla et al. 2020, arXiv:2004.11362), taken across two modalities in both directions as in
    Yang et al. 2022 (UniCL, arXiv:2204.03610), each clip standing once. With one caption per clip it is the usual
    symmetric cross entropy. Training keeps ``exp(t)`` at 100 or below, as CLIP does (Radford et al. 2021,
    arXiv:2103.00020).

    Args:
        audio: ``(clips, width)`` embeddings of the distinct clips of the batch.
        text: ``(captions, width)`` embeddings.
        clip: ``(captions,)`` row of ``audio`` that each caption belongs to; every row has one.
        log_scale: ``t``, a scalar.

    Returns:
        A scalar.
    """
    logits = log_scale.exp() * (F.normalize(audio, dim=1) @ F.normalize(text, dim=1).T)
    column = torch.arange(len(clip), device=clip.device)
    positives = torch.bincount(clip, minlength=len(audio)).to(logits.dtype)
    to_text = -(torch.log_softmax(logits, dim=1)[clip, column] / positives[clip]).sum() / len(audio)
    return (to_text + F.cross_entropy(logits.T, clip)) / 2


def train_retrieval(
    audio: FloatArray,
    text: TokenBags | TextVectors,
    clip_of_caption: IndexArray,
    job: RetrievalJob,
    settings: RetrievalSettings,
    *,
    score: Score,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    shuffle: bool = True,
    init: Mapping[str, npt.ArrayLike] | None = None,
) -> RetrievalResult:
    """Train one probe per learning rate and embed the job's test clips and captions with the chosen one.

    An epoch goes through all (clip, caption) pairs of the training clips. Validation follows every epoch; the first
    epoch with the strictly best score is kept. The learning rate with the best kept score wins, the first in the grid
    among equals. An epoch with NaN or Inf among its validation embeddings is never kept.

    Args:
        audio: ``(clips, dim)`` float32, one pooled embedding per clip.
        text: the captions, as tokens for a text tower from scratch or as vectors of a frozen encoder.
        clip_of_caption: ``(captions,)`` row of ``audio`` that each caption describes.
        job: fold and seed.
        settings: epochs, batch size, learning rates and loss.
        score: from embeddings ``(clips, 1024)`` and ``(captions, 1024)`` of length 1 and the row of each caption's clip
            to a number that is better when greater.
        device: torch device; the order of batches and the initial weights do not depend on it.
        progress: called with (done, total) epochs.
        shuffle: ``False`` keeps the order of the captions in every epoch.
        init: initial weights instead of seeded ones, named as in :func:`xares_store.probes.towers.initial_state`, the
            table over the whole vocabulary.

    Returns:
        The chosen probe and its embeddings of the test clips.

    Raises:
        ProbeError: unusable input, or every learning rate diverged.
    """
    _check(audio, text, clip_of_caption, job)
    rows = {name: _captions_of(clip_of_caption, getattr(job, name)) for name in _SIDES}
    clips = F.layer_norm(tensor_of(audio, device), audio.shape[1:])
    local, token_ids, n_trained = _compact(text, rows["train"])
    start = _initial(audio.shape[1], text, token_ids, job.seed, init)
    best: dict[str, Tensor] = {}
    nothing = np.empty((0, 0), dtype=np.float32)
    found = RetrievalResult(job.fold, job.seed, math.nan, 0, -math.inf, nothing, nothing, rows["test"], {})
    total = settings.epochs * len(settings.learning_rates)
    for number, rate in enumerate(settings.learning_rates):
        towers = Towers(start, clips, local, device=device, trained_rows=n_trained)
        valid: list[float | None] = []
        losses: list[float | None] = []
        for epoch in range(1, settings.epochs + 1):
            order = rows["train"]
            if shuffle:
                order = order[epoch_order(len(order), job.seed, epoch)]
            current = epoch_learning_rate(rate, epoch, settings.epochs)
            losses.append(_number(_train_epoch(towers, order, clip_of_caption, settings, current)))
            value = _validate(towers, job.valid, rows["valid"], clip_of_caption, score)
            valid.append(_number(value))
            if value > found.valid_score:  # never true for NaN
                found.learning_rate, found.best_epoch, found.valid_score = rate, epoch, value
                towers.copy_to(best)
            if progress is not None:
                progress(number * settings.epochs + epoch, total)
        found.history.append({"learning_rate": rate, "valid": valid, "train_loss": losses})
    if not best:
        tried = ", ".join(f"{rate:g}" for rate in settings.learning_rates)
        raise ProbeError(
            f"Training diverged: no epoch gave finite validation embeddings with learning rate {tried}.",
            where=f"fold {job.fold}, seed {job.seed}",
            hint="Add a smaller learning rate to the grid.",
        )
    towers = Towers(best, clips, local, device=device, trained_rows=n_trained)
    found.audio, found.text = towers.embed(job.test, rows["test"])
    found.state = {name: value.cpu().numpy().copy() for name, value in best.items()}
    if token_ids is not None:
        found.state["text.token_ids"] = token_ids
    return found


def _check(audio: FloatArray, text: TokenBags | TextVectors, clip_of_caption: IndexArray, job: RetrievalJob) -> None:
    if audio.ndim != 2 or audio.dtype != np.float32:
        raise ProbeError(f"Wanted float32 features (clips, dim), found {audio.dtype} {audio.shape}.")
    if clip_of_caption.shape != (len(text),) or clip_of_caption.dtype != np.int64:
        raise ProbeError(
            f"Wanted an int64 clip for each of the {len(text)} captions, found {clip_of_caption.dtype} "
            f"{clip_of_caption.shape}."
        )
    described = np.zeros(len(audio), dtype=bool)
    if len(clip_of_caption) and (clip_of_caption.min() < 0 or clip_of_caption.max() >= len(audio)):
        raise ProbeError(
            f"Wanted captions of the clips 0 to {len(audio) - 1}, found {clip_of_caption.min()} to "
            f"{clip_of_caption.max()}."
        )
    described[clip_of_caption] = True
    for name in _SIDES:
        rows: IndexArray = getattr(job, name)
        where = f"fold {job.fold}"
        if len(rows) == 0:
            raise ProbeError(f"Wanted clips in every split, found none in {name}.", where=where)
        if rows.min() < 0 or rows.max() >= len(audio):
            raise ProbeError(
                f"Wanted rows 0 to {len(audio) - 1} in {name}, found {rows.min()} to {rows.max()}.", where=where
            )
        if not described[rows].all():
            raise ProbeError(
                f"Wanted at least one caption for every clip, found none for row {rows[~described[rows]][0]}.",
                where=where,
            )
    finite = np.isfinite(audio.sum(axis=1, dtype=np.float64))
    if not finite.all():
        raise ProbeError(
            "Wanted finite features, found NaN or Inf.",
            where=f"row {np.flatnonzero(~finite)[0]}",
            hint="Verify the store; an encoder that returns NaN is refused when it embeds.",
        )


def _captions_of(clip_of_caption: IndexArray, clips: IndexArray) -> IndexArray:
    """Return the rows of the captions of some clips, ascending."""
    return np.flatnonzero(np.isin(clip_of_caption, clips)).astype(np.int64)


def _compact(
    text: TokenBags | TextVectors, train: IndexArray
) -> tuple[TokenBags | TextVectors, IndexArray | None, int]:
    """Renumber tokens so that those of training captions come first and those of no caption have no number.

    Returns:
        The captions in the new numbers, the token of each number, and how many belong to training captions; vectors
        are returned as they are.
    """
    if isinstance(text, TextVectors):
        return text, None, 0
    trained = np.unique(text.take(train)[0])
    others = np.setdiff1d(text.token, trained)
    token_ids = np.concatenate([trained, others]).astype(np.int64)
    number = np.empty(text.vocabulary, dtype=np.int64)
    number[token_ids] = np.arange(len(token_ids))
    return TokenBags(number[text.token], text.start, len(token_ids)), token_ids, len(trained)


def _initial(
    dim: int,
    text: TokenBags | TextVectors,
    token_ids: IndexArray | None,
    seed: int,
    init: Mapping[str, npt.ArrayLike] | None,
) -> dict[str, Tensor]:
    if init is None:
        return initial_state(dim, text, token_ids, seed)
    state = {name: torch.as_tensor(np.asarray(value)) for name, value in init.items()}
    if token_ids is not None:
        state[TABLE] = state[TABLE][torch.from_numpy(token_ids)]
    return state


def _train_epoch(
    towers: Towers, order: IndexArray, clip_of_caption: IndexArray, settings: RetrievalSettings, learning_rate: float
) -> float:
    """Go once through the captions; returns the mean loss per pair."""
    bound: float | None = None
    loss = _published
    if settings.loss == "multi-positive":
        loss, bound = multi_positive_loss, math.log(_MAX_SCALE)
    total: Tensor | float = 0.0
    for first in range(0, len(order), settings.batch_size):
        batch = order[first : first + settings.batch_size]
        total = total + len(batch) * towers.step(batch, clip_of_caption[batch], loss, learning_rate, bound)
    return float(total) / len(order)


def _published(audio: Tensor, text: Tensor, clip: Tensor, log_scale: Tensor) -> Tensor:
    return published_loss(audio[clip], text, log_scale)


def _validate(
    towers: Towers, clips: IndexArray, captions: IndexArray, clip_of_caption: IndexArray, score: Score
) -> float:
    audio, text = towers.embed(clips, captions)
    if not (np.isfinite(audio).all() and np.isfinite(text).all()):
        return math.nan
    return float(score(audio, text, places(clips, clip_of_caption[captions])))


def places(clips: IndexArray, wanted: IndexArray) -> IndexArray:
    """Return where each wanted clip stands among ``clips``.

    Example:
        >>> places(np.array([7, 3]), np.array([3, 7, 7])).tolist()
        [1, 0, 0]
    """
    order = np.argsort(clips, kind="stable")
    return order[np.searchsorted(clips[order], wanted)].astype(np.int64)


def _number(value: float) -> float | None:
    """Return a float that JSON can hold."""
    return float(value) if math.isfinite(value) else None
