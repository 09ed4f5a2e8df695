"""Options of LoRA: their arithmetic against plain PyTorch and PEFT."""

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
from lora_by_hand import Step
from weft.adaptation.dropout import dropped, rows_of
from weft.adaptation.lora_options import LoRAOptions
from weft.adaptation.optim import Optim
from weft.federation.pack import Pack
from weft.methods import FedIT
from weft.rules import with_options
from weft.testing.compare import assert_same, state
from weft.testing.sites import remote

SMALL = FedIT(rank=2, alpha=6.0, batch=3, epochs=2.0, optim=Optim("adamw", lr=3e-2, eps=1e-6), sites="q,ffn.out")
SIZES = (7, 4, 5)
HALF = LoRAOptions(dropout=0.5)


# LoRA+ ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_b_moves_at_a_multiple_of_the_rate_of_all_else(kind: str) -> None:
    lr = 3e-2
    method = replace(SMALL, optim=Optim(kind, lr=lr, eps=1e-6, clip=1.0))  # type: ignore[arg-type]
    run = tiny.federation(with_options(method, LoRAOptions(ratio=4.0)), sizes=(7,), rounds=1)
    values = by_hand.start_of(run)
    names = list(values)

    def local(params: list[Tensor]) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": [p], "lr": lr * (4.0 if n.endswith("/B") else 1.0)} for n, p in zip(names, params, strict=True)
        ]
        return torch.optim.SGD(groups) if kind == "sgd" else torch.optim.AdamW(groups, eps=1e-6, weight_decay=0.0)

    steps = by_hand.steps_of(run, 0, 0)
    wanted = by_hand.train(run, values, steps, local, scale=3.0, linear=True, clip=1.0)
    run.run()
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, wanted[name], by_hand.ADAM)
    assert any(n.endswith("/B") for n in names)


def test_a_methods_own_multiples_of_the_rate_stay() -> None:
    run = tiny.federation(with_options(SMALL, LoRAOptions(ratio=4.0)), sizes=SIZES)
    made = run.pack().optimizer("*", settings=SMALL.optim, rates={"lora/*": 0.5, "lora/*/B": 9.0})
    for name, place in made.places.items():
        wanted = 1.0 if name.startswith("head") else 2.0 if name.endswith("/B") else 0.5
        assert made.factors[place].tolist() == [wanted] * 3


# dropout --------------------------------------------------------------------------------------------------------------


def test_a_mask_drops_its_share_and_divides_the_rest() -> None:
    x = torch.ones(2, 3 * 50, 64, dtype=torch.float64)
    for share in (0.1, 0.5):
        found = dropped(x, rows_of(torch.tensor([3, 4]), 3), share)
        assert set(found.unique().tolist()) <= {0.0, 1 / (1 - share)}
        assert (found == 0).double().mean() == pytest.approx(share, abs=0.01)
        each = (found == 0).view(6, -1).double()
        assert each.mean(1).sub(share).abs().max() < 0.04
        assert np.abs(np.corrcoef(each.numpy()) - np.eye(6)).max() < 0.06  # rows are dropped apart


def test_a_mask_is_the_same_wherever_a_row_lies_and_however_far_it_is_padded() -> None:
    keys = rows_of(torch.tensor([7, -9, 11]), 4)
    whole = dropped(torch.ones(3, 4 * 6, 5), keys, 0.5).view(3, 4, 6, 5)
    alone = dropped(torch.ones(1, 2 * 6, 5), keys[1:2, 2:], 0.5).view(1, 2, 6, 5)
    longer = dropped(torch.ones(3, 4 * 9, 5), keys, 0.5).view(3, 4, 9, 5)
    assert torch.equal(whole[1:2, 2:], alone)
    assert torch.equal(whole, longer[:, :, :6])


def test_rounds_with_dropout_are_plain_loops_with_the_same_masks() -> None:
    share = 0.3
    run = tiny.federation(with_options(SMALL, LoRAOptions(dropout=share)), sizes=SIZES, participation=0.67, rounds=2)

    def term(step: Step, site: str, module: torch.nn.Module, x: Tensor, out: Tensor, w: Mapping[str, Tensor]) -> Tensor:
        return 3.0 * step.dropped(site, x, share) @ w["A"].mT @ w["B"].mT

    lora_by_hand.hold(run, term)


