"""Means of a round's updates, or what a rule puts in their place, as the server's new values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from torch import Tensor

from weft.aggregation.mean import Weight
from weft.federation.message import Update
from weft.federation.part_weights import by_entry, in_full
from weft.federation.robust_mean import Robust, Vote
from weft.federation.scope import matches
from weft.federation.server_step import ServerStep
from weft.tensors.forms import Value
from weft.tensors.masked import Masked


class Averages:
    """Attributes: see :class:`weft.federation.server.ServerState`."""

    shared: dict[str, Value]
    memo: dict[str, Any]
    weighting: str
    robust: Robust
    step: ServerStep
    remarks: dict[str, Any]

    def write(self, name: str, value: Value) -> None:
        raise NotImplementedError

    def weigh(self, update: Update) -> float:
        """What an update weighs in a mean, as the method's ``weighting`` has it."""
        return 1.0 if self.weighting == "uniform" else update.weight

    def mean(
        self,
        updates: Iterable[Update],
        only: str | Iterable[str] = "*",
        weight: Callable[[Update], Weight] | None = None,
        absent: Literal["kept", "unmoved"] = "kept",
        leading: bool = False,
    ) -> None:
        """Federated averaging (McMahan et al., 2017): each tensor becomes the weighted mean over the clients that sent it.

        Or what ``robust`` puts in its place, and what ``step`` then makes of it. The mean streams: one update is held at a time.

        Args:
            only: patterns of the tensors.
            weight: of an update, of each of its tensors or of each of their entries, instead; what has weight 0 is as if absent.
            absent: what a tensor is that a client did not send: no part of the mean (``kept``: one that nobody sent stays as it
                is), or as the server holds it (``unmoved``: the mean is over all who sent anything).
            leading: a smaller tensor is the leading slice of what the server holds; entries that nobody sent stay as they are.

        Of a :class:`Masked` its entries count. Where the server holds one, it has the same ones afterwards.
        """
        for name, value in self.average(updates, only, weight, absent, leading).items():
            self.write(name, self.like_held(name, value))

    def average(
        self,
        updates: Iterable[Update],
        only: str | Iterable[str] = "*",
        weight: Callable[[Update], Weight] | None = None,
        absent: Literal["kept", "unmoved"] = "kept",
        leading: bool = False,
        stepped: bool = True,
    ) -> dict[str, Tensor]:
        """What :meth:`mean` writes, also of tensors that are no DOWN tensors (:meth:`Method.uploads`): those count from 0.

        Args:
            stepped: False: without the server's step, for values that nobody has trained.
        """
        patterns = (only,) if isinstance(only, str) else tuple(only)
        held = {n: v for n, v in in_full(self.shared).items() if matches(n, patterns)}

        def votes() -> Iterator[Vote]:
            for update in updates:
                sent = {n: v for n, v in update.tensors.items() if matches(n, patterns)}
                tensors = in_full(sent)
                if update.late is not None:
                    tensors = update.late.carried(held, tensors)
                if absent == "unmoved":
                    tensors = held | tensors
                counts = (weight or self.weigh)(update)
                yield Vote(update.client.id, tensors, by_entry(counts, tensors, sent))

        outcome = self.robust.combine(held, votes(), leading)
        self.remarks |= {"rule": self.robust.rule} | outcome.remarks
        found = {}
        for name, value in outcome.tensors.items():
            before, reached = held.get(name), outcome.reached.get(name)
            found[name] = value if before is None or not stepped else self.step.taken(self.memo, name, before, value, reached)
        return found

    def like_held(self, name: str, value: Tensor) -> Value:
        """A whole tensor, or the entries that the server holds of it."""
        held = self.shared.get(name)
        return Masked.of(value, held.mask) if isinstance(held, Masked) else value
