"""VeRA against PEFT's, whose matrices are put in the place of its own, and against its formula in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import lora_by_hand
import tiny
from lora_by_hand import Step
from weft.adaptation.lora_options import LoRAOptions
from weft.adaptation.optim import Optim
from weft.adaptation.vera import projections
from weft.errors import UserError
from weft.experiment import resolve
from weft.methods import FedIT
from weft.rules import with_options

SIZES = (7, 4, 5)
SEED = 11


def method(sites: str, dropout: float = 0.0) -> Any:
    optim = Optim("adamw", lr=3e-2, eps=1e-6)
    plain = FedIT(rank=5, alpha=6.0, batch=3, epochs=2.0, sites=sites, optim=optim)
    return with_options(plain, LoRAOptions(variant="vera", seed=SEED, dropout=dropout))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_outputs_and_gradients_are_those_of_peft(kind: str) -> None:
    from peft import VeraConfig, get_peft_model

    run = tiny.federation(method("q"), kind, sizes=SIZES)
    pack = run.pack()
    g = torch.Generator().manual_seed(5)
    for name, value in pack.params("lora").items():
        pack.tensors[name] = torch.randn(value.shape, generator=g, dtype=value.dtype)
    batch = next(iter(pack.batches(1.0, None, 3)))
    leaves = {n: v.detach().requires_grad_(True) for n, v in pack.params("lora").items()}
    with pack.values(leaves):
        out = pack(batch)
        slopes = torch.autograd.grad(pack.loss(out, batch).sum(), list(leaves.values()))
    found = dict(zip(leaves, slopes, strict=True))
    sites = run.server.sites("lora")
    fresh = tiny.fresh(kind).model
    config = VeraConfig(r=5, target_modules=[s.name for s in sites], vera_dropout=0.0, projection_prng_key=0)
    model = get_peft_model(fresh, config).double().eval()
    first, second = projections(SEED, 5, sites[0].d_in, sites[0].d_out, torch.device("cpu"), torch.float64)
    model.base_model.vera_A["default"], model.base_model.vera_B["default"] = first, second
    ends = {"A": "vera_lambda_d.default", "B": "vera_lambda_b.default"}
    for k, index in enumerate(batch.index):
        rows = index[index >= 0]
        params = {}
        for name, value in leaves.items():
            _, site, role = name.split("/")
            params[name] = model.get_parameter(f"base_model.model.{site}.{ends[role]}")
            params[name].data.copy_(value[k].detach())
        for site, role in (n.split("/")[1:] for n in pack.params("head")):
            model.get_parameter(f"base_model.model.{site}.{role}").data.copy_(pack.tensors[f"head/{site}/{role}"][k])
        logits = model(**run.bench.table.collate(rows)).logits
        by_hand.close(out.logits[k, : len(rows)], logits, 1e-10)
        loss = torch.nn.functional.cross_entropy(logits, by_hand.labels(run, rows))
        for name, slope in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
            by_hand.close(found[name][k], slope, 1e-9)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_rounds_are_plain_loops_with_matrices_that_layers_of_a_shape_share(share: float) -> None:
    run = tiny.federation(method("q,ffn.out", share), sizes=SIZES, participation=0.67, rounds=2)
    shapes = set()

    def term(step: Step, site: str, module: Any, x: Tensor, out: Tensor, w: Mapping[str, Tensor]) -> Tensor:
        d_out, d_in = module.weight.shape
        shapes.add((d_out, d_in))
        a, b = projections(SEED, 5, d_in, d_out, torch.device("cpu"), torch.float64)
        read = step.dropped(site, x, share) if share else x
        return read @ (torch.diag(w["B"]) @ b @ torch.diag(w["A"]) @ a).mT

    lora_by_hand.hold(run, term)
    assert len(shapes) == 2


def test_vectors_alone_are_drawn_and_sent() -> None:
    run = tiny.federation(method("q"), sizes=SIZES)
    start = by_hand.start_of(run)
    lora = {n: v for n, v in start.items() if n.startswith("lora/")}
    assert {tuple(v.shape) for v in lora.values()} == {(5,), (32,)}
    assert all(bool((v == torch.tensor(0.1).double()).all()) if n.endswith("/A") else not v.any() for n, v in lora.items())
    seen = by_hand.record(run)
    run.run(1)
    assert all(v.dim() == 1 for u in seen[0] for n, v in u.tensors.items() if n.startswith("lora/"))  # type: ignore[union-attr]


def test_matrices_are_of_the_seed_and_of_the_shape() -> None:
    cpu = torch.device("cpu")
    a, b = projections(1, 4, 64, 48, cpu, torch.float64)
    assert (a.shape, b.shape) == ((4, 64), (48, 4))
    assert 0.8 * (6 / 64) ** 0.5 < float(a.abs().max()) <= (6 / 64) ** 0.5
    assert 0.8 * (6 / 4) ** 0.5 < float(b.abs().max()) <= (6 / 4) ** 0.5
    assert not torch.equal(a, projections(2, 4, 64, 48, cpu, torch.float64)[0])
    assert not torch.equal(a, projections(1, 4, 64, 32, cpu, torch.float64)[0])


def test_the_seed_is_that_of_the_run_and_options_without_effect_are_refused() -> None:
    played = resolve({"lora": {"variant": "vera"}, "seed": 5}).played
    assert played.lora_options.seed == 5  # type: ignore[attr-defined]
    assert played.info.slug == "fedit+vera"
    for name, value in (("scaling", "rslora"), ("ratio", 4.0)):
        with pytest.raises(UserError, match=rf'lora.variant = "vera" has no factors .* lora.{name} would be without effect'):
            resolve({"lora": {"variant": "vera", name: value}})
