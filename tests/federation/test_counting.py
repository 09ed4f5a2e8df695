"""Operations of turns: as many as PyTorch counts of a client alone, for each client of a pack, wherever it is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from every_method import METHODS, built
from every_method import small as small_method
from weft.backbones.flops import powers
from weft.federation.method import Method
from weft.federation.work import Work, total
from weft.methods import FedIT, FFALoRA, registry
from weft.testing.federation import Federation, federation
from weft.testing.workers import scattered


def both(method: Method, model: str | None = None, **more: Any) -> tuple[int, int]:
    """A client's turn of steps of one row, in which nothing is padded: counted by PyTorch, and by us."""
    run = federation(method, model, sizes=(2,), **more)
    pack = run.pack([0])
    pack.count_flops()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        list(run.method.train(pack))
    return counter.get_total_flops(), pack.work["client-0"].flops


def lora(sites: str = "all") -> FedIT:
    return FedIT(rank=2, batch=1, steps=None, sites=sites)


@pytest.mark.parametrize("slug", ["fedbf", "fedpeft-bias", "lora-a2"])
def test_exactly_as_many_as_pytorch_counts_where_nothing_of_a_block_is_left_out(slug: str) -> None:
    theirs, ours = both(registry.build(slug, {"batch": 1, "steps": None}))
    assert ours == theirs


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("bert", "auto"),
        ("llama", "auto"),
        ("gpt2", "auto"),
        ("t5", "auto"),
        ("vit", "auto"),
        ("bert", "tokens"),
        ("bert", "masked"),
        ("llama", "generation"),
        ("bart", "generation"),
        ("t5", "generation"),
    ],
)
def test_within_a_hundredth_of_what_pytorch_counts(model: str, task: str) -> None:
    """Of the lowest block we do not know of each product whether its gradient is asked for; of three blocks that is much."""
    theirs, ours = both(lora(), model, task=task)
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("slug", ["promptfl", "fedprompt", "feddat", "fedotp", "fedhpl", "diprompt", "fedkseed", "rolora"])
def test_within_a_hundredth_for_methods_of_every_kind(slug: str) -> None:
    theirs, ours = both(registry.build(slug, {"batch": 1, "steps": None}))
    assert ours == pytest.approx(theirs, rel=0.01)


def test_the_frozen_answer_to_preferences_is_read_once_a_row() -> None:
    theirs, ours = both(lora(), "llama", task="preference")
    assert 0.98 * theirs < ours < theirs  # which pads the shorter of two answers


def rounds(run: Federation, number: int = 2) -> list[dict[str, Any]]:
    lines = [run.simulation.round(t) for t in range(number)]
    return [line["work"] for line in lines if line is not None]


SETTINGS: dict[str, Any] = {"sizes": (5, 3, 1, 4, 0, 4), "prefix": True, "flops": True}


@pytest.mark.parametrize("slug", METHODS)
def test_a_pack_counts_for_each_client_what_it_counts_for_the_client_alone(slug: str) -> None:
    method = small_method(slug)
    alone, packed = (rounds(federation(method, pack=pack, **SETTINGS)) for pack in (1, 3))
    assert alone == packed
    assert alone[0]["forward"] > 0 or slug in ("powder",)


@pytest.mark.parametrize("slug", ["fedit", "fedra", "legend", "fedpcl"])
def test_workers_count_what_is_counted_here(slug: str) -> None:
    method = small_method(slug)
    away, _ = scattered(method, number=2, pack=2, **SETTINGS)
    assert rounds(away) == rounds(federation(method, pack=3, **SETTINGS))


def test_nobody_counts_unless_asked() -> None:
    run = federation(built("fedit"), pack=2)
    assert set(rounds(run, 1)[0]) == {"steps", "examples"}
    away, _ = scattered(built("fedit"), number=2, pack=2)
    line = away.simulation.round(0)
    assert line is not None
    assert "work" not in line


def test_what_lies_below_the_parts_is_computed_once_for_each_row() -> None:
    """LoRA in the last of three blocks: the first two cost nothing in the second epoch, nor in the second round."""
    method = FedIT(rank=2, batch=1, steps=None, epochs=2.0, sites="re:.*layer[.]2[.].*query")
    settings: dict[str, Any] = {"sizes": (3,), "flops": True}
    run = federation(method, prefix=True, **settings)
    first, second = rounds(run)
    every = rounds(federation(method, **settings))
    places, table = run.bench.backbone.flops.forward, run.bench.table
    own = run.clients[0].data.train
    below = sum(
        int(places[place, 1]) * int(n) + int(places[place, 2]) * int(n) ** 2 for place in (1, 2) for n in table.widths[own]
    )
    assert below > 0
    assert every[0] == every[1]
    assert first["forward"] == every[0]["forward"] - below
    assert second["forward"] == every[1]["forward"] - 2 * below
    assert first["backward"] == second["backward"] == every[0]["backward"]


def test_what_is_below_a_trained_part_gets_no_gradient() -> None:
    costs = []
    for block in (2, 1, 0):
        method = FedIT(rank=2, batch=3, steps=1, sites=f"re:.*layer[.]{block}[.].*query")
        run = federation(method, sizes=(3,), flops=True)
        costs.append(rounds(run, 1)[0])
    rows = powers(run.bench.table.widths[run.clients[0].data.train], np.zeros(3, dtype=int)).sum(0)
    whole = int((run.bench.backbone.flops.backward[2] * rows).sum())
    assert [c["backward"] - costs[0]["backward"] for c in costs] == [0, whole, 2 * whole]
    assert len({c["forward"] for c in costs}) == 1


def test_what_no_optimizer_moves_costs_no_gradient_of_its_own() -> None:
    settings: dict[str, Any] = {"sizes": (3,), "flops": True}
    one = rounds(federation(FFALoRA(rank=2, batch=1, steps=1, sites="q"), **settings), 1)[0]
    two = rounds(federation(FedIT(rank=2, batch=1, steps=1, sites="q"), **settings), 1)[0]
    assert one["forward"] == two["forward"]
    assert one["backward"] < two["backward"]


def test_work_adds_up() -> None:
    assert total([Work(1, 2), Work(3, 4)]) == Work(4, 6)
    assert total([Work(1, 2, 5, 6), Work(0, 0, 1, 1)]) == Work(1, 2, 6, 7)
    assert total([Work(1, 2, 5, 6)]).record() == {"steps": 1, "examples": 2, "forward": 5, "backward": 6}
    assert Work(1, 2).record() == {"steps": 1, "examples": 2}
