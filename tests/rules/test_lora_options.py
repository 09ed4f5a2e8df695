"""Options of LoRA over methods: the laws hold, or a sentence refuses them; and at their defaults they are nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from every_method import METHODS, small
from weft.adaptation.lora import LoRA
from weft.adaptation.lora_options import LoRAOptions
from weft.errors import UserError
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.methods import FedBF, FedIT, FLoRA
from weft.rules import composed, plain, with_options, without_options
from weft.testing import laws
from weft.testing.compare import assert_same, logits, state
from weft.testing.plays import shallow
from with_lora import has_lora, of_lora

SIZES = (4, 2, 3)
RSLORA = LoRAOptions("rslora")


def played(method: Method, **more: Any) -> tiny.Federation:
    return tiny.federation(method, shallow(method), **({"sizes": SIZES, "rounds": 2, "pack": 2} | more)).run()


def test_no_option_is_the_method_itself() -> None:
    method = FedIT(rank=2)
    assert with_options(method, LoRAOptions()) is method
    assert without_options(method) is method


def test_options_go_under_a_rule_and_come_off_by_themselves() -> None:
    method = FedIT(rank=2)
    one = with_options(method, RSLORA)
    both = composed(one, "scaffold")
    assert (one.info.slug, both.info.slug) == ("fedit+rslora", "fedit+rslora+scaffold")
    assert plain(both) == one
    assert without_options(one) == method
    assert type(with_options(method, RSLORA)) is type(one)


def test_a_method_without_lora_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r'^fedbf trains no LoRA here that lora\.scaling = "rslora" could be of: leave lora\.\* out'
    ):
        tiny.federation(with_options(FedBF(), RSLORA))


# rslora ---------------------------------------------------------------------------------------------------------------


def stronger(method: Method) -> Method:
    """The method whose α is √r times as large."""
    if isinstance(method, FLoRA):
        return replace(method, scale=method.scale * math.sqrt(method.rank))
    own = getattr(method, "tune", method)
    alpha = own.alpha * math.sqrt(getattr(own, "rank", None) or own.first)
    return replace(method, alpha=alpha) if own is method else replace(method, tune=replace(own, alpha=alpha))  # type: ignore[call-arg]


ALIKE = {"flexlora": {"mix": "none"}}
"""Settings with which all LoRAs of a method have one rank."""
TWO_RANKS = ("pf2lora",)


@pytest.mark.parametrize("slug", [s for s in METHODS if s not in TWO_RANKS])
def test_rslora_is_the_usual_lora_of_a_larger_alpha(slug: str) -> None:
    """Whatever a method does with its scale, it reads it from the part."""
    if not has_lora(slug):
        return
    method = replace(small(slug), **ALIKE.get(slug, {}))
    one, other = played(with_options(method, RSLORA)), played(stronger(method))
    assert_same(state(one), state(other), 1e-9)
    usual = left(played(method))
    assert any(not torch.allclose(v, usual[n], atol=1e-7) for n, v in left(one).items())


def left(run: tiny.Federation) -> dict[str, Tensor]:
    """What it holds and what it predicts: a model that is fitted to be scored leaves nothing else."""
    return {**state(run), **{f"logits:{n}": v for n, v in logits(run).items()}}


def test_most_methods_of_lora_are_seen() -> None:
    found = of_lora()
    assert {"fedit", "flora", "frlora", "heterofl", "fjord", "fedpetuning", "pf2lora", "fedalt"} <= set(found)


def test_a_leading_part_has_the_scale_of_the_whole() -> None:
    whole = replace(LoRA(8, 12.0), scaling="rslora")
    site = tiny.backbone("bert").sites("q")[0]
    assert whole.scale_at(site) == pytest.approx(12 / math.sqrt(8))
    assert whole.leading(0.25).scale_at(site) == pytest.approx(12 / math.sqrt(8))
    assert replace(LoRA(8, 12.0).leading(0.25), scaling="rslora").scale_at(site) == pytest.approx(12 / math.sqrt(8))
    assert replace(LoRA(8, 12.0, "all", 2), scaling="rslora").scale_at(tiny.backbone("bert").sites("ffn.in")[0]) == pytest.approx(
        12 / math.sqrt(2)
    )


# every option over every method ---------------------------------------------------------------------------------------

OPTIONS = {
    "rslora": LoRAOptions("rslora"),
    "loraplus": LoRAOptions(ratio=4.0),
    "dropout": LoRAOptions(dropout=0.5),
    "dora": LoRAOptions(variant="dora"),
    "vera": LoRAOptions(variant="vera", seed=3),
    "adalora": LoRAOptions(variant="adalora", target=1),
    "dylora": LoRAOptions(variant="dylora"),
    "orthogonal": LoRAOptions(start="orthogonal"),
    "pissa": LoRAOptions(start="pissa"),
    "olora": LoRAOptions(start="olora"),
}
LAWS = ("pack", "return")
QUICK = {
    ("rslora", "flora"),
    ("loraplus", "feddpa"),
    ("loraplus", "pf2lora"),
    ("dropout", "fedra"),
    ("dropout", "fedalt"),
    ("dora", "fedsa-lora"),
    ("dora", "flora"),
    ("vera", "feddpa"),
    ("adalora", "feddpa"),
    ("adalora", "fedsa-lora"),
    ("adalora", "flora"),
    ("dylora", "flora"),
    ("dylora", "fedalt"),
    ("dylora", "pf2lora"),
    ("orthogonal", "fedsa-lora"),
    ("orthogonal", "heterofl"),
    ("pissa", "fedit"),
    ("pissa", "feddpa"),
    ("pissa", "flora"),
    ("olora", "fedsa-lora"),
}
RULED_OUT = {
    "factors": ("dora", "vera", "adalora", "orthogonal", "pissa", "olora"),
    "own steps": ("loraplus", "adalora", "dylora"),
    "no gradients": ("dropout", "adalora", "dylora"),
}
"""Word of a card -> the options that can't be had with it."""

