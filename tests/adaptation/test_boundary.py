"""Boundaries between stages: int8 by blocks, both ways, and stages that are computed once more from what has entered them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tiny
from weft.adaptation.boundary import Boundary, _Crossing, rounded
from weft.errors import UserError


def by_hand(x: list[float], block: int) -> list[float]:
    found: list[float] = []
    for i in range(0, len(x), block):
        part = x[i : i + block]
        top = max(abs(v) for v in part)
        found += [round(v / top * 127) * top / 127 if top else 0.0 for v in part]
    return found


@pytest.mark.parametrize("block", [1, 4, 64])
def test_what_arrives_is_the_nearest_of_255_levels_of_each_block(block: int) -> None:
    x = torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1, 2] = 0.0
    found = rounded(x, block)
    assert torch.equal(found[1, 2], torch.zeros(10, dtype=torch.float64))
    for row, wanted in zip(found.flatten(0, 1), x.flatten(0, 1), strict=True):
        assert row.tolist() == pytest.approx(by_hand(wanted.tolist(), block), abs=1e-6)
    top = x.abs().amax(-1, keepdim=True)
    assert bool(((found - x).abs() <= top / 254 + 1e-6).all())
    assert found.dtype == x.dtype


def test_a_stage_that_another_peer_computes_once_more_gives_the_same_gradients() -> None:
    """Stages by themselves, which keep nothing but what has entered them, against one pass with crossings between them."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Linear(12, 12), nn.Tanh()).double() for _ in range(3)]
    x = torch.randn(5, 12, dtype=torch.float64)

    def loss(h: Tensor) -> Tensor:
        return h.square().sum()

    h = x
    for i, stage in enumerate(stages):
        h = stage(_Crossing.apply(h, 4) if i else h)
    whole = torch.autograd.grad(loss(h), [p for s in stages for p in s.parameters()])

    entered = [x]
    for stage in stages[:-1]:
        with torch.no_grad():
            entered.append(rounded(stage(entered[-1]), 4))
    slope: Tensor | None = None
    apart: list[Tensor] = []
    for stage, came in reversed(list(zip(stages, entered, strict=True))):
        inside = came.clone().requires_grad_(True)
        out = stage(inside)  # by whoever is there now
        target = loss(out) if slope is None else (out * slope).sum()
        *mine, back = torch.autograd.grad(target, [*stage.parameters(), inside])
        apart = [*mine, *apart]
        slope = rounded(back, 4)
    for one, other in zip(whole, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_blocks_are_cut_evenly_and_no_finer_than_they_are() -> None:
    backbone = tiny.backbone("bert")
    blocks = len(backbone.blocks)
    assert [site.block for site in Boundary(blocks).sites(backbone)] == list(range(1, blocks))
    assert [site.block for site in Boundary(2).sites(backbone)] == [round(blocks / 2)]
    assert Boundary(1).sites(backbone) == []
    with pytest.raises(UserError, match=rf"has {blocks} blocks, of which {blocks + 1} stages can't be made\.$"):
        Boundary(blocks + 1).sites(backbone)
