"""AdaLoRA against PEFT's and against its formula in plain PyTorch, DyLoRA against its own, and the ranks that are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import lora_by_hand
import tiny
from lora_by_hand import Step, splitmix
from weft.adaptation.adalora import ORTHOGONAL, AdaLoRA
from weft.adaptation.lora_options import LoRAOptions
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation import in_steps
from weft.methods import FedIT, FedSALoRA
from weft.rules import composed, with_options
from weft.rules.budget import budget
from weft.tensors.keyed import key
from weft.testing.compare import assert_same, state
from weft.testing.sites import remote

PLAIN = FedIT(rank=4, alpha=6.0, batch=3, epochs=2.0, optim=Optim("adamw", lr=3e-2, eps=1e-6), sites="q,ffn.out")
SIZES = (7, 4, 5)


def method(variant: str, **more: Any) -> Any:
    return with_options(PLAIN, LoRAOptions(variant=variant, **more))  # type: ignore[arg-type]


# AdaLoRA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_outputs_losses_and_gradients_are_those_of_peft(kind: str) -> None:
    from peft import AdaLoraConfig, get_peft_model

    run = tiny.federation(with_options(replace(PLAIN, sites="q"), LoRAOptions(variant="adalora")), kind, sizes=SIZES)
    pack = run.pack()
    g = torch.Generator().manual_seed(5)
    for name, value in pack.params("lora").items():
        pack.tensors[name] = torch.randn(value.shape, generator=g, dtype=value.dtype)
    batch = next(iter(pack.batches(1.0, None, 3)))
    leaves = {n: v.detach().requires_grad_(True) for n, v in pack.params("lora").items()}
    with pack.values(leaves):
        out = pack(batch)
        own, whole = in_steps.losses(pack, pack._weave.placed, lambda p, b: p.loss(p(b), b), batch)
        slopes = torch.autograd.grad(whole.sum(), list(leaves.values()))
    found = dict(zip(leaves, slopes, strict=True))
    sites = [s.name for s in run.server.sites("lora")]
    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, target_modules=sites, orth_reg_weight=ORTHOGONAL, total_step=10, lora_dropout=0.0
    )
    for k, index in enumerate(batch.index):
        rows = index[index >= 0]
        model = get_peft_model(tiny.fresh(kind).model, config).double().eval()
        ranks = [p for n, p in model.named_parameters() if "ranknum" in n]
        for p in ranks:  # which PEFT adds 1e-5 to
            p.data -= 1e-5
        params = {}
        for name, value in leaves.items():
            _, site, role = name.split("/")
            params[name] = model.get_parameter(f"base_model.model.{site}.lora_{role}.default")
            params[name].data.copy_(value[k].detach().view_as(params[name]))
        for site, role in (n.split("/")[1:] for n in pack.params("head")):
            model.get_parameter(f"base_model.model.{site}.{role}").data.copy_(pack.tensors[f"head/{site}/{role}"][k])
        outputs = model.base_model(**run.bench.table.collate(rows), labels=by_hand.labels(run, rows))
        by_hand.close(out.logits[k, : len(rows)], outputs.logits, 1e-10)
        by_hand.close(whole[k], outputs.loss, 1e-10)
        assert float((whole - own).detach()[k]) > 0.1
        for name, slope in zip(params, torch.autograd.grad(outputs.loss, list(params.values())), strict=True):
            by_hand.close(found[name][k], slope.view_as(found[name][k]), 1e-9)


def orthogonal(leaves: Mapping[str, Tensor]) -> Tensor:
    gaps = []
    for name, value in leaves.items():
        if name.endswith(("/A", "/B")):
            rows = value if name.endswith("/A") else value.mT
            gaps.append(((rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype)) ** 2).sum().sqrt())
    return torch.stack(gaps).mean()


def test_rounds_of_adalora_are_plain_loops_and_the_server_keeps_the_largest_singular_values() -> None:
    rounds = 6
    run = tiny.federation(method("adalora", target=1), sizes=SIZES, participation=0.67, rounds=rounds)
    values = by_hand.start_of(run)
    assert {n.rpartition("/")[2] for n in values if n.startswith("lora/")} == {"A", "B", "E"}
    assert 0.018 < float(torch.cat([v.flatten() for n, v in values.items() if n.endswith(("/A", "/B"))]).std()) < 0.022
    alive = []

    def term(site: str, module: Any, x: Tensor, out: Tensor, w: Mapping[str, Tensor]) -> Tensor:
        return 6.0 / 4 * x @ (w["B"] @ torch.diag(w["E"]) @ w["A"]).mT

    def local(params: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=3e-2, eps=1e-6, weight_decay=0.0)

    for t in range(rounds):
        plans = {k: by_hand.steps_of(run, k, t) for k in range(len(SIZES))}
        record = run.simulation.round(t)
        assert record is not None
        assert 1 < len(record["cohort"]) < len(SIZES)
        sent = {}
        for k in (int(c.removeprefix("client-")) for c in record["cohort"]):
            sent[k] = by_hand.train(
                run,
                values,
                plans[k],
                local,
                linear=True,
                predict=lambda run, leaves, rows: lora_by_hand.predict(run, leaves, rows, term),
                more=lambda leaves: ORTHOGONAL * orthogonal(leaves),
            )
        whole = sum(SIZES[k] for k in sent)
        values = {n: sum((SIZES[k] / whole * v[n] for k, v in sent.items()), torch.zeros(())) for n in values}
        sites = [n for n in values if n.endswith("/E")]
        # 6 rounds: none of them whole, the last 3 fixed; 4 sites' worth of 4 ranks, and 1 each in the end
        first, last = 4 * len(sites), len(sites)
        left = last if t + 1 > 3 else int(last + (first - last) * (1 - (t + 1) / 3) ** 3)
        every = np.concatenate([values[n].numpy() for n in sites])
        least = np.sort(np.abs(every))[::-1][left - 1]
        for name in sites:
            stays = values[name].abs() >= least
            values[name] = values[name] * stays
            if t + 1 > 3:
                values[name[:-1] + "A"] = values[name[:-1] + "A"] * stays[:, None]
                values[name[:-1] + "B"] = values[name[:-1] + "B"] * stays
        alive.append(sum(int((values[n] != 0).sum()) for n in sites))
        for name, found in by_hand.shared(run).items():
            by_hand.close(found, values[name], by_hand.ADAM)
    assert alive == [11, 6, 6, 6, 6, 6]


def test_the_budget_is_that_of_peft() -> None:
    from types import SimpleNamespace

    from peft.tuners.adalora.layer import RankAllocator

    theirs: Any = SimpleNamespace(init_bgt=48, target_bgt=16)
    for rounds in (1, 2, 5, 10, 37):
        theirs.peft_config = SimpleNamespace(tinit=int(0.1 * rounds), tfinal=int(0.5 * rounds), total_step=rounds, deltaT=1)
        for t in range(1, rounds + 1):
            assert budget(t, rounds, 48, 16) == RankAllocator.budget_schedule(theirs, t)[0]
        assert budget(rounds, rounds, 48, 16) == 16
    assert budget(1, 10, 48, 16) == 48


def test_what_is_given_up_for_good_never_comes_back() -> None:
    run = tiny.federation(method("adalora", target=1), sizes=SIZES, rounds=8).run()
    values = by_hand.shared(run)
    for name, e in values.items():
        if name.endswith("/E"):
            gone = e == 0
            assert not values[name[:-1] + "A"][gone].any()
            assert not values[name[:-1] + "B"][:, gone].any()
            assert bool(values[name[:-1] + "A"][~gone].any(1).all())
    sites = sum(n.endswith("/E") for n in values)
    assert sum(int((v != 0).sum()) for n, v in values.items() if n.endswith("/E")) == sites


def test_the_target_is_two_thirds_where_nobody_says_one() -> None:
    site = tiny.backbone("bert").sites("q")[0]
    assert [AdaLoRA(r, 1.0).kept_at(site) for r in (1, 2, 3, 8, 12)] == [1, 1, 2, 5, 8]
    with pytest.raises(UserError, match=r"^lora\.target is 9, above the rank of 4 that it prunes"):
        AdaLoRA(4, 1.0, target=9)
    assert AdaLoRA(4, 1.0, growth=3, target=9).kept_at(site) == 4
    assert AdaLoRA(4, 1.0, target=3).kept_at(site) == 3


def test_ranks_that_pad_a_client_cost_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, 2, 6, generator=g), torch.randn(1, 5, 2, generator=g)
    own = AdaLoRA(2, 1.0).penalty({"A": a, "B": b, "ranks": torch.tensor([2.0])})
    wide = {"A": torch.nn.functional.pad(a, (0, 0, 0, 3)), "B": torch.nn.functional.pad(b, (0, 3)), "ranks": torch.tensor([2.0])}
    by_hand.close(AdaLoRA(2, 1.0).penalty(wide), own, 1e-6)


# DyLoRA ---------------------------------------------------------------------------------------------------------------


def ranks_of(step: Step, r: int) -> int:
    """b, of the key of the step's first row."""
    own = key(step.seed, "step", step.t, step.client, "main", step.number)
    row = splitmix(np.array([(own + 0x9E3779B97F4A7C15) % 2**64], np.uint64))
    drawn = splitmix(row ^ np.uint64(0x7A6E9D3B51C208F5)) % np.uint64(2**24)
    return 1 + int(int(drawn[0]) / 2**24 * r)


