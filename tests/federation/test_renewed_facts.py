"""Facts of clients that the server changes: undone and rolled back with its state, and told to sites with every question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

import by_hand
import tiny
from weft.communication.envelope import unwrap, wrap
from weft.communication.strict import Refused
from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    ServerState,
    Task,
    Update,
)
from weft.engines.question import Question
from weft.errors import WeftError
from weft.federation.round import Round
from weft.federation.rounds import close_round
from weft.methods import FedIT, registry
from weft.testing.compare import assert_same, server_state
from weft.testing.sites import remote


class Shrinking(Method):
    """Every client that has taken part has one rank less from then on."""

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="shrinking",
        title="A rank that shrinks",
        paper="none",
        family="reparameterized",
        sends="factors",
        asks=("rank",),
        renews=("rank",),
    )
    steps: int | None = 2
    batch: int = 2
    optim: Optim = Optim("sgd", lr=0.2, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        rank = client.facts.get("rank", 4)
        return {"lora": (LoRA(rank, 2.0 * rank, "q,v", of=4), SHARED), "head": (task.head, SHARED)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        came = list(updates)
        server.mean(came, leading=True)
        for update in came:
            server.renew(update.client.id, rank=max(int(update.client.facts.get("rank", 4)) - 1, 1))


ABOUT: dict[str, Any] = {"model": "bert", "sizes": (6, 5, 7), "rounds": 4}


def ranks(run: tiny.Federation) -> list[int]:
    return [run.server.said.get(c.id, {"rank": 4})["rank"] for c in run.clients]


def test_a_client_enters_its_next_turn_in_its_new_size_with_the_servers_values() -> None:
    run = tiny.federation(Shrinking(), **ABOUT).run(2)
    assert ranks(run) == [2, 2, 2]
    pack = run.pack([1], t=2)
    for name, value in pack.params("lora").items():
        held = run.server.shared[name]
        assert isinstance(held, torch.Tensor)
        assert torch.equal(value[0].detach(), held[:2] if name.endswith("/A") else held[:, :2])


def test_a_change_sends_everything_anew_and_the_same_value_again_sends_nothing() -> None:
    run = tiny.federation(Shrinking(), **ABOUT).run(1)
    server, client = run.server, run.clients[0]
    assert server.synced[client.id] == 0
    run.simulation._download(server, client, "train")  # it has read it
    assert server.synced[client.id] == server.clock
    server.renew(client.id, rank=3)
    assert server.synced[client.id] == server.clock
    server.renew(client.id, rank=2)
    assert server.synced[client.id] == 0
    server.introduce(run.clients)
    assert client.facts == {"rank": 2}
    assert [c.facts for c in server.clients] == [{"rank": 2}, {"rank": 3}, {"rank": 3}]


def test_renewed_facts_are_billed_with_every_download() -> None:
    run = tiny.federation(Shrinking(), **ABOUT).run(2)
    ledger = run.simulation.setup.exchange.ledger
    first, second = (ledger.totals(round=t, phase="train", direction="down").parts.get("facts", 0) for t in (0, 1))
    assert (first, second) == (0, 3 * len('{"rank":3}'))


def test_only_facts_that_the_method_renews_can_be_renewed() -> None:
    run = tiny.federation(Shrinking(), **ABOUT)
    with pytest.raises(WeftError, match='"depth" is none that the method renews'):
        run.server.renew("client-0", depth=3)


def test_a_round_whose_result_is_not_finite_renews_nothing() -> None:
    run = tiny.federation(Shrinking(), **ABOUT).run(1)
    updates = list(run.method.train(run.pack(t=1)))
    synced = dict(run.server.synced)
    spoilt = [replace(u, tensors={n: v * float("inf") for n, v in u.tensors.items()}) for u in updates]  # type: ignore[operator]
    assert "skipped" in close_round(run.method, run.server, spoilt)
    assert ranks(run) == [3, 3, 3]
    assert run.server.synced == synced
    close_round(run.method, run.server, updates)
    assert ranks(run) == [2, 2, 2]


def test_an_older_state_has_the_facts_of_its_time() -> None:
    run = tiny.federation(Shrinking(), **ABOUT)
    begun = run.server.tensors_and_json()
    run.run(1)
    saved = run.server.tensors_and_json()
    run.simulation.round(1)
    for state, wanted in ((saved, 3), (begun, 4)):
        run.server.roll_back(*state)
        assert ranks(run) == [wanted] * 3
        run.server.introduce(run.clients)
        assert [len(run.pack([k], t=1).params("lora/*/A").popitem()[1][0]) for k in range(3)] == [wanted] * 3
    assert [c.facts for c in run.clients] == [{}] * 3


def test_sites_learn_their_facts_from_questions_and_after_a_restart() -> None:
    wanted = tiny.federation(Shrinking(), **ABOUT).run()
    run, loop = remote(Shrinking(), **ABOUT)
    for t in range(4):
        run.simulation.round(t)
        if t == 1:
            loop.start()
        run.simulation.evaluate(t)
    assert_same(server_state(run), server_state(wanted), 1e-12)
    assert ranks(run) == [1, 1, 1]


@pytest.mark.parametrize("said", [{"rank": 0}, {"rank": -3}, {"depth": 2}])
def test_a_site_takes_no_facts_that_its_method_cannot_have(said: dict[str, Any]) -> None:
    run, loop = remote(Shrinking(), **ABOUT)
    run.simulation.round(0)
    site = loop.sites["client-0"]
    before = dict(site.said)
    with pytest.raises(Refused):
        site.turn(Round(1), b"", 0, 1, -1, said)
    assert site.said == before
    assert site.client.facts == before == {}
    assert site.adaptation["lora"][0].rank == 4  # type: ignore[attr-defined]


def test_a_question_says_facts_and_nothing_else() -> None:
    asked = Question("train", Round(0), b"data", 0, 1, -1, {"rank": 3})
    assert Question.decode(asked.encode()) == asked
    about, data = unwrap(asked.encode())
    for said in ([], {"rank": None}, {"rank": {"of": {"a": {"b": {"c": {"d": [[[[1]]]]}}}}}}):
        with pytest.raises(Refused):
            Question.decode(wrap({**about, "said": said}, data))


def test_cards_renew_what_they_ask() -> None:
    for slug, info in registry.infos().items():
        assert set(info.renews) <= set(info.asks), slug


def test_methods_without_such_facts_say_none() -> None:
    run = tiny.federation(FedIT(rank=2), **ABOUT).run(1)
    assert run.server.said == {}
    assert all(c.own is None for c in run.clients)
    assert by_hand.shared(run)
