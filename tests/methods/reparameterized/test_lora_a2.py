"""LoRA-A² against its card: alternating factors, and the units that each client's probe finds most important."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import BLOCK, LAYERS, SITES, Case, Sizes, Turn
from weft.contract import Optim
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import FFALoRA, LoRAA2, RoLoRA, registry

R, BUDGET, SCALE, LR = 4, 2, 1.5, 0.4
SMALL = LoRAA2(rank=R, alpha=6.0, budget=BUDGET, sites="q,v", epochs=2.0, batch=2, optim=Optim("sgd", lr=LR, schedule="constant"))
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}
Values = Mapping[str, Tensor]


def steps(run: tiny.Federation, k: int, t: int, epochs: float, n: int | None = None) -> list[np.ndarray]:
    return [b.index[0] for b in run.pack([k], t).batches(epochs, n, 2)]


def descend(run: tiny.Federation, values: Values, rows: Sequence[np.ndarray], lr: float, masks: Values) -> dict[str, Tensor]:
    """Plain SGD on the entries of masks."""
    leaves = {n: v.clone().requires_grad_(n in masks) for n, v in values.items()}
    for some in rows:
        loss = F.cross_entropy(by_hand.logits(run, leaves, some, SCALE), by_hand.labels(run, some))
        slopes = torch.autograd.grad(loss, [leaves[n] for n in masks])
        with torch.no_grad():
            for (name, mask), slope in zip(masks.items(), slopes, strict=True):
                leaves[name] -= lr * slope * mask
    return {n: v.detach() for n, v in leaves.items()}


def turn(
    run: tiny.Federation, x: Values, k: int, t: int, budget: int, n: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a client's turn gives, and which ranks of each layer it chooses."""
    factor, lr = ("B", 5 * LR) if t % 2 == 0 else ("A", LR)
    names = [n for n in x if n.startswith("lora/") and n.endswith(factor)]
    everything = {n: torch.ones_like(x[n]) for n in names}
    probe = descend(run, x, steps(run, k, t, 1.0, n), lr, everything)
    scores = []
    for name in names:
        site = name[:-1]
        b, a = (
            (probe[site + "B"] - x[site + "B"], x[site + "A"])
            if factor == "B"
            else (x[site + "B"], probe[site + "A"] - x[site + "A"])
        )
        scores += [float(torch.linalg.matrix_norm(torch.outer(b[:, i], a[i]))) for i in range(R)]
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: budget * len(names)]
    chosen = {n: torch.tensor([j * R + i in best for i in range(R)]) for j, n in enumerate(names)}
    masks = {n: (m[None, :] if factor == "B" else m[:, None]).expand_as(x[n]).to(x[n]) for n, m in chosen.items()}
    return descend(run, x, steps(run, k, t, 2.0, n), lr, masks), chosen


@pytest.mark.parametrize("budgets", [(), (1, 4, 2)])
def test_four_rounds_by_hand_with_clients_that_are_away(budgets: tuple[int, ...]) -> None:
    run = tiny.federation(replace(SMALL, budgets=budgets), **ABOUT)
    x = by_hand.shared(run)
    head = {n: v for n, v in by_hand.start_of(run).items() if n.startswith("head/")}
    uneven = 0
    for t, present in enumerate(cohorts.ABSENT):
        turns = [turn(run, {**x, **head}, k, t, (budgets or (BUDGET,) * 3)[k]) for k in present]
        weights = [run.clients[k].n / sum(run.clients[j].n for j in present) for k in present]
        cohorts.play(run, t, present)
        after = by_hand.shared(run)
        for name, value in x.items():
            moved = (
                sum(w * (end[name] - value) for w, (end, _) in zip(weights, turns, strict=True)) if name.startswith("lora") else 0
            )
            by_hand.close(after[name], value + moved, 1e-9)
            idle = name.endswith("/A") if t % 2 == 0 else name.endswith("/B")
            assert not idle or torch.equal(after[name], value)
        uneven += len({int(m.sum()) for _, chosen in turns for m in chosen.values()}) > 1
        x = after
    assert uneven  # the budget is that of the whole model, and not of each layer


def test_a_client_sends_exactly_its_budget_of_units() -> None:
    run = tiny.federation(replace(SMALL, budgets=(1, 3, 2)), **ABOUT)
    for t in range(3):
        pack = run.pack(t=t)
        for update, budget in zip(run.method.train(pack), (1, 3, 2), strict=True):
            rows = [v for v in update.tensors.values() if isinstance(v, Tensor)]
            assert sum(len(v) for v in rows) == budget * len(by_hand.sites(run))
            assert all(v.shape[1] == 32 for v in rows)
        run.simulation.round(t)


def test_with_all_units_it_is_rolora_with_a_rate_of_its_own_for_b() -> None:
    whole = replace(SMALL, budget=R, ratio=1.0)
    plain = RoLoRA(rank=R, alpha=6.0, sites="q,v", steps=None, epochs=2.0, batch=2, weighting="examples", optim=SMALL.optim)
    found, wanted = (by_hand.shared(tiny.federation(m, **ABOUT).run()) for m in (whole, plain))
    for name, value in wanted.items():
        by_hand.close(found[name], value, 1e-12)


