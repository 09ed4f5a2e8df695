"""``weft serve --write-app``: a Flower app's folder, for those who start Flower's processes themselves."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import UserError
from weft.sites.flower.link import CONNECTION, app, connection
from weft.sites.flower.processes import near

if TYPE_CHECKING:
    from weft.sites.keys import Coordinator


def write(
    folder: Path, experiment: Path, host: str, port: int, keys: Coordinator | None, deadline: float, typed: dict[str, Any]
) -> str:
    """Write what ``flwr run`` needs into a new folder; returns the commands to type.

    Args:
        experiment: the file that the ServerApp reads. host, port: of the SuperLink. keys: None = no TLS.
        deadline: seconds of a turn. typed: settings on the command line, of which there may be none.

    Raises:
        UserError: the folder is there already, or a setting was typed.
    """
    if typed:
        raise UserError(f"the app reads its settings from {experiment} alone: write {', '.join(sorted(typed))} there.")
    if folder.exists():
        raise UserError(f"{folder} is there already: give --write-app a new folder.")
    folder = app(folder.resolve(), experiment.resolve(), deadline, "" if keys is None else keys.sites.resolve())
    home = folder / ".flwr"  # flwr packs whatever else lies in the folder
    connection(home, f"{near(host)}:{port}", keys)
    return _commands(folder, home, host, port, keys)


def _commands(folder: Path, home: Path, host: str, port: int, keys: Coordinator | None) -> str:
    flwr, path = f"FLWR_HOME={shlex.quote(str(home))} flwr", shlex.quote(str(folder))
    link, register, node = "--insecure", "", "--insecure"
    if keys is not None:
        own = {"--ssl-certfile": keys.certificate, "--ssl-keyfile": keys.key, "--ssl-ca-certfile": keys.ca}
        link = " ".join([*(f"{o} {shlex.quote(str(p.resolve()))}" for o, p in own.items()), "--enable-supernode-auth"])
        public = shlex.quote(str(keys.sites.resolve() / "NAME.pub"))
        register = f"\n  {flwr} supernode register {public} {CONNECTION} --name NAME     for every site"
        node = "--root-certificates keys/ca.pem --auth-supernode-private-key keys/NAME.key"
    where = host if keys is None else "HOST"
    return f"""\
Written to {folder}. In every terminal, before anything of Flower's: it posts usage events and asks for updates otherwise.

  export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

Here; the run's folder will be where this is typed, unless the experiment says where:

  flower-superlink --host {host} --port {port} --disable-runtime-dependency-installation {link}{register}

At every site (several on one machine: give each a --port):

  weft join EXPERIMENT.toml --data ./rows.csv --name NAME --write NAME.json
  flower-supernode --superlink {where}:{port} {node} --node-config "site=\\"$PWD/NAME.json\\""

Here, when they are there:

  {flwr} run {path} {CONNECTION} --stream

Whoever reaches this SuperLink's port can list and stop runs, register keys and unregister sites, with no key at all: let nobody
reach it but your sites, by a firewall. Every message starts a process that loads the backbone anew, and such a node runs whatever
code an app brings. With weft serve and weft join the port shows a site only what it needs, the backbone stays loaded, and no code
that arrives is run."""
