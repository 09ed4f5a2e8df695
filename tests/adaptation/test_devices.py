"""Parts of a model whose modules lie on several devices: moved to what they are used on.

No such machine is at hand: tensors here only say where they lie, and an operation on two devices is an error.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tiny
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.lora import LoRA
from weft.adaptation.placed import place
from weft.adaptation.weave import Weave
from weft.backbones.load import load
from weft.errors import UserError
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.kinds import GENERATION

CPU = torch.device("cpu")


def test_values_weights_and_inputs_go_to_the_device_of_the_output() -> None:
    b = tiny.backbone("llama")
    parts = {"lora": LoRA(2, 4.0, "q"), "x": Bottleneck(8)}
    with FakeTensorMode(), torch.no_grad():
        placed = place(b, [parts] * 3, CPU, torch.float64)
        tensors = {
            name: torch.empty(3, *init.shape, dtype=torch.float64)
            for p in placed
            for role, init in p.part.tensors(b, p.site).items()
            for name in [p.names[role]]
        }
        weave = Weave(b, placed, tensors, 3)
        weight = torch.empty(3, 2, dtype=torch.float64)
        for name in ("lora", "x"):
            here = [p for p in placed if p.part_name == name][:1]
            with weave.attached(torch.tensor([0, 1, 2]), 3, {name: weight}):
                x = torch.empty(6, 5, here[0].site.d_in, dtype=torch.float64)
                out = torch.empty(6, 5, here[0].site.d_out, dtype=torch.float64, device="cuda")
                found = weave._adding(here)(torch.nn.Identity(), (x,), out)
            assert found.device.type == "cuda"


def test_a_map_of_one_device_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    where = tiny.folder("llama", "lm")
    found = []
    for spread in ("none", "auto"):
        b = load(where, classes=["answer"], device="cpu", precision="float32", task=GENERATION, device_map=spread)
        run = tiny.federation(FedIT(rank=2), b, task=GENERATION, sizes=(5, 4, 3), rounds=1).run()
        found.append(run.server.shared)
    assert all(torch.equal(v, found[1][n]) for n, v in found[0].items())
    with pytest.raises(UserError, match="are for language models"):
        load(tiny.folder("bert"), classes=3, device="cpu", device_map="auto")
