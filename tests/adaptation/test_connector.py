"""Adapters of a LLaVA's connector and their mixture, against the same in plain PyTorch, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tiny
from weaving import CLOSE, INDEX, alone, batch_of, grads, leaves, own_model, pack_of, values_for
from weft.adaptation.connector import ConnectorAdapter, copied
from weft.adaptation.connector_mixture import ConnectorMixture, shares
from weft.adaptation.part import Part
from weft.backbones.llava import CONNECTOR
from weft.errors import UserError
from weft.federation import generating
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods import FedIT
from weft.tasks.generation_settings import Decoding

ADAPTERS: dict[str, Part] = {"one": ConnectorAdapter(), "two": ConnectorAdapter()}
MIXTURE = ConnectorMixture(experts=3)


def bench(precision: str = "float64") -> Bench:
    return tiny.federation(FedIT(rank=2), "llava", task="generation", precision=precision).bench


def gelu(h: Tensor) -> Tensor:
    return h * 0.5 * (1 + torch.erf(h / 2**0.5))


def mlp(values: Mapping[str, Any], prefix: str, x: Tensor) -> Tensor:
    """Of one client's tensors, by the beginning of their names."""
    w1, b1, w2, b2 = (values[f"{prefix}{n}"] for n in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"))
    found: Tensor = gelu(x @ w1.T + b1) @ w2.T + b2
    return found


def mixed(values: Mapping[str, Any], x: Tensor, top: int | None = None, part: str = "x") -> Tensor:
    """Tokens [..., d_v], each by itself."""
    at = f"{part}/{CONNECTOR}/"
    router = values[f"{at}router"]
    experts = len(router)
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        p = np.exp((router @ token).detach().numpy())
        kept = sorted(range(experts), key=lambda e: -p[e])[: top or experts]
        h = [mlp(values, f"{at}task1.", token)]
        h += [mlp(values, f"{at}task{i}.", token) + mlp(values, f"{at}cross{i}.", token) for i in range(2, experts + 1)]
        rows.append(sum(float(p[e] / p[kept].sum()) * h[e] for e in kept))
    return torch.stack(rows).reshape(*x.shape[:-1], -1)  # type: ignore[arg-type]


class Instead(nn.Module):
    """In the place of a connector."""

    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(x)
        return found


def logits(of: Bench, rows: np.ndarray, function: Any) -> Tensor:
    """Of answer tokens, [m, V], where something else stands in the place of the connector."""
    model = own_model(of.backbone)
    model.model.multi_modal_projector = Instead(function)
    found: Tensor = model(**of.table.collate(rows)).logits
    return found[of.table.places(rows)]  # type: ignore[union-attr]


def packed(of: Bench, parts: Mapping[str, Part]) -> tuple[Pack, list[Mapping[str, Any]]]:
    values: list[Mapping[str, Any]] = [values_for(of, parts, seed=i, scale=0.1) for i in range(3)]
    return pack_of(of, [parts] * 3, values), values


# places and starts --------------------------------------------------------------------------------------------------------


def test_it_has_the_connectors_own_shape_and_begins_as_it() -> None:
    backbone = bench().backbone
    (site,) = ConnectorAdapter().sites(backbone)
    assert (site.name, site.d_in, site.d_out, site.block) == (CONNECTOR, 24, 32, None)
    begins = ConnectorAdapter().tensors(backbone, site)
    own = dict(backbone.module(CONNECTOR).named_parameters())
    assert set(begins) == set(own)
    for role, init in begins.items():
        assert torch.equal(init.draw(0, "x").double(), own[role])
    assert sum(i.numel for i in begins.values()) == 24 * 32 + 32**2 + 2 * 32


def test_a_half_of_it_is_half_of_what_the_connector_gives() -> None:
    of = bench()
    halves: dict[str, Part] = {"one": ConnectorAdapter(0.5), "two": ConnectorAdapter(0.5)}
    (site,) = halves["one"].sites(of.backbone)
    start = {
        f"{n}/{CONNECTOR}/{r}": i.draw(0, n).double() for n, p in halves.items() for r, i in p.tensors(of.backbone, site).items()
    }
    pack = pack_of(of, [halves], [start])
    plain = pack_of(of, [{}], [{}])
    batch = batch_of(of, INDEX[:1])
    torch.testing.assert_close(pack(batch).logits, plain(batch).logits, **CLOSE)


def test_of_a_mixture_all_begin_as_the_connector_and_the_router_is_that_of_a_linear_layer() -> None:
    backbone = bench().backbone
    (site,) = MIXTURE.sites(backbone)
    found = MIXTURE.tensors(backbone, site)
    own = copied(backbone, site)
    who = ("task1", "task2", "task3", "cross2", "cross3")
    assert set(found) == {"router", *(f"{w}.{r}" for w in who for r in own)}
    for w in who:
        assert all(torch.equal(found[f"{w}.{r}"].draw(0, "x"), v) for r, v in own.items())
    router = found["router"].draw(0, "x")
    assert router.shape == (3, 24)
    assert 0.5 * 24**-0.5 < float(router.abs().max()) <= 24**-0.5


def test_a_connector_without_biases_has_none_and_its_own_activation_counts() -> None:
    backbone = tiny.backbone(
        "llava", checkpoint="lm", task="generation", classes=1, multimodal_projector_bias=False, projector_hidden_act="relu"
    )
    (site,) = ConnectorAdapter().sites(backbone)
    assert set(ConnectorAdapter().tensors(backbone, site)) == {"linear_1.weight", "linear_2.weight"}
    module = backbone.module(CONNECTOR)
    x = torch.randn(1, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = {role: v.double().unsqueeze(0) for role, v in copied(backbone, site).items()}
    torch.testing.assert_close(ConnectorAdapter().apply(module, w, x, x), module(x), **CLOSE)


def test_a_backbone_without_a_connector_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="has no connector between a tower of pictures and a language model: use a LLaVA"):
        ConnectorAdapter().sites(tiny.backbone("llama", checkpoint="lm", task="generation", classes=1))


# arithmetic ---------------------------------------------------------------------------------------------------------------


def test_every_row_of_these_tests_has_its_picture_in_its_prompt() -> None:
    of = bench()
    own = of.table.collate(INDEX[INDEX >= 0])["input_ids"] == of.backbone.model.config.image_token_id
    assert own.sum(1).eq(4).all()


def test_several_stand_in_the_place_of_the_connector_as_their_sum() -> None:
    of = bench()
    pack, values = packed(of, ADAPTERS)
    batch = batch_of(of, INDEX)
    out = pack(batch).logits
    for k, rows in enumerate(INDEX):
        own = rows[rows >= 0]

        def both(x: Tensor, v: Mapping[str, Any] = values[k]) -> Tensor:
            return mlp(v, f"one/{CONNECTOR}/", x) + mlp(v, f"two/{CONNECTOR}/", x)

        wanted = logits(of, own, both)
        torch.testing.assert_close(out[k][batch.mask[k]], wanted, **CLOSE)


@pytest.mark.parametrize("top", [None, 1, 2, 3])
def test_every_token_takes_its_own_mixture(top: int | None) -> None:
    of = bench()
    pack, values = packed(of, {"x": replace(MIXTURE, top=top)})
    batch = batch_of(of, INDEX)
    out = pack(batch).logits
    for k, rows in enumerate(INDEX):
        own = rows[rows >= 0]
        wanted = logits(of, own, lambda x, v=values[k]: mixed(v, x, top))
        torch.testing.assert_close(out[k][batch.mask[k]], wanted, **CLOSE)


def test_of_one_expert_the_router_is_irrelevant() -> None:
    of = bench()
    one = ConnectorMixture()
    pack, values = packed(of, {"x": one})
    batch = batch_of(of, INDEX)
    out = pack(batch).logits
    pack.tensors[f"x/{CONNECTOR}/router"] = pack.tensors[f"x/{CONNECTOR}/router"] * -7
    assert torch.equal(pack(batch).logits, out)
    wanted = logits(of, INDEX[0], lambda x: mlp(values[0], f"x/{CONNECTOR}/task1.", x))
    torch.testing.assert_close(out[0][batch.mask[0]], wanted, **CLOSE)


@pytest.mark.parametrize("top", [1, 2, 3])
def test_exactly_so_many_experts_are_active_and_shares_add_up_to_one(top: int) -> None:
    z = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(top))
    p = shares(z, top)
    assert (p > 0).sum(-1).eq(top).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(4, 6, dtype=torch.float64), **CLOSE)
    kept = p > 0
    assert (z.masked_fill(kept, -torch.inf).amax(-1) <= z.masked_fill(~kept, torch.inf).amin(-1)).all()
    ratio = p / torch.softmax(z, -1)
    torch.testing.assert_close(
        ratio[kept].view(4, 6, top).std(-1, unbiased=False), torch.zeros(4, 6, dtype=torch.float64), **CLOSE
    )


