"""The k-nearest-neighbour probe: votes of the nearest training clips, no training and no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from xares_store.device import compute_threads
from xares_store.errors import ProbeError

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Variant = Literal["cosine", "published"]

_NORM_FLOOR = 1e-12
# Bytes of one block of queries and of gathered neighbours.
_BLOCK_BYTES = 32_000_000
# Neighbours fetched beyond k: they show whether the k-th place is shared, and float32 may swap near-equal ones.
_SPARE = 4
# Similarities are sums of float32 products; closer than this they cannot be ranked by them.
_TIE = 1e-5


def neighbours(n_train: int, k: int) -> int:
    """Return how many neighbours vote: ``k``, or all training clips when there are fewer.

    Whoever reports a score compares the result with the ``k`` asked for and says so when it is smaller.

    Example:
        >>> neighbours(6, 10)
        6
    """
    return min(k, n_train)


def knn_predict(
    features: FloatArray,
    target: IndexArray,
    n_classes: int,
    train_idx: IndexArray,
    test_idx: IndexArray,
    *,
    k: int = 10,
    temperature: float = 0.07,
    variant: Variant = "cosine",
    threads: int | None = None,
) -> FloatArray:
    """Predict classes by the votes of the nearest training clips.

    The ``k`` nearest training clips vote with ``softmax(similarity / temperature)``. The search is exact. Of equally
    near clips the one that comes first in ``train_idx`` is nearer.

    Args:
        features: ``(clips, dim)`` float32, one pooled embedding per clip.
        target: ``(clips,)`` class indices, 0 to ``n_classes - 1``; those of the training clips are used.
        n_classes: number of classes.
        train_idx: rows that vote.
        test_idx: rows to predict.
        k: number of neighbours, at least 1; see :func:`neighbours` for small training sets.
        temperature: above 0; small values let the nearest clip decide.
        variant: ``"cosine"``, or ``"published"``: the rule behind published tables, which divides every feature
            dimension by its norm over the training clips instead of every training clip by its own norm.
        threads: cores to use; default all usable ones.

    Returns:
        ``(test clips, classes)`` float32; rows sum to 1. Equal votes: the lowest class index wins in ``argmax``.

    Raises:
        ProbeError: unusable input, such as a class index of -1 or multi-hot targets.

    Example:
        >>> x = np.array([[1, 0], [0, 1], [2, 0.1]], dtype=np.float32)
        >>> knn_predict(x, np.array([0, 1, 0]), 2, np.array([0, 1]), np.array([2]), k=1).tolist()
        [[1.0, 0.0]]
    """
    _check(features, target, n_classes, train_idx, test_idx, k, temperature, variant)
    k = neighbours(len(train_idx), k)
    train = _scaled(features, train_idx, variant)
    labels = target[train_idx]
    result = np.empty((len(test_idx), n_classes), dtype=np.float32)
    fetched = min(k + _SPARE, len(train_idx))
    dim = features.shape[1]
    # Few large blocks keep the matrix product fast; a block also holds its neighbours' similarities.
    step = max(256, _BLOCK_BYTES // (4 * (dim + 4 * fetched)))
    with _searching(threads) as search:
        for start in range(0, len(test_idx), step):
            query = _unit_rows(features[test_idx[start : start + step]])
            similarity, index = search(query, train, fetched)
            similarity, index = _ranked(query, train, similarity, index, k)
            result[start : start + step] = _votes(similarity, labels[index], n_classes, temperature)
    return result


def _check(
    features: FloatArray,
    target: IndexArray,
    n_classes: int,
    train_idx: IndexArray,
    test_idx: IndexArray,
    k: int,
    temperature: float,
    variant: str,
) -> None:
    if features.ndim != 2:
        raise ProbeError(f"Wanted features (clips, dim), found shape {features.shape}.")
    if features.dtype != np.float32:
        raise ProbeError(f"Wanted float32 features, found {features.dtype}.")
    if target.shape != features.shape[:1]:
        raise ProbeError(
            f"Wanted one class index per clip {features.shape[:1]}, found targets of shape {target.shape}.",
            hint="k-NN needs a single-label task; multi-hot targets have no meaning as votes.",
        )
    if k < 1 or not temperature > 0:
        raise ProbeError(f"Wanted k of at least 1 and a temperature above 0, found {k} and {temperature}.")
    if variant not in get_args(Variant):
        raise ProbeError(f'Wanted the variant "cosine" or "published", found "{variant}".')
    for name, rows in (("training", train_idx), ("test", test_idx)):
        if len(rows) == 0:
            raise ProbeError(f"Wanted {name} clips, found none.")
        if rows.min() < 0 or rows.max() >= len(features):
            raise ProbeError(
                f"Wanted {name} rows 0 to {len(features) - 1}, found {rows.min()} to {rows.max()}.",
            )
    labels = target[train_idx]
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ProbeError(
            f"Wanted class indices 0 to {n_classes - 1}, found {labels.min()} to {labels.max()}.",
            hint="Leave clips without a known label out of the training rows.",
        )
    for rows in (train_idx, test_idx):
        for block in _blocks(rows, features.shape[1]):
            finite = np.isfinite(features[block].sum(axis=1, dtype=np.float64))
            if not finite.all():
                raise ProbeError("Wanted finite features, found NaN or Inf.", where=f"row {block[~finite][0]}")


def _blocks(rows: IndexArray, dim: int) -> Iterator[IndexArray]:
    step = max(1, _BLOCK_BYTES // (8 * dim))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _unit_rows(x: FloatArray) -> FloatArray:
    """Divide each row by its Euclidean norm, in place where ``x`` is a fresh copy."""
    x /= np.maximum(np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64)), _NORM_FLOOR)[:, None].astype(np.float32)
    return x


def _scaled(features: FloatArray, rows: IndexArray, variant: Variant) -> FloatArray:
    """Copy and scale the training rows block by block, so that nothing but the copy takes memory."""
    train = np.empty((len(rows), features.shape[1]), dtype=np.float32)
    square = np.zeros(features.shape[1])
    start = 0
    for block in _blocks(rows, features.shape[1]):
        part = train[start : start + len(block)]
        np.take(features, block, axis=0, out=part, mode="clip")
        if variant == "cosine":
            _unit_rows(part)
        else:
            square += np.einsum("nd,nd->d", part, part, dtype=np.float64)
        start += len(block)
    if variant == "published":
        train /= np.maximum(np.sqrt(square), _NORM_FLOOR).astype(np.float32)
    return train


@contextmanager
def _searching(threads: int | None) -> Iterator[Any]:
    """Lend faiss' search over plain arrays: no second copy of the training clips inside an index."""
    import faiss  # late: it takes 0.2 s and must not be loaded before a fork

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or compute_threads())
    try:
        yield lambda query, train, count: faiss.knn(query, train, count, metric=faiss.METRIC_INNER_PRODUCT)
    finally:
        faiss.omp_set_num_threads(before)


