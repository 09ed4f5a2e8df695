"""What a server does instead of a plain mean where it does not trust every update, and what it then says of the round."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weft.aggregation import robust
from weft.aggregation.mean import Weight, WeightedMean, weighted_mean
from weft.errors import UserError, nearest

RULES = ("none", "clip", "median", "trimmed", "krum", "multi-krum")


class Vote(NamedTuple):
    """One client's part in a mean. What has weight 0 is as if absent."""

    client: str
    tensors: dict[str, Tensor]
    weight: Weight

    @property
    def counts(self) -> bool:
        """Whether anything of it has a weight."""
        given = self.weight.values() if isinstance(self.weight, Mapping) else [self.weight]
        return any(bool(torch.as_tensor(w > 0).any()) for w in given)

    @property
    def in_parts(self) -> bool:
        """Whether entries of one tensor may count differently."""
        return isinstance(self.weight, Mapping) and any(isinstance(w, Tensor) for w in self.weight.values())

    def whole(self) -> Vote:
        """Only the tensors that count, each as much as the next."""
        if not isinstance(self.weight, Mapping):
            return self if self.weight > 0 else Vote(self.client, {}, 0.0)
        return Vote(self.client, {n: t for n, t in self.tensors.items() if float(self.weight[n]) > 0}, 1.0)


