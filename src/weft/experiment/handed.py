"""Facts that an experiment gives to its clients where their data say nothing: ranks, and what their devices can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from weft.devices import dealt, of_text, read
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
    devices = [] if x.devices is None else read(x.devices)

    def at(position: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if ranks:
            rank = list(ranks)[dealt(position, list(ranks.values()))]
            found |= {"rank": rank, "ffn_rank": rank}
        if devices:
            found |= asdict(devices[dealt(position, [share for _, share in devices])][0])
        return found

    return at


def check(x: Experiment, method: Method) -> None:
    """Refuse, before anything is loaded, what the method could do nothing with.

    Raises:
        UserError: so it is, or it cannot be dealt out.
    """
    from weft.methods import registry

    facts_of(x)
    for setting, facts, words in (
        ("ranks", ("rank",), "gives all clients the same rank"),
        ("devices", DEVICE, "asks for nothing about devices"),
    ):
        if getattr(x, setting) is not None and not set(facts) & set(method.info.asks):
            others = [slug for slug, info in registry.infos().items() if set(facts) & set(info.asks)]
            raise UserError(
                f"{method.info.slug} {words}, so that --{setting} can do nothing: leave it out, or choose {', '.join(others)}."
            )


def _rank(text: str, word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise UserError(f'ranks = "{text}" has "{word}", which is no rank: give whole numbers from 1, as in 4,8,16 or 4:2,16:1.')
    return int(word)
