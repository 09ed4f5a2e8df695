"""FedIT against its card: averaged factors, their known bias, and a plain PEFT loop."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

import by_hand
import tiny
from bytes_of import SITES, Case, factors_and_head
from weft.adaptation.optim import Optim
from weft.aggregation.factors import aggregation_bias
from weft.federation.message import Value
from weft.federation.scope import Scope
from weft.methods import FedIT

SMALL = FedIT(rank=2, alpha=6.0, batch=4, optim=Optim("adamw", lr=3e-2, weight_decay=0.1))


def value(v: Value) -> Tensor:
    assert isinstance(v, Tensor)
    return v


def test_one_client_is_a_peft_model_trained_with_a_fresh_optimizer_in_every_round() -> None:
    from peft import LoraConfig, get_peft_model

    run = tiny.federation(SMALL, sizes=(9,), rounds=2)
    plan = [by_hand.steps_of(run, 0, t) for t in range(2)]
    assert [len(rows) for steps in plan for rows in steps] != [9] * 2, "rounds of one step would hide the schedule"
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["query"], task_type="SEQ_CLS", lora_dropout=0.0)
    model = get_peft_model(tiny.fresh("bert").model, config).double().eval()

    def own(name: str) -> Tensor:
        """The PEFT model's parameter for one of ours."""
        part, site, role = name.split("/")
        end = f"lora_{role}.default.weight" if part == "lora" else f"modules_to_save.default.{role}"
        return model.get_parameter(f"base_model.model.{site}.{end}")

    for name, start in by_hand.shared(run).items():
        own(name).data.copy_(start)
    trainable = [own(n) for n in run.server.shared]
    assert {id(p) for p in trainable} == {id(p) for p in model.parameters() if p.requires_grad}
    for steps in plan:
        opt = torch.optim.AdamW(trainable, lr=3e-2, weight_decay=0.1)
        fall = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 1e-9, total_iters=len(steps))
        for rows in steps:
            opt.zero_grad()
            model(**run.bench.table.collate(rows), labels=by_hand.labels(run, rows)).loss.backward()
            opt.step()
            fall.step()
    run.run()
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, own(name).detach(), by_hand.ADAM)
    index = np.arange(len(run.bench.table))
    by_hand.close(run.global_logits(), model(**run.bench.table.collate(index)).logits.detach().float(), 1e-5)


def test_before_the_first_round_the_model_predicts_as_the_backbone_does() -> None:
    run = tiny.federation(SMALL)
    head = {n: v for n, v in by_hand.shared(run).items() if n.startswith("head/")}
    by_hand.close(run.global_logits(), by_hand.logits(run, head).float(), 1e-6)


def test_all_clients_start_from_one_random_a_in_the_range_of_the_lora_package_and_b_zero() -> None:
    run = tiny.federation(SMALL)
    pack = run.pack()
    for site in by_hand.sites(run):
        a, b = pack.tensors[f"lora/{site}/A"], pack.tensors[f"lora/{site}/B"]
        assert torch.equal(a, a[:1].expand_as(a))
        assert not b.any()
        assert 0.8 / math.sqrt(32) < a.abs().max() <= 1 / math.sqrt(32)
        assert len(a[0].unique()) == a[0].numel()


def test_identical_factors_come_back_bit_for_bit() -> None:
    run = tiny.federation(SMALL)
    one = by_hand.invented(run, [3.0])[0]
    run.method.aggregate(run.server, [by_hand.update(run, k, one.tensors, w) for k, w in enumerate((3.0, 5.0, 9.0))])
    for name, sent in one.tensors.items():
        assert torch.equal(value(run.server.shared[name]), value(sent))


def test_neither_the_order_of_clients_nor_the_unit_of_their_counts_matters() -> None:
    results = []
    for order, unit in (((0, 1, 2), 1.0), ((2, 0, 1), 1.0), ((0, 1, 2), 7.0)):
        run = tiny.federation(SMALL)
        made = by_hand.invented(run, [9.0, 5.0, 1.0])
        for u in made:
            u.weight *= unit
        run.method.aggregate(run.server, [made[k] for k in order])
        results.append(by_hand.shared(run))
    for other in results[1:]:
        for name, found in other.items():
            by_hand.close(found, results[0][name], 1e-12)


