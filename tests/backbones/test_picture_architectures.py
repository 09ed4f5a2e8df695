"""Image classifiers beside ViT: each is described by its structure, trains a round of four methods, is exported and comes back.

What an architecture has no place for is refused in a sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import tiny
from exporting import FAST, RUN_CLOSE, by_readme, exported
from weaving import CLOSE, INDEX, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.tokens import ImageTokens
from weft.backbones.backbone import Backbone
from weft.backbones.prefix import PrefixCache
from weft.contract import Tune
from weft.errors import UserError
from weft.export import load as load_export
from weft.federation.method import Method
from weft.methods.full.fedavg import FedAvg
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.selective.fedbf import FedBF
from weft.methods.selective.fedra import FedRA

D, FFN = 32, 64
PLAIN = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "ffn.in": (D, FFN), "ffn.out": (FFN, D)}
HALF = {role: (a // 2, b // 2) for role, (a, b) in PLAIN.items()}


@dataclass(frozen=True)
class Expected:
    """What is known of an architecture from its paper and its configuration.

    Attributes:
        stack: path of the list of blocks. linears: of each block, by the ends of their names. without_bias: roles.
        rest: parameters of a block that belong to none of them.
        norms: in a block, outside blocks. patches: the convolution over them. tokens: in the last block. pools: what the head
            reads.
    """

    stack: str
    linears: tuple[dict[str, tuple[int, int]], ...]
    without_bias: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()
    norms: tuple[int, int] = (2, 1)
    patches: tuple[int, int] = (3, D)
    tokens: int = 5
    pools: str = "first"
    head: tuple[str, int] = ("classifier", D)
    separate: bool = True
    more_tokens: bool = True


MIXING = {"mlp_tokens.fc1": (4, 16), "mlp_tokens.fc2": (16, 4), "mlp_channels.fc1": (D, 4 * D), "mlp_channels.fc2": (4 * D, D)}
KNOWN = {
    "deit": Expected("deit.layers", (PLAIN,) * 3, tokens=6),
    "dinov2": Expected(
        "dinov2.encoder.layer",
        (PLAIN,) * 3,
        pools="all",
        head=("classifier", 2 * D),
        rest=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    ),
    "beit": Expected(
        "beit.layers",
        (PLAIN,) * 3,
        ("k",),
        pools="all",
        rest=("lambda_1", "lambda_2", "relative_position_bias.relative_position_bias_table"),
        more_tokens=False,
    ),
    "swin": Expected(
        "swin.encoder.layers.*.blocks",
        (HALF, HALF, PLAIN, PLAIN),
        norms=(2, 3),
        patches=(3, D // 2),
        tokens=16,
        pools="all",
        rest=("attention.relative_position_bias.relative_position_bias_table",),
        separate=False,
        more_tokens=False,
    ),
}
if find_spec("timm"):  # which is apart from what else tests need, see the Makefile
    KNOWN["mixer"] = Expected(
        "timm_model.blocks", (MIXING,) * 3, tokens=4, pools="all", head=("timm_model.head", D), more_tokens=False
    )


def backbone(name: str, precision: str = "float32") -> Backbone:
    if name != "mixer":
        return tiny.backbone(name, precision=precision)
    import timm_models

    return timm_models.mixer(precision)


@pytest.mark.parametrize("name", KNOWN)
def test_its_structure_is_found(name: str) -> None:
    b, want = backbone(name), KNOWN[name]
    assert re.fullmatch(want.stack.replace("*", r"\d+") + r"\.0", b.blocks[0])
    assert (len(b.blocks), b.d, b.picture_tokens, b.pools) == (len(want.linears), D, want.tokens, want.pools)
    assert (b.separate_blocks, b.more_tokens, b.shared_blocks, b.chained_blocks) == (
        want.separate,
        want.more_tokens,
        False,
        False,
    )
    for i, expected in enumerate(want.linears):
        mine = [s for s in b.linears if s.block == i]
        key = {s.name: s.name.removeprefix(b.blocks[i] + ".") if name == "mixer" else s.role for s in mine}
        assert {key[s.name]: (s.d_in, s.d_out) for s in mine} == expected
        assert len(mine) == len(expected)
        assert {key[s.name] for s in mine if not s.bias} == set(want.without_bias)
        assert all(s.per_row for s in mine)
        assert sum(s.block == i for s in b.norms) == want.norms[0]
        width = max(map(min, expected.values())) if name != "mixer" else D
        assert (b.bottlenecks[i].d_in, b.bottlenecks[i].role, b.entries[i].d_in) == (width, "block", width)
    assert sum(s.block is None for s in b.norms) == want.norms[1]
    assert [(s.d_in, s.d_out) for s in b.patches] == [want.patches]
    assert [(s.name, s.d_in, s.d_out) for s in b.heads] == [(*want.head, 3)]


@pytest.mark.parametrize("name", KNOWN)
def test_nothing_in_a_block_is_overlooked(name: str) -> None:
    b = backbone(name)
    found = {s.name for s in (*b.linears, *b.norms)}
    for path in b.blocks:
        rest = {p for p, _ in b.module(path).named_parameters() if f"{path}.{p}".rsplit(".", 1)[0] not in found}
        assert rest == set(KNOWN[name].rest)


METHODS: dict[str, Method] = {
    "fedit": FedIT(rank=2, alpha=4.0, sites="all", batch=4, optim=FAST),
    "fedbf": FedBF(batch=4, optim=FAST),
    "bottlenecks": FedAvg(tune=Tune("bottleneck", reduction=8), batch=4, optim=FAST),
    "head": FedAvg(tune=Tune("head"), batch=4, optim=FAST),
}
SIZES = (5, 4, 0, 3)


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.parametrize("name", KNOWN)
def test_a_round_of_it_is_trained_exported_and_loaded_again(name: str, slug: str, tmp_path: Path) -> None:
    method, b = METHODS[slug], backbone(name)
    run = tiny.federation(method, b, sizes=SIZES, rounds=1)
    before = run.global_logits()
    after = run.run().global_logits()
    assert bool(torch.isfinite(after).all())
    assert not torch.allclose(after, before, **RUN_CLOSE)
    report = exported(run, tmp_path)
    assert report.difference <= report.tolerance
    rows = tiny.states(SIZES, reads="images")[0]
    torch.testing.assert_close(load_export(tmp_path, device="cpu", precision="float32").logits_of(rows), after, **RUN_CLOSE)
    if report.kind == "peft" and name != "mixer":  # whose pictures timm resizes in the README, and cuts
        torch.testing.assert_close(by_readme(tmp_path, rows), after, **RUN_CLOSE)


def last(b: Backbone) -> str:
    """Linear layers of the last block."""
    return ",".join(s.name for s in b.linears if s.block == len(b.blocks) - 1)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("place", ["head", "last block", "all blocks"])
def test_a_pass_from_the_cache_is_one_of_the_whole_model(name: str, place: str) -> None:
    b = backbone(name, "float64")
    sites = {"head": "", "last block": f"names:{last(b)}"}.get(place, "all")
    parts: dict[str, Part] = {"head": Head()} | ({"lora": LoRA(2, 4.0, sites), "x": Bottleneck(8)} if sites else {})
    if place == "last block":
        del parts["x"]
    bench = tiny.bench(b)
    cached = replace(bench, prefix=PrefixCache(b))
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    valid = INDEX >= 0
    wanted = pack_of(bench, [parts] * 3, values)(batch_of(bench, INDEX)).logits
    for _ in range(2):
        pack = leaves(pack_of(cached, [parts] * 3, values), "*")
        found = pack(batch_of(cached, INDEX)).logits
        torch.testing.assert_close(found[valid], wanted[valid], **CLOSE)
    blocks = len(b.blocks)
    assert pack.cut() == {"head": blocks, "last block": blocks - 1 if KNOWN[name].separate else 0}.get(place, 0)
    for i in range(3):  # and each client has its own rows, in windows too
        alone = pack_of(bench, [parts], values[i : i + 1])(batch_of(bench, INDEX[i : i + 1])).logits[0]
        torch.testing.assert_close(wanted[i][valid[i]], alone[valid[i]], **CLOSE)
    if sites:
        slopes = grads(pack, pack.loss(pack(batch_of(cached, INDEX)), batch_of(cached, INDEX)), "lora/*")
        assert all(bool(g.flatten(1).any(1).all()) for g in slopes.values())


@pytest.mark.parametrize("name", [n for n, want in KNOWN.items() if not want.more_tokens])
def test_tokens_among_patches_are_refused_where_each_patch_has_its_place(name: str) -> None:
    for part in (ImageTokens(2), ImageTokens(2, deep=True)):
        with pytest.raises(UserError, match=r"^the blocks of backbone .* take the patches of a picture, each in its place") as e:
            part.sites(backbone(name))
        assert "\n" not in str(e.value)
    bench = tiny.bench(backbone(name, "float64"))
    pack = pack_of(bench, [{"head": Head()}], [values_for(bench, {"head": Head()}, seed=0)])
    with pytest.raises(UserError, match="each in its place"):
        pack(batch_of(bench, INDEX[:1]), insert={0: torch.zeros(1, 4, 1, D, dtype=torch.float64)})


@pytest.mark.parametrize("name", [n for n, want in KNOWN.items() if want.more_tokens])
def test_tokens_among_patches_change_what_a_picture_is(name: str) -> None:
    bench = tiny.bench(backbone(name, "float64"))
    parts: dict[str, Part] = {"prompt": ImageTokens(2, deep=True), "head": Head()}
    pack = pack_of(bench, [parts], [values_for(bench, parts, seed=0)])
    batch = batch_of(bench, INDEX[:1])
    assert (pack(batch).logits - pack(batch, {"head": 1.0}).logits).abs().max() > 1e-3


def test_no_block_is_left_out_where_patches_are_merged_between_them() -> None:
    method = FedRA(rank=2, alpha=4.0, batch=4, optim=FAST)
    with pytest.raises(
        UserError, match=r"merges patches between its blocks, so that clients cannot hold subsets of its blocks"
    ) as e:
        tiny.federation(method, backbone("swin"), sizes=SIZES, rounds=1).run()
    assert "\n" not in str(e.value)


def test_stages_are_not_mistaken_for_blocks_nor_experts_for_stages() -> None:
    from weft.backbones.describe import find_blocks

    swin = backbone("swin").model.swin
    assert len(find_blocks(swin, "swin", 2)) == 2  # of a configuration that names no depths
    assert len(find_blocks(swin, "swin", 2, "swin.encoder.layers", (2, 2))) == 4
    assert len(find_blocks(swin, "swin", 2, depths=(2, 3))) == 2  # of another network


def test_memory_of_stages_is_that_of_their_larger_hidden_states() -> None:
    b = backbone("swin")
    assert b.spread == pytest.approx((2 * 64 * 16 + 2 * 16 * 32) / (4 * 16 * 32))
    assert backbone("deit").spread == 1.0
