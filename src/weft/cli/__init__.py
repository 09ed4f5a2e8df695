"""The command line. Commands import what they need when they run, so that help and listings are there at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from weft.cli import after, keys, listings, run, sites
from weft.cli.errors import Commands, guarded

app = typer.Typer(
    name="weft",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Federated parameter-efficient fine-tuning: one frozen model, many data owners, small messages.",
    epilog="Start with [bold]weft run[/bold]: it needs no network and takes a few minutes on a laptop.",
)

TRAIN, SITES, LOOK = "Train", "Real federations", "Look around"
app.command(rich_help_panel=TRAIN)(run.run)
app.command(rich_help_panel=TRAIN)(run.resume)
app.command(rich_help_panel=TRAIN, name="eval")(after.evaluate)
app.command(rich_help_panel=TRAIN)(after.predict)
app.command(rich_help_panel=TRAIN)(after.export)
app.command(rich_help_panel=SITES)(sites.serve)
app.command(rich_help_panel=SITES)(sites.join)
app.add_typer(keys.app, name="keys", rich_help_panel=SITES)
app.command(rich_help_panel=LOOK)(listings.methods)
app.command(rich_help_panel=LOOK)(listings.data)
app.command(rich_help_panel=LOOK)(listings.models)
app.command(rich_help_panel=LOOK)(listings.env)


def _version(asked: bool) -> None:
    if asked:
        from weft.distribution import version

        found = version()
        typer.echo(f"weft {found}" if found else "weft, from a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, 1 (a bug), 2 (something to put right), 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? instead of failing
    sys.exit(guarded(app, arguments))
