"""Devices and threads: chosen when a phase starts, never at import."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from xares_store.errors import ConfigError

_PACKAGES = ("xares-store", "torch", "numpy", "zarr", "duckdb", "faiss-cpu", "transformers", "soundfile", "soxr")


def usable_cores() -> int:
    """Return how many cores this process may use (affinity, not what the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


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
    if kind == "cuda" and torch.cuda.is_available() and (not number or int(number) < torch.cuda.device_count()):
        return device
    if kind == "mps" and torch.backends.mps.is_available():
        return "mps"
    found = ["cpu"]
    found += [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    raise ConfigError(
        f'Device "{device}" is not on this machine; found {", ".join(found)}.',
        where="--device",
        hint="Use --device auto.",
    )


def set_threads() -> None:
    """Give torch as many threads as there are usable cores; more than that costs a factor of ten."""
    import torch

    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def versions() -> dict[str, str]:
    """Return the versions that a score or an embedding depends on."""
    found: dict[str, str] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_device(device: str) -> str:
    """Return the device with its hardware name, as provenance records it."""
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {usable_cores()} cores)"


def provenance(device: str) -> dict[str, Any]:
    """Return device and versions in one dictionary."""
    return {"device": describe_device(device), "versions": versions()}
