"""What options of LoRA leave in exported files: PEFT's own words for them where it has some, and the same logits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from exporting import FEDIT, FLORA, RUN_CLOSE, by_peft, exported, tensors_in, trained
from weft.adaptation.from_weights import FromWeights
from weft.adaptation.lora import LoRA
from weft.adaptation.lora_options import LoRAOptions
from weft.export import load, peft_files, weft_files
from weft.export.trained import capture
from weft.federation.method import Method
from weft.methods import FedALT, FedIT, PF2LoRA
from weft.rules import with_options

RSLORA = LoRAOptions("rslora")


@pytest.mark.parametrize("method", [FEDIT, FLORA], ids=["fedit", "flora"])
def test_a_peft_folder_says_rslora(method: Method, tmp_path: Path) -> None:
    run = trained(with_options(method, RSLORA))
    report = exported(run, tmp_path)
    assert report.kind == "peft"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["use_rslora"] is True
    if method is FEDIT:
        assert (config["r"], config["lora_alpha"]) == (2, pytest.approx(6.0))
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, b.tokenizer.pad_token_id)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)
    back = peft_files.read(tmp_path, b)
    site = b.sites("q")[0].name
    value = back.values[f"delta/{site}/delta"]
    if method is FEDIT:
        assert value.scale == pytest.approx(6 / math.sqrt(2))  # type: ignore[union-attr]


def test_without_it_the_folder_does_not_say_so(tmp_path: Path) -> None:
    exported(trained(FEDIT), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["use_rslora"] is False
    assert config["lora_alpha"] == 6.0


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("scaling", ["usual", "rslora"])
def test_a_peft_folder_says_dora(kind: str, scaling: str, tmp_path: Path) -> None:
    options = LoRAOptions(variant="dora", scaling=scaling)  # type: ignore[arg-type]
    run = trained(with_options(replace(FEDIT, sites="q"), options), kind)
    report = exported(run, tmp_path)  # compares the logits
    assert report.kind == "peft"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == (True, scaling == "rslora")
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, b.tokenizer.pad_token_id)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)
    moved = [v for n, v in run.server.shared.items() if n.endswith("/m")]
    assert moved
    back = peft_files.read(tmp_path, b)
    for name, value in run.server.shared.items():
        if name.startswith("lora/"):
            assert torch.equal(back.values[name], value)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    ("start", "scaling"), [("orthogonal", "usual"), ("pissa", "usual"), ("pissa", "rslora"), ("olora", "usual")]
)
def test_a_peft_folder_is_of_the_pretrained_base_wherever_lora_began(kind: str, start: str, scaling: str, tmp_path: Path) -> None:
    options = LoRAOptions(start=start, scaling=scaling)  # type: ignore[arg-type]
    run = trained(with_options(replace(FEDIT, sites="q"), options), kind)
    assert exported(run, tmp_path).kind == "peft"  # compares the logits
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == (2 if start == "orthogonal" else 4)  # what it began from goes off again
    assert config["use_rslora"] is (scaling == "rslora")
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, b.tokenizer.pad_token_id)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize("start", ["orthogonal", "pissa", "olora"])
def test_a_model_of_two_loras_comes_back_with_the_start_of_both(start: str, tmp_path: Path) -> None:
    run = trained(with_options(replace(PF2LoRA(), batch=4, steps=None), LoRAOptions(start=start)))  # type: ignore[arg-type]
    client = run.clients[0]
    run.simulation.setup.store.load(client)
    assert exported(run, tmp_path, client=client, view="personal").kind == "peft"  # compares the logits


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_is_exported_is_of_the_weights_that_it_was_trained_on(start: str, tmp_path: Path) -> None:
    """Of bfloat16, which the check of an export loads anew in float32, and cuts nothing from."""
    run = trained(with_options(replace(FEDIT, sites="q"), LoRAOptions(start=start)), precision="bfloat16")  # type: ignore[arg-type]
    found, b = capture(run.method, run.server, "global"), run.bench.backbone
    part = found.parts["lora"]
    assert isinstance(part, FromWeights)
    whole = peft_files.settled(found, b)
    site = b.sites("q")[0]
    a0, b0 = part.start(b, site)
    a, bb = (found.values[f"lora/{site.name}/{role}"] for role in "AB")
    assert isinstance(whole.parts["lora"], LoRA)
    assert whole.parts["lora"].scale_at(site) == part.scale_at(site)
    product = whole.values[f"lora/{site.name}/B"] @ whole.values[f"lora/{site.name}/A"]  # type: ignore[operator]
    torch.testing.assert_close(product, bb @ a - b0 @ a0, rtol=0.0, atol=1e-5)  # type: ignore[operator]
    assert exported(run, tmp_path).kind == "peft"


def test_twice_the_rank_has_the_same_scale() -> None:
    for scaling in ("usual", "rslora"):
        for part in (FromWeights(4, 6.0, "all", ffn_rank=2, growth=1), FromWeights(4, 6.0, "all").leading(0.5)):
            one = replace(part, scaling=scaling)  # type: ignore[type-var]
            for site in tiny.backbone("bert").sites("all"):
                assert one.doubled().scale_at(site) == pytest.approx(one.scale_at(site))  # type: ignore[attr-defined]
                assert one.doubled().rank_at(site) == 2 * one.rank_at(site)  # type: ignore[attr-defined]


@pytest.mark.parametrize("start", ["orthogonal", "pissa", "olora"])
def test_files_of_weft_say_where_lora_began(start: str, tmp_path: Path) -> None:
    run = trained(with_options(replace(FEDIT, sites="q"), LoRAOptions(start=start)))  # type: ignore[arg-type]
    found, b = capture(run.method, run.server, "global"), run.bench.backbone
    weft_files.write(found, run.method, "global", {}, b, tmp_path)
    back = weft_files.read(tmp_path, b, run.bench.task)
    assert back.parts == found.parts
    assert all(torch.equal(v, back.values[n]) for n, v in found.values.items())  # type: ignore[arg-type]


def test_vera_comes_back_with_the_seed_of_its_matrices(tmp_path: Path) -> None:
    run = trained(with_options(replace(FEDIT, sites="q"), LoRAOptions(variant="vera", seed=7)))
    assert exported(run, tmp_path).kind == "weft"  # compares the logits
    content = json.loads((tmp_path / "weft_adapter.json").read_text())
    assert content["parts"]["lora"]["kind"] == "VeRA"
    assert content["parts"]["lora"]["settings"]["seed"] == 7


def test_a_peft_folder_has_the_ranks_that_adalora_left(tmp_path: Path) -> None:
    run = trained(with_options(replace(FEDIT, sites="q,ffn.out"), LoRAOptions(variant="adalora", target=1)))
    report = exported(run, tmp_path)  # compares the logits
    assert report.kind == "peft"
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, b.tokenizer.pad_token_id)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)
    left = {n.split("/")[1]: int((v != 0).sum()) for n, v in run.server.shared.items() if n.endswith("/E")}  # type: ignore[attr-defined]
    assert set(left.values()) != {2}
    tensors = tensors_in(tmp_path / "adapter_model.safetensors")
    ranks = {n.split(".", 2)[2].removesuffix(".lora_A.weight"): len(v) for n, v in tensors.items() if n.endswith("lora_A.weight")}
    assert ranks == {n: r for n, r in left.items() if r}


def test_a_peft_folder_of_dylora_has_all_ranks(tmp_path: Path) -> None:
    run = trained(with_options(replace(FEDIT, sites="q"), LoRAOptions(variant="dylora")))
    assert exported(run, tmp_path).kind == "peft"  # compares the logits
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("variant", ["adalora", "dylora"])
def test_files_of_weft_hold_ranks_by_schedule(variant: str, tmp_path: Path) -> None:
    run = trained(with_options(replace(FEDIT, sites="q"), LoRAOptions(variant=variant)))  # type: ignore[arg-type]
    found, b = capture(run.method, run.server, "global"), run.bench.backbone
    weft_files.write(found, run.method, "global", {}, b, tmp_path)
    back = weft_files.read(tmp_path, b, run.bench.task)
    assert back.parts == found.parts
    assert all(torch.equal(v, back.values[n]) for n, v in found.values.items())  # type: ignore[arg-type]


def test_two_of_them_at_a_layer_are_no_peft_adapter(tmp_path: Path) -> None:
    run = trained(with_options(replace(PF2LoRA(), batch=4, steps=None), LoRAOptions(variant="dora")))
    client = run.clients[0]
    run.simulation.setup.store.load(client)
    assert exported(run, tmp_path, client=client, view="personal").kind == "weft"


def test_at_another_weight_it_is_no_peft_adapter() -> None:
    """PEFT has a weight for what is low-rank, and none for a magnitude."""
    run = trained(with_options(replace(FEDIT, sites="q"), LoRAOptions(variant="dora")), rounds=1)
    found = capture(run.method, run.server, "global")
    assert peft_files.fits(found, run.bench.backbone)
    assert not peft_files.fits(replace(found, use={**found.use, "lora": 0.5}), run.bench.backbone)


def test_a_model_that_needs_its_method_comes_back_with_the_options_of_its_lora(tmp_path: Path) -> None:
    run = trained(with_options(replace(FedALT(rank=2), batch=4), RSLORA))
    client = run.clients[0]
    run.simulation.setup.store.load(client)
    report = exported(run, tmp_path, client=client)  # compares the logits
    assert report.kind == "weft"
    content = json.loads((tmp_path / "weft_adapter.json").read_text())
    assert content["forward"]["slug"] == "fedalt"
    assert content["forward"]["lora"] == {"scaling": "rslora"}
    assert load(tmp_path) is not None


def test_the_description_of_an_export_names_options(tmp_path: Path) -> None:
    exported(trained(with_options(FedIT(rank=2), RSLORA)), tmp_path)
    about = json.loads((tmp_path / "weft.json").read_text())
    assert about["method"]["slug"] == "fedit+rslora"
    assert about["method"]["settings"]["lora_options.scaling"] == "rslora"
