"""What either end refuses: bytes that are no message, messages out of turn, keys that hide nothing, sets that may not be."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_sums import LENGTH, Sum, begun, names, vectors
from weft.communication.strict import Refused, write_json
from weft.privacy.secagg.neighbourhood import Neighbourhood
from weft.privacy.secagg.pairwise import KEY, PUBLIC, SEALED
from weft.privacy.secagg.sum_client import SumClient
from weft.privacy.secagg.sum_server import SumServer
from weft.privacy.sums import packets
from weft.privacy.sums.packets import SECAGG, Kind, Packet
from weft.privacy.sums.sum_terms import SumTerms

N = 4
ME = "site 1"
LOW_ORDER = bytes(KEY)


def changed(message: bytes, **entries: object) -> bytes:
    return Packet(**vars(Packet.read(message)) | entries).written()  # type: ignore[arg-type]


def at(kind: Kind) -> tuple[Sum, bytes, bytes]:
    """A sum whose clients are asked ``kind``; the question to ``ME``, and its answer, which has not been received."""
    sum_ = begun(N).until(kind)
    question = sum_.server.question(ME)
    if kind == "keys":
        sum_.clients[ME] = SumClient.begun(sum_.terms, ME, question)
    answer = SumClient.loaded(sum_.clients[ME].saved()).answer(question, sum_.values[ME])
    return sum_, question, answer


@pytest.fixture(scope="module")
def stages() -> dict[Kind, tuple[Sum, bytes, bytes]]:
    return {kind: at(kind) for kind in SECAGG}


def answered(sum_: Sum, question: bytes) -> bytes:
    """By ``ME``, who is afterwards where it was."""
    return SumClient.loaded(sum_.clients[ME].saved()).answer(question, sum_.values[ME])


def received(sum_: Sum, answer: bytes, client: str = ME) -> SumServer:
    server = SumServer.loaded(sum_.server.saved())
    server.receive(client, answer)
    return server


def is_renamed(question: bytes, bad: bytes) -> bool:
    """Whether a question for shares has been changed in others' names alone, to names that could be."""
    try:
        good, read = vars(Packet.read(question)), vars(Packet.read(bad))
    except Refused:
        return False
    could_be = len(read["ids"]) == N and ME in read["ids"]
    return good["kind"] == "shares" and read["ids"] != good["ids"] and could_be and good | {"ids": ()} == read | {"ids": ()}


def head_of(message: bytes) -> int:
    return 4 + struct.unpack_from("<I", message)[0]


