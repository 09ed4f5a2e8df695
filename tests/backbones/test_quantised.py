"""Bases of 8 and 4 bits: packs as ever, nothing of one client reaches another, and what can't be done is said."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from weft.backbones import quantised
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.finding import hash_weights
from weft.backbones.load import load
from weft.backbones.quantised import Quantisation
from weft.errors import UserError
from weft.federation.batch import make_batch
from weft.federation.pack import Pack
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.kinds import GENERATION
from weft.testing.federation import Federation

WIDER = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # bitsandbytes quantises 64 numbers at a time
OFFERED = [("int8", "torchao"), ("int8", "bitsandbytes"), ("int4", "bitsandbytes")]
need = {name: pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed") for name in quantised.ALL}
each = pytest.mark.parametrize(("kind", "library"), [pytest.param(k, by, marks=need[by]) for k, by in OFFERED])


def base(monkeypatch: pytest.MonkeyPatch, kind: str, library: str, model: str = "llama", precision: str = "float32") -> Backbone:
    monkeypatch.setattr(quantised, "LIBRARIES", {(kind, "cpu"): (library,)})
    where = tiny.folder(model, "pair" if model == "t5" else "lm", **(WIDER if model == "llama" else {}))
    return load(where, classes=["answer"], device="cpu", precision=precision, task=GENERATION, quantise=kind)


def trained(of: Backbone, pack: int, **more: Any) -> Federation:
    return tiny.federation(FedIT(rank=2), of, task=GENERATION, sizes=(5, 4, 3), pack=pack, rounds=1, **more).run()


@each
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_quantised_base_trains_and_stays_as_it_was(
    kind: str, library: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = base(monkeypatch, kind, library, precision=precision)
    assert (b.quantised, b.dtype) == (f"{kind} by {library}", getattr(torch, precision))
    assert b.precision == f"{precision}, {b.quantised}"
    assert b.vocabulary is not None
    assert b.vocabulary.plain
    plain = load(b.path, classes=["answer"], device="cpu", precision=precision, task=GENERATION)
    assert [s.name for s in b.sites("all")] == [s.name for s in plain.sites("all")]
    assert b.weight_hash == plain.weight_hash
    sizes = [sum(quantised.size(p) for p in one.model.model.layers.parameters()) for one in (b, plain)]
    assert sizes[0] < sizes[1] * {"float32": 0.45, "bfloat16": 0.8}[precision]
    before, hashed = frozen_fingerprint(b), hash_weights("", b.model)
    run = trained(b, 3)
    assert (frozen_fingerprint(b), hash_weights("", b.model)) == (before, hashed)
    assert hash_weights("", plain.model) != hashed
    assert any(n.endswith("/B") and v.any() for n, v in run.server.shared.items())


@each
def test_nothing_of_one_client_reaches_another(kind: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rows of one client, among them a token that no other row resembles: logits and gradients of the others keep every
    bit.
    """
    b = base(monkeypatch, kind, library)
    with torch.no_grad():
        b.model.model.embed_tokens.weight[50] *= 1000
    run = tiny.federation(FedIT(rank=2), b, task=GENERATION, sizes=(5, 4, 3))
    ids = run.bench.table.ids
    pack = run.pack()
    index = np.stack([c.data.train[:3] for c in run.clients])

    def play(pack: Pack) -> tuple[torch.Tensor, list[torch.Tensor]]:
        batch = make_batch(pack.task, pack.bench.table, index, None, pack.device)
        names = [n for n in pack.params("lora") if n.endswith("/B")]
        for n in names:
            pack.tensors[n] = pack.tensors[n].detach().contiguous().requires_grad_(True)
        out = pack(batch)
        slopes = torch.autograd.grad(pack.loss(out, batch).sum(), [pack.tensors[n] for n in names])
        return out.logits.detach(), list(slopes)

    logits, slopes = play(pack)
    first = run.bench.table.offsets[index[1, 0]]
    ids[first + 1] = 50
    others, again = play(pack)
    assert torch.equal(logits[[0, 2]], others[[0, 2]])
    assert not torch.equal(logits[1], others[1])
    for a, b_ in zip(slopes, again, strict=True):
        assert torch.equal(a[[0, 2]], b_[[0, 2]])


@need["bitsandbytes"]
def test_with_the_threshold_that_bitsandbytes_has_by_default_one_row_decides_how_another_is_rounded() -> None:
    import bitsandbytes as bnb

    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 64, generator=g), torch.randn(32, 64, generator=g)
    other = x.clone()
    other[3, 5] = 50.0
    moved = {}
    for threshold in (6.0, quantised.OUTLIERS):
        layer = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=threshold)
        layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
        layer = layer.to("cpu").eval()
        moved[threshold] = float((layer(x)[:3] - layer(other)[:3]).abs().max())
    assert moved[quantised.OUTLIERS] == 0 < moved[6.0]


@need["bitsandbytes"]
def test_bitsandbytes_is_told_of_the_type_that_is_computed_in_and_of_no_outliers() -> None:
    four = Quantisation("int4", "bitsandbytes").config(torch.bfloat16)
    assert (four.load_in_4bit, four.load_in_8bit) == (True, False)
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    eight = Quantisation("int8", "bitsandbytes").config(torch.bfloat16)
    assert (eight.load_in_4bit, eight.load_in_8bit, eight.llm_int8_threshold) == (False, True, 0.0)


@need["torchao"]
def test_a_pack_equals_its_clients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    b = base(monkeypatch, "int8", "torchao")
    packed, alone = (trained(b, k).server.shared for k in (3, 1))
    for name, value in packed.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=2e-5)


@need["torchao"]
def test_a_base_that_its_library_leaves_as_it_was_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="torchao quantises no layer"):  # GPT-2 has transposed layers of its own
        base(monkeypatch, "int8", "torchao", "gpt2")


def test_what_is_missing_or_makes_no_sense_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--quantise int4 needs bitsandbytes: .*\[quantised\]"):
        quantised.quantisation("int4", cpu)
    with pytest.raises(UserError, match=r"needs torchao or bitsandbytes"):
        quantised.quantisation("int8", cpu)
    with pytest.raises(UserError, match="nothing quantises to int8 on mps"):
        quantised.quantisation("int8", torch.device("mps"))
    assert quantised.quantisation("none", cpu) is None
    monkeypatch.setattr(quantised, "find_spec", lambda name: object())
    assert quantised.quantisation("int8", torch.device("cuda")) == Quantisation("int8", "bitsandbytes")
    with pytest.raises(UserError, match="are for language models"):
        load(tiny.folder("bert"), classes=3, device="cpu", quantise="int8")
    once = tmp_path / "quantised"
    shutil.copytree(tiny.folder("llama", "lm"), once)
    config = json.loads((once / "config.json").read_text())
    (once / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(UserError, match="is quantised already: leave --quantise out"):
        load(str(once), classes=["a"], device="cpu", task=GENERATION, quantise="int8")
    with pytest.raises(UserError, match="could not be loaded"):
        load(str(once), classes=["a"], device="cpu", task=GENERATION)