def test_dropout_is_the_same_for_any_pack_and_at_a_site() -> None:
    method = with_options(SMALL, HALF)
    runs = [tiny.federation(method, sizes=SIZES, rounds=2, pack=pack).run() for pack in (1, 2, 3)]
    for run in runs[1:]:
        assert_same(state(runs[0]), state(run), 1e-12)
    away, _ = remote(method, sizes=SIZES, rounds=2)
    away.run()
    assert_same(by_hand.shared(runs[0]), by_hand.shared(away), 1e-12)
    plain = tiny.federation(SMALL, sizes=SIZES, rounds=2).run()
    assert any(not torch.allclose(v, by_hand.shared(plain)[n]) for n, v in by_hand.shared(runs[0]).items())


def objective(pack: Pack, batch: Any) -> Tensor:
    return pack.loss(pack(batch), batch)


def entered(options: LoRAOptions) -> tuple[tiny.Federation, Pack]:
    """A pack whose B are no longer 0."""
    run = tiny.federation(with_options(SMALL, options), sizes=SIZES)
    pack = run.pack()
    g = torch.Generator().manual_seed(5)
    for name in pack.params("lora/*/B"):
        pack.tensors[name] = torch.randn(pack.tensors[name].shape, generator=g, dtype=torch.float64)
    return run, pack


def test_nothing_is_dropped_where_nothing_is_trained() -> None:
    _, pack = entered(HALF)
    _, plain = entered(LoRAOptions(ratio=2.0))
    batch = next(iter(pack.batches(2.0, None, 3)))
    with torch.no_grad():  # a teacher
        by_hand.close(pack(batch).logits, plain(batch).logits)
    assert not torch.allclose(pack(batch).logits, plain(batch).logits)
    rows = [c.data.train for c in pack.clients]
    for one, other in zip(pack.predict(lambda p, b: p(b), rows), plain.predict(lambda p, b: p(b), rows), strict=True):
        assert torch.equal(one, other)
    whole = pack.gradients(objective, "lora")
    for name, slope in plain.gradients(objective, "lora").items():
        by_hand.close(whole[name], slope)


def test_a_row_loses_other_entries_in_each_step_and_round_and_at_each_client() -> None:
    run, pack = entered(HALF)
    seen: dict[int, list[Tensor]] = {}
    for batch in pack.batches(4.0, None, 99):
        keys = batch.of(torch.arange(3))
        assert batch.keys is not None
        for k, row in zip(keys.tolist(), batch.keys, strict=True):
            seen.setdefault(k, []).extend(row[: SIZES[k]])
    later = next(iter(run.pack(t=1).batches(1.0, None, 99)))
    other = next(iter(pack.batches(1.0, None, 99, "lower")))
    assert later.keys is not None
    assert other.keys is not None
    every = [int(v) for some in seen.values() for v in some] + later.keys.flatten().tolist() + other.keys.flatten().tolist()
    assert len(set(every)) == len(every)
    assert len(every) == 4 * sum(SIZES) + 2 * 3 * max(SIZES)


def test_gradients_of_rows_have_the_masks_of_their_step() -> None:
    _, pack = entered(HALF)
    batch = list(pack.batches(1.0, None, 3))[1]
    each = pack.row_gradients(objective, batch, "lora")
    leaves = {n: v.detach().requires_grad_(True) for n, v in pack.params("lora").items()}
    with pack.values(leaves):
        loss = objective(pack, batch)
    rows = torch.from_numpy((batch.index >= 0).sum(1))
    slopes = torch.autograd.grad((loss * rows).sum(), list(leaves.values()))
    for (name, _), slope in zip(leaves.items(), slopes, strict=True):
        by_hand.close(each[name].sum(1), batch.of(slope))


def test_recomputed_blocks_and_blocks_that_some_lack_have_the_same_masks() -> None:
    _, pack = entered(HALF)
    batch = next(iter(pack.batches(1.0, None, 3)))

    def slopes(pack: Pack, who: Tensor | None = None) -> list[Tensor]:
        leaves = {n: v.detach().requires_grad_(True) for n, v in pack.params("lora").items()}
        with pack.values(leaves):
            loss = objective(pack, batch)
        return list(torch.autograd.grad((loss if who is None else loss[who]).sum(), list(leaves.values()), allow_unused=True))

    usual = slopes(pack)
    pack._weave.recompute = True
    for one, other in zip(slopes(pack), usual, strict=True):
        by_hand.close(one, other)
    pack._weave.recompute = False
    hold = torch.ones(3, len(pack.backbone.blocks), dtype=torch.bool)
    hold[0, 1] = False  # the others go on through a pass of two
    pack.hold(hold)
    for one, other in zip(slopes(pack, torch.tensor([1, 2])), usual, strict=True):
        by_hand.close(one[1:], other[1:])
