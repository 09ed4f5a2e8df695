"""How large the updates of a federation usually are: one that is far larger is refused before it reaches the mean."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

from torch import Tensor

from weft.aggregation.robust import norm
from weft.tensors.forms import Value
from weft.tensors.masked import Masked

WINDOW = 64
"""Accepted updates of a kind of round that are remembered: what is usual changes as a model learns."""


class Usual:
    """The running median of norms, by kind of round.

    Args:
        factor: an update may be so many times as large as the median. seen: from :attr:`seen` of an earlier process.
    """

    def __init__(self, factor: float, seen: Mapping[str, list[float]] | None = None):
        self.factor = factor
        self.seen: dict[str, list[float]] = {kind: list(norms) for kind, norms in (seen or {}).items()}

    def limit(self, kind: str, norms: Iterable[float]) -> float | None:
        """The largest norm that is accepted; None while nothing has moved.

        Args:
            norms: of the round at hand, which have a say too: in the first one there is nothing else to go by.
        """
        known = [n for n in (*self.seen.get(kind, ()), *norms) if n > 0]
        # the lower of two in the middle: their mean would follow a huge one
        return self.factor * statistics.median_low(known) if known else None

    def accepted(self, kind: str, norms: Iterable[float]) -> None:
        """Remember the updates of a round that counted."""
        self.seen[kind] = [*self.seen.get(kind, ()), *(n for n in norms if n > 0)][-WINDOW:]


def moved(tensors: Mapping[str, Value], held: Mapping[str, Value]) -> float:
    """The norm of an update: of its difference to what the client was sent, and of the whole of what it was not sent."""
    apart: dict[str, Tensor] = {}
    for name, value in tensors.items():
        old = held.get(name)
        if isinstance(old, Masked):
            old = old.dense()
        if isinstance(value, Masked):
            old = old[value.mask] if isinstance(old, Tensor) and old.shape == value.shape else None
            value = value.entries
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        same = isinstance(old, Tensor) and old.shape == value.shape
        apart[name] = value.double() - old.double().to(value.device) if same else value  # type: ignore[union-attr]
    return norm(apart)
