"""Options of LoRA on bases of 8 and 4 bits: a round is that on a plain base of the weights that the quantised one stands for."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import tiny
from weft.adaptation.lora_options import LoRAOptions
from weft.adaptation.optim import Optim
from weft.backbones import quantised
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.load import load
from weft.methods import FedIT
from weft.rules import with_options
from weft.tasks.kinds import GENERATION

PLAIN = FedIT(rank=2, alpha=8.0, optim=Optim("sgd", lr=0.05), batch=2, steps=2)
OPTIONS = {
    "plain": LoRAOptions(),
    "rslora": LoRAOptions("rslora", ratio=4.0, dropout=0.3),
    "dora": LoRAOptions(variant="dora"),
    "vera": LoRAOptions(variant="vera", seed=3),
    "adalora": LoRAOptions(variant="adalora", target=1),
    "dylora": LoRAOptions(variant="dylora"),
    "orthogonal": LoRAOptions(start="orthogonal"),
    "pissa": LoRAOptions(start="pissa"),
    "olora": LoRAOptions(start="olora"),
}
CASES = [
    pytest.param(kind, library, marks=pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed"))
    for kind, library in (("int8", "torchao"), ("int4", "bitsandbytes"))
]


def bases(monkeypatch: pytest.MonkeyPatch, kind: str, library: str) -> tuple[Backbone, Backbone]:
    """A quantised base, and a plain one of the weights that it stands for."""
    monkeypatch.setattr(quantised, "LIBRARIES", {(kind, "cpu"): (library,)})
    where = tiny.folder("llama", "lm", hidden_size=64, intermediate_size=128, head_dim=16)
    of = {"classes": ["answer"], "device": "cpu", "precision": "float32", "task": GENERATION}
    one, plain = load(where, quantise=kind, **of), load(where, **of)  # type: ignore[arg-type]
    moved = 0.0
    with torch.no_grad():
        for site in one.sites("all"):
            weight = plain.module(site.name).weight
            assert isinstance(weight, torch.Tensor)
            moved = max(moved, float((one.weight(site) - weight).abs().max()))
            weight.copy_(one.weight(site))
    assert moved > 0
    return one, plain


@pytest.mark.parametrize(("kind", "library"), CASES)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_round_is_that_of_the_weights_that_the_base_stands_for(
    kind: str, library: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, plain = bases(monkeypatch, kind, library)
    before = frozen_fingerprint(one)
    method = with_options(PLAIN, OPTIONS[option])
    runs = [
        tiny.federation(method, of, task=GENERATION, sizes=(5, 4, 3), pack=pack, rounds=1)
        for of, pack in ((one, 3), (one, 1), (plain, 3))
    ]
    start = {n: v.clone() for n, v in runs[0].server.shared.items() if isinstance(v, torch.Tensor)}
    packed, alone, wanted = (run.run().server.shared for run in runs)
    assert frozen_fingerprint(one) == before
    assert any(not torch.equal(v, packed[n]) for n, v in start.items() if n.startswith("lora/"))  # type: ignore[arg-type]
    for name, value in packed.items():
        assert isinstance(value, torch.Tensor)
        torch.testing.assert_close(value, alone[name], rtol=0, atol=2e-5)
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=2e-4)
