"""FedPEFT against its card: counts on a ViT-B, plain SGD on what is chosen, and what each choice does before the first round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adapters_by_hand as hand
import by_hand
import images_by_hand
import tiny
from bytes_of import HEAD, LAYERS, Case, D, F, Sizes, Turn
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import FedPEFT
from weft.testing import laws

RATE = 0.1


def of_kind(kind: str, **more: Any) -> FedPEFT:
    """The method with one of its choices, in small batches."""
    made = FedPEFT(batch=4, epochs=2.0, optim=FedPEFT().optim.but(lr=RATE))
    return replace(made, tune=replace(made.tune, kind=kind, **more))


SMALL: dict[str, FedPEFT] = {
    "bias": of_kind("bias"),
    "bottleneck": of_kind("bottleneck", reduction=8),
    "tokens": of_kind("tokens", tokens=3),
    "head": of_kind("head"),
}


def prompted(run: tiny.Federation, values: by_hand.Values, rows: np.ndarray) -> Tensor:
    return images_by_hand.prompted(run.bench.backbone, values, run.bench.table.collate(rows)["pixel_values"], "tokens")


PREDICT: dict[str, Callable[..., Tensor]] = {
    "bias": by_hand.logits,
    "bottleneck": hand.with_adapters(),
    "tokens": prompted,
    "head": by_hand.logits,
}


def everything(run: tiny.Federation) -> np.ndarray:
    return np.arange(len(run.bench.table))


def sgd(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, lr=RATE)


@pytest.mark.parametrize("kind", SMALL)
def test_rounds_are_those_of_plain_pytorch_averaged_by_example_counts(kind: str) -> None:
    run = tiny.federation(SMALL[kind], "vit", rounds=2, participation=0.5)
    values, counts, order = by_hand.shared(run), {c.id: c.n for c in run.clients}, [c.id for c in run.clients]
    drawn = []
    for t in range(2):
        steps = {k: by_hand.steps_of(run, k, t) for k, c in enumerate(run.clients) if c.n}
        record = run.simulation.round(t)
        assert record is not None
        cohort = [c for c in record["cohort"] if counts[c]]
        drawn.append(set(cohort))
        total = sum(counts[c] for c in cohort)
        trained = [by_hand.train(run, values, steps[order.index(c)], sgd, predict=PREDICT[kind]) for c in cohort]
        values = {
            n: sum((counts[c] / total * own[n] for c, own in zip(cohort, trained, strict=True)), torch.zeros(())) for n in values
        }
    assert all(len(cohort) < 5 for cohort in drawn)
    assert drawn[0] != drawn[1]
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, values[name])
    by_hand.close(run.global_logits(), PREDICT[kind](run, values, everything(run)).float(), 1e-5)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("law", ["pack", "return", "sums"])
def test_each_choice_keeps_the_laws_on_pictures(kind: str, law: str) -> None:
    class OfPictures(FedPEFT):
        info = replace(FedPEFT.info, needs=("images",))

    laws.check(OfPictures(**{n: getattr(SMALL[kind], n) for n in ("tune", "batch", "epochs", "optim")}), law)


def test_after_training_biases_and_head_differ_from_the_checkpoint_and_nothing_else() -> None:
    run = tiny.federation(SMALL["bias"], "vit", rounds=2).run()
    pristine = dict(tiny.fresh("vit").model.named_parameters())
    learnt = {"{1}.{2}".format(*n.split("/")): v[0] for n, v in run.server.pack().tensors.items()}
    assert set(learnt) == {n for n in pristine if n.endswith(".bias") or n.startswith("classifier.")}
    assert any(isinstance(run.bench.backbone.module(n.rsplit(".", 1)[0]), nn.Conv2d) for n in learnt)
    now = {n: learnt.get(n, p) for n, p in run.bench.backbone.model.named_parameters()}
    assert all(torch.equal(p, pristine[n]) for n, p in now.items() if n not in learnt)
    changed = {n for n in learnt if not torch.allclose(now[n], pristine[n], rtol=0, atol=1e-6)}
    silent = {n for n in learnt if n.endswith("k_proj.bias")}  # shifts all scores of a query alike, which softmax ignores
    assert len(silent) == 3
    assert changed == set(learnt) - silent


def test_the_mean_of_the_part_is_that_of_whole_models() -> None:
    run = tiny.federation(SMALL["bias"], "vit", rounds=1)
    seen = by_hand.record(run)
    run.run()
    total = sum(u.weight for u in seen[0])
    mean: dict[str, Tensor] = {}
    for u in seen[0]:
        own = by_hand.merged(run, {n: v for n, v in u.tensors.items() if isinstance(v, Tensor)}, 1.0)
        for name, p in run.bench.backbone.model.named_parameters():
            mean[name] = mean.get(name, torch.zeros(())) + u.weight / total * own.get(name, p)
    found = by_hand.merged(run, by_hand.shared(run), 1.0)
    for name, p in run.bench.backbone.model.named_parameters():
        by_hand.close(mean[name], found.get(name, p))


@pytest.mark.parametrize(("kind", "frozen"), [("bias", True), ("bottleneck", True), ("head", True), ("tokens", False)])
def test_before_the_first_round_only_prompts_change_what_the_backbone_does(kind: str, frozen: bool) -> None:
    run = tiny.federation(SMALL[kind], "vit")
    head = {n: v for n, v in by_hand.shared(run).items() if n.startswith("head/")}
    difference = (run.global_logits() - by_hand.logits(run, head).float()).abs().max()
    assert bool(difference < 1e-5) == frozen


def test_a_picture_is_longer_by_its_new_tokens_in_every_block_and_the_head_reads_the_first() -> None:
    run = tiny.federation(SMALL["tokens"], "vit")
    b, lengths, read = run.bench.backbone, [], []
    handles = [b.module(n).register_forward_hook(lambda _m, a, _o: lengths.append(a[0].shape[1])) for n in b.blocks]
    handles.append(b.module("classifier").register_forward_pre_hook(lambda _m, a: read.append(a[0])))
    try:
        b.model(**run.bench.table.collate(np.arange(2)))
        plain, lengths[:] = list(lengths), []
        run.global_logits(np.arange(2))
    finally:
        for handle in handles:
            handle.remove()
    # a hook on a block sees what came in before the tokens: those of the block before it, and its own replace them
    assert lengths[1:] == [n + 3 for n in plain[1:]]
    assert b.pools == "first"


# what it costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "part", "total"),
    [("head", 0, 76_900), ("bias", 102_912, 179_812), ("bottleneck", 156_768, 233_668), ("tokens", 92_160, 169_060)],
)
def test_on_a_vit_b_of_100_classes_a_client_sends_what_the_paper_says(kind: str, part: int, total: int) -> None:
    method = FedPEFT()
    found = by_hand.elements(replace(method, tune=replace(method.tune, kind=kind)), by_hand.vit_base(100), Scope.UP, 100)
    assert found == ({kind: part} if part else {}) | {"head": 768 * 100 + 100}
    assert sum(found.values()) == total
    whole = sum(p.numel() for p in by_hand.vit_base(100).model.parameters())
    assert f"{whole / 1e6:.2f}" == "85.88"
    if kind == "bias":
        assert round(whole / total) == 478


def test_defaults_are_those_of_the_card() -> None:
    method = FedPEFT()
    # "Bias is the headline variant"; "768→8"; "zero-init up"; "after the FFN …, inside its residual branch"; "10 new tokens"
    tune = method.tune
    assert (tune.kind, tune.biases, 768 // tune.reduction, tune.up_std, tune.placement) == ("bias", "all", 8, 0.0, "ffn")
    assert (tune.tokens, tune.deep, tune.head) == (10, True, True)
    # "E=10 local epochs", SGD; "n_k / Σ n"
    assert (method.epochs, method.steps, method.optim.kind, method.weighting) == (10.0, None, "sgd", "examples")


def test_prompts_are_for_pictures() -> None:
    with pytest.raises(UserError, match="has no picture patches to put tokens among"):
        tiny.federation(SMALL["tokens"], "bert")


# what other tests ask of this method --------------------------------------------------------------------------------------


def biases_and_head(turn: Turn) -> Sizes:
    block = [D] * 4 + [F, D] + [D, D]  # query, key, value, output; feed-forward; two norms
    return {"bias": block * LAYERS + [D, D], "head": HEAD}  # embedding norm and pooler


def adapters_and_head(turn: Turn) -> Sizes:
    m = D // 8
    return {"bottleneck": [m * D, m, D * m, D] * LAYERS, "head": HEAD}


BYTES = Case({}, biases_and_head, biases_and_head)
BYTES_VARIANTS = {
    "adapters": Case({"tune.kind": "bottleneck", "reduction": 8}, adapters_and_head, adapters_and_head),
    "head": Case({"tune.kind": "head"}, lambda turn: {"head": HEAD}, lambda turn: {"head": HEAD}),
}
