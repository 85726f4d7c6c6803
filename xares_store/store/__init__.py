"""The store: a folder of immutable parts and runs that teammates copy, merge and query."""

from xares_store.store.layout import PartAddress, PartManifest, RunManifest, Score, Source
from xares_store.store.part import Part, PartWriter
from xares_store.store.store import Store

__all__ = ["Part", "PartAddress", "PartManifest", "PartWriter", "RunManifest", "Score", "Source", "Store"]
