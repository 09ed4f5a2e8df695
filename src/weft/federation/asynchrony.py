"""Asynchronous aggregation: a server that waits for nobody, and what an update counts that began from an older model.

With x what the server holds, x_τ what the client was sent, y what it sends, and τ the number of the server's updates in between:

    FedAsync    x ← (1 - α s(τ)) x + α s(τ) y                  C. Xie, S. Koyejo, I. Gupta, arXiv 1903.03934
    FedBuff     x ← x + η Σ_i p_i s(τ_i) (y_i - x_τi)          J. Nguyen et al., AISTATS 2022, arXiv 2106.06639

FedBuff's sum is over the K updates in the buffer, p_i their weights as the method has them, 1/K each in the paper. η is that of
the server's step (:class:`weft.federation.server_step.ServerStep`), 1 without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Le
from torch import Tensor

from weft.errors import UserError
from weft.federation.part_weights import in_full
from weft.tensors.forms import Value
from weft.typed import Called, Count, Positive, check

Kind = Literal["fedasync", "fedbuff"]
KINDS: tuple[str, ...] = get_args(Kind)
Staleness = Literal["constant", "polynomial", "hinge"]
BUFFER, MIXING = 10, 0.6
"""K of FedBuff and α of FedAsync, as in most experiments of their papers."""


@dataclass(frozen=True)
class Late:
    """What the change counts that an update brings.

    Attributes:
        share: of it. since: the values that it is a change of; None = what the server holds now.
    """

    share: float
    since: Mapping[str, Value] | None = None

    def carried(self, held: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where the server's values are once it has taken this share of the change, in the place of the client's own.

        Args:
            held: the server's. sent: the client's; a smaller one is a leading slice.
        """
        before = held if self.since is None else in_full({n: v for n, v in self.since.items() if n in sent})
        found = {}
        for name, value in sent.items():
            now, base = (some[name][tuple(slice(0, n) for n in value.shape)].to(value) for some in (held, before))
            found[name] = self.share * value + (now - self.share * base)  # in this form the value itself, if nothing has changed
        return found


@dataclass(frozen=True)
class Asynchrony:
    """How a server goes on while clients are at work.

    Attributes:
        kind: ``fedasync``: with every update that comes. ``fedbuff``: with so many (``buffer``).
        concurrency: clients that train at any moment; None = as many as a round would have.
        buffer: K; None = 10, or as many as train at a time where these are fewer.
        mixing: α of ``fedasync``.
        staleness: s(τ): ``constant``: 1; ``polynomial``: (1 + τ)^-a; ``hinge``: 1 up to b, then 1 / (a (τ - b) + 1).
        a: None = 0.5, and 10 of ``hinge``. b: of ``hinge``.
    """

    kind: Annotated[Kind, Called("aggregation")]
    concurrency: Count | None = None
    buffer: Count | None = None
    mixing: Annotated[float, Gt(0), Le(1)] = MIXING
    staleness: Staleness = "polynomial"
    a: Positive | None = None
    b: Annotated[float, Ge(0)] = 4.0

    def __post_init__(self) -> None:
        check(self)

    def at_work(self, clients: int, participation: float) -> int:
        """How many clients train at any moment."""
        return min(self.concurrency or max(round(participation * clients), 1), clients)

    def taken(self, clients: int, participation: float) -> int:
        """How many updates the server waits for.

        Raises:
            UserError: they are more than there are clients, each of which has one update in a buffer at most.
        """
        if self.kind == "fedasync":
            return 1
        found = self.buffer or min(BUFFER, self.at_work(clients, participation))
        if found > clients:
            raise UserError(
                f"buffer is {found}, and {clients} clients can't fill it, for each has one update in it at most: give a smaller "
                "--buffer."
            )
        return found

    def factor(self, staleness: int) -> float:
        """s(τ)."""
        if self.staleness == "constant":
            return 1.0
        if self.staleness == "polynomial":
            return float((1 + staleness) ** -(0.5 if self.a is None else self.a))
        return 1.0 if staleness <= self.b else 1 / ((10.0 if self.a is None else self.a) * (staleness - self.b) + 1)

    def late(self, staleness: int, began: Mapping[str, Value]) -> Late:
        """What an update counts.

        Args:
            staleness: updates of the server since the client was sent its model. began: what that was.
        """
        share = self.factor(staleness)
        return Late(self.mixing * share) if self.kind == "fedasync" else Late(share, began)
