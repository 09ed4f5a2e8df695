"""DoRA against PEFT's and against its formula in plain PyTorch, with a client axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import lora_by_hand
import tiny
from lora_by_hand import Step
from weft.adaptation import dora
from weft.adaptation.dora import DoRA
from weft.adaptation.lora_options import LoRAOptions
from weft.adaptation.optim import Optim
from weft.federation.message import ClientInfo
from weft.federation.pack import Pack
from weft.federation.scope import PERSONAL, SHARED
from weft.methods import FedIT, FedSALoRA
from weft.rules import with_options
from weft.tasks.classification import Classification

DORA = LoRAOptions(variant="dora")
SIZES = (7, 4, 5)
SITES = {
    "bert": ("q,ffn.out", ["query", "output.dense"]),
    "llama": ("v,ffn.gate", ["v_proj", "gate_proj"]),
    "gpt2": ("q", ["c_attn"]),
}


def method(sites: str, options: LoRAOptions = DORA) -> Any:
    optim = Optim("adamw", lr=3e-2, eps=1e-6)
    return with_options(FedIT(rank=2, alpha=6.0, batch=3, epochs=2.0, sites=sites, optim=optim), options)


def scattered(pack: Pack) -> None:
    """Values of each client's own, far from the start."""
    g = torch.Generator().manual_seed(5)
    for name, value in pack.params("lora").items():
        noise = torch.randn(value.shape, generator=g, dtype=value.dtype)
        pack.tensors[name] = value + (0.3 * noise if name.endswith("/m") else noise)


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("rslora", [False, True])
def test_outputs_and_gradients_are_those_of_peft(kind: str, rslora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    at, ends = SITES[kind]
    run = tiny.federation(method(at, replace(DORA, scaling="rslora") if rslora else DORA), kind, sizes=SIZES)
    pack = run.pack()
    scattered(pack)
    batch = next(iter(pack.batches(1.0, None, 3)))
    leaves = {n: v.detach().requires_grad_(True) for n, v in pack.params("lora").items()}
    with pack.values(leaves):
        out = pack(batch)
        slopes = torch.autograd.grad(pack.loss(out, batch).sum(), list(leaves.values()))
    found = dict(zip(leaves, slopes, strict=True))
    site_of = {s.name: s for s in run.server.sites("lora")}
    scale: dict[str, Any] = {"r": 2, "lora_alpha": 6, "use_rslora": rslora, "fan_in_fan_out": kind == "gpt2"}
    config = LoraConfig(target_modules=sorted(site_of), use_dora=True, lora_dropout=0.0, **scale)
    fresh = tiny.fresh(kind).model
    model = get_peft_model(fresh, config).double().eval()
    assert all(any(s.endswith(e) for e in ends) for s in site_of)
    ends_of = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "m": "lora_magnitude_vector.default.weight"}
    for k, index in enumerate(batch.index):
        rows = index[index >= 0]
        params = {}
        for name, value in leaves.items():
            _, site, role = name.split("/")
            params[name] = model.get_parameter(f"base_model.model.{site}.{ends_of[role]}")
            exact = dora.norms(run.bench.backbone, site_of[site])
            assert exact.dtype == torch.float64
            # a magnitude's start is in single precision, and stands for the norm in double
            more = exact - exact.float().double() if role == "m" else 0.0
            params[name].data.copy_(value[k].detach() + more)
        for site, role in (n.split("/")[1:] for n in pack.params("head")):
            model.get_parameter(f"base_model.model.{site}.{role}").data.copy_(pack.tensors[f"head/{site}/{role}"][k])
        logits = model(**run.bench.table.collate(rows)).logits
        by_hand.close(out.logits[k, : len(rows)], logits, 1e-10)
        loss = torch.nn.functional.cross_entropy(logits, by_hand.labels(run, rows))
        for name, slope in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
            by_hand.close(found[name][k], slope, 1e-9)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_model_begins_as_the_frozen_one_to_the_last_bit(kind: str, precision: str) -> None:
    run = tiny.federation(method(SITES[kind][0]), kind, sizes=SIZES, precision=precision)
    pack = run.pack()
    batch = next(iter(pack.batches(1.0, None, 3)))
    assert torch.equal(pack(batch).logits, pack(batch, use={}).logits)
    assert any(name.endswith("/m") for name in pack.tensors)


def formula(step: Step, site: str, module: Any, x: Tensor, w: Mapping[str, Tensor], share: float) -> Tensor:
    """(W' - W0) x from whole matrices."""
    w0 = module.weight.detach()
    changed = w0 + 3.0 * w["B"] @ w["A"]
    norm = changed.detach().norm(dim=1)
    m = w["m"] + (w0.norm(dim=1) - w0.norm(dim=1).float().double())  # start values are in single precision
    read = step.dropped(site, x, share) if share else x
    return read @ (m[:, None] / norm[:, None] * changed - w0).mT


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_rounds_are_plain_loops_over_the_whole_matrices(share: float) -> None:
    options = LoRAOptions(variant="dora", dropout=share)
    run = tiny.federation(method("q,ffn.out", options), sizes=SIZES, participation=0.67, rounds=2)

    def term(step: Step, site: str, module: torch.nn.Module, x: Tensor, out: Tensor, w: Mapping[str, Tensor]) -> Tensor:
        return formula(step, site, module, x, w, share)

    lora_by_hand.hold(run, term)


def test_no_whole_matrix_of_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    real = torch.Tensor.__matmul__

    def noted(a: Tensor, b: Tensor) -> Tensor:
        nonlocal largest
        found = real(a, b)
        largest = max(largest, found.numel())
        return found

    module = torch.nn.Linear(300, 200, bias=False, dtype=torch.float64)
    dora._NORMS[module] = module.weight.detach().norm(dim=1)
    k, r = 5, 2
    w = {"A": torch.randn(k, r, 300), "B": torch.randn(k, 200, r), "m": torch.ones(k, 200), "scale": torch.full((k,), 3.0)}
    w = {n: v.double() for n, v in w.items()} | {"m.start": torch.ones(1, 200).double()}
    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    gain = DoRA(r, 6.0).gain(module, w)
    monkeypatch.undo()
    assert 0 < largest <= k * 200 * r
    whole = module.weight + 3 * w["B"] @ w["A"]
    by_hand.close(gain, dora._NORMS[module] / whole.norm(dim=2), 1e-12)


def test_the_magnitude_goes_where_b_goes() -> None:
    b, task = tiny.backbone("bert"), Classification(("a", "b", "c"))
    part, scope = with_options(FedSALoRA(rank=2), DORA).adapt(b, task, ClientInfo(""))["lora"]
    assert isinstance(part, DoRA)
    assert scope == {"A": SHARED, "B": PERSONAL, "m": PERSONAL, "E": PERSONAL}
