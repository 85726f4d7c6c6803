"""The probes that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Probe:
    """What is known of a probe before it runs; describing it imports nothing.

    Attributes:
        name: as users and task files write it.
        version: changes when the predictions for the same input change; part of a run's identity.
        seeded: whether several seeds give several results.
        seeds: how many are run without a wish.
    """

    name: str
    version: str
    seeded: bool
    seeds: int = 5


PROBES: Mapping[str, Probe] = MappingProxyType(
    {
        "mlp": Probe("mlp", version="1", seeded=True),
        "knn": Probe("knn", version="1", seeded=False),
        "frame": Probe("frame", version="1", seeded=True),
        "retrieval": Probe("retrieval", version="1", seeded=True),
        "llm": Probe("llm", version="1", seeded=True, seeds=1),
    }
)
