"""What a score or an embedding was made with."""

from __future__ import annotations

import platform
from importlib import metadata

from xares_store.device import usable_cores

_PACKAGES = ("xares-store", "torch", "numpy", "zarr", "duckdb", "faiss-cpu", "transformers", "soundfile", "soxr")


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