def _ranked(
    query: FloatArray, train: FloatArray, similarity: FloatArray, index: IndexArray, k: int
) -> tuple[npt.NDArray[np.float64], IndexArray]:
    """Rank the fetched neighbours by their exact similarity, then by position, and keep ``k``.

    The search sums float32 products in an order that depends on block sizes, so equal training clips may come out a
    rounding apart. Sums in float64 put them level again, whatever the machine.
    """
    exact = np.empty(index.shape)
    step = max(1, _BLOCK_BYTES // (8 * train.shape[1] * index.shape[1]))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        exact[part] = np.einsum("qd,qnd->qn", query[part], train[index[part]], dtype=np.float64)
    order = np.lexsort((index, -exact), axis=-1)
    if index.shape[1] < len(train):
        scale = np.abs(similarity[:, :1])
        shared = np.flatnonzero(similarity[:, k - 1] - similarity[:, -1] <= _TIE * np.maximum(scale[:, 0], _NORM_FLOOR))
    else:
        shared = np.empty(0, dtype=np.int64)
    top = np.take_along_axis(exact, order, axis=1)[:, :k]
    nearest = np.take_along_axis(index, order, axis=1)[:, :k]
    # More clips than were fetched may share the k-th place: look at all of them, once per distinct query, because it is
    # silence and other repeated audio that gets here.
    distinct, member = np.unique(query[shared], axis=0, return_inverse=True)
    for number, one in enumerate(distinct):
        everything = np.einsum("d,nd->n", one, train, dtype=np.float64)
        best = np.argsort(-everything, kind="stable")[:k]
        rows = shared[member.reshape(-1) == number]
        top[rows], nearest[rows] = everything[best], best
    return top, nearest


def _votes(
    similarity: npt.NDArray[np.float64], labels: IndexArray, n_classes: int, temperature: float
) -> npt.NDArray[np.float64]:
    weight = np.exp((similarity - similarity[:, :1]) / temperature)
    weight /= weight.sum(axis=1, keepdims=True)
    votes = np.zeros((len(labels), n_classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weight)
    return votes
