"""FedPETuning against its card: each of its modules is what PyTorch makes of it, and costs what the paper says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import adapters_by_hand as hand
import by_hand
import tiny
from bytes_of import HEAD, LAYERS, Case, D, F, Sizes, Turn, factors_and_head
from weft.federation.scope import Scope
from weft.methods import FedBF, FedIT, FedPETuning
from weft.testing import laws

RATE = 3e-2
HEAD_OF_ROBERTA = 768 * 768 + 768 + 768 * 2 + 2


def of_kind(kind: str, **more: Any) -> FedPETuning:
    """The method with one of its modules, in small batches."""
    made = FedPETuning(batch=4, optim=FedPETuning().optim.but(lr=RATE))
    return replace(made, tune=replace(made.tune, kind=kind, **more))


SMALL: dict[str, FedPETuning] = {
    "lora": of_kind("lora", rank=2, alpha=2.0),
    "bottleneck": of_kind("bottleneck", reduction=8),
    "prefix": of_kind("prefix", tokens=3, hidden=5),
    "bias": of_kind("bias"),
}
PREDICT: dict[str, Callable[..., Tensor]] = {
    "lora": by_hand.logits,
    "bottleneck": hand.with_adapters(hand.gelu_new),
    "prefix": hand.with_prefix,
    "bias": by_hand.logits,
}


def adamw(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(leaves, lr=RATE, weight_decay=0.0)


@pytest.mark.parametrize("kind", SMALL)
def test_rounds_are_those_of_plain_pytorch_with_all_clients_of_a_cohort_alike(kind: str) -> None:
    run = tiny.federation(SMALL[kind], rounds=2, participation=0.5)
    values, counts = by_hand.shared(run), {c.id: c.n for c in run.clients}
    order = [c.id for c in run.clients]
    drawn: list[Sequence[str]] = []
    for t in range(2):
        steps = {k: by_hand.steps_of(run, k, t) for k, c in enumerate(run.clients) if c.n}
        record = run.simulation.round(t)
        assert record is not None
        cohort = [c for c in record["cohort"] if counts[c]]
        drawn.append(cohort)
        trained = [
            by_hand.train(run, values, steps[order.index(c)], adamw, linear=True, clip=1.0, predict=PREDICT[kind]) for c in cohort
        ]
        values = {n: torch.stack([own[n] for own in trained]).mean(0) for n in values}
    assert all(len({counts[c] for c in cohort}) > 1 and len(cohort) < 5 for cohort in drawn)
    assert set(drawn[0]) != set(drawn[1])
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, values[name], by_hand.ADAM)
    by_hand.close(run.global_logits(), PREDICT[kind](run, values, np.arange(len(run.bench.table))).float(), 1e-5)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("law", ["pack", "return", "sums"])
def test_each_module_keeps_the_laws(kind: str, law: str) -> None:
    laws.check(SMALL[kind], law)


def test_with_lora_it_is_fedit_of_equal_weights_bit_for_bit() -> None:
    method = SMALL["lora"]
    fedit = FedIT(rank=2, alpha=2.0, sites="q,v", batch=4, optim=method.optim, weighting="uniform")
    one, other = (by_hand.shared(tiny.federation(m).run()) for m in (method, fedit))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_with_biases_it_is_fedbf_bit_for_bit() -> None:
    method = SMALL["bias"]
    one, other = (by_hand.shared(tiny.federation(m).run()) for m in (method, FedBF(batch=4, optim=method.optim)))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("kind", SMALL)
def test_a_round_moves_all_of_the_module_and_the_head_and_nothing_else(kind: str) -> None:
    run = tiny.federation(SMALL[kind], rounds=2)
    before = {n: p.clone() for n, p in run.bench.backbone.model.named_parameters()}
    start = by_hand.shared(run)
    assert {n.split("/")[0] for n in start} == {kind, "head"}
    run.run()
    assert all(torch.equal(p, before[n]) for n, p in run.bench.backbone.model.named_parameters())
    moved = {n for n, v in by_hand.shared(run).items() if (v - start[n]).abs().max() > 1e-4}
    silent = {n for n in start if n.endswith("key/bias")}  # shifts all scores of a query alike, which softmax ignores
    assert moved == set(start) - silent


# what it costs ----------------------------------------------------------------------------------------------------------


def sent(kind: str, **more: Any) -> dict[str, int]:
    method = FedPETuning()
    made = replace(method, tune=replace(method.tune, kind=kind, **more))
    return by_hand.elements(made, by_hand.roberta_base(), Scope.UP)


@pytest.mark.parametrize(
    ("kind", "more", "elements", "saving"),
    [
        ("lora", {}, 294_912, "140.5"),
        ("bottleneck", {}, 608_640, "103.8"),
        ("bottleneck", {"reduction": 12}, 2_379_264, "41.9"),
        ("prefix", {}, 9_718_272 + 512 * 16, "12.1"),
    ],
    ids=["FedLR", "FedAP of width 16", "FedAP of width 64", "FedPF"],
)
def test_on_roberta_base_a_client_sends_what_the_paper_says(kind: str, more: dict[str, Any], elements: int, saving: str) -> None:
    found = sent(kind, **more)
    assert found == {kind: elements, "head": HEAD_OF_ROBERTA}
    assert HEAD_OF_ROBERTA == 592_130
    whole = sum(p.numel() for p in by_hand.roberta_base().model.parameters())
    assert whole == 124_647_170  # 124.65M
    assert f"{whole / sum(found.values()):.1f}" == saving


def test_a_prefix_token_more_costs_the_width_of_the_mlp() -> None:
    sizes = {p: sent("prefix", tokens=p)["prefix"] for p in (8, 9, 16, 64)}
    assert {sizes[p] - sizes[8] for p in (9, 16, 64)} == {512, 8 * 512, 56 * 512}


def test_defaults_are_the_codes() -> None:
    method = FedPETuning()
    # configs/trainers.py extends transformers' TrainingArguments; base_client.py clips by max_grad_norm, no decay of biases
    assert method.optim == by_hand.trainer(1e-3).but(decay_biases=False)
    assert (method.epochs, method.steps, method.batch, method.weighting) == (1.0, None, 32, "uniform")
    # configs/tuning.py: lora_r = lora_alpha = 8 (rte, mrpc, sst-2); prefix_token_num 16; bottleneck_dim 16 of 768
    tune = method.tune
    assert (tune.kind, tune.rank, tune.alpha, tune.at) == ("lora", 8, 8.0, "q,v")
    assert (768 // tune.reduction, tune.placement, tune.activation) == (16, "sublayers", "gelu_new")
    assert (tune.tokens, tune.hidden, tune.head) == (16, 512, True)


# what other tests ask of this method --------------------------------------------------------------------------------------


def adapters_and_head(turn: Turn) -> Sizes:
    m = D // 8
    return {"bottleneck": [m * D, m, D * m, D] * 2 * LAYERS, "head": HEAD}


def prefix_and_head(turn: Turn) -> Sizes:
    p, h = 3, 5
    return {"prefix": [p * h, h * h, h, *[D * h, D, D * h, D] * LAYERS], "head": HEAD}


def biases_and_head(turn: Turn) -> Sizes:
    block = [D] * 4 + [F, D] + [D, D]  # query, key, value, output; feed-forward; two norms
    return {"bias": block * LAYERS + [D, D], "head": HEAD}  # embedding norm and pooler


BYTES = Case({"rank": 2, "at": "q,ffn.in"}, factors_and_head, factors_and_head)
BYTES_VARIANTS = {
    "adapters": Case({"tune.kind": "bottleneck", "reduction": 8}, adapters_and_head, adapters_and_head),
    "prefix": Case({"tune.kind": "prefix", "tokens": 3, "hidden": 5}, prefix_and_head, prefix_and_head),
    "biases": Case({"tune.kind": "bias"}, biases_and_head, biases_and_head),
}
PAGE_SAYS = {"optim": "clips gradients at the norm of 1"}
