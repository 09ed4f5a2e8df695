"""FLoRA against its card: stacks are exact, everybody downloads them all, and every round starts afresh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, SITES, Case, Sizes, Turn, factors_and_head, lora
from weft.adaptation.optim import Optim
from weft.federation.message import APPENDED, Update
from weft.federation.scope import Scope
from weft.methods import FedIT, FLoRA
from weft.tensors.lowrank import LowRank

SMALL = FLoRA(rank=3, ranks=(4, 2, 1), sites="q,v", batch=4, optim=Optim("adamw", lr=3e-2))


def deltas(run: tiny.Federation) -> dict[str, Tensor]:
    """Site -> the base's change so far, dense."""
    found = {}
    for site in by_hand.sites(run):
        value = run.server.shared[f"base/{site}/delta"]
        assert isinstance(value, LowRank)
        found[site] = value.dense()
    return found


def product(update: Update, site: str) -> Tensor:
    """s_k B_k A_k with s_k = 2 for every rank."""
    a, b = update.tensors[f"lora/{site}/A"], update.tensors[f"lora/{site}/B"]
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return 2.0 * b @ a


@pytest.mark.parametrize("ranks", [(), (4, 2, 1)], ids=["equal ranks", "unequal ranks"])
def test_the_base_moves_by_exactly_the_weighted_sum_of_the_clients_products(ranks: tuple[int, ...]) -> None:
    run = tiny.federation(FLoRA(rank=3, ranks=ranks, batch=4, optim=SMALL.optim), rounds=2)
    seen = by_hand.record(run)
    for t in range(2):
        before = deltas(run)
        run.simulation.round(t)
        counts = {c.id: c.n for c in run.clients if c.n}
        assert [u.client.id for u in seen[t]] == sorted(counts)
        for site, after in deltas(run).items():
            frozen = run.bench.backbone.module(site).weight.detach()
            moved = torch.zeros_like(frozen)
            merged = torch.zeros_like(frozen)
            for u in seen[t]:
                p = counts[u.client.id] / sum(counts.values())
                moved += p * product(u, site)
                merged += p * (frozen + before[site] + product(u, site))  # this client's own merged model
            assert moved.norm() > 1e-3
            by_hand.close(frozen + after, frozen + before[site] + moved, 1e-12)
            by_hand.close(frozen + after, merged, 1e-12)


def test_one_client_is_merge_and_restart_and_not_lora_that_goes_on() -> None:
    method = FLoRA(rank=2, batch=4, optim=SMALL.optim)
    run = tiny.federation(method, sizes=(9,), rounds=2)
    values = {n: v for n, v in by_hand.shared(run).items() if n.startswith(("base/", "head/"))}
    for t in range(2):
        fresh = by_hand.start_of(run, 0, t)  # A of this round, random, and B = 0
        lora = {n: v for n, v in fresh.items() if n.startswith("lora/")}
        assert not any(v.any() for n, v in lora.items() if n.endswith("/B"))
        trained = by_hand.train(
            run,
            values | lora,
            by_hand.steps_of(run, 0, t),
            lambda p: torch.optim.AdamW(p, lr=3e-2, weight_decay=0.0),
            scale=2.0,
            only=lambda n: not n.startswith("base/"),
            linear=True,
        )
        values = {n: v for n, v in trained.items() if n.startswith(("base/", "head/"))}
        for site in by_hand.sites(run):
            values[f"base/{site}/delta"] = (
                values[f"base/{site}/delta"] + 2.0 * trained[f"lora/{site}/B"] @ trained[f"lora/{site}/A"]
            )
        run.simulation.round(t)
        for name, wanted in values.items():
            by_hand.close(by_hand.shared(run)[name], wanted, by_hand.ADAM)
    going_on = tiny.federation(FedIT(rank=2, alpha=4.0, sites="q,v", batch=4, optim=SMALL.optim), sizes=(9,), rounds=2).run()
    assert not torch.allclose(going_on.global_logits(), run.global_logits(), atol=1e-3)


def test_factors_start_afresh_in_every_round_and_for_every_client() -> None:
    run = tiny.federation(FLoRA(rank=2), sizes=(3, 3))
    name = f"lora/{by_hand.sites(run)[0]}/A"
    drawn = [by_hand.start_of(run, k, t)[name] for k in range(2) for t in range(2)]
    assert len({tuple(a.flatten().tolist()) for a in drawn}) == 4


def test_a_round_starts_from_the_last_global_model() -> None:
    run = tiny.federation(SMALL, rounds=2)
    run.run(1)
    last = run.global_logits()
    pack = run.pack(t=1)
    index = pack.predict(run.method.forward, [run.clients[0].data.test] * len(run.clients))
    for logits in index:
        by_hand.close(logits, last[run.clients[0].data.test], 1e-6)


def test_the_order_of_clients_does_not_change_the_stack() -> None:
    results = []
    for order in ((0, 1, 2), (2, 0, 1)):
        run = tiny.federation(SMALL)
        made = by_hand.invented(run, [9.0, 5.0, 1.0])
        run.method.aggregate(run.server, [made[k] for k in order])
        results.append(deltas(run))
    for site, found in results[1].items():
        by_hand.close(found, results[0][site], 1e-12)


def test_the_rank_of_what_was_learnt_outgrows_every_client() -> None:
    run = tiny.federation(SMALL, rounds=2).run()
    for delta in deltas(run).values():
        assert torch.linalg.matrix_rank(delta, rtol=1e-9) > 4


