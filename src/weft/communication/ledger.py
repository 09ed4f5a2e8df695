"""The bytes that cross the wire, counted exactly and kept small.

Two columns throughout: *payload* is what the codec made of tensors and facts, the number of a paper's
formula; *wire* is the whole message with its headers. Set-up and evaluation are phases of their own, so that
neither hides in the cost of training, and the head is a part like any other, so that it can be shown apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from weft.communication import Direction
from weft.errors import UserError

Phase: TypeAlias = Literal["setup", "train", "eval"]

_PHASES: tuple[str, ...] = get_args(Phase)
_DIRECTIONS: tuple[str, ...] = get_args(Direction)


@dataclass
class Totals:
    """Bytes of some messages.

    Attributes:
        messages: how many.
        wire: bytes, headers included.
        parts: payload bytes per part, facts as ``"facts"``.
    """

    messages: int = 0
    wire: int = 0
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def payload(self) -> int:
        """Bytes without headers."""
        return sum(self.parts.values())

    def _add(self, messages: int, wire: int, parts: Mapping[str, int]) -> None:
        self.messages += messages
        self.wire += wire
        for part, count in parts.items():
            self.parts[part] = self.parts.get(part, 0) + count


@dataclass(frozen=True)
class ClientTotals:
    """Bytes from or to one client, over all rounds."""

    messages: int
    payload: int
    wire: int


@dataclass
class _Row:
    """One (round, phase, direction): every receiver billed, and identical broadcasts billed once."""

    unicast: Totals = field(default_factory=Totals)
    once: Totals = field(default_factory=Totals)
    broadcasts: set[str] = field(default_factory=set)


class Ledger:
    """Bytes per (round, phase, direction, part), and per (client, phase, direction) over all rounds.

    Its size grows with rounds plus clients, not with their product. A message is billed to each receiver
    (unicast); where the same bytes go to several, ``broadcast`` says so, and totals can count them once.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str, str], _Row] = {}
        self._clients: dict[tuple[str, str, str], ClientTotals] = {}

    def add(
        self,
        round: int,
        phase: Phase,
        direction: Direction,
        client: str,
        payload: Mapping[str, int],
        wire: int,
        *,
        broadcast: str | None = None,
    ) -> None:
        """Bill one message.

        Args:
            round: index of the round.
            phase: what it was for.
            direction: ``down`` to the client or ``up`` from it.
            client: id of the client.
            payload: bytes per part.
            wire: bytes with headers.
            broadcast: for bytes that go to several clients, a name for these bytes, unique within the round,
                phase
                and direction.

        Raises:
            ValueError: for an unknown phase or direction, or negative bytes.
        """
        _check(phase, direction)
        if wire < 0 or min(payload.values(), default=0) < 0:
            raise ValueError("bytes cannot be negative")
        row = self._rows.setdefault((round, phase, direction), _Row())
        row.unicast._add(1, wire, payload)
        if broadcast is None or broadcast not in row.broadcasts:
            row.once._add(1, wire, payload)
        if broadcast is not None:
            row.broadcasts.add(broadcast)
        key = (client, phase, direction)
        old = self._clients.get(key, ClientTotals(0, 0, 0))
        self._clients[key] = ClientTotals(old.messages + 1, old.payload + sum(payload.values()), old.wire + wire)

    def totals(
        self,
        *,
        round: int | None = None,
        phase: Phase | None = None,
        direction: Direction | None = None,
        broadcast_once: bool = False,
    ) -> Totals:
        """Sums over all that was billed for this round, phase and direction; None stands for all of them.

        Args:
            round, phase, direction: which messages.
            broadcast_once: count identical broadcasts once instead of per receiver.
        """
        result = Totals()
        for key, row in self._rows.items():
            if all(wanted in (None, found) for wanted, found in zip((round, phase, direction), key, strict=True)):
                some = row.once if broadcast_once else row.unicast
                result._add(some.messages, some.wire, some.parts)
        return result

    def by_client(self, *, phase: Phase | None = None, direction: Direction | None = None) -> dict[str, ClientTotals]:
        """Bytes per client over all rounds, each receiver billed; clients in the order of their ids."""
        result: dict[str, ClientTotals] = {}
        for (client, its_phase, its_direction), some in sorted(self._clients.items()):
            if phase in (None, its_phase) and direction in (None, its_direction):
                old = result.get(client, ClientTotals(0, 0, 0))
                result[client] = ClientTotals(old.messages + some.messages, old.payload + some.payload, old.wire + some.wire)
        return result

    def wires(self) -> dict[str, tuple[int, int]]:
        """Bytes to and from each client so far, but for those of evaluation."""
        found: dict[str, tuple[int, int]] = {}
        for (client, phase, direction), some in self._clients.items():
            if phase != "eval":
                down, up = found.get(client, (0, 0))
                found[client] = (down + some.wire, up) if direction == "down" else (down, up + some.wire)
        return found

    def as_records(self) -> list[dict[str, Any]]:
        """JSON-simple records of all it holds, in a fixed order; :meth:`from_records` reads them."""
        records: list[dict[str, Any]] = []
        for (round, phase, direction), row in sorted(self._rows.items()):
            records.append(
                {
                    "round": round,
                    "phase": phase,
                    "direction": direction,
                    "unicast": _totals_record(row.unicast),
                    "once": _totals_record(row.once),
                    "broadcasts": sorted(row.broadcasts),
                }
            )
        for (client, phase, direction), some in sorted(self._clients.items()):
            records.append(
                {
                    "client": client,
                    "phase": phase,
                    "direction": direction,
                    "messages": some.messages,
                    "payload": some.payload,
                    "wire": some.wire,
                }
            )
        return records

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> Ledger:
        """The ledger that gave these records.

        Raises:
            UserError: if they are not such records.
        """
        ledger = cls()
        try:
            for record in records:
                phase, direction = record["phase"], record["direction"]
                _check(phase, direction)
                if "client" in record:
                    counts = (_count(record[name]) for name in ("messages", "payload", "wire"))
                    ledger._clients[str(record["client"]), phase, direction] = ClientTotals(*counts)
                else:
                    ledger._rows[int(record["round"]), phase, direction] = _Row(
                        _read_totals(record["unicast"]),
                        _read_totals(record["once"]),
                        {str(name) for name in record["broadcasts"]},
                    )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"The record of bytes sent is damaged ({type(error).__name__}: {error}); "
                "resume from an older checkpoint or start the run anew."
            ) from None
        return ledger


