"""Which rows a client trains on in which step: a function of (seed, client, epoch) alone, so that packing changes nothing.

Batches are length-aware: rows of similar length share a batch, so that little of a padded batch is padding. The order in which
an epoch visits its batches is the same for all clients with equally many, which keeps the lengths within a pack alike too.
Papers draw batches at random; ``by_length=False`` does (benchmarks/batches.py measures the difference).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weft.tensors.keyed import numpy_generator


@dataclass(frozen=True)
class Plan:
    """Batches of one client's turn: arrays of positions in its training rows."""

    batches: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.batches)


def epoch_batches(
    lengths: np.ndarray,
    size: int,
    seed: int,
    client: str,
    epoch: int,
    stream: str = "main",
    by_length: bool = True,
    groups: np.ndarray | None = None,
) -> list[np.ndarray]:
    """One epoch of a client with ``len(lengths)`` rows, cut into batches of ``size`` (the last may be smaller).

    Args:
        groups: of the rows, [n]; rows of different ones share no batch. None = all are of one.
    """
    n = len(lengths)
    if n == 0:
        return []
    order = numpy_generator(seed, "batches", stream, client, epoch).permutation(n)
    if by_length:
        order = order[np.argsort(lengths[order], kind="stable")]
    each = [order] if groups is None else [order[groups[order] == group] for group in np.unique(groups)]
    cuts = [some[i : i + size] for some in each for i in range(0, len(some), size)]
    visit = numpy_generator(seed, "visit", stream, epoch, len(cuts)).permutation(len(cuts))
    return [cuts[i] for i in visit]


def turn(
    lengths: np.ndarray,
    *,
    size: int,
    seed: int,
    client: str,
    turn: int,
    epochs: float,
    steps: int | None,
    stream: str = "main",
    by_length: bool = True,
    cap: int | None = None,
    groups: np.ndarray | None = None,
) -> Plan:
    """The batches of a client's ``turn``-th turn (counted by server rounds).

    With ``steps`` a turn is that many batches; otherwise ``epochs``, of which a fraction takes the next part of an epoch that
    goes on over the rounds: four turns of a quarter see each row once. With ``cap`` an epoch ends after so many batches.
    ``groups`` as of :func:`epoch_batches`.
    """
    n = len(lengths)
    if n == 0:
        return Plan([])
    rows = [n] if groups is None else np.unique(groups, return_counts=True)[1].tolist()
    per_epoch = sum(math.ceil(own / size) for own in rows)
    if cap is not None:
        per_epoch = min(per_epoch, max(cap, 1))
    if steps is not None:
        first, last = turn * steps, (turn + 1) * steps
    else:
        first, last = round(turn * epochs * per_epoch), round((turn + 1) * epochs * per_epoch)
        last = max(last, first + 1)
    found: list[np.ndarray] = []
    for epoch in range(first // per_epoch, (last - 1) // per_epoch + 1):
        batches = epoch_batches(lengths, size, seed, client, epoch, stream, by_length, groups)
        a = max(first - epoch * per_epoch, 0)
        b = min(last - epoch * per_epoch, per_epoch)
        found += batches[a:b]
    return Plan(found)


def chunks_by_length(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """All positions, longest first, in chunks of at most ``tokens`` padded tokens: for evaluation."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = max(int(lengths[order[start]]), 1)
        count = max(tokens // width, 1)
        yield order[start : start + count]
        start += count
