"""The two questions of a sum of ciphertexts: whoever stops, who has another key, and what either end refuses."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pytest

from secure_sums import names, plain_sum, vectors
from sums_of_sites import key
from weft.communication.strict import Refused
from weft.privacy.ckks.cipher import Cipher, new_key
from weft.privacy.ckks.cipher_client import CipherClient
from weft.privacy.ckks.cipher_server import CipherServer
from weft.privacy.sums.packets import Kind, Packet
from weft.privacy.sums.sum_terms import SumTerms

N, LENGTH = 5, 50
OWN = Cipher(key())


class Encrypted:
    """Both ends of one sum, stopped before any question; each is loaded from its bytes before it does anything."""

    def __init__(self, round: int = 3, strange: Collection[str] = (), n: int = N) -> None:
        self.terms, self.values = SumTerms("a run", round, LENGTH), vectors(n)
        self.server = CipherServer.begun(self.terms, self.values)
        self.clients: dict[str, CipherClient] = {}
        other = Cipher(new_key()) if strange else OWN
        self.ciphers = {c: other if c in strange else OWN for c in self.values}
        self.asked: list[tuple[Kind, str]] = []
        self.left_out: dict[str, str] = {}

    def answer(self, client: str, question: bytes) -> bytes:
        if client not in self.clients:
            self.clients[client] = CipherClient.begun(self.terms, client, question, self.ciphers[client])
        said = self.clients[client].answer(question, self.values[client])
        self.clients[client] = CipherClient.loaded(self.clients[client].saved(), self.ciphers[client])
        return said

    def ask(self, silent: Collection[str] = ()) -> None:
        kind = self.server.kind
        assert kind is not None
        for client in self.server.waiting:
            question = self.server.question(client)
            assert CipherServer.loaded(self.server.saved()).question(client) == question
            self.asked.append((kind, client))
            if client in silent:
                continue
            self.server.receive(client, self.answer(client, question))
            self.server = CipherServer.loaded(self.server.saved())
        self.left_out |= self.server.close()
        self.server = CipherServer.loaded(self.server.saved())

    def played(self, silent: Mapping[Kind, Collection[str]] | None = None) -> Encrypted:
        while (kind := self.server.kind) is not None:
            self.ask((silent or {}).get(kind, ()))
        return self


@pytest.mark.parametrize("gone", [(), ("site 1",), ("site 0", "site 4")])
def test_a_sum_is_of_all_who_have_sealed(gone: tuple[str, ...]) -> None:
    sum_ = Encrypted().played({"sealed": gone})
    there = tuple(c for c in names(N) if c not in gone)
    assert sum_.server.summed == there
    assert sum_.server.total().tolist() == plain_sum(sum_.values, there)


def test_below_the_least_there_is_no_sum() -> None:
    with pytest.raises(Refused, match="Only 2 clients have sealed vectors"):
        Encrypted().played({"sealed": names(N)[:3]})


def test_one_opens_and_another_in_the_next_round() -> None:
    openers = [[c for kind, c in Encrypted(t).played().asked if kind == "opened"] for t in range(6)]
    assert openers == [["site 0"], ["site 1"], ["site 2"], ["site 3"], ["site 4"], ["site 0"]]


def test_who_does_not_open_is_followed_by_the_next() -> None:
    sum_ = Encrypted().played({"opened": ["site 3", "site 4"]})
    assert [c for kind, c in sum_.asked if kind == "opened"] == ["site 3", "site 4", "site 0"]
    assert sum_.server.summed == tuple(names(N)), "who does not open has counted"
    assert sum_.server.total().tolist() == plain_sum(sum_.values, names(N))
    with pytest.raises(Refused, match="None of the clients in the sum has opened it"):
        Encrypted().played({"opened": names(N)})


@pytest.mark.parametrize("strange", [("site 0",), ("site 3", "site 4")])
def test_who_has_another_key_is_left_out_by_name(strange: tuple[str, ...]) -> None:
    """Whoever comes first."""
    sum_ = Encrypted(strange=strange).played()
    assert set(sum_.left_out) == set(strange)
    assert all("another" in why for why in sum_.left_out.values())
    there = [c for c in names(N) if c not in strange]
    assert sum_.server.total().tolist() == plain_sum(sum_.values, there)


def test_a_sum_that_fails_for_another_key_says_whose_it_is() -> None:
    with pytest.raises(Refused, match=r'Only 2 clients .* The key of "site 0" is another: copy the same sums.ckks'):
        Encrypted(strange=("site 0",)).played({"sealed": ["site 3", "site 4"]})
    with pytest.raises(Refused, match=r"or more\.$"):
        Encrypted().played({"sealed": names(N)[:3]})


def test_a_question_that_comes_again_has_the_same_answer_and_another_none() -> None:
    sum_ = Encrypted()
    question = sum_.server.question("site 1")
    first = sum_.answer("site 1", question)
    assert sum_.answer("site 1", question) == first
    assert sum_.clients["site 1"].has_told(question)
    again = CipherServer.begun(sum_.terms, sum_.values).question("site 1")
    assert not sum_.clients["site 1"].has_told(again)
    with pytest.raises(Refused, match="has been answered, and this is another one"):
        sum_.clients["site 1"].answer(again, sum_.values["site 1"])
    with pytest.raises(Refused, match="Round 3 is over"):
        CipherClient.begun(sum_.terms, "site 1", again, OWN, sum_.clients["site 1"])
    later = SumTerms("a run", 4, LENGTH)
    CipherClient.begun(later, "site 1", CipherServer.begun(later, sum_.values).question("site 1"), OWN, sum_.clients["site 1"])


def test_an_answer_that_comes_again_counts_once_and_another_is_refused() -> None:
    sum_ = Encrypted()
    answers = {c: sum_.answer(c, sum_.server.question(c)) for c in sum_.values}
    for answer in answers.values():
        client = Packet.read(answer).client
        sum_.server.receive(client, answer)
        sum_.server.receive(client, answer)
    other = CipherClient(sum_.terms, "site 0", sum_.server.nonce, OWN).answer(
        sum_.server.question("site 0"), sum_.values["site 0"]
    )
    with pytest.raises(Refused, match="has answered sealed before, and otherwise"):
        sum_.server.receive("site 0", other)
    with pytest.raises(Refused, match="Nothing is asked of"):
        sum_.server.receive("somebody", answers["site 0"])
    assert sum_.played().server.total().tolist() == plain_sum(sum_.values, names(N))


def opening(sum_: Encrypted, **entries: object) -> bytes:
    """The question to open, with other entries."""
    return Packet(**vars(Packet.read(sum_.server.question("site 3"))) | entries).written()  # type: ignore[arg-type]


def test_what_is_opened_is_a_sum_of_as_many_as_the_server_says() -> None:
    sum_ = Encrypted()
    single = {}
    for client in sum_.values:
        said = sum_.answer(client, sum_.server.question(client))
        single[client] = Packet.read(said).body[16:]
        sum_.server.receive(client, said)
    sum_.server.close()
    site = sum_.clients["site 3"]
    for client, body in single.items():
        with pytest.raises(Refused, match="The sum is of 1 vectors, and the question tells of 5 clients"):
            site.answer(opening(sum_, body=body))
        with pytest.raises(Refused, match="is the least that one is opened of"):
            site.answer(opening(sum_, body=body, ids=tuple(sorted({client, "site 3"}))))
    with pytest.raises(Refused, match="leaves out"):
        site.answer(opening(sum_, ids=("site 0", "site 1", "site 2")))
    with pytest.raises(Refused, match="waited for"):
        site.answer(opening(sum_, body=b""))
    assert sum_.played().server.total().tolist() == plain_sum(sum_.values, names(N))


def test_out_of_turn_and_torn() -> None:
    sum_ = Encrypted()
    question = sum_.server.question("site 0")
    with pytest.raises(ValueError, match="to be sealed"):
        CipherClient.begun(sum_.terms, "site 0", question, OWN).answer(question, np.zeros(3, np.uint32))
    with pytest.raises(Refused, match="belongs to another sum"):
        CipherClient.begun(SumTerms("b run", 3, LENGTH), "site 0", question, OWN)
    with pytest.raises(Refused, match="site 0"):
        CipherClient.begun(sum_.terms, "site 1", question, OWN)
    answer = sum_.answer("site 0", question)
    for cut in (3, 40, len(answer) // 2, len(answer) - 1):
        with pytest.raises(Refused):
            sum_.server.receive("site 0", answer[:cut])
    with pytest.raises(ValueError, match="nobody has opened"):
        sum_.server.total()
    state = sum_.server.saved()
    for cut in (3, 40, len(state) - 1):
        with pytest.raises(Refused):
            CipherServer.loaded(state[:cut])
    sum_.played()
    assert sum_.server.kind is None
    with pytest.raises(ValueError, match="all questions have ended"):
        sum_.server.close()
    with pytest.raises(ValueError, match="asked nothing"):
        sum_.server.question("site 0")
    with pytest.raises(Refused, match="The sum is over"):
        sum_.clients["site 3"].answer(opening_of_another(sum_))


def opening_of_another(sum_: Encrypted) -> bytes:
    return Packet("keys", "down", "a run", 3, sum_.server.nonce, "site 3").written()
