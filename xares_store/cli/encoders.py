"""``xares encoders``: the encoders that come with the package."""

from __future__ import annotations

import click

from xares_store.cli.common import emit, format_options


@click.command()
@format_options
def encoders(fmt: str) -> None:
    """List the encoders that come with the package.

    Any of them goes to --encoder by its name. Others do as well: a Python file, an importable class, a model of the
    Transformers library (hf:org/model), a module that follows the HEAR interface (hear:package.module).
    """
    from xares_store.encoders.builtin import CARDS

    shown = 8 if fmt == "table" else None  # programs get the whole commit
    rows: list[list[object]] = [
        [name, card.paper or None, card.checkpoint, card.revision[:shown] or None, card.dim, card.hop_ms, card.needs]
        for name, card in CARDS.items()
    ]
    emit(["name", "paper", "checkpoint", "revision", "dim", "hop_ms", "needs"], rows, fmt=fmt)
