"""Facts that an experiment gives to its clients where their data say nothing: ranks, and what their devices can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.devices import (
    ALWAYS,
    STRENGTH,
    Device,
    Grid,
    Hours,
    Trace,
    dealt,
    of_text,
    peers,
    read,
    read_grids,
    read_trace,
    windows,
)
from weft.devices.availability import DAY, HOUR
from weft.errors import UserError
from weft.experiment.declare import declared
from weft.experiment.simulated import Simulated
from weft.words import shown

if TYPE_CHECKING:
    from weft.experiment.whole import Experiment
    from weft.federation.method import Method

DEVICE = ("speed", "memory", "bandwidth")


def facts_of(x: Experiment) -> Callable[[int], dict[str, Any]]:
    """What the client at a position is given.

    Raises:
        UserError: ``ranks`` or ``devices`` cannot be dealt out.
    """
    ranks = {} if x.ranks is None else {_rank(x.ranks, r): share for r, share in of_text(x.ranks, "ranks", "4:2,16:1").items()}
    device = None if x.devices is None else devices_of(x)
    kinds = [] if x.devices is None else [kind for kind, _ in read(x.devices)]

    def at(position: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if ranks:
            rank = list(ranks)[dealt(position, list(ranks.values()))]
            found |= {"rank": rank, "ffn_rank": rank}
        if device is not None:
            own = device(position)
            found |= {fact: getattr(own, fact) for fact in DEVICE}
            found[STRENGTH] = min(getattr(own, of) / max(getattr(kind, of) for kind in kinds) for of in ("memory", "speed"))
        return found

    return at


def devices_of(x: Experiment) -> Callable[[int], Device]:
    """The device of the client at a position, of an experiment that has devices.

    Raises:
        UserError: they cannot be dealt out.
    """
    assert x.devices is not None
    devices = read(x.devices)
    shares = [share for _, share in devices]
    return lambda position: devices[dealt(position, shares)][0]


def check(x: Experiment, method: Method) -> None:
    """Refuse, before anything is loaded, what the method could do nothing with.

    Raises:
        UserError: so it is, or it cannot be dealt out.
    """
    from weft.methods import registry

    facts_of(x)
    if x.ranks is not None and "rank" not in method.info.asks:
        others = [slug for slug, info in registry.infos().items() if "rank" in info.asks]
        raise UserError(
            f"{method.info.slug} gives all clients the same rank, so that --ranks can do nothing: leave it out, or choose "
            f"{', '.join(others)}."
        )
    if x.engine == "flower":
        check_sites(x, method)
    elif x.engine == "ray":
        _check_turns(method)
    if x.peers is not None:
        stages = getattr(method, "stages", None)
        if not method.info.baseline or not isinstance(stages, int):
            others = [slug for slug, info in registry.infos().items() if info.baseline]
            raise UserError(
                f"the model of {method.info.slug} has no stages that peers could serve: leave --peers out, or choose "
                f"{', '.join(others)}."
            )
        if x.baseline != "central":
            raise UserError(
                f"peers serve one training on all rows, and baseline is {x.baseline or 'none'}: leave one of them out."
            )
        peers.read(x.peers, stages)
    if x.devices is None and (odd := _on_the_clock(x)):
        raise UserError(f"{odd} is {shown(getattr(x, odd))}, but no device keeps the time: give --devices too, or leave it out.")
    trace_of(x)
    _check_costs(x)


def check_sites(x: Experiment, method: Method) -> None:
    """Sites keep time by their own clocks, and are asked for whole turns.

    Raises:
        UserError: they are given a simulated clock, or a method whose server takes part in each step.
    """
    _check_turns(method)
    if x.aggregation != "synchronous":
        raise UserError(
            f'aggregation = "{x.aggregation}" is played on the clock of simulated devices, and sites are real: leave '
            "--aggregation out, or use a simulation."
        )
    if odd := _on_the_clock(x):
        raise UserError(f"{odd} is on the clock of simulated devices, and sites are real: leave it out, or use a simulation.")
    if x.devices is not None and not set(DEVICE) & set(method.info.asks):
        raise UserError(
            f"devices are simulated, and sites are real; {method.info.slug} asks nothing about either: leave --devices out, or "
            "use a simulation."
        )


def _on_the_clock(x: Experiment) -> str | None:
    """A setting that is nothing without simulated devices; None if all are as they are declared."""
    settings = (s for name, s in declared(Simulated).items() if name != "devices")
    return next((s.name for s in settings if getattr(x, s.name) != s.default), None)


def _check_costs(x: Experiment) -> None:
    """
    Raises:
        UserError: cohorts or budgets go by what nobody knows.
    """
    for name, rule in (("carbon_fairness", "carbon"), ("battery_floor", "battery")):
        if x.cohorts != rule and getattr(x, name) != declared(Simulated)[name].default:
            raise UserError(f"{name} is {getattr(x, name):g}, but is for --cohorts {rule}: give that too, or leave it out.")
    if x.grids is None and (x.cohorts == "carbon" or x.carbon_budget is not None):
        what = "cohorts = carbon chooses" if x.cohorts == "carbon" else "carbon_budget counts"
        raise UserError(f"{what} by grams of CO₂, which no grid is known for: give --grids too, as in --grids solar,coal-wind.")
    kinds = [] if x.devices is None else [device for device, _ in read(x.devices)]
    if x.cohorts == "battery" and not any(d.battery for d in kinds):
        raise UserError(
            f'no device of "{x.devices}" has a battery: write battery = JOULES and recharge = WATTS in a file of devices.'
        )
    regions = [] if x.grids is None else [grid.name for grid, _ in read_grids(x.grids)]
    if x.grids is not None and (odd := [d for d in kinds if d.region and d.region not in regions]):
        raise UserError(
            f'[{odd[0].name}] is in the region "{odd[0].region}", and grids has {", ".join(regions)}: give its grid too.'
        )


def grids_of(x: Experiment, devices: Mapping[str, Device]) -> dict[str, Grid]:
    """The grid of each client: of its device's region, else dealt out by shares among the clients of its kind; none without any.

    Args:
        devices: of all clients, in the order of their ids.
    """
    grids = [] if x.grids is None else read_grids(x.grids)
    if not grids:
        return {}
    named, shares = {grid.name: grid for grid, _ in grids}, [share for _, share in grids]
    seen: Counter[str] = Counter()
    found = {}
    for client, device in devices.items():
        found[client] = named[device.region] if device.region else grids[dealt(seen[device.name], shares)][0]
        seen[device.name] += 1
    return found


def trace_of(x: Experiment) -> Trace | None:
    """Who can be reached when, by a file; None where there is none.

    Raises:
        UserError: it can't be read.
    """
    if x.availability in (None, ALWAYS):
        return None
    if not x.availability.endswith(".csv"):
        raise UserError(f'availability is "{x.availability}": give {ALWAYS}, or a .csv file with client, start and end.')
    return read_trace(Path(x.availability).expanduser())


def hours_of(x: Experiment, clients: Sequence[str], devices: Mapping[str, Device]) -> dict[str, Hours]:
    """When clients can be reached, of those that can't be at any time.

    Args:
        clients: all, in the order of their ids.

    Raises:
        UserError: the file of them names another one.
    """
    if (trace := trace_of(x)) is not None:
        return trace.of(clients)
    if x.availability == ALWAYS:
        return {}
    kinds = {d: _daily(d.available, x.clock_hour) for d in set(devices.values()) if d.available}
    return {c: kinds[d] for c, d in devices.items() if d in kinds}


def _daily(text: str, hour: float) -> Hours:
    """Hours of the day on a clock that begins at one of them."""
    return Hours.of([(begin - hour * HOUR, end - hour * HOUR) for begin, end in windows(text)], every=DAY)


def _check_turns(method: Method) -> None:
    """
    Raises:
        UserError: clients have no turns that another process could play.
    """
    if "split" in method.info.needs:
        raise UserError(
            f"{method.info.slug} takes its steps together with the server, which is played in one process: simulate it, with "
            "weft run --engine simulation."
        )


def _rank(text: str, word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise UserError(f'ranks = "{text}" has "{word}", which is no rank: give whole numbers from 1, as in 4,8,16 or 4:2,16:1.')
    return int(word)
