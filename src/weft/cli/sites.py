"""``weft serve`` and ``weft join``: a real federation, of a coordinator and sites that keep their rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.run import Json, Quiet, show
from weft.errors import UserError
from weft.report.console import out
from weft.report.progress import starting, watching
from weft.sites.key_files import SUM_KEY
from weft.words import count

if TYPE_CHECKING:
    from rich.console import Console

    from weft.runs.directory import RunDirectory
    from weft.sites.flower.grid import Grid


PORT = 9393
Insecure = Annotated[
    bool, typer.Option("--insecure", help="No TLS, and nobody has to prove who they are: for trying out on one machine only.")
]
WARNING = "Warning: --insecure: anybody on the way can read and change what is sent, and anybody may join."


def serve(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="What is trained; it declares the classes.")],
    sites: Annotated[int | None, typer.Option(help="Sites to wait for before round 1.", show_default="clients")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="0.0.0.0, or 127.0.0.1 if --insecure")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on; the only one that sites need.")] = PORT,
    keys: Annotated[Path, typer.Option(help="Folder that weft keys coordinator made.")] = Path("keys"),
    insecure: Insecure = False,
    deadline: Annotated[
        float,
        typer.Option(
            min=1, max=10**9, help="Seconds that a site may take for a turn; a round goes on without whoever takes longer."
        ),
    ] = 3600.0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, as for weft run.", show_default=False),
    ] = None,
    write_app: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write a Flower app for a SuperLink of your own, and serve nobody.", show_default=False
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Coordinate a federation of sites; begun again with the same command, it goes on where it was stopped.

    [bold]Examples[/bold]

      weft keys coordinator --host fl.example.org     once
      weft serve experiment.toml --sites 2
      weft serve experiment.toml --insecure           to try it out on one machine

    No rows come here, and no code that arrives is run.
    """
    from weft import experiment

    if math.isnan(deadline):  # which no bound keeps out
        raise UserError("--deadline is nan, but must be a number of seconds.")
    chosen = experiment.assignments(set_ or (), context.obj | ({} if sites is None else {"clients": sites}))
    screen = out(stderr=as_json)
    with starting(screen, quiet):
        from weft.sites.flower import environment

        environment.ready()
        from weft.cli import plan
        from weft.runs.shelf import Shelf
        from weft.sites import serve as coordinator
        from weft.sites.flower.link import Link
        from weft.sites.keys import find, public_keys

        # recipes are for data that are known
        resolved = experiment.resolve(chosen | {"recipes": False}, experiment.read(file))
        made = None if insecure else find(keys)
    where = host or ("127.0.0.1" if insecure else "0.0.0.0")
    if write_app is not None:
        from weft.cli import app_folder

        words = app_folder.write(write_app, file, where, port, made, deadline, chosen)
        screen.print(words, markup=False, soft_wrap=True)
        return
    if made is not None and not public_keys(made.sites):
        raise UserError(f"no site is known: put the NAME.pub of every site into {made.sites}.")
    if not quiet:
        plan.header(screen, resolved, f"{count(resolved.experiment.clients, 'site')} before round 1")
    if insecure:
        out(stderr=True).print(WARNING, style="yellow", markup=False)

    with watching(screen, quiet) as observer:

        @contextmanager
        def connect(directory: RunDirectory) -> Iterator[Grid]:
            known = functools.partial(public_keys, made.sites) if made else None
            largest = resolved.experiment.max_bytes
            with Link(directory.root / "link", where, port, made, known, observer.say, largest).open() as grid:
                observer.say(f"listening on {where}:{port}.")
                yield grid

        done = coordinator.serve(resolved, connect, observer, deadline=deadline)
    show(done, screen, quiet, as_json, Shelf())  # its clients are no rows that another run could be proposed on


