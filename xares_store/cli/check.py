"""``xares check``: the conformance suite for encoders."""

from __future__ import annotations

import click

from xares_store.cli.common import console, device_option, emit, format_options

_MARK = {True: "ok", False: "FAIL", None: "note"}


@click.command()
@click.argument("encoder")
@click.option("--encoder-arg", "encoder_args", multiple=True, metavar="KEY=VALUE", help="Argument of the constructor.")
@click.option(
    "--long-minutes",
    type=click.FloatRange(min=0.0, min_open=True, max=24 * 60),
    default=10.0,
    show_default=True,
    help="Length of the long clip.",
)
@device_option
@format_options
def check(encoder: str, encoder_args: tuple[str, ...], long_minutes: float, device: str, fmt: str) -> None:
    """Check that an encoder keeps the contract.

    ENCODER is enc.py, enc.py:ClassName, package.module:ClassName, hf:org/model[@revision], hear:package.module[@weights]
    or a built-in name (`xares encoders` lists them). The exit code is 1 when a check fails; a "note" only measures.
    """
    from xares_store.encoders.check import check as run_checks  # torch takes seconds to import
    from xares_store.encoders.spec import split_args

    with console.status("") as status:  # draws on terminals alone; the long clip may take minutes
        results = run_checks(
            encoder,
            args=split_args(encoder_args),
            device=device,
            long_minutes=long_minutes,
            progress=lambda result: status.update(f"{result.name}: {_MARK[result.ok]}"),
        )
    if fmt == "table" and results[0].error is not None:  # no table of one row: an encoder that cannot be loaded
        raise results[0].error
    # Programs get true, false or null; people get a word.
    rows = [[r.name, _MARK[r.ok] if fmt == "table" else r.ok, r.found, r.wanted, round(r.seconds, 3)] for r in results]
    emit(["check", "result" if fmt == "table" else "ok", "found", "wanted", "seconds"], rows, fmt=fmt, title=encoder)
    if any(r.ok is False for r in results):
        click.get_current_context().exit(1)
