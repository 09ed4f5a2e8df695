"""HetLoRA against its card: ranks of clients that shrink as they train, the tail's price, and a mean by norms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import SITES, Case, factors_and_head
from weft.contract import Optim
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import HetLoRA
from weft.tasks.kinds import GENERATION
from weft.testing.sites import remote
from weft.testing.workers import scattered

R, ALPHA = 6, 9.0
SCALE = ALPHA / R
SMALL = HetLoRA(
    rank=R, least=1, alpha=ALPHA, gamma=0.7, decay=0.05, steps=3, batch=2, optim=Optim("sgd", lr=0.4, schedule="constant")
)
FACTS: list[Mapping[str, Any]] = [{"rank": 6}, {"rank": 3}, {"rank": 4}]
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert", "facts": FACTS}
Values = Mapping[str, Tensor]


def first(values: Values, r: int) -> dict[str, Tensor]:
    """Factors cut to r ranks."""
    return {n: v[:r] if n.endswith("/A") else v[:, :r] if n.startswith("lora/") else v for n, v in values.items()}


def tail(values: Values, t: int) -> Tensor:
    """Σ ‖B[:, t:]‖ ‖A[t:]‖, without a slope where there is nothing."""
    total = torch.zeros((), dtype=torch.float64)
    for name in values:
        if name.endswith("/A"):
            squares = [(w**2).sum() for w in (values[name][t:], values[name[:-1] + "B"][:, t:])]
            if all(float(s.detach()) > 0 for s in squares):
                total = total + squares[0].sqrt() * squares[1].sqrt()
    return total


def turn(run: tiny.Federation, values: Values, k: int, t: int, decay: float) -> dict[str, Tensor]:
    """What local steps make of a client's factors and head."""
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    rank = next(v.shape[0] for n, v in values.items() if n.endswith("/A"))
    opt = torch.optim.SGD(list(leaves.values()), 0.4)
    for rows in by_hand.steps_of(run, k, t):
        opt.zero_grad()
        loss = F.cross_entropy(by_hand.logits(run, leaves, rows, SCALE), by_hand.labels(run, rows))
        (loss + decay * tail(leaves, math.floor(0.7 * rank))).backward()
        opt.step()
    return {n: v.detach() for n, v in leaves.items()}


def norm(values: Values) -> float:
    products = [values[n[:-1] + "B"] @ values[n] for n in values if n.endswith("/A")]
    return math.sqrt(sum(float((m**2).sum()) for m in products))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_four_rounds_by_hand_with_clients_that_are_away(decay: float) -> None:
    run = tiny.federation(replace(SMALL, decay=decay), **ABOUT)
    x, ranks = by_hand.shared(run), [6, 3, 4]
    pruned = 0
    for t, present in enumerate(cohorts.ABSENT):
        sent = {}
        for k in present:
            start, r = first(x, ranks[k]), ranks[k]
            end = turn(run, start, k, t, decay)
            cut = math.floor(0.7 * r)
            if tail(end, cut) < tail(start, cut):
                ranks[k] = max(cut, 1)
                pruned += 1
            sent[k] = first(end, ranks[k])
        total = sum(map(norm, sent.values()))
        wanted = {n: torch.zeros_like(v) for n, v in x.items()}
        for values in sent.values():
            for name, value in values.items():
                wanted[name][tuple(slice(0, n) for n in value.shape)] += norm(values) / total * value
        cohorts.play(run, t, present)
        x = by_hand.shared(run)
        for name, value in wanted.items():
            by_hand.close(x[name], value, 1e-9)
        assert [run.server.said.get(c.id, c.facts).get("rank") for c in run.clients] == ranks
    assert pruned == (0 if decay == 0.0 else 4) or decay == 0.0


