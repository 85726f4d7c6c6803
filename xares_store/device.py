"""Devices, cores and threads: chosen when a phase starts, never at import."""

from __future__ import annotations

import os

from xares_store.errors import ConfigError


def usable_cores() -> int:
    """Return how many cores this process may use (affinity, not what the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def compute_threads() -> int:
    """Return how many threads may compute: a usable core each, or fewer where ``OMP_NUM_THREADS`` says so."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(usable_cores(), int(told)) if told.isdecimal() and int(told) > 0 else usable_cores()


def launched_processes() -> int:
    """Return how many processes ``accelerate launch`` or ``torchrun`` started together with this one; 1 alone."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() and int(size) > 0 else 1


def process_rank() -> int:
    """Return the number of this process among those that ``accelerate launch`` or ``torchrun`` started; 0 alone."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def resolve_device(device: str) -> str:
    """Turn ``auto`` into the best device present and check that a named one exists.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ConfigError: no such device on this machine.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and count and (not number or (number.isdecimal() and int(number) < count)):
        return device
    if kind == "mps" and torch.backends.mps.is_available():
        return "mps"
    found = ["cpu"]
    found += [f"cuda:{index}" for index in range(count)]
    found += ["mps"] if torch.backends.mps.is_available() else []
    raise ConfigError(
        f'Device "{device}" is not on this machine; found {", ".join(found)}.',
        where="--device",
        hint="Use --device auto.",
    )


def set_threads() -> None:
    """Give torch as many threads as there are usable cores; more than that costs a factor of ten."""
    import torch

    if torch.get_num_threads() > compute_threads():
        torch.set_num_threads(compute_threads())
