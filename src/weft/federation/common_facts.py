"""What the clients of a federation have for a fact between them: which domains there are, which tasks, which languages.

A method that asks for the fact ``every domain`` finds in it the values of the fact ``domain`` over all clients, sorted. Each of
them has the same list, and so has the client of id "", for which the server's own parts are made: what has an entry for each
domain is of one size everywhere. The list is settled before the first round, and whoever joins later has one of its values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from weft.errors import UserError, nearest
from weft.federation.message import ClientInfo

EVERY = "every "
"""Begins the name of such a fact."""


def settle(clients: Sequence[ClientInfo]) -> None:
    """Tell all clients the values of each fact that is a text, a number or a truth value; others have no list."""
    for client in clients:
        client.facts = own(client.facts)
    found: dict[str, set[tuple[str, Any]]] = {}
    for client in clients:
        for name, value in client.facts.items():
            if isinstance(value, str | bool | int | float):
                found.setdefault(EVERY + name, set()).add((type(value).__name__, value))
    lists = {name: [value for _, value in sorted(values)] for name, values in found.items()}
    for client in clients:
        client.facts = client.facts | lists


def own(facts: dict[str, Any]) -> dict[str, Any]:
    """Those of a client's facts that are its own to tell."""
    return {name: value for name, value in facts.items() if not name.startswith(EVERY)}


def common(facts: dict[str, Any]) -> dict[str, Any]:
    """Those of a client's facts that all clients have."""
    return {name: value for name, value in facts.items() if name.startswith(EVERY)}


def nobody(clients: Iterable[ClientInfo]) -> ClientInfo:
    """The client of id "", as which a server is asked for its own parts: it knows what all clients know, and has no facts of its
    own. Of a federation without clients yet it knows nothing.
    """
    return ClientInfo("", facts=common(next(iter(clients), ClientInfo("")).facts))


def check(client: ClientInfo) -> None:
    """
    Raises:
        UserError: a client that joins later tells a fact that was settled without its value.
    """
    for name, values in common(client.facts).items():
        fact = name.removeprefix(EVERY)
        if fact in client.facts and client.facts[fact] not in values:
            told, known = client.facts[fact], [str(v) for v in values]
            raise UserError(
                f'its {fact} is "{told}", and the federation began with {", ".join(known)}: give it one of these, or begin '
                f"another run.{nearest(str(told), known)}"
            )