def test_with_all_units_and_one_round_it_is_ffa_lora() -> None:
    plain = FFALoRA(
        rank=R, alpha=6.0, sites="q,v", steps=None, epochs=2.0, batch=2, optim=Optim("sgd", lr=5 * LR, schedule="constant")
    )
    found, wanted = (by_hand.shared(tiny.federation(m, **ABOUT).run(1)) for m in (replace(SMALL, budget=R), plain))
    for name, value in wanted.items():
        if name.endswith("/B"):
            by_hand.close(found[name], value, 1e-12)


def test_adam_moves_no_entry_that_was_not_chosen_and_the_probe_leaves_nothing() -> None:
    method = replace(SMALL, optim=Optim("adamw", lr=0.01, weight_decay=0.1))
    run = tiny.federation(method, **ABOUT).run(1)
    pack = run.pack(t=1)
    before = {n: v.detach().clone() for n, v in pack.params("lora").items()}
    updates = list(method.train(pack))
    for k, update in enumerate(updates):
        for name, value in pack.params("lora/*/A").items():
            still = (value.detach()[k] == before[name][k]).all(1)
            sent = update.tensors.get(f"rows/{name.split('/')[1]}")
            assert int((~still).sum()) == (len(sent) if isinstance(sent, Tensor) else 0)
    assert pack.optimized() == {n for n in before if n.endswith("/A")}


@pytest.mark.parametrize("told", ["", "!!", "zzzz", None, 7])
def test_units_that_do_not_fit_what_is_sent_count_for_nothing(told: Any) -> None:
    run = tiny.federation(SMALL, **ABOUT)
    updates = list(run.method.train(run.pack()))
    alone = tiny.federation(SMALL, **ABOUT)
    alone.method.aggregate(alone.server, updates[1:])
    run.method.aggregate(run.server, [replace(updates[0], facts={"units": told}), *updates[1:]])
    found, wanted = by_hand.shared(run), by_hand.shared(alone)
    assert all(torch.equal(v, wanted[n]) for n, v in found.items())


@pytest.mark.parametrize("settings", [{"budget": R + 1}, {"budgets": (1, R + 1)}])
def test_nobody_sends_more_ranks_than_there_are(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"send {R + 1} ranks a layer, and there are {R}"):
        tiny.federation(replace(SMALL, **settings), **ABOUT).run(1)
    assert registry.build("lora-a2", {"rank": R, "budget": R}) == LoRAA2(rank=R, budget=R)


def test_a_clients_own_rank_goes_before_the_settings() -> None:
    run = tiny.federation(replace(SMALL, budgets=(1, 1, 1)), facts=[{}, {"rank": 3}, {}], **ABOUT)
    sent = [sum(len(v) for v in u.tensors.values()) for u in run.method.train(run.pack())]  # type: ignore[arg-type]
    assert sent == [n * len(by_hand.sites(run)) for n in (1, 3, 1)]


def test_steps_are_those_of_the_round_and_of_the_probe() -> None:
    run = tiny.federation(replace(SMALL, steps=1), **ABOUT)
    x = {**by_hand.shared(run), **by_hand.start_of(run)}
    for k in range(3):
        end, chosen = turn(run, x, k, 0, BUDGET, 1)
        assert any(not torch.equal(m, turn(run, x, k, 0, BUDGET)[1][n]) for n, m in chosen.items()), "more steps choose no others"
        (update,) = run.method.train(run.pack([k]))
        for name, mask in chosen.items():
            sent = update.tensors.get(f"rows/{name.split('/')[1]}")
            assert isinstance(sent, Tensor) == bool(mask.any())
            if isinstance(sent, Tensor):
                by_hand.close(sent, (end[name] - x[name])[:, mask].T, 1e-9)


def test_defaults_and_what_roberta_base_may_send() -> None:
    """1.99e9 elements of plain LoRA of rank 8 by 30 clients in 50 rounds: 72 layers."""
    method, backbone = LoRAA2(), by_hand.roberta_base()
    assert by_hand.elements(replace(method, rank=8), backbone, Scope.UP)["lora"] * 1500 == pytest.approx(1.99e9, rel=2e-3)
    assert (method.rank, method.alpha, method.ratio, method.epochs) == (16, 16.0, 5.0, 5.0)
    assert method.optim == Optim("adamw", lr=5e-4)


# what other tests ask of this method --------------------------------------------------------------------------------------


def whole_factor(role: str) -> list[int]:
    return [2 * {"A": d_in, "B": d_out}[role] for d_in, d_out in BLOCK] * LAYERS


def down(turn: Turn) -> Sizes:
    return {"lora": whole_factor("A" if turn.t % 2 == 0 else "B")}  # what the round before has changed


def up(turn: Turn) -> Sizes:
    """With all units; which they are is a fact."""
    return {"rows": whole_factor("B" if turn.t % 2 == 0 else "A")}


BYTES = Case({"rank": 2, "budget": 2, **SITES}, down, up, head=False, revealed=len('{"units":"abc"}'))  # 12 bits in base 85