def test_each_tensor_is_the_mean_by_example_counts_over_those_who_took_part() -> None:
    run = tiny.federation(SMALL, rounds=1, participation=0.5)
    seen = by_hand.record(run)
    run.run()
    (updates,) = seen
    counts = {c.id: c.n for c in run.clients}
    assert 1 < len(updates) < sum(1 for n in counts.values() if n)
    total = sum(counts[u.client.id] for u in updates)
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, sum((counts[u.client.id] / total * value(u.tensors[name]) for u in updates), torch.zeros(())))


def test_averaging_factors_misses_the_mean_product_by_exactly_the_known_bias() -> None:
    run = tiny.federation(SMALL, rounds=2)
    seen = by_hand.record(run)
    run.run()
    updates = seen[-1]
    weights = [u.weight for u in updates]
    p = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    for site in by_hand.sites(run):
        a = torch.stack([value(u.tensors[f"lora/{site}/A"]) for u in updates])
        b = torch.stack([value(u.tensors[f"lora/{site}/B"]) for u in updates])
        mean_a, mean_b = value(run.server.shared[f"lora/{site}/A"]), value(run.server.shared[f"lora/{site}/B"])
        gap = mean_b @ mean_a - torch.einsum("k,kor,kri->oi", p, b, a)
        bias = -torch.einsum("k,kor,kri->oi", p, b - mean_b, a - mean_a)
        assert gap.norm() > 1e-4
        by_hand.close(gap, bias, 1e-12)
        by_hand.close(aggregation_bias(list(a), list(b), weights).dense(), bias, 1e-12)


def test_clients_that_stay_away_have_no_influence() -> None:
    def play(spoiled: int | None) -> dict[str, Tensor]:
        run = tiny.federation(SMALL, rounds=1, participation=0.5)
        if spoiled is not None:
            by_hand.spoil(run, spoiled)
        run.run()
        return by_hand.shared(run)

    honest = play(None)
    cohort = tiny.federation(SMALL, rounds=1, participation=0.5).simulation.round(0)["cohort"]  # type: ignore[index]
    for k, size in enumerate(tiny.SIZES):
        if not size:
            continue
        after = play(k)
        same = all(torch.equal(after[n], v) for n, v in honest.items())
        assert same == (f"client-{k}" not in cohort)


def test_on_roberta_base_rank_8_at_all_linear_layers_sends_what_the_card_says() -> None:
    method = FedIT(rank=8, sites="all")
    backbone = by_hand.roberta_base()
    square, wide = 768 + 768, 768 + 3072
    assert by_hand.elements(method, backbone, Scope.UP)["lora"] == 12 * 8 * (4 * square + 2 * wide) == 1_327_104
    assert by_hand.elements(method, backbone, Scope.UP) == by_hand.elements(method, backbone, Scope.DOWN)


def test_defaults_are_the_codes_with_the_papers_epoch_and_batch() -> None:
    method = FedIT()
    # JayZhang42/FederatedGPT-Shepherd, main.py: lora_target_modules ["q_proj"], lora_r 16, lora_alpha 16
    assert (method.sites, method.rank, method.alpha) == ("q", 16, 16.0)
    # main.py: local_learning_rate 3e-4; fed_utils/client.py: transformers' Trainer, of which only warmup_steps=0 and
    # optim="adamw_torch" are set
    assert method.optim == by_hand.trainer(3e-4)
    # "weights by data size"
    assert method.weighting == "examples"
    # paper: "1 local epoch, batch 32"
    assert (method.epochs, method.steps, method.batch) == (1.0, None, 32)


# what other tests ask of this method --------------------------------------------------------------------------------------


BYTES = Case(SITES | {"rank": 2}, factors_and_head, factors_and_head)
PAGE_SAYS = {"optim": "it clips gradients at a norm of 1"}