def test_ranks_never_grow_and_stay_above_the_least() -> None:
    run = tiny.federation(replace(SMALL, decay=0.5, least=2), **{**ABOUT, "rounds": 6})
    before = [6, 3, 4]
    for t in range(6):
        run.simulation.round(t)
        ranks = [run.server.said.get(c.id, c.facts)["rank"] for c in run.clients]
        assert all(2 <= new <= old for new, old in zip(ranks, before, strict=True))
        assert t or ranks == before, "with B = 0 the tail cannot shrink"
        before = ranks
    assert before == [2, 2, 2]


def test_with_gamma_1_nobody_prunes() -> None:
    run = tiny.federation(replace(SMALL, gamma=1.0, decay=0.5), **ABOUT).run()
    assert run.server.said == {c.id: {"rank": r} for c, r in zip(run.clients, (6, 3, 4), strict=True)}


def test_the_tail_alone_has_a_price() -> None:
    run = tiny.federation(replace(SMALL, decay=1.0), **ABOUT).run(1)
    pack = run.pack(t=1)
    for value in pack.params("lora").values():
        value.requires_grad_(True)
    names = list(pack.params("lora"))
    slopes = torch.autograd.grad(run.method.tails(pack).sum(), [pack.tensors[n] for n in names])  # type: ignore[attr-defined]
    for name, slope in zip(names, slopes, strict=True):
        for k, r in enumerate((6, 3, 4)):
            t = math.floor(0.7 * r)
            ranks = slope[k] if name.endswith("/A") else slope[k].T
            assert not ranks[:t].any()
            assert ranks[t:r].any(1).all()
            assert not ranks[r:].any()


def test_one_clients_factors_become_the_servers_with_zeros_behind_them() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    sent = by_hand.record(run)
    cohorts.play(run, 0, [1])
    ((update,),) = sent
    for name, value in run.server.shared.items():
        mine = update.tensors[name]
        assert isinstance(value, Tensor)
        assert isinstance(mine, Tensor)
        inside = tuple(slice(0, n) for n in mine.shape)
        assert torch.equal(value[inside], mine)
        rest = value.clone()
        rest[inside] = 0
        assert not rest.any()


def test_norms_and_not_rows_say_how_much_a_client_counts() -> None:
    """A common factor on all of B changes nothing in it; nobody having moved, all count alike."""
    found = []
    for factor in (1.0, 7.0, 0.0):
        run = tiny.federation(SMALL, **ABOUT)
        updates = list(run.method.train(run.pack()))
        for u in updates:
            u.tensors = {n: factor * v if n.endswith("/B") else v for n, v in u.tensors.items()}  # type: ignore[operator]
        run.method.aggregate(run.server, updates)
        found.append((by_hand.shared(run), updates))
    heads = [{n: v for n, v in x.items() if n.startswith("head/")} for x, _ in found]
    for name, value in heads[0].items():
        by_hand.close(heads[1][name], value, 1e-12)
        by_hand.close(heads[2][name], sum(u.tensors[name] for u in found[2][1]) / 3, 1e-12)  # type: ignore[arg-type, misc]
    assert any(not torch.allclose(heads[0][n], heads[2][n]) for n in heads[0])


def test_with_one_rank_and_equal_norms_it_is_the_plain_mean() -> None:
    run = tiny.federation(replace(SMALL, gamma=1.0), **{**ABOUT, "facts": [{"rank": R}] * 3})
    updates = list(run.method.train(run.pack()))
    for u in updates:
        size = norm({n: v for n, v in u.tensors.items() if n.startswith("lora/")})  # type: ignore[misc]
        u.tensors = {n: v / size if n.endswith("/B") else v for n, v in u.tensors.items()}  # type: ignore[operator]
    run.method.aggregate(run.server, updates)
    for name, value in by_hand.shared(run).items():
        by_hand.close(value, sum(u.tensors[name] for u in updates) / 3, 1e-7)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("facts", "cut"), [({"rank": 5}, 5), ({"rank": 7}, 6), ({"rank": 3}, 6), ({}, 6), ({"rank": "4"}, 4), ({"rank": True}, 1)]
)
def test_a_rank_that_cannot_be_a_clients_own_counts_for_nothing(facts: dict[str, Any], cut: int) -> None:
    run, alone = (tiny.federation(SMALL, **ABOUT) for _ in range(2))
    updates = list(run.method.train(run.pack()))
    alone.method.aggregate(alone.server, updates[1:])
    bad = replace(updates[0], facts=facts, tensors=first(updates[0].tensors, cut))  # type: ignore[arg-type]
    run.method.aggregate(run.server, [bad, *updates[1:]])
    assert all(torch.equal(v, by_hand.shared(alone)[n]) for n, v in by_hand.shared(run).items())
    assert run.clients[0].id not in run.server.said


