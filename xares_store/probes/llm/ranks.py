"""Several processes that train one model together: which they are, what each takes, and what they add up.

Started by ``accelerate launch`` or ``torchrun``, every process holds the whole model and a share of each batch. Gradients
are added as one flat tensor, so that a process with fewer micro-batches than another, or none, never keeps it waiting.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xares_store.device import launched_processes

T = TypeVar("T")


def launched() -> bool:
    """Tell whether this process is one of several that were launched to train together."""
    return launched_processes() > 1


def local_device(device: str) -> str:
    """Return the accelerator that belongs to this process: ``cuda`` becomes ``cuda:N`` where several were launched.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}" if launched() and device == "cuda" else device


class Ranks:
    """This process among those that train together; one that runs alone is the first of one.

    Args:
        device: where the model of this process is.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, device: torch.device) -> None:
        self._accelerator: Any = None
        self.rank, self.size = 0, 1
        if launched():
            from accelerate import Accelerator

            alone = not torch.distributed.is_initialized()
            self._accelerator = Accelerator(cpu=device.type == "cpu")
            self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
            if alone and torch.distributed.is_initialized():
                atexit.register(_leave)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return every ``size``-th of the items, those of this process; possibly none."""
        return list(items[self.rank :: self.size])

    def add(self, values: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self._accelerator is not None:
            values.copy_(self._accelerator.reduce(values, reduction="sum"))

    def gather(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Return the numbers of all processes, ``(size, numbers)``; waits until every process has come here."""
        mine = torch.tensor([list(values)], dtype=torch.float64)
        if self._accelerator is None:
            return mine.numpy()
        found: Tensor = self._accelerator.gather(mine.to(self._accelerator.device))
        return found.cpu().numpy()

    def collect(self, data: bytes) -> list[bytes]:
        """Return the bytes of all processes, by their number; waits until every process has come here."""
        if self._accelerator is None:
            return [data]
        lengths = self.gather([len(data)])[:, 0].astype(int).tolist()
        mine = torch.zeros(1, max(1, *lengths), dtype=torch.uint8)
        mine[0, : len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else mine[0, :0]
        found: Tensor = self._accelerator.gather(mine.to(self._accelerator.device))
        rows = found.cpu().numpy()
        return [rows[rank, :length].tobytes() for rank, length in enumerate(lengths)]


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