def join(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[EXPERIMENT.toml]",
            help="Your own copy of what is trained: whatever the coordinator says otherwise is refused.",
            show_default=False,
        ),
    ] = None,
    server: Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help="The coordinator.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="Of this site; that of its key.", show_default="this machine's")] = None,
    data: Annotated[str | None, typer.Option(help="Your rows: file, folder, data set or hub id.", show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text, if the guess is wrong.", show_default=False)] = None,
    pair: Annotated[str | None, typer.Option(help="Column of a second text.", show_default=False)] = None,
    image: Annotated[str | None, typer.Option(help="Column of the picture.", show_default=False)] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the backbone is here, if not under its name.", show_default=False)
    ] = None,
    fact: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For methods that ask: domain=ct, capacity=6, rank=4.", show_default=False),
    ] = None,
    keys: Annotated[
        Path, typer.Option(help="Folder with NAME.key, the coordinator's ca.pem, and sums.ckks for encrypted sums.")
    ] = Path("keys"),
    insecure: Insecure = False,
    folder: Annotated[Path | None, typer.Option(help="Of what this site remembers; keep it.", show_default="sites/NAME")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a backbone from the hub run its own Python code here.")
    ] = False,
    play: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="CLIENT",
            help="To try it out: have the rows of this client of the experiment's own deal.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would leave this site, from your EXPERIMENT.toml, and connect to nobody.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write these settings for a SuperNode of your own.", show_default=False)
    ] = None,
) -> None:
    """Take part in a federation with rows that stay here; ends with Ctrl-C.

    [bold]Examples[/bold]

      weft keys site north                     once; its public half goes away
      weft join experiment.toml --data rows.csv --dry-run
      weft join experiment.toml --data rows.csv --server fl.example.org --name north

    The coordinator learns neither paths nor columns nor rows. The backbone stays loaded between rounds.
    """
    import platform

    from weft import experiment

    screen = out()
    sum_key = keys / SUM_KEY
    called = name or play or platform.node().split(".")[0] or "site"
    about: dict[str, Any] = {
        "name": called,
        "data": data,
        "text": text,
        "pair": pair,
        "image": image,
        "label": label,
        "model": model,
        "facts": experiment.assignments(fact or ()),
        "device": device,
        "trust_remote_code": trust_remote_code,
        "experiment": None if file is None else str(file),
        "deal": None if play is None else (str(_needed(file, "--as")), play),
        "folder": str(folder or Path("sites") / called),
        "sum_key": str(sum_key) if sum_key.exists() else None,
    }
    if write is not None:
        from weft.sites import joining

        joining.own_of(about)
        joining.write_file(write, about)
        screen.print(f"Written to {write}.", markup=False)
        return
    if dry_run:
        with starting(screen, False):
            from weft.cli import leaving
        leaving.show(screen, about, _needed(file, "--dry-run"))
        return
    if server is None:
        raise UserError("give the coordinator's address: --server HOST[:PORT].")
    address = _address(server)
    with starting(screen, False):
        from weft.sites.flower import environment

        environment.ready()
        from weft.sites import joining
        from weft.sites.flower.node import Node

        site = joining.resident(about, lambda words: _say(screen, words))
    if insecure:
        out(stderr=True).print(WARNING, style="yellow", markup=False)
        root = key = None
    else:
        root, key = keys / "ca.pem", keys / f"{called}.key"
        for path, help in ((root, "get it from the coordinator"), (key, f"make it with weft keys site {called}")):
            if not path.is_file():
                raise UserError(f"there is no {path}: {help}, or type --insecure to try it out without.")
    _say(screen, f"{called}: waiting for questions of {address}; Ctrl-C ends.")
    Node(site.folder / "link", address, root, key).serve(site.answer, lambda words: _say(screen, words))


def _address(text: str) -> str:
    """``HOST:PORT`` of what was typed for ``--server``.

    Raises:
        UserError: it is none.
    """
    host, sign, port = (text, "", "") if text.endswith("]") else text.rpartition(":")
    if not sign:
        host, port = text, str(PORT)
    plain = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not plain or (":" in plain and plain == host) or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f'"{text}" is no address of a coordinator: write HOST or HOST:PORT, as in fl.example.org:{PORT}, or [::1]:{PORT}.'
        )
    return f"{host}:{port}"


def _needed(file: Path | None, option: str) -> Path:
    if file is None:
        raise UserError(f"{option} needs your copy of the experiment: weft join EXPERIMENT.toml {option} …")
    return file


def _say(screen: Console, words: str) -> None:
    import time

    screen.print(f"{time.strftime('%H:%M:%S')} {words}", markup=False, soft_wrap=True)