@pytest.mark.parametrize(
    ("parts", "idle"),
    [(ADAPTERS, 0), ({"x": MIXTURE}, 0), ({"x": replace(MIXTURE, top=2)}, 1), ({"x": replace(MIXTURE, top=1)}, 2)],
)
def test_gradients_of_a_pack_are_those_of_its_clients_alone(parts: Mapping[str, Part], idle: int) -> None:
    """``idle``: experts that no token of a client need take."""
    of = bench()
    values = packed(of, parts)[1]
    together, batch = leaves(pack_of(of, [parts] * 3, values), "*"), batch_of(of, INDEX)
    mine = grads(together, together.loss(together(batch), batch), "*")
    for k, one in enumerate(alone(of, [parts] * 3, values)):
        leaves(one, "*")
        single = batch_of(of, INDEX[k : k + 1])
        dead = set()
        for name, slope in grads(one, one.loss(one(single), single), "*").items():
            torch.testing.assert_close(mine[name][k], slope[0], **CLOSE)
            if float(slope.abs().max()) < 1e-6 and not (name.endswith("router") and idle == 2):  # one share is 1 whatever it is
                dead.add(name.split("/")[2].split(".")[0][-1])
        assert len(dead) <= idle


def test_what_the_connector_reads_is_at_hand_for_losses() -> None:
    of = bench()
    pack, _ = packed(of, ADAPTERS)
    seen = pack.patches(batch_of(of, INDEX))
    assert seen.shape == (3, 4, 4, 24)
    assert not seen[2, 3].any(), "a padding row"
    caught: list[Tensor] = []
    handle = of.backbone.module(CONNECTOR).register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
    of.backbone.model(**of.table.collate(INDEX[1]))
    handle.remove()
    assert torch.equal(seen[1], caught[0])


