"""The ledger gives the sums that a plain list of all messages would give."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.communication.ledger import Ledger, format_bytes
from weft.errors import UserError

PHASES: list[Any] = ["setup", "train", "eval"]
DIRECTIONS: list[Any] = ["down", "up"]


@dataclass
class Message:
    """One message as billed; those with one broadcast name are the same bytes."""

    round: int
    phase: Any
    direction: Any
    client: str
    payload: dict[str, int]
    wire: int
    broadcast: str | None


@st.composite
def messages(draw: st.DrawFn) -> Message:
    broadcast = draw(st.sampled_from([None, None, "x", "y"]))
    sizes = st.integers(0, 10**12)
    contents = {"x": ({"lora": 10, "facts": 0}, 13), "y": ({"lora": 7, "head": 1}, 9)}
    payload, wire = contents.get(str(broadcast)) or (
        draw(st.dictionaries(st.sampled_from(["lora", "head", "facts"]), sizes)),
        draw(sizes),
    )
    return Message(
        draw(st.integers(-1, 2)),
        draw(st.sampled_from(PHASES)),
        draw(st.sampled_from(DIRECTIONS)),
        draw(st.sampled_from(["c0", "c1", "c2"])),
        payload,
        wire,
        broadcast,
    )


many = st.lists(messages(), max_size=12)


def billed(some: list[Message]) -> Ledger:
    ledger = Ledger()
    for m in some:
        ledger.add(m.round, m.phase, m.direction, m.client, m.payload, m.wire, broadcast=m.broadcast)
    return ledger


def check_sums(ledger: Ledger, some: list[Message]) -> None:
    for round, phase, direction in product([None, 0, 1], [None, *PHASES], [None, *DIRECTIONS]):
        chosen = [m for m in some if round in (None, m.round) and phase in (None, m.phase) and direction in (None, m.direction)]
        once = [m for m in chosen if m.broadcast is None]
        once += {(m.round, m.phase, m.direction, m.broadcast): m for m in chosen if m.broadcast}.values()
        for broadcast_once, counted in ((False, chosen), (True, once)):
            totals = ledger.totals(round=round, phase=phase, direction=direction, broadcast_once=broadcast_once)
            assert totals.messages == len(counted)
            assert totals.wire == sum(m.wire for m in counted)
            assert totals.payload == sum(sum(m.payload.values()) for m in counted)
            assert totals.parts == {part: sum(m.payload.get(part, 0) for m in counted) for m in counted for part in m.payload}
    for phase, direction in product([None, *PHASES], [None, *DIRECTIONS]):
        chosen = [m for m in some if phase in (None, m.phase) and direction in (None, m.direction)]
        by_client = ledger.by_client(phase=phase, direction=direction)
        assert list(by_client) == sorted({m.client for m in chosen})
        for client, its in by_client.items():
            own = [m for m in chosen if m.client == client]
            assert its.messages == len(own)
            assert its.wire == sum(m.wire for m in own)
            assert its.payload == sum(sum(m.payload.values()) for m in own)


@given(many)
def test_totals_are_the_sums_over_the_messages_chosen(some: list[Message]) -> None:
    check_sums(billed(some), some)


@given(many, many)
def test_a_ledger_written_to_json_and_read_again_goes_on_as_if_never_stopped(before: list[Message], after: list[Message]) -> None:
    ledger = Ledger.from_records(json.loads(json.dumps(billed(before).as_records())))
    for m in after:
        ledger.add(m.round, m.phase, m.direction, m.client, m.payload, m.wire, broadcast=m.broadcast)
    check_sums(ledger, before + after)
    assert ledger.as_records() == billed(before + after).as_records()


@given(many, st.randoms(use_true_random=False))
def test_the_order_in_which_messages_arrive_does_not_matter(some: list[Message], random: Any) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    assert billed(shuffled).as_records() == billed(some).as_records()


def test_the_ledger_grows_with_rounds_plus_clients_not_with_their_product() -> None:
    ledger = Ledger()
    for round in range(50):
        for client in range(40):
            for direction in DIRECTIONS:
                ledger.add(round, "train", direction, f"c{client}", {"lora": 1, "head": 1}, 3)
    assert len(ledger.as_records()) == 2 * (50 + 40)
    assert ledger.totals().messages == 50 * 40 * 2


def test_what_totals_gives_is_a_copy() -> None:
    ledger = Ledger()
    ledger.add(0, "train", "up", "c", {"lora": 1}, 2)
    ledger.totals(round=0).parts["lora"] = 99
    assert ledger.totals().parts == {"lora": 1}


@pytest.mark.parametrize("change", [{"phase": "training"}, {"direction": "sideways"}, {"wire": -1}, {"payload": {"lora": -1}}])
def test_a_message_that_cannot_be_is_not_billed(change: dict[str, Any]) -> None:
    ledger = Ledger()
    fine: dict[str, Any] = {"phase": "train", "direction": "up", "client": "c", "payload": {}, "wire": 1}
    with pytest.raises(ValueError, match=r"phase|direction|negative"):
        ledger.add(0, **(fine | change))
    assert ledger.as_records() == []
    ledger.add(0, **fine)


RECORDS = [
    {"phase": "train", "direction": "up"},
    {"phase": "training", "direction": "up", "client": "c", "messages": 1, "payload": 1, "wire": 1},
    {"phase": "train", "direction": "up", "client": "c", "messages": 1, "payload": -1, "wire": 1},
    {"phase": "train", "direction": "up", "client": "c", "messages": 1, "payload": 1.5, "wire": 1},
    {"phase": "train", "direction": "up", "round": 0, "unicast": [], "once": {}, "broadcasts": []},
    {"phase": ["train"], "direction": "up"},
    "train",
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_record_is_a_sentence(record: Any) -> None:
    with pytest.raises(UserError, match="damaged"):
        Ledger.from_records([record])


@given(st.integers(0, 10**18))
def test_bytes_for_people_are_right_to_three_digits(count: int) -> None:
    text, unit = format_bytes(count).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert abs(float(text) * factor - count) <= count * 0.005 * (1 + 1e-12)
    if unit != "TB":
        assert 0 <= float(text) < 1000
        assert len(text) <= 4
    if unit != "B":
        assert float(text) >= 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_996, "10.0 kB"),
        (999_600, "1.00 MB"),
        (2_654_208, "2.65 MB"),
    ],
)
def test_bytes_for_people_read_like_this(count: int, text: str) -> None:
    assert format_bytes(count) == text
