"""Sites that see nothing but bytes, and a coordinator that sees nothing but their answers, give the simulation's numbers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import pytest
import torch

from every_method import TERMS, small
from weft.engines.cohort import drops_out
from weft.engines.question import Question
from weft.testing.compare import assert_same, dense, state
from weft.testing.sites import kept, remote


@pytest.mark.parametrize("slug", ["fedsa-lora", TERMS, "pfedpg"])
def test_a_restart_of_every_site_between_rounds_changes_nothing(slug: str) -> None:
    steady, _ = remote(small(slug), rounds=3)
    steady.run()
    shaken, loop = remote(small(slug), rounds=3)
    for t in range(3):
        shaken.simulation.round(t)
        loop.start()
    assert_same(state(steady), state(shaken), 0.0)
    bytes_down = [r.simulation.setup.exchange.ledger.totals(direction="down").wire for r in (steady, shaken)]
    assert bytes_down[0] == bytes_down[1], "nobody is sent again what it has"


@pytest.mark.parametrize("slug", ["fedsa-lora", TERMS])
def test_to_be_tested_between_rounds_changes_no_later_round(slug: str) -> None:
    """What a site is sent to be tested with is not kept: it comes again with the next turn."""
    steady, _ = remote(small(slug), rounds=3)
    steady.run()
    tested, loop = remote(small(slug), rounds=3)
    for t in range(3):
        before = {c: dict(s.copy) for c, s in loop.sites.items()}
        tested.simulation.round(t)
        after = {c: dict(s.copy) for c, s in loop.sites.items()}
        assert any(not torch.equal(*map(dense, (after[c][n], v))) for c in after for n, v in before[c].items()) == bool(t)
        assert tested.simulation.evaluate(t)
        assert all(s.copy[n] is v for c, s in loop.sites.items() for n, v in after[c].items())
    assert_same(state(steady), state(tested), 0.0)


def test_a_question_asked_twice_is_answered_twice_and_trained_once() -> None:
    run, loop = remote(small("fedsa-lora"), rounds=2)
    asked: list[Mapping[str, bytes]] = []
    ask = loop.ask
    loop.ask = lambda q: (asked.append(dict(q)), ask(q))[1]  # type: ignore[method-assign, func-returns-value]
    run.simulation.round(0)
    first = ask(asked[0])
    before = kept(loop)
    seen = {c: s.client.rounds_seen for c, s in loop.sites.items()}
    loop.start()  # a restart in between does not matter
    assert ask(asked[0]) == first
    assert_same(before, kept(loop), 0.0)
    for name, site in loop.sites.items():
        site.store.load(site.client)
        assert site.client.rounds_seen == seen[name]


@pytest.mark.parametrize("slug", ["fedit", "flora", "fedsa-lora"])
def test_a_silent_site_is_left_out_and_catches_up_when_it_is_back(slug: str) -> None:
    run, loop = remote(small(slug), rounds=4)
    for t in range(4):
        loop.silent = {"client-0"} if t in (1, 2) else set()
        run.simulation.round(t)
    site = loop.sites["client-0"]
    held = run.server.held_by(site.info, site.adaptation, run.method.send(run.server, site.info))
    loop.silent = set()
    run.server.clock += 1
    # what the coordinator believes the site to hold once it has read its next message is what it then holds
    message = run.method.send(run.server, site.info)
    after = site._apply(message.tensors, run.server.synced[site.info.id])
    for name, value in held.items():
        a, b = map(dense, (value, after[name]))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slug", ["rolora", "flora", "fedit"])
def test_a_site_whose_folder_is_gone_gets_everything_anew(slug: str) -> None:
    """RoLoRA and FLoRA send only what is new: a site without the rest would train on other values and nobody would know."""
    steady, _ = remote(small(slug), rounds=4)
    steady.run()
    robbed, loop = remote(small(slug), rounds=4)
    for t in range(4):
        robbed.simulation.round(t)
        if t == 1:
            shutil.rmtree(loop.root / "client-0")
            loop.start()
    assert_same(state(steady), state(robbed), 0.0)


def test_a_question_that_is_none_is_refused() -> None:
    from weft.communication.strict import Refused

    for raw in (b"", b"\x00" * 3, b"\xff\xff\xff\xff", (2).to_bytes(4, "little") + b"{}"):
        with pytest.raises(Refused):
            Question.decode(raw)


def test_whoever_fails_and_whoever_does_not_answer_are_lost_alike() -> None:
    run, loop = remote(small("fedit"), rounds=1, dropout=0.4)
    failing = {c.id for c in run.clients if drops_out(0, c.id, 0, 0.4)}
    loop.silent = {sorted({c.id for c in run.clients} - failing)[0]}
    assert failing
    record = run.simulation.round(0)
    assert record is not None
    assert record["lost"] == sorted(failing | loop.silent)
