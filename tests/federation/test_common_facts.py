"""What all clients have for a fact between them: one list for everybody, and for the server's own parts."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

import tiny
from weft.contract import SHARED, Adaptation, Backbone, ClientInfo, Method, MethodInfo, Task, Values
from weft.errors import UserError
from weft.federation import common_facts
from weft.testing.sites import remote
from weft.testing.workers import scattered


class ByColour(Method):
    """A row of a table for each colour, and nothing else but a head."""

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="by-colour",
        title="A row for each colour",
        paper="nobody",
        family="selective",
        sends="a table",
        asks=("colour", "every colour"),
    )

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        colours = client.facts.get("every colour", [])
        return {"head": (task.head, SHARED), "table": (Values((("rows", (len(colours), 2)),)), SHARED)}


COLOURS = [{"colour": c} for c in ("red", "blue", "red", "green", "blue", "red")]


def clients(*facts: dict[str, Any]) -> list[ClientInfo]:
    return [ClientInfo(f"c{i}", 1, dict(some)) for i, some in enumerate(facts)]


def test_everybody_has_the_sorted_values_of_each_fact_once_and_nobody_has_no_more_than_them() -> None:
    people = clients({"domain": "b", "rank": 4}, {"domain": "a", "domains": ["a", "c"]}, {"domain": "b", "rank": 4})
    common_facts.settle(people)
    lists = {"every domain": ["a", "b"], "every rank": [4]}
    assert [common_facts.common(c.facts) for c in people] == [lists] * 3
    assert people[1].facts == {"domain": "a", "domains": ["a", "c"]} | lists
    assert common_facts.nobody(people) == ClientInfo("", facts=lists)
    assert common_facts.nobody([]) == ClientInfo("")
    assert common_facts.own(people[0].facts) == {"domain": "b", "rank": 4}


def test_to_settle_again_changes_nothing_and_who_has_gone_is_not_remembered() -> None:
    people = clients({"domain": "b"}, {"domain": "a"})
    common_facts.settle(people)
    before = [dict(c.facts) for c in people]
    common_facts.settle(people)
    assert [c.facts for c in people] == before
    common_facts.settle(people[:1])
    assert people[0].facts["every domain"] == ["b"]


def test_who_joins_later_has_one_of_the_values_or_says_nothing() -> None:
    lists = {"every domain": ["photo", "sketch"]}
    common_facts.check(ClientInfo("c", facts={"domain": "photo"} | lists))
    common_facts.check(ClientInfo("c", facts=lists))
    common_facts.check(ClientInfo("c", facts={"domain": "new"}))
    with pytest.raises(UserError, match=r'its domain is "sketsh", and the federation began with photo, sketch.*mean "sketch"'):
        common_facts.check(ClientInfo("c", facts={"domain": "sketsh"} | lists))


@pytest.mark.parametrize("where", ["here", "sites", "workers"])
def test_parts_have_one_size_at_the_server_and_at_every_client_wherever_they_are(where: str) -> None:
    method = ByColour()
    if where == "here":
        run = tiny.federation(method, facts=COLOURS, rounds=2)
    else:
        run = (remote if where == "sites" else scattered)(method, facts=COLOURS, rounds=2)[0]  # type: ignore[operator]
    assert run.server.shared["table/values/rows"].shape == (3, 2)
    run.server.write("table/values/rows", torch.ones(3, 2, dtype=torch.float64))
    for t in range(2):
        record = run.simulation.round(t)
        assert record is not None
        assert record["refused"] == {}
        assert len(record["cohort"]) == 6
    assert run.server.pack().tensors["table/values/rows"].shape == (1, 3, 2)
    assert [c.facts["every colour"] for c in run.server.clients] == [["blue", "green", "red"]] * 6


def test_a_method_that_does_not_ask_is_told_no_list() -> None:
    class Blind(ByColour):
        info: ClassVar[MethodInfo] = MethodInfo(slug="blind", title="", paper="", family="selective", sends="", asks=("colour",))

    run = tiny.federation(Blind(), facts=COLOURS, rounds=1)
    assert run.server.shared["table/values/rows"].shape == (0, 2)
    assert run.server.clients[0].facts == {"colour": "red"}
