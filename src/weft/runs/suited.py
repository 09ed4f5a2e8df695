"""Whether a backbone has what a method needs, and the memory what it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from weft.adaptation.lora import LoRA
from weft.communication.codecs import codec
from weft.communication.ledger import format_bytes
from weft.engines import packing, room
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.federation.common_facts import nobody
from weft.federation.layout import named
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.rounds import adapted
from weft.federation.server import ServerState
from weft.tensors.lowrank import LowRank


def suited(method: Method, bench: Bench, servers: int = 1, clients: Iterable[ClientInfo] = ()) -> None:
    """Refuse a backbone that lacks what the method needs, with all reasons at once, and settings that no memory can hold.

    Args:
        servers: that are played beside each other. clients: whose facts say ranks, as far as a person has given them.

    Raises:
        UserError: it lacks something, or what one client trains is larger than the free memory.
    """
    clients = list(clients)
    adaptation = adapted(method, bench, nobody(clients))
    demands: list[Callable[[], object]] = [functools.partial(part.sites, bench.backbone) for part, _ in adaptation.values()]
    if "separate blocks" in method.info.needs:
        demands.append(bench.backbone.check_separate)
    ranked = {str(c.facts.get("rank")): c for c in clients if "rank" in method.info.asks and "rank" in c.facts}.values()
    for parts in (adaptation, *(adapted(method, bench, ClientInfo(c.id, c.n, dict(c.facts))) for c in ranked)):
        demands += [functools.partial(p.check_ranks, bench.backbone) for p, _ in parts.values() if isinstance(p, LoRA)]
    reasons: dict[str, None] = {}
    if "all classes" in method.info.needs and bench.table.allowed is not None:
        why = "compares with the names or prototypes of all classes, so that none can be kept back"
        reasons[f"{method.info.slug} {why}: leave --novel and --test-on out, or choose another method."] = None
    for demand in demands:
        try:
            demand()
        except UserError as e:
            reasons[str(e)] = None
    if reasons:
        raise UserError(" ".join(reasons))
    if packing.alone(adaptation):
        room.check(method, bench, adaptation, servers)
    elements = sum(init.numel for _, init, _ in named(adaptation, bench.backbone) if init.kind != "lowrank")
    size, free = elements * bench.dtype.itemsize, packing.available_memory(bench.backbone.device)
    if size > free:
        raise UserError(
            f"{method.info.slug} with these settings trains {elements:,} numbers a client, {format_bytes(size)} of memory where "
            f"{format_bytes(free)} are free: make them smaller (weft methods {method.info.slug} lists the settings)."
        )


def sendable(server: ServerState, download_codec: str) -> None:
    """
    Raises:
        UserError: a codec would change terms that clients add to what they hold.
    """
    lossy = codec(download_codec).name != "identity"
    if lossy and server.method is not None and any(isinstance(value, LowRank) for value in server.shared.values()):
        raise UserError(
            f"{server.method.info.slug} sends terms that clients add to what they hold, which download_codec = "
            f'"{download_codec}" would change: leave --download-codec out.'
        )
