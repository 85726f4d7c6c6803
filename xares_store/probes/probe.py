"""The probes that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from xares_store.errors import ProbeError, did_you_mean


@dataclass(frozen=True)
class Probe:
    """What is known of a probe before it runs; describing it imports nothing.

    Attributes:
        name: as users and task files write it.
        version: changes when the predictions for the same input change; part of a run's identity.
        seeded: whether several seeds give several results.
        needs_torch: whether running it imports torch.
        defaults: settings a task does not give.
    """

    name: str
    version: str
    seeded: bool
    needs_torch: bool
    defaults: Mapping[str, Any]


PROBES: Mapping[str, Probe] = MappingProxyType(
    {
        "mlp": Probe(
            "mlp",
            version="1",
            seeded=True,
            needs_torch=True,
            defaults=MappingProxyType({"epochs": 10, "batch_size": 32, "learning_rates": (1e-3,)}),
        ),
        "knn": Probe(
            "knn",
            version="1",
            seeded=False,
            needs_torch=False,
            defaults=MappingProxyType({"k": 10, "temperature": 0.07}),
        ),
    }
)


def probe_for(name: str) -> Probe:
    """Find a probe by name.

    Raises:
        ProbeError: for an unknown name, with a suggestion.

    Example:
        >>> probe_for("knn").needs_torch
        False
    """
    if name not in PROBES:
        listing = "Known: " + ", ".join(PROBES) + "."
        raise ProbeError(f'Wanted a probe, found "{name}".', hint=did_you_mean(name, PROBES, listing=listing))
    return PROBES[name]
