"""The attention-based adapter against its formula, on transformers' own embeddings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import images_by_hand as hand
import tiny
from by_hand import close
from weaving import INDEX, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.attention_adapter import AttentionAdapter
from weft.adaptation.part import Part
from weft.errors import UserError
from weft.federation.bench import Bench

PARTS: dict[str, Part] = {"x": AttentionAdapter()}
WIDTH = 16  # of the tiny CLIP's embedding
ROLES = ("W1", "b1", "W2", "b2")


def attention(z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.softmax(F.linear(torch.tanh(F.linear(z, w1, b1)), w2, b2), -1)


def by_formula(bench: Bench, values: dict[str, Tensor], rows: np.ndarray) -> Tensor:
    """Logits [n, C] of A(z) ⊙ z."""
    b = bench.backbone
    z = hand.image_embedding(b, bench.table.collate(rows)["pixel_values"])
    found = attention(z, *(values[f"x/image_embedding/{r}"] for r in ROLES))
    assert bool((found > 0).all())
    close(found.sum(-1), torch.ones(len(z), dtype=z.dtype), 1e-14)
    return hand.similarity(b, found * z, hand.zero_shot(b, tiny.names(3), "a photo of a {}."))


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("clients", [None, [2, 0]])
def test_each_client_of_a_pack_has_its_own_attention_on_the_embedding(scale: float, clients: list[int] | None) -> None:
    bench = tiny.bench("clip")
    values = [values_for(bench, PARTS, seed=i, scale=scale) for i in range(3)]
    pack = pack_of(bench, [PARTS] * 3, values)
    who = [0, 1, 2] if clients is None else clients
    found = pack(batch_of(bench, INDEX[who], clients)).logits
    for row, k in zip(found, who, strict=True):
        valid = INDEX[k] >= 0
        wanted = by_formula(bench, values[k], INDEX[k][valid])  # type: ignore[arg-type]
        close(row[valid], wanted, 1e-12)
    tail = pack.tail(torch.stack(pack.embed([np.abs(r) for r in INDEX]))).logits
    for k in range(3):
        valid = INDEX[k] >= 0
        close(tail[k][valid], by_formula(bench, values[k], INDEX[k][valid]), 1e-12)  # type: ignore[arg-type]


def test_its_gradients_are_those_of_the_formula() -> None:
    bench = tiny.bench("clip")
    values = values_for(bench, PARTS, seed=3, scale=1.0)
    pack = leaves(pack_of(bench, [PARTS], [values]), "*")
    batch = batch_of(bench, INDEX[:1])
    found = grads(pack, pack.loss(pack(batch), batch), "*")
    own = {n: v.clone().requires_grad_(True) for n, v in values.items() if isinstance(v, Tensor)}
    F.cross_entropy(by_formula(bench, own, INDEX[0]), torch.from_numpy(bench.table.labels[INDEX[0]])).backward()
    assert set(found) == set(own) == {f"x/image_embedding/{r}" for r in ROLES}
    for name, leaf in own.items():
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 1e-6
        close(found[name][0], leaf.grad, 1e-11)


def test_uniform_attention_is_zero_shot_bit_for_bit() -> None:
    bench = tiny.bench("clip")
    values = values_for(bench, PARTS, seed=0, scale=1.0)
    values |= {f"x/image_embedding/{r}": torch.zeros_like(values[f"x/image_embedding/{r}"]) for r in ("W2", "b2")}  # type: ignore[arg-type]
    pack = pack_of(bench, [PARTS], [values])
    batch = batch_of(bench, INDEX[:1])
    assert torch.equal(pack(batch).logits, pack(batch, use={}).logits)


def test_it_sees_the_embedding_before_it_is_normalised() -> None:
    bench = tiny.bench("clip")
    pack = pack_of(bench, [PARTS], [values_for(bench, PARTS, seed=0, scale=1.0)])
    z = torch.stack(pack.embed([INDEX[0]]))
    assert (pack.tail(z).logits - pack.tail(F.normalize(z, dim=-1)).logits).abs().max() > 1e-2
    close(pack.tail(z, use={}).logits, pack.tail(F.normalize(z, dim=-1), use={}).logits)


def test_all_tensors_start_as_those_of_a_linear_layer_do() -> None:
    b = tiny.backbone("clip")
    (site,) = AttentionAdapter().sites(b)
    inits = AttentionAdapter().tensors(b, site)
    assert {r: i.shape for r, i in inits.items()} == {"W1": (WIDTH, WIDTH), "b1": (WIDTH,), "W2": (WIDTH, WIDTH), "b2": (WIDTH,)}
    bound = 1 / math.sqrt(WIDTH)
    torch.manual_seed(0)
    linear = torch.nn.Linear(WIDTH, WIDTH)
    for role, init in inits.items():
        start = init.draw(0, role)
        assert start.abs().max() <= bound
        assert start.abs().max() > (0.9 if start.dim() > 1 else 0.6) * bound
        theirs = (linear.weight if start.dim() > 1 else linear.bias).detach()
        assert theirs.abs().max() <= bound  # PyTorch's own start lies on the same interval


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_a_backbone_without_a_joint_embedding_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="no joint embedding of images and texts: use a CLIP"):
        AttentionAdapter().sites(tiny.backbone(kind))
