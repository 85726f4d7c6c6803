"""Encoders that come with xares-store: no download, no weights. Importing this module imports no torch."""

from __future__ import annotations

BUILTIN: dict[str, str] = {
    "logmel": "xares_store.encoders.logmel:LogMelEncoder",
    "modspec": "xares_store.encoders.modspec:ModSpecEncoder",
}
"""Name on the command line -> ``module:Class``."""
