"""``weft keys``: by what the coordinator and the sites of a real federation know each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.errors import Command, Commands
from weft.report.console import out

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make the keys and certificates of a real federation: coordinator once, site at every site, sums once for all sites.",
)

Folder = Annotated[Path, typer.Option(help="Where they go: a new folder, or one that only you may enter.")]


@app.command(cls=Command)
def coordinator(
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="NAME_OR_IP", help="By what the sites call this machine; may be repeated.", show_default=False
        ),
    ] = None,
    folder: Folder = Path("keys"),
    days: Annotated[int, typer.Option(help="For which the coordinator's certificate holds.")] = 825,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="A new certificate under the authority that is there; for the same hosts, if none are given."
        ),
    ] = False,
) -> None:
    """Make this federation's certificate authority and the coordinator's certificate.

    [bold]Examples[/bold]

      weft keys coordinator --host fl.example.org --host 10.0.0.7
      weft keys coordinator --renew

    One file, ca.pem, goes to every site. The certificate also holds for localhost and 127.0.0.1.
    """
    from rich.text import Text

    from weft.sites import keys

    made = keys.coordinator(folder, hosts or [], days, renew)
    ends = keys.certificate(made.certificate).not_valid_after_utc
    _show(
        (made.ca_key, "private key of the authority; needed only for --renew, so better kept elsewhere"),
        (made.ca, "certificate of the authority: this file, and no other, goes to every site"),
        (made.key, "private key of the coordinator: stays here"),
        (
            made.certificate,
            f"certificate of the coordinator, until {ends:%Y-%m-%d}, for {', '.join(keys.certified(made.certificate))}",
        ),
        (made.sites, "folder for the public keys of the sites, one NAME.pub each"),
    )
    screen = out()
    if renew:
        screen.print("\nThe authority is the same as before: the sites need nothing new.", soft_wrap=True)
        return
    # As Text, since rich makes pictures of :AB: and :DE: in a string.
    screen.print(Text(f"\nFingerprint (SHA-256) of {made.ca.name}:\n{keys.fingerprint(made.ca)}"), soft_wrap=True)
    screen.print(
        "\nA site that got ca.pem by mail asks for this fingerprint by telephone and compares it with what it sees there:\n"
        "openssl x509 -noout -fingerprint -sha256 -in ca.pem",
        soft_wrap=True,
    )


@app.command(cls=Command)
def site(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of this site: letters, digits, dots, dashes, underscores; at most 64.")
    ],
    folder: Folder = Path("keys"),
) -> None:
    """Make the key pair by which the coordinator knows this site.

    [bold]Example[/bold]

      weft keys site hospital-a
    """
    from weft.sites import keys

    made = keys.site(folder, name)
    _show(
        (made.private, "private key of this site: stays here"),
        (made.public, "public key: goes to the coordinator, into its folder sites"),
    )


@app.command(cls=Command)
def sums(folder: Folder = Path("keys")) -> None:
    """Make the key of encrypted sums (--privacy ckks): once, at one site, for all of them.

    [bold]Example[/bold]

      weft keys sums
    """
    from weft.sites import sum_key

    _show((sum_key.new(folder), "secret key of all sites: goes into the folder of keys of each, and never to the coordinator"))


def _show(*files: tuple[Path, str]) -> None:
    from rich.text import Text

    from weft.cli.grids import grid

    table = grid("file", "what it is", head=False)
    for path, what in files:
        table.add_row(Text(str(path), style="cyan"), Text(what))
    out().print(table)
