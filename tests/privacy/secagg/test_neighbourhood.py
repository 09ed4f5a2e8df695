"""The graph of masks: symmetric, connected, of one degree, and the same whoever draws it."""

from __future__ import annotations

import math

import pytest

from secure_sums import names
from weft.communication.strict import Refused
from weft.privacy.secagg.neighbourhood import Neighbourhood
from weft.privacy.sums.sum_terms import SumTerms


def graph(n: int, round: int = 0, **terms: object) -> Neighbourhood:
    return Neighbourhood(SumTerms("a run", round, 1, **terms), tuple(sorted(names(n))))  # type: ignore[arg-type]


def reached(neighbours: dict[str, set[str]]) -> set[str]:
    """From any client on, by hand."""
    seen: set[str] = set()
    new = {next(iter(neighbours))}
    while new:
        seen |= new
        new = {v for u in new for v in neighbours[u]} - seen
    return seen


@pytest.mark.parametrize("degree", [None, 2, 6])
def test_it_is_symmetric_connected_and_regular(degree: int | None) -> None:
    for n in range(3, 201):
        drawn = graph(n, degree=degree)
        wanted = min(n - 1, degree or max(16, 2 * math.ceil(math.log2(n))))
        neighbours = {u: set(drawn.of(u)) for u in drawn.ids}
        for u in drawn.ids:
            assert len(neighbours[u] - {u}) == len(drawn.of(u)) == wanted
            assert list(drawn.of(u)) == sorted(drawn.of(u))
            assert all(u in neighbours[v] for v in drawn.of(u))
            assert drawn.holders(u) == tuple(sorted([u, *drawn.of(u)]))
        assert reached(neighbours) == set(drawn.ids)
        assert drawn.is_connected(drawn.ids)


def test_it_grows_with_the_logarithm() -> None:
    assert [SumTerms("a run", 0, 1).neighbours(n) for n in (2, 3, 17, 18, 200, 257, 1000, 100_000)] == [
        1,
        2,
        16,
        16,
        16,
        18,
        20,
        34,
    ]


def test_it_is_another_in_each_round() -> None:
    assert graph(30, 0, degree=2).of("site 0") != graph(30, 1, degree=2).of("site 0")


def test_parts_that_share_no_masks_are_refused() -> None:
    """A ring of 12 falls apart when two opposite clients stop."""
    drawn = graph(12, degree=2, share=0.6)
    ring = [drawn.ids[0]]
    while len(ring) < 12:
        ring.append(next(v for v in drawn.of(ring[-1]) if v not in ring))
    left = [c for c in ring if c not in (ring[3], ring[9])]
    assert not drawn.is_connected(left)
    assert drawn.is_connected([c for c in ring if c != ring[3]])
    with pytest.raises(Refused, match="fall into parts which share no masks"):
        drawn.check(drawn.ids, left)
