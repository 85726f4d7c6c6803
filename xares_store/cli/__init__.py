"""The command line: thin commands over library functions, loaded only when they are called.

``xares --help`` and the commands that only read tables must answer at once, so a command's module is imported when the
command is chosen, and torch only by the commands that compute.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from xares_store import __version__
from xares_store.cli.common import INTERRUPTED, console
from xares_store.errors import XaresError, did_you_mean

# name -> (module:attribute, one line of help). The lines are repeated here so that --help imports nothing; a test keeps
# them equal to the commands' own.
COMMANDS: dict[str, tuple[str, str]] = {
    "fetch": ("xares_store.cli.fetch:fetch", "Download tasks' audio shards from Zenodo or the Hugging Face hub."),
    "import": (
        "xares_store.cli.import_:import_command",
        "Turn a folder, manifest or dataset of audio into shards and a task.",
    ),
    "embed": ("xares_store.cli.embed:embed", "Run an encoder once over tasks' audio and store its embeddings."),
    "evaluate": ("xares_store.cli.evaluate:evaluate", "Train and score probes on stored embeddings."),
    "leaderboard": ("xares_store.cli.results:leaderboard", "Show the scores in a store, best first."),
    "compare": ("xares_store.cli.results:compare", "Test whether two encoders differ, task by task."),
    "transcribe": (
        "xares_store.cli.transcribe:transcribe",
        "Write what a trained language model hears in stored clips.",
    ),
    "sql": ("xares_store.cli.sql:sql", "Run a SQL QUERY over the store's views."),
    "encoders": ("xares_store.cli.encoders:encoders", "List the encoders that come with the package."),
    "check": ("xares_store.cli.check:check", "Check that an encoder keeps the contract."),
    "tasks": ("xares_store.cli.tasks:tasks", "List, show and check tasks."),
    "recipes": ("xares_store.cli.recipes:recipes", "List, show and check recipes of the LLM-projector probe."),
    "store": ("xares_store.cli.store:store_group", "Look into a store, verify it, remove parts of it."),
    "demo-data": (
        "xares_store.cli.tasks:demo_data",
        "Write a small labelled set of synthetic sounds and its task file into FOLDER.",
    ),
}


class LazyGroup(click.Group):
    """A click group that imports a command's module when the command is chosen."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was probably meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(
                f'No command "{args[0]}". ' + did_you_mean(args[0], COMMANDS, listing="`xares --help` lists them.")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="xares")
def cli() -> None:
    """Benchmark frozen audio encoders: embed once into a store, then evaluate and query as often as you like.

    \b
      xares embed --encoder my_encoder.py --task esc50     audio -> embeddings (once)
      xares evaluate                                       embeddings -> scores (as often as you like)
      xares leaderboard                                    scores -> table
      xares sql "select * from scores"                     scores -> anything
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an expected error becomes one message, not a traceback.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` when omitted.

    Returns:
        0 on success, 1 on an error, 2 on wrong usage, 130 when interrupted.
    """
    try:
        result = cli.main(args=None if argv is None else list(argv), prog_name="xares", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()  # here, so that a closed pipe is met inside this try
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.Abort:
        console.print("Interrupted.")
        code = INTERRUPTED
    except KeyboardInterrupt:
        console.print("Interrupted.")
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except XaresError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        code = error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has gone; point stdout away so that the interpreter's last flush stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        named = f"\n  where: {error.filename}" if error.filename else ""
        console.print(f"error: {error.strerror or error}.{named}", markup=False, highlight=False)
        code = 1
    return code


def entry() -> None:
    """Console-script entry point."""
    sys.exit(main())
