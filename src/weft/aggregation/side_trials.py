"""Side trials of FedAdapter (D. Cai et al., MobiCom 2023, arXiv 2205.10162): which groups try what, how long, and who wins.

A configuration is a depth δ, of blocks that have adapters, counted from the output, and a width ω, of all bottlenecks of a block
together. Seconds are those of a cost model, whose tables are of BERT on a Jetson TX2, with rows of 256 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

GROUPS = ("stay", "wide", "deep")
"""In the order in which the better one is taken of those that are equally good."""

WAYS, BYTES = 2, 4
"""A message goes down and up; its numbers are of single precision."""
HEAD_MILLIONS, BLOCK_MILLIONS = 0.02, 0.05 / 32
"""Millions of numbers of a head, and of a block's adapters for each of their width."""


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    Attributes:
        bandwidth: megabytes. head_seconds: of a batch where the head alone is trained. block_seconds: of a batch for each block
            with adapters, where all blocks below are read from a cache.
    """

    bandwidth: float = 1.0
    head_seconds: float = 0.02
    block_seconds: float = 0.09

    def of_round(self, depth: int, width: int, batches: float) -> float:
        """Seconds of a round with so many batches."""
        sent = WAYS * BYTES * (HEAD_MILLIONS + BLOCK_MILLIONS * depth * width) / self.bandwidth
        return sent + batches * (self.block_seconds * depth if depth else self.head_seconds)


@dataclass(frozen=True)
class Group:
    """One group in a trial.

    Attributes:
        depth, width: what it tries. cost: seconds of a round. rounds: that it plays. played: of these, so far.
        score: the best so far; None = it has none yet.
    """

    depth: int
    width: int
    cost: float
    rounds: int
    played: int = 0
    score: float | None = None

    @property
    def clock(self) -> float:
        """Seconds of the trial that its rounds have taken."""
        return self.played * self.cost

    @property
    def over(self) -> bool:
        return self.played == self.rounds


def neighbours(depth: int, width: int, deeper: int, wider: int, deepest: int, widest: int) -> dict[str, tuple[int, int]]:
    """The configuration of each group, without those that would try the same as ``stay``.

    From the head alone the first step goes to two blocks at least.

    Args:
        deeper: blocks that ``deep`` has more. wider: by how much ``wide`` is wider. deepest, widest: the most that there may be.
    """
    deep = max(depth + deeper, 2) if deeper and not depth else depth + deeper
    found = {"stay": (depth, width), "wide": (depth, min(width + wider, widest)), "deep": (min(deep, deepest), width)}
    return {group: own for group, own in found.items() if group == "stay" or own != (depth, width)}


def seconds_of_trial(depth: int, factor: float) -> float:
    """T = f (4 δ + 1)."""
    return factor * (4 * depth + 1)


def rounds_within(seconds: float, cost: float) -> int:
    """How many rounds of a group a trial has room for: one at least, or nothing could be said of the group."""
    return max(math.floor(seconds / cost), 1)


def begun(tried: Mapping[str, tuple[int, int]], seconds: float, rates: Rates, batches: float) -> dict[str, Group]:
    """The groups of a trial.

    Args:
        tried: of :func:`neighbours`. batches: of a client in a round.
    """
    costs = {group: rates.of_round(*own, batches) for group, own in tried.items()}
    return {group: Group(*own, costs[group], rounds_within(seconds, costs[group])) for group, own in tried.items()}


def next_to_play(groups: Mapping[str, Group]) -> list[str]:
    """Those with rounds left that begin their next one before the first of them ends its own, the furthest behind first."""
    left = {group: own for group, own in groups.items() if not own.over}
    first = min((own.clock + own.cost for own in left.values()), default=0.0)
    return sorted((group for group, own in left.items() if own.clock < first), key=lambda group: left[group].clock)


def winner(groups: Mapping[str, Group]) -> str | None:
    """The group with the highest score; of equal ones the first of :data:`GROUPS`. None if none has a score."""
    scores = {group: own.score for group in GROUPS if (own := groups.get(group)) is not None and own.score is not None}
    return max(scores, key=lambda group: scores[group]) if scores else None
