"""Tiny federations whose server waits for nobody, on devices whose turns take as long as a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tiny
from weft.devices import Clock, Device, Spent
from weft.engines.asynchronous import Asynchronous
from weft.engines.engine import Turns
from weft.engines.here import Here
from weft.engines.setup import Setup
from weft.federation.asynchrony import Asynchrony
from weft.federation.method import Method
from weft.federation.server_step import ServerStep


class Told(Clock):
    """A clock of turns that take what is told of their clients."""

    lasting: Mapping[str, float]

    def seconds(self, client: str, spent: Spent) -> float:
        return self.lasting[client]


def federation(
    method: Method,
    asynchrony: Asynchrony,
    seconds: Mapping[str, float] | None = None,
    step: ServerStep | None = None,
    turns: Callable[[Setup], Turns] = Here,
    **more: Any,
) -> tiny.Federation:
    """As :func:`tiny.federation`.

    Args:
        seconds: of a turn of each client; None = as a phone takes for it.
    """
    run = tiny.federation(method, flops=True, **more)
    run.server.step = step or ServerStep()
    setup = run.simulation.setup
    devices = {c.id: Device(1, 8, 20, name="phone") for c in run.clients}
    setup.clock = Clock(devices)
    if seconds is not None:
        setup.clock = Told(devices)
        setup.clock.lasting = seconds
    run.simulation = Asynchronous(setup, turns(setup), asynchrony, setup.store.folder.parent / "flights")
    return run


def played(run: tiny.Federation, rounds: int) -> list[dict[str, Any]]:
    """The records of so many updates of the server."""
    found = [run.simulation.round(t) for t in range(rounds)]
    assert None not in found
    return [record for record in found if record is not None]
