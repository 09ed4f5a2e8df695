"""A low-rank sum that grows by a term a round, held on both sides of the wire: when it is compressed, and what stays apart.

A sum of rank R over d = min(d_out, d_in) can be had at rank d, by a QR that costs more than the sums of many rounds. So it is
left alone until its rank passes 1.5 d, and is then brought to d: with terms of rank r that is one QR in d/2r rounds, and factors
of at most 1.5 d (d_out + d_in) elements. Whoever owes terms to others keeps the newest ones as they are beside the rest, less
than d of them, since from d on the whole is no larger: 2.5 d in all.

Two sides that compress at different times, or got a term later than others, hold the same product in other factors.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.tensors.lowrank import LowRank

SLACK = 1.5

Terms = list[tuple[int, int]]
"""Of which terms a sum consists, oldest first: (stamp, rank) of each. The first may be all that was compressed, and carries the
stamp of the newest term in it."""


def grow(value: LowRank, term: LowRank, keep: int = 0) -> LowRank:
    """``value + term``, the term last; compressed, but for the last ``keep`` of its rank, once that pays."""
    total = value + term
    return total.compress(keep) if total.rank - keep > SLACK * min(total.shape) else total


def after(terms: Terms, since: int) -> int:
    """Rank of the terms that are newer than ``since``: all there is, if some of them are no longer apart from older ones."""
    return sum(rank for stamp, rank in terms if stamp > since)


def owed(terms: Terms, sinces: Iterable[int], d: int) -> int:
    """Rank of the newest terms that must stay apart for those who hold the sum as of ``sinces``, below d."""
    return max((rank for since in set(sinces) if (rank := after(terms, since)) < d), default=0)


def folded(terms: Terms, keep: int, rank: int) -> Terms:
    """The terms of a sum of rank ``rank`` once all but the last ``keep`` of its rank are one."""
    kept: Terms = []
    for stamp, r in reversed(terms):
        if sum(r for _, r in kept) == keep:
            return [(stamp, rank - keep), *reversed(kept)]
        kept.append((stamp, r))
    return list(reversed(kept))
