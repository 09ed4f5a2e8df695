"""Every command, in the groups that help shows."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.cli import after, audit, chat, compare, keys, listings, merge, report, run, runs, sites, watch
from weft.cli.errors import Command, Commands
from weft.cli.settings import taking

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
app.command(rich_help_panel=TRAIN, cls=taking())(run.run)
app.command(rich_help_panel=TRAIN, cls=Command)(run.resume)
app.command(rich_help_panel=TRAIN, cls=taking(without=compare.OWN, several=True))(compare.compare)
app.command(rich_help_panel=TRAIN, cls=Command, name="eval")(after.evaluate)
app.command(rich_help_panel=TRAIN, cls=Command)(after.predict)
app.command(rich_help_panel=TRAIN, cls=Command)(chat.chat)
app.command(rich_help_panel=TRAIN, cls=Command)(after.export)
app.command(rich_help_panel=TRAIN, cls=Command)(merge.merge)
app.command(rich_help_panel=SITES, cls=taking("name", "runs", "report"))(sites.serve)
app.command(rich_help_panel=SITES, cls=Command)(sites.join)
app.add_typer(keys.app, name="keys", rich_help_panel=SITES)
app.command(rich_help_panel=LOOK, cls=Command)(runs.runs)
app.command(rich_help_panel=LOOK, cls=Command)(runs.diff)
app.command(rich_help_panel=LOOK, cls=Command)(watch.watch)
app.command(rich_help_panel=LOOK, cls=Command)(report.report)
app.command(rich_help_panel=LOOK, cls=Command)(audit.audit)
app.command(rich_help_panel=LOOK, cls=Command)(listings.methods)
app.command(rich_help_panel=LOOK, cls=Command)(listings.data)
app.command(rich_help_panel=LOOK, cls=Command)(listings.models)
app.command(rich_help_panel=LOOK, cls=Command)(listings.env)


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