@pytest.mark.parametrize("scaling", ["usual", "rslora"])
def test_rounds_of_dylora_are_plain_loops_over_leading_ranks(scaling: str) -> None:
    run = tiny.federation(method("dylora", scaling=scaling), sizes=SIZES, participation=0.67, rounds=3)
    seen = set()

    def term(step: Step, site: str, module: Any, x: Tensor, out: Tensor, w: Mapping[str, Tensor]) -> Tensor:
        b = ranks_of(step, 4)
        seen.add(b)
        return 6.0 / (b if scaling == "usual" else b**0.5) * x @ w["A"][:b].mT @ w["B"][:, :b].mT

    lora_by_hand.hold(run, term, rounds=3)
    assert seen == {1, 2, 3, 4}


def test_ranks_are_drawn_alike() -> None:
    counts = np.zeros(5, dtype=int)
    for number in range(4000):
        counts[ranks_of(Step(0, number // 100, "client-0", number % 100), 5) - 1] += 1
    assert np.abs(counts - 800).max() < 80


def test_scores_are_of_all_ranks() -> None:
    run, plain = (tiny.federation(m, sizes=SIZES) for m in (method("dylora"), PLAIN))
    packs = [r.pack() for r in (run, plain)]
    g = torch.Generator().manual_seed(5)
    for name in packs[0].params("lora/*/B"):
        for pack in packs:
            pack.tensors[name] = torch.randn(pack.tensors[name].shape, generator=g.manual_seed(len(name)), dtype=torch.float64)
    batch = next(iter(packs[0].batches(2.0, None, 3)))
    by_hand.close(packs[0](batch).logits, packs[1](batch).logits)


# both -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["adalora", "dylora"])
def test_the_same_for_any_pack_at_sites_and_under_a_rule(variant: str) -> None:
    made = method(variant)
    runs = [tiny.federation(made, sizes=SIZES, rounds=3, pack=pack).run() for pack in (1, 2, 3)]
    for run in runs[1:]:
        assert_same(state(runs[0]), state(run), 1e-11)
    away, _ = remote(made, sizes=SIZES, rounds=3)
    away.run()
    assert_same(by_hand.shared(runs[0]), by_hand.shared(away), 1e-11)
    sgd = with_options(replace(PLAIN, optim=Optim("sgd", lr=0.1)), LoRAOptions(variant=variant))  # type: ignore[arg-type]
    for rule in ("scaffold", "mime"):
        one, two = (tiny.federation(composed(sgd, rule), sizes=SIZES, rounds=4, pack=pack).run() for pack in (1, 3))
        assert_same(state(one), state(two), 1e-11)


def test_svrgs_second_gradient_is_of_the_same_ranks() -> None:
    """Mime without its mean gradient moving anything: g(w) - g(w₀) is 0 in the first step, whatever ranks were drawn."""
    sgd = with_options(replace(PLAIN, optim=Optim("sgd", lr=0.1), steps=1), LoRAOptions(variant="dylora"))
    pack = tiny.federation(sgd, sizes=SIZES).pack()
    names = list(pack.params("lora", "head"))
    nothing = torch.ones(len(SIZES), dtype=torch.bool)
    pack.guidance.centre = {n: (torch.zeros_like(pack.tensors[n]), nothing) for n in names}
    before = {n: pack.tensors[n].clone() for n in names}
    list(sgd.fit(pack))
    for name in names:
        by_hand.close(pack.tensors[name].detach(), before[name])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match=r"^lora.target = 2 is of AdaLoRA, which prunes ranks: leave it out, or give"):
        resolve({"lora": {"target": 2}})
    with pytest.raises(UserError, match=r'^lora.variant = "dylora" has a start of its own, so that lora.start = "pissa"'):
        resolve({"lora": {"variant": "dylora", "start": "pissa"}})
    with pytest.raises(UserError, match=r"^fedsa-lora has no LoRA in common, of which the server could say what stays"):
        tiny.federation(with_options(FedSALoRA(rank=4), LoRAOptions(variant="adalora")), sizes=SIZES)
    played = resolve({"lora": {"variant": "adalora", "target": 3}, "method": "fedit"}).played
    assert played.info.slug == "fedit+adalora"
    assert played.lora_options.target == 3  # type: ignore[attr-defined]
