"""RoLoRA against its card: B in even rounds, A in odd ones, each averaged exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from bytes_of import SITES, Case, one_factor
from weft.adaptation.optim import Optim
from weft.federation.scope import Scope
from weft.methods import FedIT, RoLoRA

SMALL = RoLoRA(rank=2, alpha=8.0, steps=3, batch=4, optim=RoLoRA().optim.but(lr=3e-2))


def factors(values: dict[str, Tensor], role: str) -> dict[str, Tensor]:
    return {n: v for n, v in values.items() if n.endswith(f"/{role}") and n.startswith("lora/")}


def test_b_goes_first_and_the_factors_take_turns_by_the_servers_round() -> None:
    run = tiny.federation(SMALL, rounds=5, participation=0.5)
    seen = by_hand.record(run)
    for t in range(5):
        before = by_hand.shared(run)
        run.simulation.round(t)
        after = by_hand.shared(run)
        active, idle = ("B", "A") if t % 2 == 0 else ("A", "B")
        assert seen[t]
        assert all(set(u.tensors) == set(factors(before, active)) for u in seen[t])
        assert all(torch.equal(v, before[n]) for n, v in factors(after, idle).items())
        assert all(not torch.equal(v, before[n]) for n, v in factors(after, active).items())
        assert all(torch.equal(v, before[n]) for n, v in after.items() if n.startswith("head/"))
    assert len({u.client.id for u in seen[0]} ^ {u.client.id for u in seen[1]}) > 0, "cohorts differ, phases must not"


def test_the_idle_factor_is_the_same_bits_on_every_client_throughout_a_round() -> None:
    run = tiny.federation(SMALL, rounds=3).run(2)
    for t, idle in ((2, "A"), (3, "B")):
        pack = run.pack(t=t)
        list(run.method.train(pack))
        for name, v in factors(pack.tensors, idle).items():
            assert torch.equal(v, by_hand.shared(run)[name].expand_as(v))


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_after_every_round_the_model_is_the_mean_of_the_clients_models(weighting: str) -> None:
    run = tiny.federation(SMALL if weighting == "uniform" else replace(SMALL, weighting=weighting), rounds=3)
    seen = by_hand.record(run)
    for t in range(3):
        before = by_hand.shared(run)
        run.simulation.round(t)
        after = by_hand.shared(run)
        counts = {u.client.id: u.client.n for u in seen[t]}
        assert len(set(counts.values())) > 1
        if weighting == "uniform":
            counts = dict.fromkeys(counts, 1)
        for site in by_hand.sites(run):
            a, b = f"lora/{site}/A", f"lora/{site}/B"
            mean = torch.zeros(32, 32, dtype=torch.float64)
            for u in seen[t]:
                mine = before | {n: v for n, v in u.tensors.items() if isinstance(v, Tensor)}
                mean += counts[u.client.id] / sum(counts.values()) * mine[b] @ mine[a]
            assert mean.norm() > 1e-3
            by_hand.close(after[b] @ after[a], mean, 1e-12)


def test_one_client_is_alternating_lora_with_a_new_optimizer_in_every_round() -> None:
    run = tiny.federation(SMALL, sizes=(9,), rounds=3)
    values = by_hand.shared(run)
    for t in range(3):
        steps = by_hand.steps_of(run, 0, t)
        active = "A" if t % 2 else "B"
        values = by_hand.train(
            run,
            values,
            steps,
            lambda p: torch.optim.AdamW(p, lr=3e-2, weight_decay=0.0),
            scale=4.0,
            only=lambda n, role=active: n.startswith("lora/") and n.endswith(role),
        )
        run.simulation.round(t)
        for name, found in by_hand.shared(run).items():
            by_hand.close(found, values[name], by_hand.ADAM)


def test_a_first_round_of_a_would_have_changed_nothing() -> None:
    run = tiny.federation(replace(SMALL, steps=1), rounds=1)
    pack = run.pack()
    batch = next(iter(pack.batches(size=4)))
    opt = pack.optimizer("lora/*/A", settings=SMALL.optim)
    before = {n: v.detach().clone() for n, v in opt.params.items()}
    pack.step(opt, run.method.objective, batch)
    assert all(torch.equal(v, before[n]) for n, v in opt.params.items())


def test_a_client_that_skipped_rounds_gets_both_factors() -> None:
    run = tiny.federation(SMALL, rounds=3)
    site = by_hand.sites(run)[0]
    present, absent = (run.clients[k].info(()) for k in (0, 1))
    for t, role in enumerate("BA"):
        run.server.receipt(run.method.send(run.server, present), present)
        run.server.clock += 1
        made = by_hand.invented(run, [3.0])
        made[0].tensors = {n: v for n, v in made[0].tensors.items() if n.startswith("lora/") and n.endswith(role)}
        run.method.aggregate(run.server, made)
        news = run.method.send(run.server, present).tensors
        assert set(news) == {n for n in by_hand.shared(run) if n.startswith("lora/") and n.endswith(f"/{role}")}
        owed = run.method.send(run.server, absent).tensors
        assert {n.rsplit("/", 1)[1] for n in owed if site in n} == set("BA"[: t + 1])
        for name, value in owed.items():
            shared = run.server.shared[name]
            assert isinstance(value, Tensor)
            assert isinstance(shared, Tensor)
            assert torch.equal(value, shared)


def test_two_rounds_cost_what_one_round_of_lora_costs() -> None:
    run = tiny.federation(SMALL, sizes=(9, 5), rounds=2)
    seen = by_hand.record(run)
    run.run()
    sent = [sum(v.numel() for v in u.tensors.values() if isinstance(v, Tensor)) for t in range(2) for u in seen[t][:1]]
    assert sent == [6 * 2 * 32, 6 * 2 * 32]
    lora = FedIT(rank=4, sites="q,v")
    one = by_hand.elements(lora, by_hand.roberta_base(), Scope.UP)["lora"]
    assert by_hand.elements(RoLoRA(), by_hand.roberta_base(), Scope.UP) == {"lora": one}
    assert one == 12 * 2 * 4 * (768 + 768)


def test_rounds_of_a_may_have_a_learning_rate_of_their_own() -> None:
    sgd = Optim("sgd", lr=0.1, schedule="constant")
    step = {}
    for lr_a in (None, 0.2):
        run = tiny.federation(replace(SMALL, steps=1, batch=16, optim=sgd, lr_a=lr_a), sizes=(9,), rounds=2).run(1)
        before = by_hand.shared(run)
        run.simulation.round(1)
        step[lr_a] = {n: v - before[n] for n, v in factors(by_hand.shared(run), "A").items()}
    for name, moved in step[None].items():
        assert moved.any()
        by_hand.close(step[0.2][name], 2 * moved)


@pytest.mark.parametrize("train_head", [False, True])
def test_the_head_is_trained_and_averaged_in_every_round_or_never(train_head: bool) -> None:
    run = tiny.federation(replace(SMALL, train_head=train_head), rounds=2)
    for t in range(2):
        before = by_hand.shared(run)
        run.simulation.round(t)
        same = [torch.equal(v, before[n]) for n, v in by_hand.shared(run).items() if n.startswith("head/")]
        assert same == [not train_head] * 2


def test_defaults_are_the_papers_and_the_supplements() -> None:
    method = RoLoRA()
    # "LoRA on query and value", "Rank 4 in the main table", scale as "config ships r=8, alpha=32"
    assert (method.sites, method.rank, method.alpha / method.rank) == ("q,v", 4, 32 / 8)
    # "Option train_head default False for fidelity", "Offer lr_A, lr_B (default equal)"
    assert (method.train_head, method.lr_a) == (False, None)
    # supplement, test_glue.yaml: local_update_steps 20, batch_or_epoch batch, batch_size 32
    assert (method.steps, method.batch) == (20, 32)
    # "use AdamW 5e-4 as our default"
    assert method.optim == Optim("adamw", lr=5e-4, schedule="constant")
    # paper: (1/N) Σ; supplement, clients_avg_aggregator.py: by ctx.num_samples, the rows that a turn has worked through
    # (trainer.py), which are 20 · 32 for everybody
    assert method.weighting == "uniform"


# what other tests ask of this method --------------------------------------------------------------------------------------


BYTES = Case(SITES | {"rank": 2}, one_factor(lambda t: "AB"[t.t % 2]), one_factor(lambda t: "BA"[t.t % 2]), head_stays=True)
PAGE_SAYS = {"weighting": "as in the paper, and in effect in the supplement"}
