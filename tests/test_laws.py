"""The laws of the contract over every registered method, from :mod:`weft.testing.laws`; later methods need no line here."""

from __future__ import annotations

import pytest
import torch

import tiny
from every_method import METHODS, TRAVELS, built, short, small
from weft.testing import of_settings
from weft.testing.compare import assert_same, logits
from weft.testing.laws import LAWS
from weft.testing.models import SHAPES, home
from weft.testing.plays import ABSENT, FAILING, plays


def takes(slug: str) -> list[str]:
    """Architectures that a method is tried on."""
    method = built(slug)
    return [home(method), *of_settings.others(method)]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("slug", TRAVELS)
def test_every_method_keeps(slug: str, law: str) -> None:
    LAWS[law](short(slug))


def test_the_runs_that_laws_read_have_in_them_what_the_laws_are_about() -> None:
    """Somebody who is away and comes back, somebody who fails, and clients of every size, in packs of several."""
    packed = plays(built("fedit")).packed
    drawn = [set(clients) for clients in packed.seen.entered.values()]
    assert [ABSENT in clients for clients in drawn] == [True, False, True]
    assert [FAILING in clients for clients in drawn] == [True, False, True]
    everybody = packed.run.clients
    assert {c.id for c in everybody} == set.union(*drawn)
    assert sorted(c.n for c in everybody) == [0, 1, 3, 4, 4, 5]
    labels = packed.run.bench.table.labels
    assert len(set(labels[everybody[3].data.train].tolist())) == 1
    assert packed.run.simulation.turns.capacity.k == 2
    assert [len(turn.updates) for turn in packed.seen.turns.values()] == [3, 2, 2]


@pytest.mark.parametrize("model", SHAPES)
def test_on_every_architecture_some_method_keeps_the_pack_law(model: str) -> None:
    """Methods come round by turns; which architecture each is tried on beside its own goes by its slug. The product is slow."""
    at = list(SHAPES).index(model)
    turn = [built(slug) for slug in METHODS[at % len(METHODS) :] + METHODS[: at % len(METHODS)]]
    assert any(of_settings.check_on(method, model) for method in turn if model in takes(method.info.slug))


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["identity", "quant8"])
@pytest.mark.parametrize(("slug", "model"), [(s, m) for s in METHODS for m in SHAPES if m in takes(s)])
def test_every_method_keeps_the_pack_law_on_every_architecture_with_every_codec(slug: str, model: str, codec: str) -> None:
    method = built(slug)
    if not of_settings.check_on(method, model, codec):
        assert model != home(method)


@pytest.mark.parametrize("slug", ["fedit", "fedra"])
def test_pack_law_with_batches_that_are_drawn_at_random(slug: str) -> None:
    def play(pack: int, by_length: bool) -> dict[str, torch.Tensor]:
        run = tiny.federation(small(slug), pack=pack, rounds=2)
        run.bench.by_length = by_length
        run.run()
        return logits(run)

    packed = play(6, by_length=False)
    assert_same(packed, play(1, by_length=False), 1e-8)
    assert any(not torch.allclose(v, packed[n], atol=1e-4) for n, v in play(6, by_length=True).items())
