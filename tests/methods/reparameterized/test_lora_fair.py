"""LoRA-FAIR against its card: averaged factors, of which B is turned towards the mean of the clients' products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import SITES, Case, factors_and_head
from weft.contract import Optim
from weft.federation.scope import Scope
from weft.methods import FedIT, LoRAFAIR

SCALE = 3.0
SMALL = LoRAFAIR(rank=2, alpha=6.0, sites="q", steps=2, batch=2, penalty=1e-4, optim=Optim("sgd", lr=0.3, schedule="constant"))
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}


def sgd(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, 0.3)


def cosine(d: Tensor, m: Tensor) -> Tensor:
    return (d * m).sum() / (d.norm() * m.norm())


def best(d: Tensor, a: Tensor, b: Tensor, penalty: float) -> float:
    """The least of the objective that L-BFGS finds on dense matrices."""
    x = b.clone().requires_grad_(True)
    solver = torch.optim.LBFGS([x], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        solver.zero_grad()
        value = 1 - cosine(d, x @ a) + penalty * ((x - b).square().sum() + 1e-24).sqrt() / b.norm()
        value.backward()
        return value

    solver.step(closure)  # type: ignore[no-untyped-call]
    return float(1 - cosine(d, x.detach() @ a) + penalty * (x.detach() - b).norm() / b.norm())


def test_four_rounds_by_hand_with_clients_that_are_away() -> None:
    """All but B is the plain mean; B is as near to the mean of products as another optimizer gets on dense matrices."""
    run = tiny.federation(SMALL, **ABOUT)
    x = by_hand.shared(run)
    turned = 0.0
    for t, present in enumerate(cohorts.ABSENT):
        ends = [by_hand.train(run, x, by_hand.steps_of(run, k, t), sgd, scale=SCALE) for k in present]
        counts = [run.clients[k].n for k in present]
        p = [c / sum(counts) for c in counts]
        cohorts.play(run, t, present)
        after = by_hand.shared(run)
        mean = {n: sum(w * e[n] for w, e in zip(p, ends, strict=True)) for n in x}
        for name, value in mean.items():
            if not name.endswith("/B"):
                by_hand.close(after[name], value, 1e-9)  # type: ignore[arg-type]
        for site in by_hand.sites(run):
            a, b = mean[f"lora/{site}/A"], mean[f"lora/{site}/B"]
            d = sum(w * e[f"lora/{site}/B"] @ e[f"lora/{site}/A"] for w, e in zip(p, ends, strict=True))
            assert isinstance(a, Tensor)
            assert isinstance(b, Tensor)
            assert isinstance(d, Tensor)
            found = after[f"lora/{site}/B"]
            value = float(1 - cosine(d, found @ a) + SMALL.penalty * (found - b).norm() / b.norm())
            assert value <= best(d, a, b, SMALL.penalty) + 1e-9
            assert cosine(d, found @ a) >= cosine(d, b @ a) - 1e-12
            turned = max(turned, float((found - b).norm() / b.norm()))
        x = after
    assert 1e-3 < turned < 1


def test_with_a_large_penalty_it_is_fedit_to_the_bit() -> None:
    plain = FedIT(rank=2, alpha=6.0, sites="q", steps=2, batch=2, optim=SMALL.optim)
    found, wanted = (by_hand.shared(tiny.federation(m, **ABOUT).run()) for m in (replace(SMALL, penalty=1e6), plain))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(v, wanted[n]) for n, v in found.items())


def test_one_client_is_plain_lora() -> None:
    about = ABOUT | {"sizes": (6,)}
    plain = FedIT(rank=2, alpha=6.0, sites="q", steps=2, batch=2, optim=SMALL.optim)
    found, wanted = (by_hand.shared(tiny.federation(m, **about).run()) for m in (SMALL, plain))
    for name, value in wanted.items():
        by_hand.close(found[name], value, 1e-7)


def test_ridge_is_the_nearest_product_where_nothing_is_penalised() -> None:
    run = tiny.federation(replace(SMALL, solver="ridge", penalty=0.0), **ABOUT)
    made = by_hand.invented(run, [5.0, 1.0, 2.0])
    run.method.aggregate(run.server, made)
    for site in by_hand.sites(run):
        d = by_hand.mean_product(made, site, [1.0] * 3)
        a, b = (by_hand.shared(run)[f"lora/{site}/{role}"] for role in "AB")
        by_hand.close(b @ a, d @ torch.linalg.pinv(a) @ a, 1e-9)


def test_a_round_without_updates_changes_nothing() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(1)
    before = by_hand.shared(run)
    run.method.aggregate(run.server, iter(()))
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def test_defaults_and_what_roberta_base_sends() -> None:
    method, backbone = LoRAFAIR(), by_hand.roberta_base()
    assert by_hand.elements(method, backbone, Scope.UP)["lora"] == 12 * 16 * (768 + 768 + 768 + 3072)
    assert (method.rank, method.alpha, method.penalty, method.sites) == (16, 32.0, 0.01, "o,ffn.out")
    assert method.optim == Optim("sgd", lr=0.01, momentum=0.9, weight_decay=1e-5, clip=10.0, schedule="constant")


TINY = {"penalty": 0.0, "solver": "ridge"}  # a few steps of a tiny model make less of a bias than any penalty is worth

BYTES = Case({"rank": 2, **SITES}, factors_and_head, factors_and_head)


@pytest.mark.parametrize("penalty", [-1.0])
def test_a_negative_penalty_is_refused(penalty: float) -> None:
    from weft.errors import UserError
    from weft.experiment import resolve

    with pytest.raises(UserError, match="penalty"):
        resolve({"method": "lora-fair", "method.penalty": penalty})
