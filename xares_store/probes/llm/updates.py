"""Parameters, one flat gradient, Adam: what changes when a step of training is made."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xares_store.errors import ConfigError, ProbeError
from xares_store.recipe import Optimiser

BETAS = (0.9, 0.999)
EPS = 1e-8
_KINDS = {"fp32": ("cuda", "cpu", "mps"), "bf16": ("cuda", "cpu"), "fp16": ("cuda",)}
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PARTS = ("parameter", "first", "second")  # Adam's moments are its first and second


def check_precision(precision: str, device: str) -> None:
    """Check that a device can train with a precision.

    Raises:
        ConfigError: it cannot.

    Example:
        >>> check_precision("bf16", "cpu")
    """
    kind = device.partition(":")[0]
    if precision not in _KINDS or kind not in _KINDS[precision]:
        fitting = ", ".join(name for name, kinds in _KINDS.items() if kind in kinds)
        raise ConfigError(
            f"Precision {precision} cannot be used on {kind}; there is {fitting}.",
            where="--precision",
            hint="fp16 needs an NVIDIA or AMD GPU (--device cuda); fp32 works everywhere.",
        )


class Updates:
    """The trained parameters, their gradients in one flat tensor, and the optimiser.

    Args:
        parameters: float32, all on one device.
        optimiser: Adam (betas 0.9 and 0.999, epsilon 1e-8) or AdamW with its weight decay.
        precision: ``fp32``; ``bf16`` and ``fp16`` compute the forward pass under autocast, the latter with loss scaling.

    Attributes:
        gradient: float32 ``(numbers,)``; every parameter's gradient is a view into it.
        count: updates made; steps that loss scaling skipped are not among them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimiser: Optimiser, precision: str) -> None:
        self.parameters = dict(sorted(parameters.items()))
        odd = [name for name, value in self.parameters.items() if value.dtype != torch.float32]
        if odd or not parameters:
            found = f"found {self.parameters[odd[0]].dtype} in {odd[0]}" if odd else "found none"
            raise ProbeError(f"Wanted parameters to train in float32, {found}.", hint="Load the decoder in float32.")
        values = list(self.parameters.values())
        self.device = values[0].device
        self._max_norm, self._dtype = optimiser.max_grad_norm, _TYPES.get(precision)
        self.gradient = torch.zeros(sum(value.numel() for value in values), device=self.device)
        start = 0
        for value in values:
            value.grad = self.gradient[start : start + value.numel()].view_as(value)
            start += value.numel()
        if optimiser.name == "adam":
            self._adam: torch.optim.Optimizer = torch.optim.Adam(values, lr=0.0, betas=BETAS, eps=EPS)
        else:
            decay = optimiser.weight_decay
            self._adam = torch.optim.AdamW(values, lr=0.0, betas=BETAS, eps=EPS, weight_decay=decay)
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self.count = 0
        for value in values:  # made now, so that a device that is too small says so before the first step
            self._adam.state[value] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(value),
                "exp_avg_sq": torch.zeros_like(value),
            }

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which losses are computed."""
        return nullcontext() if self._dtype is None else torch.autocast(self.device.type, dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss; :meth:`update` undoes the scaling."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, rate: float, factor: float) -> float | None:
        """Make one update from ``factor`` times the gradient, clipped to the recipe's norm.

        Returns:
            The gradient's norm before clipping; None when loss scaling skipped the step, because the gradient was not
            finite. Without loss scaling such a gradient is returned as it is and nothing is changed.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self._adam)
        if factor != 1.0:
            self.gradient *= factor
        norm = float(torch.linalg.vector_norm(self.gradient))
        finite = norm < float("inf")  # not for NaN
        if finite and self._max_norm is not None and norm > self._max_norm:
            self.gradient *= self._max_norm / (norm + 1e-6)
        for group in self._adam.param_groups:
            group["lr"] = rate
        if self.scaler is not None:
            if finite:
                self.scaler.step(self._adam)
            self.scaler.update()
        elif finite:
            self._adam.step()
        self.count += finite
        return norm if finite or self.scaler is None else None

    def values(self) -> dict[str, NDArray[np.float32]]:
        """Return copies of the parameters."""
        return {name: np.array(value.detach().cpu().numpy()) for name, value in self.parameters.items()}

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return what a checkpoint needs: arrays that may share memory with the parameters, and a record."""
        arrays = {
            f"{part}/{name}": tensor.detach().cpu().numpy()
            for name, value in self.parameters.items()
            for part, tensor in zip(_PARTS, self._tensors(value), strict=True)
        }
        return arrays, {"updates": self.count, "scaler": None if self.scaler is None else self.scaler.state_dict()}

    def restore(self, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
        """Put a state of :meth:`state` in place.

        Raises:
            ProbeError: it is of other parameters.
        """
        wanted = {f"{part}/{name}": value.shape for name, value in self.parameters.items() for part in _PARTS}
        odd = sorted(name for name, shape in wanted.items() if name not in arrays or arrays[name].shape != shape)
        if odd or any(name.split("/")[0] in _PARTS and name not in wanted for name in arrays):
            some = ", ".join(odd[:3]) or "there are more than the model has"
            raise ProbeError(f"The parameters of the checkpoint are not those of the model: {some}.")
        self.count = int(record["updates"])
        with torch.no_grad():
            for name, value in self.parameters.items():
                for part, tensor in zip(_PARTS, self._tensors(value), strict=True):
                    tensor.copy_(torch.from_numpy(arrays[f"{part}/{name}"]))
                self._adam.state[value]["step"].fill_(self.count)
        if self.scaler is not None:
            self.scaler.load_state_dict(dict(record["scaler"]))

    def _tensors(self, value: nn.Parameter) -> tuple[Tensor, Tensor, Tensor]:
        state = self._adam.state[value]
        return value, state["exp_avg"], state["exp_avg_sq"]


@contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended, so that it never leaves half an update."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        handler(held[0], None)