def test_heads_are_averaged_by_example_counts_beside_the_stack() -> None:
    run = tiny.federation(SMALL, rounds=1)
    seen = by_hand.record(run)
    run.run()
    counts = {c.id: c.n for c in run.clients}
    for name in ("head/classifier/weight", "head/classifier/bias"):
        wanted = sum((counts[u.client.id] / sum(counts.values()) * u.tensors[name] for u in seen[0]), torch.zeros(()))
        by_hand.close(by_hand.shared(run)[name], wanted)


def test_a_client_that_stayed_away_owes_all_the_stacks_it_missed() -> None:
    run = tiny.federation(FLoRA(rank=2, sites="q", batch=4), sizes=(3, 3, 3), rounds=4)
    site = by_hand.sites(run)[0]
    absent = run.clients[2].info(("rank",))
    present = run.clients[0].info(("rank",))
    for t in range(3):  # rounds of clients 0 and 1: rank 4 each
        run.server.cohort = [c.info(("rank",)) for c in run.clients[:2]]
        for client in run.server.cohort:
            message = run.method.send(run.server, client)
            assert [v.rank for n, v in message.tensors.items() if site in n] == ([4] if t else [])
            run.server.receipt(message, client)
        run.server.clock += 1
        run.method.aggregate(run.server, by_hand.invented(run, [3.0, 3.0]))
    owed = run.method.send(run.server, absent).tensors
    whole, part = owed[f"base/{site}/delta"], run.method.send(run.server, present).tensors[f"base/{site}/delta{APPENDED}"]
    assert isinstance(whole, LowRank)
    assert isinstance(part, LowRank)
    assert (whole.rank, part.rank) == (3 * 4, 4)
    assert whole.numel == (2 + 2) * 3 * (32 + 32)
    by_hand.close(whole.dense(), deltas(run)[site], 1e-12)


def test_a_stack_of_more_rank_than_the_layer_is_compressed_without_moving_the_model() -> None:
    run = tiny.federation(FLoRA(rank=12, sites="q"), sizes=(3, 3, 3))
    site = by_hand.sites(run)[0]
    exact = torch.zeros(32, 32, dtype=torch.float64)
    for _ in range(2):
        run.server.clock += 1
        made = by_hand.invented(run, [5.0, 2.0, 1.0])
        run.method.aggregate(run.server, made)
        exact += by_hand.mean_product(made, site, [2.0] * 3)
        delta = run.server.shared[f"base/{site}/delta"]
        assert isinstance(delta, LowRank)
        assert delta.rank <= 1.5 * 32  # see weft.tensors.growing; uncompressed it would be 36, then 72
        by_hand.close(delta.dense(), exact)


def test_a_round_without_updates_changes_nothing() -> None:
    run = tiny.federation(SMALL, rounds=2)
    run.run(1)
    before = by_hand.shared(run)
    run.method.aggregate(run.server, iter(()))
    for name, found in by_hand.shared(run).items():
        assert torch.equal(found, before[name])


def test_on_roberta_base_the_upload_is_the_rank_times_both_sides() -> None:
    method, backbone = FLoRA(), by_hand.roberta_base()
    assert by_hand.elements(method, backbone, Scope.UP)["lora"] == 12 * 2 * 16 * (768 + 768)


def test_defaults_are_the_codes() -> None:
    method = FLoRA()
    # ATP-1010/FederatedLLM, main.py: lora_target_modules ["q_proj", "v_proj"], lora_r 16, lora_alpha 32
    assert (method.sites, method.rank, method.scale * method.rank) == ("q,v", 16, 32)
    # main.py: local_ranks, for --heter alone, each with alpha = 2·rank
    mixed = FLoRA(ranks=(64, 32, 16, 16, 8, 8, 4, 4, 4, 4))
    backbone = tiny.backbone("bert")
    for position in range(11):
        facts = mixed.profile(position)
        lora = mixed.adapt(backbone, tiny.bench().task, by_hand.ClientInfo("x", 1, facts))["lora"][0]
        assert facts["rank"] == (64, 32, 16, 16, 8, 8, 4, 4, 4, 4, 64)[position]
        assert {lora.constants(s)["scale"] for s in lora.sites(backbone)} == {2.0}
    # main.py: local_learning_rate 3e-4, local_batch_size 128; fed_utils/client.py: transformers' Trainer
    assert method.optim == by_hand.trainer(3e-4)
    assert (method.batch, method.weighting) == (128, "examples")
    # README.md: every command has --local_num_epochs 1, with three rounds; main.py without it: 3
    assert (method.epochs, method.steps) == (1.0, None)
    assert "script takes three" in method.info.deviations


# what other tests ask of this method --------------------------------------------------------------------------------------


def stack_bytes(turn: Turn) -> Sizes:
    """The last round's stack: (Σ r_k)(d_in + d_out) per site, as two tensors."""
    total = sum(f["rank"] for k, f in enumerate(turn.everybody) if tiny.SIZES[k])
    return {"base": lora(total), "head": HEAD}


BYTES = Case(SITES, stack_bytes, factors_and_head, tuple({"rank": r} for r in (3, 2, 1, 3, 2, 1)))
PAGE_SAYS = {"optim": "it clips gradients at a norm of 1"}