@given(data=st.data(), kind=st.sampled_from(SECAGG), up=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_messages_that_were_cut_lengthened_or_changed_in_their_heads_are_refused(
    data: st.DataObject, kind: Kind, up: bool, stages: dict[Kind, tuple[Sum, bytes, bytes]]
) -> None:
    sum_, question, answer = stages[kind]
    message = answer if up else question
    how = data.draw(st.sampled_from(["cut", "lengthened", "flipped", "inserted", "other"]))
    place = data.draw(st.integers(0, head_of(message) - 1))
    extra = data.draw(st.binary(min_size=1, max_size=40))
    if how == "cut":
        bad = message[: data.draw(st.integers(0, len(message) - 1))]
    elif how == "lengthened":
        bad = message + extra
    elif how == "flipped":
        bad = message[:place] + bytes([message[place] ^ data.draw(st.integers(1, 255))]) + message[place + 1 :]
    elif how == "inserted":
        bad = message[:place] + extra + message[place:]
    else:
        bad = extra
    if not up and is_renamed(question, bad):
        return  # of which a client hears for the first time: see the test below
    with pytest.raises(Refused, match=r"^[^\n]+\.$"):
        received(sum_, bad) if up else answered(sum_, bad)


@pytest.mark.parametrize("kind", SECAGG)
def test_the_messages_themselves_are_taken(kind: Kind, stages: dict[Kind, tuple[Sum, bytes, bytes]]) -> None:
    sum_, question, answer = stages[kind]
    answered(sum_, question)
    assert ME not in received(sum_, answer).waiting


@pytest.mark.parametrize("kind", SECAGG)
def test_another_clients_messages_are_refused(kind: Kind, stages: dict[Kind, tuple[Sum, bytes, bytes]]) -> None:
    sum_, _, answer = stages[kind]
    with pytest.raises(Refused, match='"site 1"\'s, not "site 2"\'s'):
        received(sum_, answer, "site 2")
    with pytest.raises(Refused, match='"site 2"\'s, not "site 1"\'s'):
        theirs = sum_.server.question("site 2")
        SumClient.begun(sum_.terms, ME, theirs) if kind == "keys" else answered(sum_, theirs)
    with pytest.raises(Refused, match='Nothing is asked of "stranger"'):
        received(sum_, changed(answer, client="stranger"), "stranger")


@pytest.mark.parametrize("kind", SECAGG)
@pytest.mark.parametrize(
    "entries",
    [{"round": 4}, {"run": "another"}, {"nonce": "0" * 32}, {"kind": "other"}, {"direction": "other"}, {"ids": "other"}],
)
def test_messages_of_another_sum_or_out_of_turn_are_refused(
    kind: Kind, entries: dict[str, object], stages: dict[Kind, tuple[Sum, bytes, bytes]]
) -> None:
    sum_, question, answer = stages[kind]
    for message, take in ((question, answered), (answer, received)):
        if "kind" in entries:
            entries = {"kind": "masked" if kind == "shares" else "shares"}
        elif "direction" in entries:
            entries = {"direction": "up" if message == question else "down"}
        elif "ids" in entries:
            entries = {"ids": (*Packet.read(message).ids, "stranger")}
            if (kind, take) == ("shares", answered):
                continue  # the first time that a client hears of others
        with pytest.raises(Refused):
            take(sum_, changed(message, **entries))


@pytest.mark.parametrize(
    "head",
    [
        {"kind": ["keys"]},
        {"direction": None},
        {"round": 3.0},
        {"round": True},
        {"run": 7},
        {"client": ""},
        {"client": "x" * 257},
        {"client": "\ud800"},
        {"ids": None},
        {"ids": ["b", "a"]},
        {"ids": ["a", "a"]},
        {"ids": [["a"]]},
        {"more": 1},
    ],
)
def test_heads_of_other_types_are_refused(head: dict[str, object]) -> None:
    good = json.loads(Packet("keys", "up", "a run", 3, "ab", "site 1").written()[4:])
    Packet.read(struct.pack("<I", len(write_json(good))) + write_json(good))
    text = write_json(good | head)
    with pytest.raises(Refused):
        Packet.read(struct.pack("<I", len(text)) + text)


def test_a_head_is_written_in_one_way() -> None:
    data = Packet("keys", "up", "a run", 3, "ab", "site 1", body=b"rest").written()
    assert Packet.read(data).body == b"rest"
    spaced = data[4:-4].replace(b":3", b": 3")
    with pytest.raises(Refused, match="one way that is allowed"):
        Packet.read(struct.pack("<I", len(spaced)) + spaced + b"rest")


def test_points_of_low_order_are_refused_by_both_ends(stages: dict[Kind, tuple[Sum, bytes, bytes]]) -> None:
    sum_, _, answer = stages["keys"]
    body = Packet.read(answer).body
    for bad in (LOW_ORDER + body[KEY:], body[:KEY] + LOW_ORDER):
        with pytest.raises(Refused, match="low order"):
            received(sum_, changed(answer, body=bad))
    sum_, question, _ = stages["shares"]
    body = Packet.read(question).body
    for place in range(0, len(body), KEY):
        with pytest.raises(Refused, match="low order"):
            answered(sum_, changed(question, body=body[:place] + LOW_ORDER + body[place + KEY :]))


def test_repeated_keys_are_refused_by_both_ends(stages: dict[Kind, tuple[Sum, bytes, bytes]]) -> None:
    sum_, _, answer = stages["keys"]
    body = Packet.read(answer).body
    with pytest.raises(Refused, match="is there already"):
        received(sum_, changed(answer, body=2 * body[:KEY]))
    server = received(sum_, answer)
    for other in (body, body[KEY:] + body[:KEY]):
        with pytest.raises(Refused, match="is there already"):
            server.receive("site 2", changed(answer, client="site 2", body=other))
    sum_, question, _ = stages["shares"]
    body = Packet.read(question).body
    own = sum_.clients[ME]._public[ME]
    for bad in (body[:PUBLIC] * 2 + body[2 * PUBLIC :], own + body[PUBLIC:], body[KEY:PUBLIC] + body[KEY:]):
        with pytest.raises(Refused, match="Two of the public keys are the same"):
            answered(sum_, changed(question, body=bad))


def test_sets_that_the_protocol_forbids_are_refused(stages: dict[Kind, tuple[Sum, bytes, bytes]]) -> None:
    """Too small for a sum, without the one who is asked, or with one of whom the question before did not tell."""
    for kind in ("shares", "masked", "unmask"):
        sum_, question, _ = stages[kind]
        with pytest.raises(Refused, match="Only 2 clients are left"):
            answered(sum_, changed(question, ids=(ME, "site 2")))
        with pytest.raises(Refused, match=f'leaves out "{ME}"'):
            answered(sum_, changed(question, ids=tuple(c for c in names(N) if c != ME)))
        if kind != "shares":
            with pytest.raises(Refused, match='tells of "stranger"'):
                answered(sum_, changed(question, ids=(*names(N), "stranger")))


def test_a_set_below_the_threshold_is_refused_by_a_client() -> None:
    sum_ = begun(7).until("unmask")
    with pytest.raises(Refused, match="Only 4 of those who hold shares"):
        answered(sum_, changed(sum_.server.question(ME), ids=tuple(names(4))))
    sum_ = begun(7).until("masked")
    question = sum_.server.question(ME)
    with pytest.raises(Refused, match="Only 4 of those who hold shares"):
        answered(sum_, changed(question, ids=tuple(names(4)), body=Packet.read(question).body[: 3 * SEALED]))


def flips(size: int, step: int) -> Iterator[int]:
    yield from range(0, size, step)


def test_sealed_shares_that_were_changed_don_t_open(stages: dict[Kind, tuple[Sum, bytes, bytes]]) -> None:
    sum_, question, _ = stages["masked"]
    body = Packet.read(question).body
    for i in flips(len(body), 7):
        with pytest.raises(Refused, match="don't open"):
            answered(sum_, changed(question, body=body[:i] + bytes([body[i] ^ 1]) + body[i + 1 :]))
    with pytest.raises(Refused, match="don't open"):  # those of another sender
        answered(sum_, changed(question, body=body[SEALED : 2 * SEALED] + body[:SEALED] + body[2 * SEALED :]))


def test_public_keys_that_were_changed_on_their_way_are_noticed_by_whom_they_reached() -> None:
    """At the next question: no seal opens between two clients who have not told each other the keys that both have used."""
    for bit in range(0, 8 * PUBLIC, 37):
        sum_ = begun(3).until("shares")
        question = sum_.server.question(ME)
        body = bytearray(Packet.read(question).body)
        body[bit // 8] ^= 1 << bit % 8
        sum_.server.receive(ME, sum_.clients[ME].answer(changed(question, body=bytes(body))))
        sum_.ask([ME])
        sum_.server.close()
        with pytest.raises(Refused, match="don't open"):
            answered(sum_, sum_.server.question(ME))
        with pytest.raises(Refused, match="don't open"):
            neighbour = "site 0"
            sum_.clients[neighbour].answer(sum_.server.question(neighbour), sum_.values[neighbour])


@pytest.mark.parametrize("more", [True, False])
def test_clients_that_were_told_of_others_than_their_neighbours_were_notice_it(more: bool) -> None:
    """Also where it is nobody whom they share a mask with, and where nobody is told of it again."""
    sum_ = begun(16, degree=4).until("shares")
    graph = Neighbourhood(sum_.terms, sum_.server.asked)
    silent = next(c for c in names(16) if c not in graph.holders(ME))
    rest = tuple(c for c in graph.ids if more or c != silent)
    told = next(
        ids
        for i in range(1000)
        if Neighbourhood(sum_.terms, ids := tuple(sorted((*rest, f"stranger {i}")))).of(ME) == graph.of(ME)
    )
    sum_.server.receive(ME, sum_.clients[ME].answer(changed(sum_.server.question(ME), ids=told)))
    sum_.ask([ME] if more else [ME, silent])  # so that no later question names whom it was not told of
    sum_.server.close()
    question = sum_.server.question(ME)
    assert set(Packet.read(question).ids) <= set(told)
    with pytest.raises(Refused, match="don't open"):
        answered(sum_, question)


@pytest.mark.parametrize("gone", [(), ("site 2",)])
def test_a_wrong_share_gives_a_sentence_and_no_sum(gone: tuple[str, ...]) -> None:
    for i in flips(32 * N, 9):
        sum_ = begun(N, share=1 - 1 / N, least=2).until("unmask", {"masked": gone})
        answer = sum_.clients[ME].answer(sum_.server.question(ME))
        body = Packet.read(answer).body
        sum_.server.receive(ME, changed(answer, body=body[:i] + bytes([body[i] ^ 64]) + body[i + 1 :]))
        sum_.clients.pop(ME)
        sum_.ask([ME])
        sum_.server.close()
        with pytest.raises(Refused, match="have told wrong ones, so that there is no sum"):
            sum_.server.total()


@pytest.mark.parametrize(
    "vector", [None, np.zeros(LENGTH, np.int64), np.zeros(LENGTH + 1, np.uint32), np.zeros((LENGTH, 1), np.uint32)]
)
def test_a_vector_of_another_form_is_an_error(vector: np.ndarray | None) -> None:
    sum_ = begun(3).until("masked")
    with pytest.raises(ValueError, match=f"a vector of {LENGTH} unsigned integers"):
        sum_.clients[ME].answer(sum_.server.question(ME), vector)


def test_a_first_question_is_for_keys_and_names_its_attempt() -> None:
    terms = SumTerms("a run", 3, LENGTH)
    question = SumServer.begun(terms, vectors(3)).question(ME)
    SumClient.begun(terms, ME, question)
    for entries in ({"nonce": "0"}, {"nonce": "G" * 32}, {"ids": (ME,)}, {"body": b"x"}, {"kind": "shares"}, {"round": 2}):
        with pytest.raises(Refused):
            SumClient.begun(terms, ME, changed(question, **entries))


@given(st.binary(max_size=60))
def test_torn_states_are_refused(data: bytes) -> None:
    whole = packets.save({"a": 1}, {"b": b"123", "c": b""})
    assert packets.load(whole) == ({"a": 1}, {"b": b"123", "c": b""})
    for torn in (data, whole[:-1], whole + data + b"0", whole[:9]):
        with pytest.raises(Refused):
            packets.load(torn)


@pytest.mark.parametrize("told", [1, 4])
def test_a_question_of_another_protocol_is_refused_at_any_time(told: int) -> None:
    sum_ = begun(N).until("shares") if told == 1 else begun(N).played()
    asked = Packet("opened", "down", sum_.terms.run, sum_.terms.round, sum_.server.nonce, ME).written()
    with pytest.raises(Refused, match=r"is opened down where|The sum is over"):
        sum_.clients[ME].answer(asked)