def test_in_half_precision_shares_are_not_computed_in_it() -> None:
    of = bench("bfloat16")
    module, (site,) = of.backbone.module(CONNECTOR), MIXTURE.sites(of.backbone)
    g = torch.Generator().manual_seed(0)
    w = {r: i.draw(0, r).unsqueeze(0) for r, i in MIXTURE.tensors(of.backbone, site).items()}
    w["router"] = torch.randn(1, 3, 24, generator=g).requires_grad_(True)
    x = torch.randn(1, 5, 24, generator=g).bfloat16()
    out = MIXTURE.apply(module, w, x, x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert w["router"].grad is not None
    assert w["router"].grad.dtype == torch.float32


def test_texts_are_written_with_them_and_the_connector_is_asked_once() -> None:
    of = bench()
    calls: list[int] = []
    pack, values = packed(of, {"x": MIXTURE})
    plain = MIXTURE.apply

    class Counted(ConnectorMixture):
        def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
            calls.append(x.shape[1])
            return plain(module, w, x, out)

    pack = pack_of(of, [{"x": Counted(experts=3)}] * 3, values)
    rows = [np.array([0, 1]), np.array([6]), np.array([12, 13])]
    texts = generating.write(pack, lambda p, b: p(b, use={"x": 1.0}), rows, Decoding(new_tokens=4))
    assert len(calls) == 1
    for k, one in enumerate(alone(of, [{"x": MIXTURE}] * 3, values)):
        beams = Decoding(new_tokens=4, beams=2)
        own = [rows[k]]
        assert generating.write(one, lambda p, b: p(b), own, Decoding(new_tokens=4)) == [texts[k]]
        assert len(generating.write(one, lambda p, b: p(b), own, beams)[0]) == len(rows[k])


# work ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [ADAPTERS, {"x": MIXTURE}], ids=["adapters", "mixture"])
def test_its_operations_are_those_that_pytorch_counts(parts: Mapping[str, Part]) -> None:
    """Beside those of a pass without: a connector sees the tokens of a picture and not the words."""
    of = bench()
    pack = packed(of, parts)[0]
    batch = batch_of(of, INDEX)
    pack.count_flops()
    own = {c.id: pack.work[c.id] for c in pack.clients}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pack(batch)
    before = {c: int(w.forward or 0) for c, w in own.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as bare:
        pack(batch, use={})
    after = {c: int(w.forward or 0) for c, w in own.items()}
    mine = sum(before.values()) - (sum(after.values()) - sum(before.values()))
    frozen = 2 * 12 * 4 * (24 * 32 + 32 * 32)  # which no part stands for then
    whole = 12 / 11  # one of the rows is padding, which PyTorch computes and nobody has asked for
    assert round(mine * whole) == counter.get_total_flops() - (bare.get_total_flops() - frozen)
