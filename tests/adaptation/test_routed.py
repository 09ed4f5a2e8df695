"""Two LoRAs whose mixture a router gives to every token, against a loop over tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, alone, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.routed import Routed
from weft.errors import UserError

K, N, D_IN, D_OUT, R = 2, 5, 4, 3, 2
NOTHING = nn.Identity()


def drawn(seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of two clients with a scale of their own, and their tokens [k, n, d_in]."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"A": (R, D_IN), "B": (D_OUT, R), "RA": (R, D_IN), "RB": (D_OUT, R), "G": (2, D_IN)}
    w = {role: torch.randn(K, *shape, generator=g, dtype=torch.float64) for role, shape in shapes.items()}
    w["scale"] = torch.tensor([3.0, 0.5], dtype=torch.float64)
    return w, torch.randn(K, N, D_IN, generator=g, dtype=torch.float64)


def term(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return Routed(R, 1.0).apply(NOTHING, w, x, x)


def test_every_token_takes_its_own_mixture() -> None:
    w, x = drawn()
    found = term(w, x).numpy()
    of, tokens = {role: v.numpy() for role, v in w.items()}, x.numpy()
    shares = []
    for k in range(K):
        for i in range(N):
            rest, own = np.exp(of["G"][k] @ tokens[k, i]) / np.exp(of["G"][k] @ tokens[k, i]).sum()
            assert math.isclose(rest + own, 1.0)
            shares.append(own)
            update = own * of["B"][k] @ of["A"][k] + rest * of["RB"][k] @ of["RA"][k]
            np.testing.assert_allclose(found[k, i], of["scale"][k] * update @ tokens[k, i], rtol=1e-12)
    assert max(shares) - min(shares) > 0.3


def test_rows_of_the_router_that_are_alike_give_each_lora_a_half() -> None:
    w, x = drawn()
    w["G"] = w["G"][:, :1].expand(K, 2, D_IN)
    own, rest = (LoRA(R, 1.0).apply(NOTHING, {**w, "A": w[a], "B": w[b]}, x, x) for a, b in (("A", "B"), ("RA", "RB")))
    torch.testing.assert_close(term(w, x), (own + rest) / 2, **CLOSE)
    w["G"] = torch.zeros(K, 2, D_IN, dtype=torch.float64)
    assert torch.equal(term(w, x), own * 0.5 + rest * 0.5)


@pytest.mark.parametrize(("row", "roles"), [(1, ("A", "B")), (0, ("RA", "RB"))])
def test_a_router_that_is_sure_gives_plain_lora(row: int, roles: tuple[str, str]) -> None:
    """Row 0 is the rest's, row 1 the own one's."""
    w, x = drawn()
    x[..., 0] = 1.0  # so that one direction is every token's
    w["G"] = torch.zeros(K, 2, D_IN, dtype=torch.float64)
    w["G"][:, row, 0] = 1000.0
    plain = {"A": w[roles[0]], "B": w[roles[1]], "scale": w["scale"]}
    torch.testing.assert_close(term(w, x), LoRA(R, 1.0).apply(NOTHING, plain, x, x), **CLOSE)


def test_without_an_own_b_what_is_left_is_the_rest() -> None:
    w, x = drawn()
    bare = {**w, "B": torch.zeros_like(w["B"])}
    share = torch.softmax(x @ w["G"].mT, -1)[..., :1]
    rest = {"A": w["RA"], "B": w["RB"], "scale": w["scale"]}
    torch.testing.assert_close(term(bare, x), share * LoRA(R, 1.0).apply(NOTHING, rest, x, x), **CLOSE)


def test_padding_a_rank_with_zeros_changes_nothing() -> None:
    w, x = drawn()
    more = torch.zeros(K, 2, D_IN, dtype=torch.float64), torch.zeros(K, D_OUT, 2, dtype=torch.float64)
    padded = {r: torch.cat([v, more[0]], 1) if r in ("A", "RA") else v for r, v in w.items()}
    padded = {r: torch.cat([v, more[1]], 2) if r in ("B", "RB") else v for r, v in padded.items()}
    torch.testing.assert_close(term(padded, x), term(w, x), **CLOSE)


def test_the_router_decides_in_its_own_precision() -> None:
    w, x = drawn()
    w = {role: v.float() for role, v in w.items()}
    half = x.to(torch.bfloat16)
    w["G"] = 20 * w["G"]
    w["RB"] = torch.zeros_like(w["RB"])
    share = torch.softmax(half.float() @ w["G"].mT, -1)[..., 1:].to(torch.bfloat16)
    plain = LoRA(R, 1.0).apply(NOTHING, w, half, half)
    assert torch.equal(term(w, half), share * plain + 0 * plain)


class Mixed(nn.Module):
    """A linear layer with both LoRAs and the router beside it."""

    def __init__(self, layer: nn.Module, values: Mapping[str, Any], site: str, scale: float):
        super().__init__()
        self.layer, self.scale = layer, scale
        self.w = {role: values[f"mix/{site}/{role}"] for role in ("A", "B", "RA", "RB", "G")}

    def forward(self, x: Tensor) -> Tensor:
        w = self.w
        own = torch.sigmoid(x @ (w["G"][1] - w["G"][0])).unsqueeze(-1)
        mixed = own * (x @ w["A"].T @ w["B"].T) + (1 - own) * (x @ w["RA"].T @ w["RB"].T)
        out: Tensor = self.layer(x) + self.scale * mixed
        return out


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "vit"])
def test_in_a_pack_of_unlike_ranks_each_client_has_the_model_that_it_has_alone(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    ranks = (2, 3, 1)
    parts: list[dict[str, Part]] = [{"mix": Routed(r, 6.0, "v,ffn.in"), "head": Head()} for r in ranks]
    values = [values_for(bench, own, seed=i) for i, own in enumerate(parts)]
    together, batch = leaves(pack_of(bench, parts, values), "*"), batch_of(bench, INDEX)
    out = together(batch)
    slopes = grads(together, together.loss(out, batch), "*")
    for k, pack in enumerate(alone(bench, parts, values)):
        model, rows = own_model(b), INDEX[k][INDEX[k] >= 0]
        set_head(model, b, values[k])
        for site in parts[k]["mix"].sites(b):
            parent, leaf = site.name.rsplit(".", 1)
            mixed = Mixed(model.get_submodule(site.name), values[k], site.name, 6.0 / ranks[k])
            setattr(model.get_submodule(parent), leaf, mixed)
        wanted = logits_of(model, bench, rows)
        torch.testing.assert_close(out.logits[k, : len(rows)], wanted, **CLOSE)
        mine = batch_of(bench, INDEX[k : k + 1])
        by_itself = grads(leaves(pack, "*"), pack.loss(pack(mine), mine), "*")
        for name, slope in slopes.items():
            own = slope[k][tuple(slice(0, s) for s in by_itself[name].shape[1:])]
            torch.testing.assert_close(own, by_itself[name][0], **CLOSE)


@pytest.mark.parametrize("router", ["random", "even"])
def test_start_values(router: Any) -> None:
    bench = tiny.bench("bert")
    part = Routed(2, 6.0, "q", router=router)
    for site in part.sites(bench.backbone):
        w = {role: bench.draw(init, f"mix/{site.name}/{role}") for role, init in part.tensors(bench.backbone, site).items()}
        assert {role: tuple(v.shape) for role, v in w.items()} == {
            "A": (2, 32), "B": (32, 2), "RA": (2, 32), "RB": (32, 2), "G": (2, 32)
        }  # fmt: skip
        assert bool(w["G"].any()) == (router == "random")
        assert not w["B"].any()
        assert not w["RB"].any()
        assert not torch.equal(w["A"], w["RA"])
        assert float(max(w[role].abs().max() for role in ("A", "RA", "G"))) <= 1 / math.sqrt(32)


def test_an_unknown_router_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match='Did you mean "even"'):
        Routed(2, 6.0, router="evne")  # type: ignore[arg-type]
