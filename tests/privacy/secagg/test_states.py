"""Both ends may be killed after any answer: what they have saved goes on to the same bytes. A half-finished sum begins anew."""

from __future__ import annotations

import numpy as np
import pytest

from secure_sums import LENGTH, begun, names, plain_sum, vectors
from weft.communication.strict import Refused
from weft.privacy.secagg.sum_client import SumClient
from weft.privacy.secagg.sum_server import SumServer
from weft.privacy.sums.packets import SECAGG, Kind
from weft.privacy.sums.sum_terms import SumTerms


def test_both_ends_from_their_files_between_any_two_steps_give_the_sum() -> None:
    sum_ = begun(9)
    sum_.between = sum_.reload
    sum_.played({"shares": ["site 8"], "masked": ["site 2"], "unmask": ["site 5"]})
    there = [c for c in names(9) if c not in ("site 2", "site 8")]
    assert sum_.server.total().tolist() == plain_sum(sum_.values, there)
    sum_.reload()
    assert sum_.server.total().tolist() == plain_sum(sum_.values, there)


@pytest.mark.parametrize("kind", SECAGG)
def test_loaded_states_ask_and_answer_the_same_bytes(kind: Kind) -> None:
    sum_ = begun(4).until(kind)
    for client in names(4):
        question = sum_.server.question(client)
        assert SumServer.loaded(sum_.server.saved()).question(client) == question
        end = sum_.clients.get(client) or SumClient.begun(sum_.terms, client, question)
        unasked = SumClient.loaded(end.saved())
        answer = end.answer(question, sum_.values[client])
        if kind != "shares":  # whose shares and seals are drawn when they are asked for
            assert unasked.answer(question, sum_.values[client]) == answer
        saved = end.saved()
        assert SumClient.loaded(saved).saved() == saved
        assert SumClient.loaded(saved).answer(question) == end.answer(question) == answer
        sum_.server.receive(client, answer)
        again = SumServer.loaded(sum_.server.saved())
        assert again.saved() == sum_.server.saved()
        again.receive(client, answer)
        assert again.saved() == sum_.server.saved()


def test_a_masked_vector_is_told_once_whatever_the_second_vector_is() -> None:
    sum_ = begun(3).until("masked")
    client, question = sum_.clients["site 0"], sum_.server.question("site 0")
    answer = client.answer(question, sum_.values["site 0"])
    assert client.answer(question, np.zeros(LENGTH, np.uint32)) == answer


@pytest.mark.parametrize("kind", SECAGG)
def test_a_second_answer_that_differs_is_refused_and_changes_nothing(kind: Kind) -> None:
    sum_ = begun(3).until(kind)
    question = sum_.server.question("site 0")
    one = sum_.clients.get("site 0") or SumClient.begun(sum_.terms, "site 0", question)
    answer = one.answer(question, sum_.values["site 0"])
    sum_.server.receive("site 0", answer)
    before = sum_.server.saved()
    with pytest.raises(Refused, match=f"has answered {kind} before, and otherwise|is there already|low order"):
        sum_.server.receive("site 0", answer[:-1] + bytes([answer[-1] ^ 1]))
    assert sum_.server.saved() == before


@pytest.mark.parametrize("kind", SECAGG)
def test_a_half_finished_sum_begins_anew_with_new_keys(kind: Kind) -> None:
    old = begun(4).until(kind)
    new = begun(4)
    assert new.server.nonce != old.server.nonce
    for client in names(4):
        before = old.clients.get(client)
        question = new.server.question(client)
        new.clients[client] = SumClient.begun(new.terms, client, question, before)
        answer = new.clients[client].answer(question)
        if before is not None:
            assert answer != old.answers["keys", client]
            with pytest.raises(Refused, match="belongs to another sum"):
                new.server.receive(client, old.answers["keys", client])
            with pytest.raises(Refused, match=r"another one|belongs to another sum"):
                new.clients[client].answer(old.questions["keys", client])
        new.server.receive(client, answer)
    new.server.close()
    while new.server.kind:
        new.ask()
        new.server.close()
    assert new.server.total().tolist() == plain_sum(new.values, names(4))


def test_a_round_is_over_for_a_client_that_has_told_its_shares() -> None:
    """A second sum of the same round over others would give away, by the difference, those who are in one of them alone."""
    sum_ = begun(4).played()
    before = SumClient.loaded(sum_.clients["site 0"].saved())

    def asked(round: int, run: str = "a run") -> tuple[SumTerms, bytes]:
        terms = SumTerms(run, round, LENGTH)
        return terms, SumServer.begun(terms, vectors(4)).question("site 0")

    for round in (2, 3):
        terms, question = asked(round)
        with pytest.raises(Refused, match=f"Round {round} is over"):
            SumClient.begun(terms, "site 0", question, before)
    for round, run in ((4, "a run"), (0, "another run")):
        terms, question = asked(round, run)
        SumClient.begun(terms, "site 0", question, before)


def test_questions_that_have_ended_take_no_answers() -> None:
    sum_ = begun(4).until("masked")
    with pytest.raises(Refused, match="is shares up where masked up is waited for"):
        sum_.server.receive("site 0", sum_.answers["shares", "site 0"])
    sum_.ask()
    sum_.server.close()
    sum_.ask()
    sum_.server.close()
    assert sum_.server.kind is None
    assert sum_.server.waiting == ()
    with pytest.raises(Refused, match="Nothing is asked"):
        sum_.server.receive("site 0", sum_.answers["unmask", "site 0"])
    with pytest.raises(ValueError, match="all questions have ended"):
        sum_.server.close()
    with pytest.raises(ValueError, match="asked nothing"):
        sum_.server.question("site 0")


def test_who_is_waited_for() -> None:
    sum_ = begun(4)
    assert sum_.server.waiting == tuple(names(4))
    sum_.ask(["site 2"])
    assert sum_.server.waiting == ("site 2",)
