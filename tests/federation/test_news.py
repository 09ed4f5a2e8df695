"""Who is sent what: everything that is new to a client, and nothing that it has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from weft.federation.message import APPENDED, ClientInfo, Message
from weft.federation.round import Round
from weft.federation.rounds import close_round
from weft.federation.server import ServerState
from weft.methods import FedIT, FLoRA
from weft.tensors.lowrank import LowRank


def learn(run: tiny.Federation, only: str = "*") -> None:
    """Something new of the tensors that match."""
    server = run.server
    server.clock += 1
    for name, value in list(server.shared.items()):
        if only == "*" or name.startswith(only):
            assert isinstance(value, Tensor)
            server.write(name, value + server.clock)


def news(run: tiny.Federation, client: ClientInfo) -> set[str]:
    return set(run.server.stale(client).tensors)


PARTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "nothing": lambda all_: {},
    "all but one": lambda all_: dict(list(all_.items())[1:]),
    "one": lambda all_: dict(list(all_.items())[:1]),
    "as many others": lambda all_: {f"{n} of another": v for n, v in all_.items()},
}


@pytest.mark.parametrize("which", PARTS)
def test_a_client_that_got_part_of_the_news_is_owed_all_of_it(which: str) -> None:
    run = tiny.federation(FedIT(rank=1), sizes=(3, 3))
    one, two = run.server.clients
    learn(run)
    every = run.server.stale(one).tensors
    assert every.keys() == run.server.shared.keys()
    run.server.receipt(Message(PARTS[which](every)), one)  # type: ignore[arg-type]
    assert news(run, one) == set(every)
    run.server.receipt(Message(every | {"more": torch.zeros(1)}), one)
    assert news(run, one) == set()
    assert news(run, two) == set(every), "what one has got is no news to that one alone"


def test_a_client_that_was_away_is_sent_the_newest_value_of_all_that_has_changed_since() -> None:
    run = tiny.federation(FedIT(rank=1), sizes=(3, 3, 3))
    always, twice, never = run.server.clients
    names = sorted(run.server.shared)
    for client in (always, twice):
        run.server.receipt(run.server.stale(client), client)
    for part in ("lora", "head", "head"):  # first one part, then the other
        learn(run, part)
        assert news(run, always) == {n for n in names if n.startswith(part)}
        run.server.receipt(run.server.stale(always), always)
        assert news(run, always) == set()
    for client in (twice, never):
        found = run.server.stale(client).tensors
        assert sorted(found) == names
        assert all(torch.equal(found[n], run.server.shared[n]) for n in names)  # type: ignore[arg-type]
    held = run.server.held_by(always, run.server.adaptation, Message())
    assert all(torch.equal(held[n], run.server.shared[n]) for n in names)  # type: ignore[arg-type]
    assert run.server.held_by(never, run.server.adaptation, Message()) == {}, "a value that has changed is nothing it has"


class Withholding(FLoRA):
    """Gives one layer's delta in every third round only, as a method would whose clients hold some of the blocks."""

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = server.stale(client)
        if server.round.index % 3:
            message.tensors = {n: v for n, v in message.tensors.items() if ".layer.1." not in n}
        return message


def test_terms_are_not_sent_twice_to_whoever_is_sent_part_of_the_news() -> None:
    run = tiny.federation(Withholding(rank=1, sites="q"), sizes=(3, 3))
    client, copy = run.server.clients[0], {n: v.dense() for n, v in run.server.shared.items() if isinstance(v, LowRank)}
    for t in range(8):
        run.server.round = Round(t)
        message = run.method.send(run.server, client)
        for name, value in message.tensors.items():
            if isinstance(value, LowRank):
                plain = name.removesuffix(APPENDED)
                copy[plain] = value.dense() + (copy[plain] if name.endswith(APPENDED) else 0)
                by_hand.close(copy[plain], run.server.shared[plain].dense(), 1e-12)  # type: ignore[union-attr]
        assert (APPENDED in "".join(message.tensors)) == (t in (4, 7)), "terms go after a message with all the news"
        run.server.receipt(message, client)
        close_round(run.method, run.server, by_hand.invented(run, [1.0, 2.0]))


class Whole(FLoRA):
    """Sends whole values always."""

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        return Message({n.removesuffix(APPENDED): server.shared[n.removesuffix(APPENDED)] for n in server.stale(client).tensors})


def test_a_whole_value_is_more_than_its_terms() -> None:
    run = tiny.federation(Whole(rank=1, sites="q"), sizes=(3, 3))
    client = run.server.clients[0]
    for _ in range(3):
        message = run.method.send(run.server, client)
        run.server.receipt(message, client)
        assert run.server.stale(client).tensors == {}
        close_round(run.method, run.server, by_hand.invented(run, [1.0, 2.0]))


def test_a_value_that_is_used_no_more_is_back_at_its_start_and_no_news_to_anybody() -> None:
    run = tiny.federation(FLoRA(rank=1), sizes=(3, 3))
    server = run.server
    start = {n: v for n, v in server.shared.items() if n.startswith("head/")}
    run.run(2)
    client = ClientInfo("new")
    heads, deltas = ({n for n in server.shared if n.startswith(part)} for part in ("head/", "base/"))
    assert news(run, client) == heads | deltas
    server.reset("head/*/weight")
    kept = {n for n in heads if n.endswith("/bias")}
    assert news(run, client) == kept | deltas
    for name in heads - kept:
        assert torch.equal(server.shared[name], start[name])  # type: ignore[arg-type]
        held = server.held_by(client, server.adaptation, Message())
        assert torch.equal(held[name], start[name])  # type: ignore[arg-type]
    server.reset("base")
    assert news(run, client) == kept
    assert all(server.shared[n].rank == 0 for n in deltas)  # type: ignore[union-attr]
    name = next(iter(deltas))
    shape = server.shared[name].shape
    server.clock += 1
    server.grow(name, LowRank(B=torch.ones(shape[0], 1), A=torch.ones(1, shape[1])))
    assert news(run, client) == kept | {name}
