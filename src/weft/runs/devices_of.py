"""The clock of a run on simulated devices, and which of them can hold what they are to train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from weft.communication.ledger import format_bytes
from weft.devices import Clock, Device, Thrift
from weft.engines import packing
from weft.errors import UserError
from weft.experiment import Experiment, handed
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.method import Method
from weft.federation.round import Round
from weft.federation.rounds import adapted
from weft.tensors.keyed import numpy_generator
from weft.words import count

GIB = 1 << 30


def clock(x: Experiment, clients: list[ClientState]) -> Clock | None:
    """The clock of an experiment; None where it has no devices, for sites, and for baselines without a federation.

    Args:
        clients: in the order of their ids, by which devices are dealt out; nobody, if they are sites.
    """
    if x.devices is None or x.engine == "flower" or not clients or x.baseline in ("local", "central"):
        return None
    at = handed.devices_of(x)
    devices = {c.id: at(i) for i, c in enumerate(clients)}
    owed = {c.id: float(numpy_generator(x.seed, "owed", c.id).random()) for c in clients}
    return Clock(
        devices,
        x.deadline,
        handed.hours_of(x, list(devices), devices),
        x.clock_hour,
        handed.grids_of(x, devices),
        x.battery_floor if x.cohorts == "battery" else 0.0,
        Thrift(x.carbon_fairness, owed) if x.cohorts == "carbon" else None,
    )


def check_choice(x: Experiment, plan: Round | None, clients: int) -> None:
    """
    Raises:
        UserError: cohorts are chosen where all take part anyway.
    """
    everybody = plan is not None and plan.who == "sample" and max(round(x.participation * clients), 1) >= clients
    if x.cohorts == "carbon" and everybody:
        raise UserError(
            f"cohorts = carbon chooses some of the clients, and participation {x.participation:g} takes all: give a smaller "
            "one, as in --participation 0.5."
        )


def too_small(
    method: Method, bench: Bench, clients: list[ClientState], devices: Clock, say: Callable[[str], None]
) -> frozenset[str]:
    """Clients whose device can't hold the backbone with one client's turn: they are left out.

    Raises:
        UserError: nobody's can.
    """
    needs: dict[str, int] = {}
    found: dict[str, Device] = {}
    for client in clients:
        device, own = devices.devices[client.id], bench.of(client)
        adaptation = adapted(method, bench, client.info(method.info.asks))
        key = repr((client.model, adaptation))
        if key not in needs:  # as on an accelerator, whatever this machine is
            guess = replace(packing.of_adaptation(own, method, adaptation), reused=True, apart=True)
            needs[key] = guess.total(1)
        if needs[key] > device.memory * GIB:
            found[client.id] = device
    if not found:
        return frozenset()
    most = format_bytes(min(needs.values()))
    kinds = ", ".join(f"{n} x {name}" for name, n in sorted(Counter(d.name for d in found.values()).items()))
    if len(found) == len(clients):
        raise UserError(
            f"no device of --devices holds {bench.backbone.name} with one client's turn, which takes about {most}: give devices "
            "with more memory, or smaller batches, or another --model."
        )
    say(f"{count(len(found), 'client')} of {len(clients)} take no part, for their devices can't hold the turn ({kinds}; {most}).")
    return frozenset(found)
