"""Who is drawn of those who are there, for each way in which a plan names its cohort."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from weft.engines.cohort import cohort, eligible
from weft.federation.client import ClientState
from weft.federation.round import Round, Who

PEOPLE = [ClientState(c, 1, {"domain": "xyx"[i % 3]}) for i, c in enumerate("abcdef")]  # x: a c d f; y: b e
AWAY = {"a", "b"}


def drawn(who: Who, share: float = 1.0, last: Sequence[str] = (), thrifty: bool = False, t: int = 0) -> str:
    """With ``thrifty`` the last of the alphabet are the cheapest."""
    order = (lambda some, lot: sorted(some, reverse=True)) if thrifty else None
    return "".join(c.id for c in cohort(0, Round(t, who=who), PEOPLE, share, last, lambda c: c not in AWAY, order))


@pytest.mark.parametrize(
    ("who", "wanted"), [("all", "cdef"), ("sample", "cdef"), ("same", "c"), (["b", "e", "f"], "ef"), (["a"], "")]
)
def test_nobody_who_is_away(who: Who, wanted: str) -> None:
    assert drawn(who, last=["a", "c"]) == wanted


def test_a_sample_is_a_share_of_all_and_filled_from_those_who_are_there() -> None:
    found = [drawn("sample", 0.5, t=t) for t in range(30)]
    assert {len(some) for some in found} == {3}
    assert set("".join(found)) == set("cdef")
    assert len(set(found)) > 2


def test_the_cheapest_of_a_sample_and_of_each_domain() -> None:
    assert drawn("sample", 0.5, thrifty=True) == "def"
    assert drawn(("domain",), thrifty=True) == "fe"
    assert drawn("all", thrifty=True) == "cdef"
    assert {drawn(("domain",), t=t)[1] for t in range(10)} == {"e"}


def test_whom_a_plan_would_have_does_not_depend_on_who_is_there() -> None:
    names = {who: "".join(c.id for c in eligible(Round(0, who=who), PEOPLE, ["a", "c"])) for who in ("all", "sample", "same")}
    assert names == {"all": "abcdef", "sample": "abcdef", "same": "ac"}
    assert [c.id for c in eligible(Round(0, who=["b", "q"]), PEOPLE, [])] == ["b"]
