"""Sums under masks are the plain sums over those who have sent a masked vector, whoever stops and when."""

from __future__ import annotations

import numpy as np
import pytest

from secure_sums import begun, names, plain_sum
from weft.communication.strict import Refused
from weft.errors import UserError
from weft.privacy.secagg.neighbourhood import Neighbourhood
from weft.privacy.sums.packets import SECAGG, Kind, packed, unpacked
from weft.privacy.sums.sum_terms import SumTerms

SEVEN = Neighbourhood(SumTerms("a run", 3, 1), tuple(names(7)))
SPARE = 7 - SEVEN.threshold  # how many of seven, each of whom holds shares of all, may stop


@pytest.mark.parametrize("n", [3, 4, 7, 20])
def test_a_sum_is_the_plain_sum(n: int) -> None:
    sum_ = begun(n).played()
    assert sum_.server.total().tolist() == plain_sum(sum_.values, names(n))


@pytest.mark.parametrize("stop", SECAGG)
@pytest.mark.parametrize("gone", [0, 1, SPARE])
def test_clients_may_stop_at_each_question(stop: Kind, gone: int) -> None:
    silent = names(7)[2 : 2 + gone]
    sum_ = begun(7).played({stop: silent})
    there = [c for c in names(7) if c not in silent or stop == "unmask"]
    assert sum_.server.closed["masked"] == tuple(there)
    assert sum_.server.total().tolist() == plain_sum(sum_.values, there)


def test_clients_may_stop_at_different_questions() -> None:
    sum_ = begun(12, degree=8).played({"shares": ["site 3"], "masked": ["site 0"], "unmask": ["site 7"]})
    there = [c for c in names(12) if c not in ("site 0", "site 3")]
    assert sum_.server.total().tolist() == plain_sum(sum_.values, there)


@pytest.mark.parametrize("stop", ["shares", "masked", "unmask"])
@pytest.mark.parametrize("gone", [SPARE + 1, SEVEN.threshold - 1, SEVEN.threshold])
def test_beyond_the_threshold_there_is_one_sentence_and_no_sum(stop: Kind, gone: int) -> None:
    sum_ = begun(7).until(stop)
    sum_.ask(names(7)[:gone])
    with pytest.raises(Refused, match=r"^Only \d .* left, where .*\.$"):
        sum_.server.close()
    with pytest.raises(ValueError, match=f"the question {stop} has not ended"):
        sum_.server.total()


@pytest.mark.parametrize("stop", ["keys", "shares", "masked"])
def test_fewer_clients_than_agreed_on_give_no_sum(stop: Kind) -> None:
    sum_ = begun(4, least=4).until(stop)
    sum_.ask(["site 2"])
    with pytest.raises(Refused, match="Only 3 clients are left, where a sum is of 4 or more"):
        sum_.server.close()


def test_every_neighbourhood_needs_its_threshold_not_only_the_whole() -> None:
    """Of 40 in a ring with 4 neighbours each, 3 side by side stop: both neighbours on one side of the one in the middle."""
    sum_ = begun(40, degree=4).until("masked")
    graph = Neighbourhood(sum_.terms, tuple(sorted(names(40))))
    assert graph.threshold == 4
    middle = "site 5"
    sum_.ask(graph.of(middle)[:2])
    with pytest.raises(Refused, match="Only 3 of those who hold shares of"):
        sum_.server.close()


def test_a_client_none_of_whose_neighbours_is_in_the_sum_need_not_be_undone() -> None:
    graph = Neighbourhood(SumTerms("a run", 3, 1, degree=2), tuple(sorted(names(12))))
    lonely = graph.ids[0]
    summed = set(graph.ids) - set(graph.holders(lonely))
    assert lonely not in graph.undone(graph.ids, summed)
    assert len(graph.undone(graph.ids, summed)) == 11


def test_a_sum_in_a_ring_is_the_plain_sum() -> None:
    sum_ = begun(40, degree=6).played({"masked": ["site 5", "site 33"]})
    assert sum_.server.total().tolist() == plain_sum(sum_.values, [c for c in names(40) if c not in ("site 5", "site 33")])


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_integers_wrap_where_they_should_and_take_fewer_bytes(width: int) -> None:
    sum_ = begun(5, width=width).played({"masked": ["site 1"]})
    there = [c for c in names(5) if c != "site 1"]
    assert sum_.server.total().tolist() == plain_sum(sum_.values, there, width)
    wide = begun(5).played()
    saved = len(wide.answers["masked", "site 0"]) - len(sum_.answers["masked", "site 0"])
    assert saved == (4 - width) * sum_.terms.length


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_packed_integers_are_their_lowest_bytes(width: int) -> None:
    integers = np.array([0, 1, 258, 2**32 - 1, 0x01020304], np.uint32)
    by_hand = b"".join((int(i) % 256**width).to_bytes(width, "little") for i in integers)
    assert packed(integers, width) == by_hand
    assert unpacked(by_hand, width).tolist() == [int(i) % 256**width for i in integers]


def test_answers_have_the_sizes_of_their_formula() -> None:
    """``BYTES`` of the bodies, for k neighbours of whom k' have told shares."""
    sum_ = begun(12, degree=6).played({"shares": ["site 3"]})
    graph = Neighbourhood(sum_.terms, tuple(sorted(names(12))))
    for client in sum_.server.closed["unmask"]:
        told = len(set(graph.of(client)) - {"site 3"})
        sizes = {"keys": 64, "shares": 32 + 92 * 6, "masked": 4 * sum_.terms.length, "unmask": 32 * (told + 1)}
        for kind, size in sizes.items():
            data = sum_.answers[kind, client]  # type: ignore[index]
            head = int.from_bytes(data[:4], "little")
            assert len(data) - 4 - head == size


@pytest.mark.parametrize(
    ("terms", "sentence"),
    [
        ({"least": 1}, "a sum of 1 is a client's own vector"),
        ({"degree": 3}, "3 neighbours can't be had in a ring"),
        ({"share": 0.5}, "0.5 of the shares lets a lying server undo"),
        ({"length": 0}, "1 integer or more"),
        ({"width": 5}, "integers of 1 to 4 bytes"),
        ({"run": ""}, "a name of 1 to 256 characters"),
    ],
)
def test_terms_that_hide_nothing_are_one_sentence(terms: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SumTerms(**{"run": "a run", "round": 0, "length": 5} | terms)  # type: ignore[arg-type]


def test_a_threshold_is_more_than_half_of_the_holders_and_two_thirds_as_a_rule() -> None:
    usual, lowest = SumTerms("a run", 0, 1), SumTerms("a run", 0, 1, share=0.51)
    assert [usual.threshold(h) for h in (2, 3, 4, 6, 9, 12, 17, 30)] == [2, 2, 3, 4, 6, 8, 12, 20]
    barely = SumTerms("a run", 0, 1, share=0.5 + 1e-12)
    for holders in range(1, 200):
        assert 2 * barely.threshold(holders) > holders
        assert 2 * lowest.threshold(holders) > holders
        assert lowest.threshold(holders) <= usual.threshold(holders) <= holders
