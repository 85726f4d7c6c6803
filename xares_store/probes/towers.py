"""The two towers of the retrieval probe: their weights, what they compute, and one Adam step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from xares_store.probes.clips import tensor_of
from xares_store.probes.text import TextVectors, TokenBags

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
# From embeddings of the batch's distinct clips and of its captions, the clip of each caption and the log of the scale.
BatchLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

WIDTH = 1024
INITIAL_TEMPERATURE = 0.07
TABLE = "text.table"
# Rows of the token table drawn at once, and rows embedded at once when nothing is trained.
_BLOCK_ROWS = 1024
_BLOCK_EVALUATED = 8192


def parameter_count(audio_dim: int, *, vocabulary: int | None = None, text_dim: int = 0) -> int:
    """Return the number of trained values, the whole token table and the scale included.

    Args:
        audio_dim: dimension of the pooled vectors.
        vocabulary: rows of the token table; None when a frozen encoder makes sentence vectors.
        text_dim: dimension of those sentence vectors.

    Example:
        >>> parameter_count(768, vocabulary=30522)
        35192321
    """
    layer = WIDTH * WIDTH + WIDTH

    def of_vectors(dim: int) -> int:
        return 2 * dim + dim * WIDTH + WIDTH + layer

    text = of_vectors(text_dim) if vocabulary is None else vocabulary * WIDTH + 2 * layer
    return of_vectors(audio_dim) + text + 1


def initial_state(
    audio_dim: int, text: TokenBags | TextVectors, token_ids: IndexArray | None, seed: int
) -> dict[str, Tensor]:
    """Draw initial weights on the CPU: what ``nn.LayerNorm``, ``nn.Linear`` and ``nn.Embedding`` start with.

    Args:
        audio_dim: dimension of the pooled vectors.
        text: the captions; decides the shape of the text tower.
        token_ids: ``(rows,)`` tokens whose rows of the table are wanted; the row of a token is the same whatever
            others are asked for. None for vectors.
        seed: of the generator.

    Returns:
        ``audio.ln.weight (dim,)``, ``audio.ln.bias (dim,)``, ``audio.fc1.weight (1024, dim)``, ``audio.fc1.bias``,
        ``audio.fc2.weight (1024, 1024)``, ``audio.fc2.bias``, the same under ``text.`` (without ``ln`` and with
        ``text.table (rows, 1024)`` for tokens), and ``log_scale ()``.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {"log_scale": torch.tensor(math.log(1.0 / INITIAL_TEMPERATURE))}

    def linear(name: str, inputs: int) -> None:
        bound = 1.0 / math.sqrt(inputs)
        state[f"{name}.weight"] = torch.empty(WIDTH, inputs).uniform_(-bound, bound, generator=generator)
        state[f"{name}.bias"] = torch.empty(WIDTH).uniform_(-bound, bound, generator=generator)

    def norm(name: str, dim: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(dim), torch.zeros(dim)

    norm("audio.ln", audio_dim)
    linear("audio.fc1", audio_dim)
    linear("audio.fc2", WIDTH)
    if isinstance(text, TextVectors):
        norm("text.ln", text.values.shape[1])
    linear("text.fc1", text.values.shape[1] if isinstance(text, TextVectors) else WIDTH)
    linear("text.fc2", WIDTH)
    if isinstance(text, TokenBags):
        # Drawn block by block, so that a large vocabulary takes no memory for tokens that no caption has.
        wanted = torch.as_tensor(np.arange(text.vocabulary) if token_ids is None else token_ids)
        table = torch.empty(len(wanted), WIDTH)
        for first in range(0, text.vocabulary, _BLOCK_ROWS):
            block = torch.randn(min(_BLOCK_ROWS, text.vocabulary - first), WIDTH, generator=generator)
            inside = (wanted >= first) & (wanted < first + len(block))
            table[inside] = block[wanted[inside] - first]
        state[TABLE] = table
    return state


class Towers:
    """Weights and Adam state of one probe over the clips and captions of a task.

    Args:
        state: named as by :func:`initial_state`; copied.
        clips: ``(clips, dim)`` pooled vectors, each row with mean 0 and variance 1, on the device.
        text: the captions. Tokens index the rows of the state's table.
        trained_rows: how many rows of the table, from the first, belong to tokens of training captions.
        device: where the towers live.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        clips: Tensor,
        text: TokenBags | TextVectors,
        *,
        trained_rows: int,
        device: str,
    ) -> None:
        self._clips, self._text, self._device = clips, text, device
        self.values = {name: value.to(device, torch.float32, copy=True) for name, value in state.items()}
        if isinstance(text, TextVectors):
            vectors = tensor_of(text.values, device)
            self._sentences = F.layer_norm(vectors, vectors.shape[1:])
        self._dense = [name for name in self.values if name != TABLE]
        self._trained = [self.values[name] for name in self._dense]
        if TABLE in self.values:
            self._trained.append(self.values[TABLE][:trained_rows])
        self._moments = ([torch.zeros_like(v) for v in self._trained], [torch.zeros_like(v) for v in self._trained])
        self._steps = [torch.zeros((), device=device) for _ in self._trained]
        self._table_gradient = torch.zeros_like(self._trained[-1]) if TABLE in self.values else None
        self._touched: Tensor | None = None

    def copy_to(self, target: dict[str, Tensor]) -> None:
        """Copy the weights into ``target``, reusing its memory."""
        for name, value in self.values.items():
            if name in target:
                target[name].copy_(value)
            else:
                target[name] = value.clone()

    def step(
        self,
        captions: IndexArray,
        clip: IndexArray,
        loss: BatchLoss,
        learning_rate: float,
        max_log_scale: float | None,
    ) -> Tensor:
        """Take one Adam step on a batch.

        Args:
            captions: ``(pairs,)`` rows of the captions.
            clip: ``(pairs,)`` rows of their clips.
            loss: what to make smaller.
            learning_rate: of this step.
            max_log_scale: bound of the log of the scale after the step; None for no bound.

        Returns:
            The loss before the step, a scalar on the device.
        """
        distinct, member = np.unique(clip, return_inverse=True)
        with torch.enable_grad():
            leaves = {name: self.values[name].detach().requires_grad_() for name in self._dense}
            wanted = list(leaves.values())
            audio = _vectors(self._rows(self._clips, distinct), leaves, "audio")
            if isinstance(self._text, TextVectors):
                text = _vectors(self._rows(self._sentences, captions), leaves, "text")
            else:
                tokens, inverse, offsets = self._tokens(captions)
                rows = self.values[TABLE][tokens].requires_grad_()
                wanted.append(rows)
                text = _bags(rows, inverse, offsets, leaves)
            value = loss(audio, text, tensor_of(member.reshape(-1), self._device), leaves["log_scale"])
            gradients = list(torch.autograd.grad(value, wanted))
        if self._table_gradient is not None:
            if self._touched is not None:
                self._table_gradient[self._touched] = 0.0
            self._table_gradient[tokens] = gradients[-1]
            self._touched, gradients[-1] = tokens, self._table_gradient
        with torch.no_grad():
            self._update(gradients, learning_rate)
            if max_log_scale is not None:
                self.values["log_scale"].clamp_(max=max_log_scale)
        return value.detach()

    def embed(self, clips: IndexArray, captions: IndexArray) -> tuple[FloatArray, FloatArray]:
        """Return embeddings of length 1, ``(clips, 1024)`` and ``(captions, 1024)``; NaN and Inf stay in their rows."""
        with torch.inference_mode():
            return (
                _collect(clips, lambda rows: _vectors(self._rows(self._clips, rows), self.values, "audio")),
                _collect(captions, self._captions),
            )

    def _captions(self, captions: IndexArray) -> Tensor:
        if isinstance(self._text, TextVectors):
            return _vectors(self._rows(self._sentences, captions), self.values, "text")
        tokens, inverse, offsets = self._tokens(captions)
        return _bags(self.values[TABLE][tokens], inverse, offsets, self.values)

    def _tokens(self, captions: IndexArray) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct tokens of some captions, the place of each token among them, and where each caption begins."""
        assert isinstance(self._text, TokenBags)
        token, offsets = self._text.take(captions)
        distinct, inverse = np.unique(token, return_inverse=True)
        return (
            tensor_of(distinct, self._device),
            tensor_of(inverse.reshape(-1), self._device),
            tensor_of(offsets, self._device),
        )

    def _rows(self, values: Tensor, rows: IndexArray) -> Tensor:
        return values.index_select(0, tensor_of(rows, self._device))

    def _update(self, gradients: list[Tensor], learning_rate: float) -> None:
        # The function behind torch.optim.Adam: the class would import the compiler, 0.8 s for nothing.
        adam(
            self._trained,
            gradients,
            *self._moments,
            [],
            self._steps,
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


def _vectors(x: Tensor, values: Mapping[str, Tensor], tower: str) -> Tensor:
    """Embed vectors whose rows have mean 0 and variance 1: the affine half of the layer norm, then two layers."""
    x = x * values[f"{tower}.ln.weight"] + values[f"{tower}.ln.bias"]
    return _second(_first(x, values, tower), values, tower)


def _first(x: Tensor, values: Mapping[str, Tensor], tower: str) -> Tensor:
    return F.gelu(F.linear(x, values[f"{tower}.fc1.weight"], values[f"{tower}.fc1.bias"]))


def _second(x: Tensor, values: Mapping[str, Tensor], tower: str) -> Tensor:
    return F.linear(x, values[f"{tower}.fc2.weight"], values[f"{tower}.fc2.bias"])


def _bags(rows: Tensor, inverse: Tensor, offsets: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Embed captions from the table rows of their distinct tokens; the mean comes before the second layer."""
    hidden = _first(rows, values, "text")
    return _second(F.embedding_bag(inverse, hidden, offsets, mode="mean"), values, "text")


def _collect(rows: IndexArray, embed: Callable[[IndexArray], Tensor]) -> FloatArray:
    found = np.empty((len(rows), WIDTH), dtype=np.float32)
    for first in range(0, len(rows), _BLOCK_EVALUATED):
        part = rows[first : first + _BLOCK_EVALUATED]
        found[first : first + len(part)] = F.normalize(embed(part), dim=1).cpu().numpy()
    return found
