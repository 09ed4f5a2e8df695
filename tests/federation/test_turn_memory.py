"""What a client of a stateful rule adds up: a turn that did not count is taken back, and nothing else is."""

from __future__ import annotations

import torch

from weft.federation.client import ClientState
from weft.federation.memory import NONE, Memory


def held(client: ClientState, counted: int, *names: str) -> list[float | None]:
    """What the client begins its next turn with, told which turn was the last that counted."""
    memory = Memory(client, "rule", counted)
    return [None if (value := memory.get(n)) is None else float(value) for n in names]


def after(*turns: dict[str, float]) -> ClientState:
    """A client at the end of turns 0, 1 … that changed these values."""
    client = ClientState("c", 1)
    for t, changes in enumerate(turns):
        Memory(client, "rule", t - 1).add({n: torch.tensor(v) for n, v in changes.items()}, t)
    return client


def test_turns_add_up_and_the_last_one_is_taken_back_where_it_did_not_count() -> None:
    turns = {"a": 1.0}, {"a": 10.0}
    assert held(after(*turns), 1, "a") == [11.0]
    assert held(after(*turns), 0, "a") == [1.0]


def test_what_is_taken_back_is_so_once_and_the_next_turn_goes_on_from_there() -> None:
    client = after({"a": 1.0}, {"a": 10.0})
    assert held(client, 0, "a") == held(client, 0, "a") == [1.0]
    Memory(client, "rule", 0).add({"a": torch.tensor(100.0)}, 2)
    assert held(client, 2, "a") == [101.0]
    assert held(client, 0, "a") == [1.0]


def test_a_first_turn_that_did_not_count_leaves_zeros() -> None:
    assert held(after({"a": 1.0}), -1, "a") == [0.0]


def test_what_a_turn_did_not_change_is_not_taken_back_with_it() -> None:
    """A method may move other tensors in each round."""
    assert held(after({"a": 1.0, "b": 2.0}, {"b": 10.0}), 0, "a", "b") == [1.0, 2.0]
    assert held(after({"a": 1.0}, {"b": 10.0}), 0, "a", "b") == [1.0, 0.0]


def test_a_tensor_of_another_size_begins_anew() -> None:
    client = after({"a": 1.0})
    Memory(client, "rule", 0).add({"a": torch.ones(2)}, 1)
    now = Memory(client, "rule", 1).get("a")
    assert now is not None
    assert torch.equal(now, torch.ones(2))


def test_told_of_a_turn_that_it_knows_nothing_of_it_keeps_the_nearest_or_begins_anew() -> None:
    """A mean over clients is nearer to what it was with an older value than with none; two copies of a value have to be equal."""
    for counted in (NONE, 7):
        client = after({"a": 1.0}, {"a": 10.0})
        client.memo["other"] = 3
        assert Memory(client, "rule", counted, exact=True).all() == {}
        assert client.memo == {"other": 3}
        assert held(after({"a": 1.0}, {"a": 10.0}), counted, "a") == [1.0]
    assert Memory(after({"a": 1.0}, {"a": 10.0}), "rule", 0, exact=True).all() == {"a": torch.tensor(1.0)}
