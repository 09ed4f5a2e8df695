"""Sums that grow for ever: what is compressed when, and what a client that was away for some rounds is sent of them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from weft.adaptation.optim import Optim
from weft.federation.message import APPENDED, Update
from weft.federation.rounds import close_round
from weft.methods import FLoRA
from weft.tensors.growing import SLACK, grow
from weft.tensors.lowrank import LowRank
from weft.testing.sites import remote

D = 32  # both sides of every site of the tiny BERT's attention


def term(rank: int, seed: int, d_out: int = D, d_in: int = D) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(*(torch.randn(*s, generator=g, dtype=torch.float64) for s in ((d_out, rank), (rank, d_in))), 0.5)


def updates(run: tiny.Federation, clients: int, seed: int) -> list[Update]:
    found = by_hand.invented(run, [float(k + 1) for k in range(clients)])
    g = torch.Generator().manual_seed(seed)
    for u in found:
        u.tensors = {
            n: torch.randn(v.shape, generator=g, dtype=torch.float64) for n, v in u.tensors.items() if isinstance(v, Tensor)
        }
    return found


@pytest.mark.parametrize("shape", [(32, 32), (48, 32), (32, 48)])
def test_a_sum_of_many_terms_is_exact_bounded_and_compressed_once_in_many_rounds(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda *a, **k: calls.append(1) or qr(*a, **k))
    value, exact, keep = LowRank.zeros(*shape, dtype=torch.float64), torch.zeros(*shape, dtype=torch.float64), 3
    for i in range(60):
        new = term(3, i, *shape)
        value, exact = grow(value, new, keep), exact + new.dense()
        assert value.rank <= SLACK * D + keep
        by_hand.close(value.B[:, -keep:] @ value.A[-keep:], new.dense(), 1e-12)
    by_hand.close(value.dense(), exact, 1e-11)
    assert 60 * 3 / (SLACK * D) <= len(calls) <= 60 * 3 / ((SLACK - 1) * D) + 1


def test_what_is_kept_apart_is_left_as_it_is() -> None:
    value = term(50, 0)
    small = value.compress(keep=7)
    assert small.rank == D + 7
    assert torch.equal(small.B[:, D:], value.B[:, 43:])
    assert torch.equal(small.A[D:], value.A[43:])
    by_hand.close(small.dense(), value.dense(), 1e-12)
    assert value.compress(keep=18) is value
    for wrong in (-1, 51):
        with pytest.raises(ValueError, match="keep"):
            value.compress(wrong)


PRESENT = {
    0: lambda t: True,
    1: lambda t: t % 2 == 0,
    2: lambda t: t % 5 == 0,
    3: lambda t: t in (0, 1, 19),
    4: lambda t: t == 20,
}
"""Who takes part when: always, every other round, one round in five, hardly ever, and only at the end."""


@pytest.mark.parametrize("rank", [1, 2, 12])
def test_everybody_holds_the_sum_and_nobody_downloads_more_than_it_missed_or_the_whole(rank: int) -> None:
    """Ranks of a round, 5 clients: 5 and 10 of 32, and more than the layer has."""
    run = tiny.federation(FLoRA(rank=rank, sites="q"), sizes=(3,) * 5, rounds=21)
    server, site = run.server, by_hand.sites(run)[0]
    name = f"base/{site}/delta"
    exact = torch.zeros(D, D, dtype=torch.float64)
    copies = [LowRank.zeros(D, D, dtype=torch.float64) for _ in PRESENT]
    missed = [0] * len(PRESENT)  # rank of the terms that a client has not got
    here = [c.info(("rank",)) for c in run.clients]
    appended = wholes = 0
    for t in range(21):
        for k, present in PRESENT.items():
            if not present(t):
                continue
            message = server.stale(here[k])
            news, whole = message.tensors.get(name + APPENDED), message.tensors.get(name)
            assert (news is not None) + (whole is not None) == bool(t)
            if isinstance(news, LowRank):
                assert missed[k] == news.rank < D, "exactly the terms that it missed, if they are less than the whole"
                copies[k], appended = grow(copies[k], news), appended + 1
            if isinstance(whole, LowRank):
                assert whole.rank <= min(D, missed[k])
                copies[k], wholes = whole, wholes + 1
            server.receipt(message, here[k])
            missed[k] = 0
            by_hand.close(copies[k].dense(), exact, 1e-10)
            assert copies[k].rank <= SLACK * D
        made = updates(run, 5, t)
        close_round(run.method, server, made)
        exact = exact + by_hand.mean_product(made, site, [2.0] * 5)
        value = server.shared[name]
        assert isinstance(value, LowRank)
        by_hand.close(value.dense(), exact, 1e-10)
        assert value.rank <= (SLACK + 1) * D
        assert sum(r for _, r in server.terms[name]) == value.rank
        missed = [m + 5 * rank for m in missed]
    assert wholes
    assert bool(appended) == (5 * rank < D)


def test_a_value_that_is_replaced_goes_whole_and_the_terms_before_it_count_no_more() -> None:
    run = tiny.federation(FLoRA(rank=1, sites="q"), sizes=(3,) * 2)
    client, name = run.server.clients[0], f"base/{by_hand.sites(run)[0]}/delta"
    for t in range(3):
        run.server.receipt(run.server.stale(client), client)
        close_round(run.method, run.server, updates(run, 2, t))
    new = term(5, 0)
    run.server.write(name, new)
    found = run.server.stale(client).tensors
    assert name + APPENDED not in found
    by_hand.close(found[name].dense(), new.dense(), 1e-12)  # type: ignore[union-attr]
    run.server.receipt(run.server.stale(client), client)
    close_round(run.method, run.server, updates(run, 2, 9))
    assert run.server.stale(client).tensors[name + APPENDED].rank == 2  # type: ignore[union-attr]


def test_a_round_that_is_undone_leaves_no_terms() -> None:
    run = tiny.federation(FLoRA(rank=1, sites="q"), sizes=(3,) * 2)
    client, name = run.server.clients[0], f"base/{by_hand.sites(run)[0]}/delta"
    for t in range(2):
        run.server.receipt(run.server.stale(client), client)
        close_round(run.method, run.server, updates(run, 2, t))
    run.server.receipt(run.server.stale(client), client)
    before = run.server.shared[name].dense()  # type: ignore[union-attr]
    absurd = updates(run, 2, 7)
    absurd[0].tensors = {n: v * torch.inf for n, v in absurd[0].tensors.items()}  # type: ignore[operator]
    assert "skipped" in close_round(run.method, run.server, absurd)
    assert run.server.stale(client).tensors == {}
    close_round(run.method, run.server, updates(run, 2, 8))
    news = run.server.stale(client).tensors[name + APPENDED]
    assert news.rank == 2  # type: ignore[union-attr]
    by_hand.close(run.server.shared[name].dense(), before + news.dense(), 1e-12)  # type: ignore[union-attr]


def test_terms_that_nobody_lacks_are_not_kept_apart() -> None:
    """With everybody in every round the server holds little more than a site does."""
    run = tiny.federation(FLoRA(rank=1, sites="q"), sizes=(3,) * 4, rounds=30)
    name = f"base/{by_hand.sites(run)[0]}/delta"
    for t in range(30):
        for client in run.server.clients:
            run.server.receipt(run.server.stale(client), client)
        close_round(run.method, run.server, updates(run, 4, t))
        value = run.server.shared[name]
        assert isinstance(value, LowRank)
        assert value.rank <= SLACK * D + 4


def test_the_whole_is_compressed_once_for_all_newcomers_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(FLoRA(rank=4, sites="q"), sizes=(3,) * 5, rounds=4)
    old, *new = run.server.clients
    for t in range(3):
        run.server.receipt(run.server.stale(old), old)
        close_round(run.method, run.server, updates(run, 2, t))
    run.server.receipt(run.server.stale(old), old)
    close_round(run.method, run.server, updates(run, 5, 9))  # 24 + 20 of 32: not yet compressed
    name = f"base/{by_hand.sites(run)[0]}/delta"
    assert run.server.shared[name].rank == 44  # type: ignore[union-attr]
    calls: list[int] = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda *a, **k: calls.append(1) or qr(*a, **k))
    run.server.synced[new[1].id] = 1  # one of them was here before anything was learnt
    wholes = [run.server.stale(c).tensors[name] for c in new]
    assert [v.rank for v in wholes] == [D] * 4  # type: ignore[union-attr]
    assert len(calls) == len(by_hand.sites(run))
    by_hand.close(wholes[0].dense(), run.server.shared[name].dense(), 1e-11)  # type: ignore[union-attr]


def test_sites_and_simulation_agree_long_after_the_delta_has_reached_full_rank() -> None:
    method = FLoRA(rank=4, sites="q", batch=6, optim=Optim("adamw", lr=3e-2))
    rounds = 12
    here = tiny.federation(method, rounds=rounds, participation=0.5, pack=2).run()
    away, loop = remote(method, rounds=rounds, participation=0.5)
    away.run()
    sent = [r.simulation.setup.exchange.ledger.totals(direction="down").payload for r in (here, away)]
    assert sent[0] == sent[1]
    by_hand.close(away.global_logits(), here.global_logits(), 1e-7)
    ranks = [v.rank for s in loop.sites.values() for v in s.copy.values() if isinstance(v, LowRank)]
    assert D < max(ranks) <= SLACK * D
    for site in loop.sites.values():  # a site that starts again reads the same
        before = {n: v.dense() for n, v in site.copy.items() if isinstance(v, LowRank)}
        site._recall()
        assert all(torch.equal(v.dense(), before[n]) for n, v in site.copy.items() if isinstance(v, LowRank))


def test_a_run_that_was_saved_when_terms_were_dropped_goes_on() -> None:
    """State as it was written before: a compressed value as a single term, or the terms since the first."""
    first = tiny.federation(FLoRA(rank=2, sites="q"), sizes=(3,) * 3, rounds=3)
    sites = [f"base/{s}/delta" for s in by_hand.sites(first)]
    tensors, state = first.server.tensors_and_json()
    state = json.loads(json.dumps(state))
    for i, name in enumerate(sites):
        value = term(D, i) if i else term(14, i)
        tensors |= {f"shared:{name}:B": value.B, f"shared:{name}:A": value.A}
        state["scales"][f"shared:{name}"] = value.scale
        state["terms"][name] = [[7, D]] if i else [[6, 8], [7, 6]]
        state["stamps"][name] = 7
    state |= {"clock": 7, "synced": {"client-0": 7, "client-1": 6, "client-2": 3}}
    run = tiny.federation(FLoRA(rank=2, sites="q"), sizes=(3,) * 3, rounds=3)
    run.server.restore(tensors, state)
    before = {n: run.server.shared[n].dense() for n in sites}  # type: ignore[union-attr]
    made = updates(run, 3, 5)
    close_round(run.method, run.server, made)
    zero, one, two = (run.server.stale(c).tensors for c in run.server.clients)
    for i, name in enumerate(sites):
        new = by_hand.mean_product(made, name.split("/")[1], [2.0] * 3)
        by_hand.close(run.server.shared[name].dense(), before[name] + new, 1e-12)  # type: ignore[union-attr]
        by_hand.close(zero[name + APPENDED].dense(), new, 1e-12)  # type: ignore[union-attr]
        by_hand.close(two[name].dense(), before[name] + new, 1e-11)  # type: ignore[union-attr]
        assert (name in one) == bool(i)
        if not i:
            assert one[name + APPENDED].rank == 12  # type: ignore[union-attr]
