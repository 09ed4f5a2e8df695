"""The three laws of the contract, for every registered method: pack law, return law, additive law.

They run over later methods without being edited.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from site_by_messages import by_messages
from weft.aggregation.mean import WeightedMean
from weft.engines import packing
from weft.federation.message import Update
from weft.federation.method import Method
from weft.methods import registry
from weft.tensors.lowrank import LowRank

METHODS = sorted(registry.infos())

TERMS = "flora of small rank"
"""At its own rank a stack is as large as a layer of the tiny models, and goes whole: here the terms travel."""

TRAVELS = [*METHODS, TERMS]


def small(slug: str) -> Method:
    """The method at its own defaults, but with small batches, so that a turn has several unequal steps."""
    method = registry.build("flora", {"rank": 1}) if slug == TERMS else registry.build(slug, {})
    return replace(method, batch=3, steps=None, epochs=1.0)


def state(run: tiny.Federation) -> dict[str, Tensor]:
    """All that a run leaves behind: server values as products where they are factored, and personal tensors."""
    found = {}
    tensors, _ = run.server.tensors_and_json()
    for name, value in tensors.items():
        if name.endswith((":A", ":B")):
            continue
        found[name] = value
    for store in (run.server.shared, run.server.memo):
        found |= {f"{n} dense": v.dense() for n, v in store.items() if isinstance(v, LowRank)}
    for client in run.clients:
        run.simulation.store.load(client)
        found |= {f"{client.id}:{n}": v for n, v in client.kept.items()}
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def logits(run: tiny.Federation) -> dict[str, Tensor]:
    """What the run predicts, by every view: factors may differ by a rotation where predictions do not."""
    found = {}
    for view in run.method.info.views:
        if view == "global":
            found[view] = run.global_logits()
            continue
        rows = {c.id: run.clients[0].data.test for c in run.clients}
        found |= {f"{view}:{c}": v for c, v in by_hand.own_logits(run, view, rows).items()}
    return found


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


@pytest.mark.parametrize("slug", ["fedit", "fedra"])
def test_pack_law_with_batches_that_are_drawn_at_random(slug: str) -> None:
    def play(pack: int, by_length: bool) -> dict[str, Tensor]:
        run = tiny.federation(small(slug), pack=pack, rounds=2)
        run.bench.by_length = by_length
        run.run()
        return logits(run)

    packed = play(6, by_length=False)
    assert_same(packed, play(1, by_length=False), 1e-8)
    assert any(not torch.allclose(v, packed[n], atol=1e-4) for n, v in play(6, by_length=True).items())


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
        clear = run.simulation.spool.clear

        def keep() -> None:
            seen.append({p.name: p.read_bytes() for p in sorted(run.simulation.spool.folder.iterdir())})
            clear()

        run.simulation.spool.clear = keep  # type: ignore[method-assign]
        run.run()
        return seen

    first, second = frames(), frames()
    assert first == second
    assert any(first)


@pytest.mark.parametrize("codec", ["identity", "quant8"])
@pytest.mark.parametrize("slug", METHODS)
def test_with_learning_rate_zero_nothing_moves(slug: str, codec: str) -> None:
    method = small(slug)
    changes: dict[str, Any] = {"optim": method.optim.but(lr=0.0)}
    run = tiny.federation(replace(method, **changes), rounds=2, codec_name=codec)
    before = logits(run)
    run.run()
    # exactly, for values that are averaged; flexlora's SVD may turn the factors of an unchanged zero product
    assert_same(before, logits(run), 1e-12)


@pytest.mark.parametrize("slug", METHODS)
def test_every_codec_trains(slug: str) -> None:
    run = tiny.federation(small(slug), rounds=2, codec_name="quant8")
    before = logits(run)
    run.run()
    after = logits(run)
    assert run.simulation.exchange.ledger.totals(direction="up").payload > 0
    assert any(not torch.equal(before[v], after[v]) for v in after)
    assert all(bool(torch.isfinite(v).all()) for v in after.values())


@pytest.mark.parametrize("slug", METHODS)
def test_additive_law_both_ways(slug: str) -> None:
    """aggregate([u1 … uK]) = aggregate([their weighted mean]) for exactly the methods that declare it."""
    method = small(slug)

    def run(reduced: bool) -> dict[str, Tensor]:
        federation = tiny.federation(method, rounds=2)

        def one(updates: Any) -> list[Update]:
            got = list(updates)
            if not got or not reduced:
                return got
            mean = WeightedMean()
            for u in got:
                tensors = {n: v for n, v in u.tensors.items() if isinstance(v, Tensor)}
                mean.add(tensors, 1.0 if method.weighting == "uniform" else u.weight)
            total = sum(u.weight for u in got)
            return [replace(got[0], tensors=dict(mean.result()), weight=total)]

        server = federation.server
        for t in range(2):
            original = federation.simulation.intake.updates
            federation.simulation.intake.updates = lambda *a, o=original: iter(one(o(*a)))  # type: ignore[method-assign]
            try:
                federation.simulation.round(t)
            except (ValueError, KeyError, RuntimeError):  # updates of several sizes have no mean at all
                assert reduced
                return {}
            finally:
                federation.simulation.intake.updates = original  # type: ignore[method-assign]
        return {n: v.dense() if isinstance(v, LowRank) else v for n, v in server.shared.items()} | logits(federation)

    apart, together = run(False), run(True)
    same = apart.keys() == together.keys() and all(
        a.shape == together[n].shape and torch.allclose(a, together[n], rtol=1e-9, atol=1e-9) for n, a in apart.items()
    )
    assert same == method.info.additive


@pytest.mark.parametrize("slug", METHODS)
def test_results_do_not_depend_on_the_order_of_clients(slug: str) -> None:
    forward = tiny.federation(small(slug), pack=1, rounds=2)
    backward = tiny.federation(small(slug), pack=1, rounds=2)
    group = packing.group
    with pytest.MonkeyPatch.context() as patch:
        forward.run()
        patch.setattr("weft.engines.packing.group", lambda clients, k: list(reversed(group(clients, k))))
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