def test_what_is_sent_is_the_rank_times_both_sides() -> None:
    run = tiny.federation(replace(SMALL, decay=0.5), **ABOUT)
    sent = by_hand.record(run)
    run.run()
    small = 0
    for update in (u for some in sent for u in some):
        rank = update.facts["rank"]
        factors = {n: v for n, v in update.tensors.items() if n.startswith("lora/")}
        assert sum(v.numel() for v in factors.values()) == rank * 64 * len(by_hand.sites(run))  # type: ignore[union-attr]
        small += rank < next(c.facts["rank"] for c in run.clients if c.id == update.client.id)
    assert small


def test_the_server_says_the_rank_at_sites_and_to_workers_and_after_a_checkpoint() -> None:
    method = replace(SMALL, decay=0.5)
    wanted = tiny.federation(method, **ABOUT).run()
    elsewhere = remote(method, **ABOUT)[0].run()
    spread = scattered(method, **ABOUT)[0].run()
    for run in (elsewhere, spread):
        assert run.server.said == wanted.server.said
        for name, value in by_hand.shared(wanted).items():
            by_hand.close(by_hand.shared(run)[name], value, 1e-12)
    assert wanted.server.said != {c.id: dict(f) for c, f in zip(wanted.clients, FACTS, strict=True)}
    half, rest = tiny.federation(method, **ABOUT).run(3), tiny.federation(method, **ABOUT)
    rest.server.restore(*half.server.tensors_and_json())
    for run in (half, rest):
        run.simulation.round(3)
    assert all(torch.equal(v, by_hand.shared(half)[n]) for n, v in by_hand.shared(rest).items())
    assert half.server.said == rest.server.said == wanted.server.said


def test_it_trains_a_model_that_writes() -> None:
    run = tiny.federation(SMALL, "llama", task=GENERATION, rounds=2, sizes=(6, 5, 7), facts=FACTS)
    before = by_hand.shared(run)
    run.run()
    assert all(not torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def test_wrong_ranks_are_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"method\.least is 7, above method\.rank = 6"):
        replace(SMALL, least=7)
    for rank in (0, 7, "4"):
        with pytest.raises(UserError, match=f"has the rank {rank}: give it one from 1 to method.rank = 6"):
            tiny.federation(SMALL, **{**ABOUT, "facts": [{"rank": rank}, {}, {}]}).run(1)


def test_defaults_and_how_ranks_are_dealt() -> None:
    method = HetLoRA()
    assert (method.rank, method.least, method.gamma, method.decay, method.steps, method.batch) == (50, 5, 0.99, 1e-3, 5, 8)
    dealt = [method.profile(i)["rank"] for i in range(460)]
    assert set(dealt) == set(range(5, 51))
    assert max(map(dealt.count, dealt)) <= 11
    assert [method.kept(r) for r in (5, 50, 100)] == [4, 49, 99]
    assert by_hand.elements(method, by_hand.roberta_base(), Scope.UP)["lora"] == 50 * (768 + 768) * 24


# what other tests ask of this method --------------------------------------------------------------------------------------


BYTES = Case(
    {"rank": 4, "least": 1, "gamma": 1.0, **SITES},
    factors_and_head,
    factors_and_head,
    facts=tuple({"rank": r} for r in (1, 2, 3, 4, 2, 1)),
    revealed=len('{"rank":1}'),
)