class Unbilled(Ledger):
    """Keeps the messages of turns apart whose time has not come yet.

    Attributes:
        bills: by client, the payload of its message by part, and its bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bills: dict[str, tuple[dict[str, int], int]] = {}

    def add(
        self, round: int, phase: Phase, direction: Direction, client: str, payload: Mapping[str, int], wire: int, **_: Any
    ) -> None:
        self.bills[client] = dict(payload), wire


def format_bytes(count: float) -> str:
    """Bytes for people, to three digits in decimal units: ``999 B``, ``1.00 kB``, ``2.65 MB``."""
    if count < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        for limit, digits in ((9.995, 2), (99.95, 1), (999.5, 0)):
            if count < limit:
                return f"{count:.{digits}f} {unit}"
    return f"{count:.0f} TB"


def _check(phase: str, direction: str) -> None:
    if phase not in _PHASES:
        raise ValueError(f"phase must be one of {', '.join(_PHASES)}, not {phase!r}")
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction must be down or up, not {direction!r}")


def _totals_record(some: Totals) -> dict[str, Any]:
    return {"messages": some.messages, "wire": some.wire, "parts": dict(sorted(some.parts.items()))}


def _read_totals(record: Mapping[str, Any]) -> Totals:
    parts = {str(part): _count(count) for part, count in record["parts"].items()}
    return Totals(_count(record["messages"]), _count(record["wire"]), parts)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
