"""The laws at length: over every method, with more rounds, rows and clients, each run played for one law alone.

``test_laws.py`` holds every method to the same laws in ``make test``, by a few short runs that several laws read.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from every_method import METHODS, TRAVELS, built, small
from weft.engines import packing
from weft.federation.info import common
from weft.testing import of_settings
from weft.testing.compare import assert_same, logits, state
from weft.testing.sites import kept, remote
from weft.testing.strangers import by_messages
from weft.testing.workers import scattered

pytestmark = pytest.mark.slow


def moved(run: tiny.Federation, before: dict[str, Tensor]) -> bool:
    after = state(run)
    return any(n not in before or before[n].shape != v.shape or not torch.equal(before[n], v) for n, v in after.items())


@pytest.mark.parametrize("slug", METHODS)
def test_pack_law_a_pack_of_k_equals_k_packs_of_one(slug: str) -> None:
    packed = tiny.federation(small(slug), pack=6, rounds=3, participation=0.7, dropout=0.1)
    alone = tiny.federation(small(slug), pack=1, rounds=3, participation=0.7, dropout=0.1)
    before = state(packed)
    packed.run()
    alone.run()
    assert moved(packed, before), "a run in which nothing happens proves nothing"
    assert_same(logits(packed), logits(alone), 1e-8)


@pytest.mark.parametrize("slug", METHODS)
def test_pack_law_in_single_precision(slug: str) -> None:
    packed = tiny.federation(small(slug), pack=6, rounds=1, precision="float32").run()
    alone = tiny.federation(small(slug), pack=1, rounds=1, precision="float32").run()
    assert_same(logits(packed), logits(alone), 2e-4)


@pytest.mark.parametrize("slug", TRAVELS)
def test_message_by_message_equals_packed(slug: str) -> None:
    """Clients that see nothing but the bytes addressed to them, and keep their own copies, come to the same result."""
    packed = tiny.federation(small(slug), pack=6, rounds=4, participation=0.5).run()
    apart = tiny.federation(small(slug), pack=1, rounds=4, participation=0.5)
    by_messages(apart)
    assert_same(logits(packed), logits(apart), 1e-8)


@pytest.mark.parametrize("slug", METHODS)
def test_return_law_the_same_turn_gives_the_same_bytes(slug: str) -> None:
    method = small(slug)  # one and the same object for both: anything it remembered would show

    def frames() -> list[dict[str, bytes]]:
        run = tiny.federation(method, rounds=2)
        seen: list[dict[str, bytes]] = []
        clear = run.simulation.setup.spool.clear

        def keep() -> None:
            seen.append({p.name: p.read_bytes() for p in sorted(run.simulation.setup.spool.folder.iterdir())})
            clear()

        run.simulation.setup.spool.clear = keep  # type: ignore[method-assign]
        run.run()
        return seen

    first, second = frames(), frames()
    assert first == second
    assert any(first)


@pytest.mark.parametrize("codec", ["identity", "quant8"])
@pytest.mark.parametrize("slug", METHODS)
def test_with_learning_rate_zero_nothing_moves(slug: str, codec: str) -> None:
    of_settings.check_rate_zero(built(slug), codec, rounds=2, sizes=tiny.SIZES)


@pytest.mark.parametrize("slug", METHODS)
def test_every_codec_trains(slug: str) -> None:
    run = tiny.federation(small(slug), rounds=2, codec_name="quant8")
    before = logits(run)
    run.run()
    after = logits(run)
    assert run.simulation.setup.exchange.ledger.totals(direction="up").payload > 0
    assert any(not torch.equal(before[v], after[v]) for v in after)
    assert all(bool(torch.isfinite(v).all()) for v in after.values())


@pytest.mark.parametrize("slug", METHODS)
def test_results_do_not_depend_on_the_order_of_clients(slug: str) -> None:
    forward = tiny.federation(small(slug), pack=1, rounds=2)
    backward = tiny.federation(small(slug), pack=1, rounds=2)
    group = packing.group
    with pytest.MonkeyPatch.context() as patch:
        forward.run()
        patch.setattr("weft.engines.packing.group", lambda *of: list(reversed(group(*of))))
        backward.run()
    assert_same(state(forward), state(backward), 0.0)


@pytest.mark.parametrize("slug", METHODS)
def test_the_backbone_is_never_touched_and_no_hook_survives(slug: str) -> None:
    from weft.backbones.backbone import frozen_fingerprint

    run = tiny.federation(small(slug), rounds=1)
    before = frozen_fingerprint(run.bench.backbone)
    run.run()
    run.simulation.evaluate(0)
    assert frozen_fingerprint(run.bench.backbone) == before
    assert list(tiny.hooks(run.bench.backbone.model)) == []
    assert not any(p.requires_grad for p in run.bench.backbone.model.parameters())


@pytest.mark.parametrize("slug", TRAVELS)
def test_sites_give_the_numbers_of_the_simulation(slug: str) -> None:
    here = tiny.federation(small(slug), pack=1, rounds=4, participation=0.5).run()
    away, loop = remote(small(slug), rounds=4, participation=0.5)
    away.run()
    server = {n: v for n, v in state(here).items() if not n.startswith("client-")}
    assert_same(server, {n: v for n, v in state(away).items() if not n.startswith("client-")}, 1e-9)
    mine = {n: v for n, v in state(here).items() if n.startswith("client-")}
    assert_same(mine, {n: v for n, v in kept(loop).items() if n in mine}, 1e-9)


@pytest.mark.parametrize("slug", METHODS)
def test_payloads_on_the_ledger_are_those_of_the_simulation(slug: str) -> None:
    here = tiny.federation(small(slug), pack=1, rounds=3).run()
    away, _ = remote(small(slug), rounds=3)
    away.run()
    for t in range(3):
        for direction in ("up", "down"):
            mine, theirs = (
                r.simulation.setup.exchange.ledger.totals(round=t, phase="train", direction=direction) for r in (here, away)
            )
            assert mine.parts == theirs.parts
            assert mine.wire == theirs.wire if direction == "down" else mine.wire <= theirs.wire  # an answer is framed


@pytest.mark.parametrize("slug", TRAVELS)
def test_scores_of_sites_are_those_of_the_simulation(slug: str) -> None:
    here = tiny.federation(small(slug), pack=1, rounds=3, participation=0.5).run()
    away, loop = remote(small(slug), rounds=3, participation=0.5)
    away.run()
    wanted = {(e.view, e.people, e.metric, e.pooling): e.value for e in here.simulation.evaluate(1)}
    found = {(e.view, e.people, e.metric, e.pooling): e.value for e in away.simulation.evaluate(1)}
    assert all(wanted[k] == pytest.approx(v) for k, v in found.items() if k in wanted)
    each = {(view, "own test", here.bench.task.metrics[0], "mean over clients") for view in here.method.info.views}
    assert each <= wanted.keys()
    nobody = not any(site.whole for site in loop.sites.values())  # who holds less than the server can't score its model
    assert (each & found.keys()) == ({k for k in each if not common(k[0])} if nobody else each)


@pytest.mark.parametrize("slug", METHODS)
def test_workers_give_the_numbers_of_the_simulation(slug: str) -> None:
    more: dict[str, Any] = {"pack": 2, "rounds": 3, "participation": 0.7, "dropout": 0.1}
    here = tiny.federation(small(slug), **more).run()
    away, queue = scattered(small(slug), **more)
    away.run()
    assert len(queue.asked) > 3, "one pack a round would prove nothing"
    assert_same(state(here), state(away), 0.0)
    assert {c.id: c.rounds_seen for c in here.clients} == {c.id: c.rounds_seen for c in away.clients}