ODD_RANKS = (("orthogonal", "legend"),)
"""Whose ranks grow by one from block to block."""
APART = (("adalora", "fedsa-lora"), ("adalora", "pfedlora"))
"""Whose clients keep what the server would choose from."""
ODD_PARTS = (("dylora", "fedalt"),)
"""Whose LoRA is a mixture."""
REFUSED = (
    (ODD_RANKS, r'^lora\.start = "orthogonal" halves the rank, which is 3 at '),
    (APART, r"^[a-z-]+ has no LoRA in common, of which the server could say what stays"),
    (ODD_PARTS, r'^fedalt has LoRA with an arithmetic of its own, so that lora\.variant = "dylora" would not be what it says'),
)


def cases() -> list[Any]:
    pairs = [(option, slug) for option in OPTIONS for slug in METHODS]
    return [pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("option", "slug"), cases())
def test_every_option_over_every_method_keeps_the_laws_or_is_refused(option: str, slug: str) -> None:
    usual = small(slug)
    words = [w for w, out in RULED_OUT.items() if option in out and w in usual.info.needs]
    if words:
        with pytest.raises(
            UserError, match=rf"^{slug} .*, so that lora\.\w+ = .* would not be what it says: leave it out"
        ) as refusal:
            with_options(usual, OPTIONS[option])
        assert "\n" not in str(refusal.value)
        return
    method = with_options(usual, OPTIONS[option])
    if not has_lora(slug):
        with pytest.raises(UserError, match=rf"^{slug} trains no LoRA here that lora\.\w+ = "):
            played(method)
        return
    if sentence := next((text for pairs, text in REFUSED if (option, slug) in pairs), None):
        with pytest.raises(UserError, match=sentence):
            played(method)
        return
    run, plain_run = left(played(method)), left(played(usual))
    assert any(n not in plain_run or not torch.equal(v, plain_run[n]) for n, v in run.items()), "it does nothing"
    laws.check(method, *LAWS)


@pytest.mark.parametrize("slug", METHODS)
def test_a_card_says_whether_lora_moves_by_steps_of_its_own(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_lora(slug):
        return
    method, odd = small(slug), set()
    train = type(method).train

    def watched(self: Method, pack: Pack) -> Iterator[Update]:
        held = {n: v.detach().clone() for n, v in pack.tensors.items() if n.endswith("/B")}
        yield from train(self, pack) or ()
        for name in held.keys() - pack.optimized():
            if pack.has_work() and not torch.equal(pack.tensors[name].detach(), held[name]):
                odd.add(name)

    monkeypatch.setattr(type(method), "train", watched)
    played(method)
    assert bool(odd) == ("own steps" in method.info.needs), sorted(odd)