@dataclass
class Outcome:
    """What became of the votes.

    Attributes:
        tensors: new values by name; what is absent stays as it was.
        remarks: of the round, for ``rounds.jsonl``: ``limit`` and ``clipped``; ``chosen``; ``unchanged``, how many tensors too
            few clients sent; ``skipped``, why nothing was aggregated at all.
        reached: which entries are new [bool], of tensors of which only some are.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    remarks: dict[str, Any] = field(default_factory=dict)
    reached: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Robust:
    """The rule of a mean, and how much malice it is to withstand.

    ``none`` and ``clip`` with a norm take one update at a time; all others hold the round's updates in memory together.

    Attributes:
        rule: ``none``: the mean. ``clip``: the mean of updates whose difference to what the server holds is scaled down to
            ``norm``, or, where that is None, to the median norm of the round. ``median``, ``trimmed``: of each coordinate.
            ``krum``: the one update nearest to its neighbours. ``multi-krum``: the mean of several of them. Weights count for
            ``none`` and ``clip``; for the others each client has one vote, since an example count is what a client says.
        share: of the updates that is taken for bad, rounded up; of no meaning for ``none`` and ``clip``.
    """

    rule: str = "none"
    norm: float | None = None
    share: float = 0.2

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f'there is no robust rule "{self.rule}": use {", ".join(RULES)}.{nearest(self.rule, RULES)}')
        if self.norm is not None and (self.rule != "clip" or not self.norm > 0):
            raise UserError(
                f'robust_norm is the largest norm of an update, above 0, and goes with robust = "clip", not "{self.rule}".'
            )
        if not 0 <= self.share < 0.5:
            raise UserError(
                f"robust_share is {self.share}, but must be at least 0 and less than 0.5: no rule survives a majority."
            )

    # before a run -----------------------------------------------------------------------------------------------------

    def check(self, slug: str, sums: bool, cohort: int, in_part: bool = False) -> None:
        """Refuse what can't work.

        Args:
            slug, sums: the method's. cohort: how many clients a round is planned with. in_part: they send some
                entries of tensors.

        Raises:
            UserError: the method needs more than sums, or the rule needs more clients or whole tensors.
        """
        if self.rule == "none":
            return
        if not sums:
            raise UserError(
                f'{slug} needs each update by itself and not their mean, so robust = "{self.rule}" can\'t stand in for it: '
                "leave --robust out, or choose a method such as fedit."
            )
        if in_part and self.rule != "clip":
            raise UserError(
                f'robust = "{self.rule}" compares whole tensors, and clients of {slug} send parts of them: leave --robust out, '
                'or take "clip".'
            )
        if need := self._lacking(cohort):
            raise UserError(f"{need}, and {cohort} take part in a round: have more of them, or lower robust_share.")

    def _lacking(self, count: int) -> str:
        """What is wrong with so few updates, or ``""``."""
        bad = robust.assumed_bad(count, self.share)
        need = {"median": 2 * bad + 1, "trimmed": 2 * bad + 1, "krum": 2 * bad + 3, "multi-krum": 2 * bad + 3}.get(self.rule, 0)
        if count >= need:
            return ""
        return f'robust = "{self.rule}" with robust_share {self.share:g} takes {bad} of {count} for bad and needs at least {need}'

    # in a round -------------------------------------------------------------------------------------------------------

    def combine(self, held: Mapping[str, Tensor], votes: Iterable[Vote], leading: bool = False) -> Outcome:
        """New values from a round's votes.

        Args:
            held: what the server holds, and sent to the clients. votes: in an order that does not depend on arrival.
            leading: smaller tensors are leading slices of what the server holds.

        Raises:
            UserError: Krum, and most clients send different tensors; or a rule of whole tensors, and clients send parts of them.
        """
        if self.rule == "none":
            mean, reached = _mean(((v.tensors, v.weight) for v in votes), held, leading)
            return Outcome(mean, reached=reached)
        if self.rule == "clip":
            return self._clipped(held, votes, leading)
        votes = list(votes)
        if leading or any(v.in_parts for v in votes):
            raise UserError(
                f'robust = "{self.rule}" compares whole tensors, and clients of this method send parts of them: leave --robust '
                'out, or take "clip".'
            )
        given = [v for v in map(Vote.whole, votes) if v.tensors]
        if not given:
            return Outcome()
        if few := self._lacking(len(given)):
            return Outcome(remarks={"skipped": f"{few}: nothing was aggregated"})
        if self.rule in ("krum", "multi-krum"):
            return self._chosen(given)
        updates = [v.tensors for v in given]
        rare = {n for n, count in Counter(n for u in updates for n in u).items() if self._lacking(count)}
        updates = [{n: t for n, t in u.items() if n not in rare} for u in updates]
        found = robust.median(updates) if self.rule == "median" else robust.trimmed_mean(updates, self.share)
        return Outcome(found, {"unchanged": len(rare)} if rare else {})

    def _clipped(self, held: Mapping[str, Tensor], votes: Iterable[Vote], leading: bool) -> Outcome:
        limit, clipped = self.norm, []
        if limit is None:
            votes = [v for v in votes if v.counts]
            if not votes:
                return Outcome()
            # the lower of two in the middle: their mean would follow a huge one
            limit = statistics.median_low(robust.distance(v.tensors, _like(v.tensors, held)) for v in votes)

        def within() -> Iterator[tuple[dict[str, Tensor], Weight]]:
            for vote in votes:
                tensors = robust.clip(vote.tensors, _like(vote.tensors, held), limit)
                if any(tensors[n] is not t for n, t in vote.tensors.items()):
                    clipped.append(vote.client)
                yield tensors, vote.weight

        mean, reached = _mean(within(), held, leading)
        return Outcome(mean, {"limit": limit, "clipped": clipped}, reached)

    def _chosen(self, votes: list[Vote]) -> Outcome:
        names, _ = Counter(frozenset(v.tensors) for v in votes).most_common(1)[0]
        alike = [v for v in votes if v.tensors.keys() == names]
        if 2 * len(alike) <= len(votes):  # not the doing of a minority
            raise UserError(
                f'only {len(alike)} of {len(votes)} clients sent the same tensors, and robust = "{self.rule}" compares whole '
                "updates: use median or trimmed with a method whose clients send different ones."
            )
        if few := self._lacking(len(alike)):
            return Outcome(remarks={"skipped": f"{few} that send the same tensors: nothing was aggregated"})
        bad = robust.assumed_bad(len(alike), self.share)
        updates = [v.tensors for v in alike]
        chosen = [robust.krum(updates, bad)] if self.rule == "krum" else robust.multi_krum(updates, bad)
        return Outcome(weighted_mean((updates[i], 1.0) for i in chosen), {"chosen": [alike[i].client for i in chosen]})


def _mean(
    votes: Iterable[tuple[Mapping[str, Tensor], Weight]], held: Mapping[str, Tensor], leading: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The mean, and which entries it reaches."""
    mean = WeightedMean(leading)
    for tensors, weight in votes:
        mean.add(tensors, weight)
    return mean.result(held), mean.reached(held)


def _like(tensors: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is held of these tensors: of smaller ones the leading slice, of others nothing."""

    def of(name: str, tensor: Tensor) -> Tensor:
        return held[name][tuple(slice(0, size) for size in tensor.shape)] if name in held else torch.zeros_like(tensor)

    return {n: of(n, t) for n, t in tensors.items()}
