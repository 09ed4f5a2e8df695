"""Federations whose clients are sites, in this process: they see nothing but bytes, and have folders of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from weft.communication.codecs import codec
from weft.engines.engine import Engine
from weft.engines.question import answer
from weft.engines.remote import Remote
from weft.engines.site import SiteClient
from weft.federation.client import ClientState
from weft.federation.method import Method
from weft.testing.compare import remembered
from weft.testing.federation import Federation, federation
from weft.testing.models import root


class Loopback:
    """Sites in this process, each with a folder of its own.

    Attributes:
        label: of the run. silent: ids of those that do not answer. asked: ids of those that did, in order.
    """

    label = "loopback"

    def __init__(self, run: Federation, uplink: str = "identity"):
        self.root = Path(tempfile.mkdtemp(dir=root()))
        self.run, self.uplink = run, uplink
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.sites: dict[str, SiteClient] = {}
        self.start()

    def start(self) -> None:
        """(Re)start every site from its folder."""
        run = self.run
        for c in run.clients:
            own = ClientState(c.id, c.n, dict(c.facts), c.model, data=c.data)
            bench = run.bench.of(own)
            self.sites[c.id] = SiteClient(
                run.method, bench, own, self.root / c.id, codec(self.uplink), run.server.start, label=self.label
            )

    def arrivals(self, clients: list[ClientState]) -> list[ClientState]:
        return []

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        found = {}
        for client, raw in questions.items():
            if client not in self.silent:
                self.asked.append(client)
                found[client] = answer(self.sites[client], raw)
        return found


def remote(method: Method, uplink: str = "identity", **more: Any) -> tuple[Federation, Loopback]:
    """A federation whose clients are sites; the coordinator's own records of them have no rows."""
    run = federation(method, codec_name=uplink, **more)
    loop = Loopback(run, uplink)
    stubs = [ClientState(c.id, c.n, dict(c.facts), c.model) for c in run.clients]
    setup = replace(run.simulation.setup, federations=[(run.server, stubs)])
    run.simulation = Engine(setup, Remote(setup, loop))
    return run, loop


def kept(loop: Loopback) -> dict[str, Tensor]:
    """What sites remember, by client and name."""
    found: dict[str, Tensor] = {}
    for site in loop.sites.values():
        site.store.load(site.client)
        found |= remembered(site.client)
    return found


def remembering(loop: Loopback) -> bool:
    """Whether any site remembers anything, a tensor or not."""
    kept(loop)
    return any(site.client.kept or site.client.memo for site in loop.sites.values())
