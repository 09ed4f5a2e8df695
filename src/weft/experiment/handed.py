"""Facts that an experiment gives to its clients where their data say nothing: ranks, and what their devices can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weft.devices import Device, dealt, of_text, read
from weft.errors import UserError

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

    def at(position: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if ranks:
            rank = list(ranks)[dealt(position, list(ranks.values()))]
            found |= {"rank": rank, "ffn_rank": rank}
        if device is not None:
            found |= {fact: getattr(device(position), fact) for fact in DEVICE}
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
    if x.deadline is not None and x.devices is None:
        raise UserError(f"deadline is {x.deadline:g}, but no device keeps the time: give --devices too, or leave it out.")


def check_sites(x: Experiment, method: Method) -> None:
    """Sites keep time by their own clocks, and are asked for whole turns.

    Raises:
        UserError: they are given a simulated clock, or a method whose server takes part in each step.
    """
    _check_turns(method)
    if x.deadline is not None:
        raise UserError("deadline is on the clock of simulated devices, and sites are real: leave it out, or use a simulation.")
    if x.devices is not None and not set(DEVICE) & set(method.info.asks):
        raise UserError(
            f"devices are simulated, and sites are real; {method.info.slug} asks nothing about either: leave --devices out, or "
            "use a simulation."
        )


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
