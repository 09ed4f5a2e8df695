"""A round's updates as one: what a method is given whose server is not to see any single one of them.

A method whose server needs nothing but sums (:attr:`weft.federation.method.Method.sums`) comes to the same if every update is the
mean of all. So it is given updates that are all made of that mean, and nothing else of the round.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from weft.aggregation import robust
from weft.errors import UserError
from weft.federation.exchange import uploaded
from weft.federation.message import ClientInfo, Update
from weft.federation.rounds import adapted
from weft.federation.scope import matches
from weft.federation.server import ServerState
from weft.tensors.forms import Value
from weft.tensors.init import leading

if TYPE_CHECKING:
    from weft.federation.method import Method

Shapes = Mapping[str, tuple[int, ...]]


class OneMean:
    """Puts the mean of a round in the place of its updates."""

    def __init__(self, method: Method, server: ServerState):
        self.method, self.server = method, server
        self._shapes: dict[tuple[str, str], Shapes] = {}
        self._alike: dict[tuple[str, str], list[ClientInfo]] = {}  # clients are many, kinds few
        for client in server.clients:
            self._alike.setdefault(_kind(client), []).append(client)

    def own(self, client: ClientInfo) -> Shapes:
        """Shapes of all that a client may send in the round, by name; clients of one kind have them in common."""
        kind = _kind(client)
        if kind not in self._shapes:
            adaptation = adapted(self.method, self.server.bench, client)
            found = uploaded(self.method, self.server, client, adaptation)
            sent = (*self.method.sent(self.server.round), *self.method.uploads(self.server, client))
            shapes = {n: s for n, s in found.items() if isinstance(s, tuple) and None not in s and matches(n, sent)}
            self._shapes[kind] = shapes  # type: ignore[assignment]  # there is no None in them
        return self._shapes[kind]

    def each(self) -> Iterator[tuple[Shapes, int]]:
        """What clients of each kind may send, and how many they are."""
        yield from ((self.own(clients[0]), len(clients)) for clients in self._alike.values())

    def kinds(self, name: str) -> Counter[tuple[int, ...]]:
        """How many of all clients may send a tensor, by the shape that they have of it."""
        found: Counter[tuple[int, ...]] = Counter()
        for own, count in self.each():
            if name in own:
                found[own[name]] += count
        return found

    def whole(self, name: str) -> tuple[int, ...]:
        """The shape in which a tensor is summed: the server's own, or the largest that a client has."""
        value = self.server.shared.get(name)
        if isinstance(value, Tensor):
            return tuple(value.shape)
        return tuple(max(sides) for sides in zip(*self.kinds(name), strict=True))

    def holders(self, name: str) -> Tensor:
        """How many of all clients have a tensor, by its entries where some have less than the whole; above 0."""
        return spread(self.whole(name), self.kinds(name)).clamp(min=1e-12)

    def given(self, clients: Iterable[ClientInfo], mean: Mapping[str, Tensor]) -> Iterator[Update]:
        """Updates of these clients that are all made of the mean.

        Args:
            mean: by name, of what clients have changed.
        """
        for client in clients:
            own = self.own(client)
            tensors: dict[str, Value] = {n: self._value(n, mean[n], own[n]) for n in mean if n in own}
            yield Update(tensors=tensors, client=client, weight=1.0, adaptation=adapted(self.method, self.server.bench, client))

    def expected(self, chance: float) -> list[ClientInfo]:
        """As many clients of each kind as take part on average, and one at least: the same ones whoever took part."""
        return [c for clients in self._alike.values() for c in clients[: max(1, round(chance * len(clients)))]]

    def _value(self, name: str, mean: Tensor, shape: tuple[int, ...]) -> Tensor:
        """What an update that is the mean holds of a tensor."""
        base = self.server.shared.get(name, self.server.start.get(name))
        begun = leading(base, shape).double() if isinstance(base, Tensor) else 0.0
        return (begun + leading(mean, shape)).to(self.server.bench.dtype)


def _kind(client: ClientInfo) -> tuple[str, str]:
    """Clients of which this is the same may send the same."""
    return client.model, json.dumps(client.facts, sort_keys=True, default=repr)


def spread(whole: tuple[int, ...], counts: Mapping[tuple[int, ...], int]) -> Tensor:
    """float64 of shape ``whole``: for each entry, the counts of those shapes that have it, added up."""
    found = torch.zeros(whole, dtype=torch.float64)
    for shape, count in counts.items():
        found[tuple(slice(0, n) for n in shape)] += count
    return found


def changed(tensors: Mapping[str, Value], held: Mapping[str, Value], link: str) -> dict[str, Tensor]:
    """What a client has changed of its tensors, in float64.

    Args:
        held: what it began from; what it did not hold in the same shape, it began from 0.
        link: which mechanism asks, for the sentence.

    Raises:
        UserError: one of them has no norm.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f'"{name}" has no norm that {link} could bound: choose another method.')
    return {n: _apart(v, held.get(n)) for n, v in tensors.items() if isinstance(v, Tensor)}


def clipped(change: Mapping[str, Tensor], norm: float) -> tuple[dict[str, Tensor], bool]:
    """A change scaled down to a norm, over all tensors together, and whether it was within it."""
    size = robust.norm(change)
    if size <= norm:
        return dict(change), True
    factor = norm / size if math.isfinite(size) else 0.0
    return {n: d * factor if factor else torch.zeros_like(d) for n, d in change.items()}, False


def begun_from(base: Value | None, value: Tensor) -> TypeGuard[Tensor]:
    """Whether a client's tensor began from what it held under that name; else it began from 0."""
    return isinstance(base, Tensor) and base.shape == value.shape


def _apart(value: Tensor, base: Value | None) -> Tensor:
    value = value.detach().to("cpu", torch.float64)
    return value - base.detach().to("cpu", torch.float64) if begun_from(base, value) else value
