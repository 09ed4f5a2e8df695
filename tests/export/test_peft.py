"""A run of low-rank parts leaves a PEFT adapter that gives the same logits wherever it is loaded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from exporting import FAST, FEDIT, FLORA, RUN_CLOSE, by_peft, exported, tensors_in, trained
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.optim import Optim
from weft.backbones.load import load as load_backbone
from weft.export import peft_files
from weft.export.trained import Trained
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation
from weft.federation.method import Method
from weft.federation.scope import SHARED, TEMPORARY
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.reparameterized.flexlora import FlexLoRA
from weft.tensors.lowrank import LowRank


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "gpt2", "opt", "llama", "qwen2"]
)
@pytest.mark.parametrize("method", [FEDIT, FLORA], ids=["fedit", "flora"])
def test_an_adapter_loads_with_plain_peft_and_gives_the_logits_of_the_run(kind: str, method: Method, tmp_path: Path) -> None:
    if method is FLORA and kind in ("gpt2", "modernbert"):
        method = dataclasses.replace(FLORA, sites="attention")
    run = trained(method, kind, rounds=3)
    report = exported(run, tmp_path)
    assert report.kind == "peft"
    assert report.difference <= 1e-5
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, b.tokenizer.pad_token_id)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)
    start = tiny.federation(method, kind, precision="float32").global_logits()
    assert not torch.allclose(got, start, **RUN_CLOSE)  # and it was worth exporting


SCRIPT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
for base, folder, inputs, classes, pad in json.load(sys.stdin):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    model.config.pad_token_id = pad
    model = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        print("LOGITS", json.dumps(model(**{n: torch.tensor(v) for n, v in inputs.items()}).logits.tolist()))
assert not [m for m in sys.modules if m == "weft" or m.startswith("weft.")]
"""


@pytest.mark.slow
def test_in_a_fresh_process_without_weft_the_adapter_gives_the_same_logits(tmp_path: Path) -> None:
    jobs, expected = [], []
    for i, (method, kind, checkpoint) in enumerate(
        [(FLORA, "bert", "mlm"), (FEDIT, "roberta", "base"), (FLORA, "llama", "base")]  # the first has a fresh pooler
    ):
        run = trained(method, tiny.backbone(kind, precision="float32", checkpoint=checkpoint), rounds=3)
        folder = tmp_path / str(i)
        folder.mkdir()
        exported(run, folder)
        b, table = run.bench.backbone, run.bench.table
        inputs = {n: t.tolist() for n, t in table.collate(np.arange(len(table))).items()}
        jobs.append((b.path, str(folder), inputs, 3, b.tokenizer.pad_token_id))
        expected.append(run.global_logits())
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=json.dumps(jobs), capture_output=True, text=True, check=True)
    lines = [line.removeprefix("LOGITS ") for line in done.stdout.splitlines() if line.startswith("LOGITS ")]
    assert len(lines) == 3
    for line, logits in zip(lines, expected, strict=True):
        torch.testing.assert_close(torch.tensor(json.loads(line)), logits, **RUN_CLOSE)


def test_floras_grown_delta_is_one_lora_of_the_concatenated_rank(tmp_path: Path) -> None:
    run = trained(FLORA, rounds=3)
    exported(run, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = tensors_in(tmp_path / "adapter_model.safetensors")
    senders = [c for c in run.clients if c.n]
    stacked = 3 * sum(FLORA.profile(run.clients.index(c))["rank"] if "rank" in c.facts else FLORA.rank for c in senders)
    assert config["r"] == stacked
    for site in run.bench.backbone.sites("q,v"):
        a = tensors[f"base_model.model.{site.name}.lora_A.weight"]
        b = tensors[f"base_model.model.{site.name}.lora_B.weight"]
        delta = run.server.shared[f"base/{site.name}/delta"]
        assert isinstance(delta, LowRank)
        assert a.shape == (stacked, 32)
        torch.testing.assert_close(b @ a * (config["lora_alpha"] / stacked), delta.dense(), rtol=0.0, atol=1e-6)


def test_sites_of_different_rank_get_patterns_that_peft_reads_alike(tmp_path: Path) -> None:
    """FlexLoRA's average has the clients' ranks summed, which differ between attention and feed-forward."""
    run = trained(FlexLoRA(rank=2, sites="all", mix="none", batch=4, optim=FAST), sizes=(6, 5))
    run.clients[0].facts = {"rank": 1, "ffn_rank": 3}
    run.run()
    exported(run, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    ranks = {n: len(t) for n, t in tensors_in(tmp_path / "adapter_model.safetensors").items() if n.endswith("lora_A.weight")}
    assert len(set(ranks.values())) > 1
    for name, rank in ranks.items():
        site = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        assert config["rank_pattern"].get(site, config["r"]) == rank
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, 0)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


def random_lowrank(d_out: int, d_in: int, rank: int, seed: int, scale: float) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(B=torch.randn(d_out, rank, generator=g), A=torch.randn(rank, d_in, generator=g), scale=scale)


def test_everything_low_rank_at_a_site_is_summed_exactly_and_never_beyond_full_rank() -> None:
    b = tiny.backbone("bert", precision="float32")
    parts = {"one": LoRA(2, 6.0, "q"), "two": LoRA(3, 3.0, "q,v"), "base": Delta("q,ffn.in"), "head": Head()}
    sites = {s.name: s for s in b.sites("q,v,ffn.in")}
    values: dict[str, Any] = {}
    dense = {n: torch.zeros(s.d_out, s.d_in, dtype=torch.float64) for n, s in sites.items()}
    use = {"one": 0.5, "two": 1.0}
    for name, at, rank in (("one", "q", 2), ("two", "q,v", 3), ("base", "q,ffn.in", 40)):
        for i, s in enumerate(b.sites(at)):
            scale = {"one": 3.0 * 0.5, "two": 1.0, "base": 0.7}[name]
            value = random_lowrank(s.d_out, s.d_in, rank, 10 * i + rank, scale)
            dense[s.name] += value.to(dtype=torch.float64).dense()
            if name == "base":
                values[f"base/{s.name}/delta"] = value
            else:
                values |= {f"{name}/{s.name}/A": value.A, f"{name}/{s.name}/B": value.B}
    sums = peft_files.low_rank_sums(Trained(parts, values, use), b)
    assert sums.keys() == sites.keys()
    for name, value in sums.items():
        torch.testing.assert_close(value.dense().double(), dense[name], rtol=0.0, atol=2e-4)  # entries around 30
        assert value.rank <= 32
        if sites[name].role == "v":
            assert value.rank == 3


def test_factors_that_were_never_trained_are_left_out_and_a_head_alone_is_still_an_adapter(tmp_path: Path) -> None:
    class HeadOnly(Method):
        info: ClassVar[MethodInfo] = MethodInfo("head-only", "Head only", "None", "selective", sends="the head")
        batch: int = 4
        optim: Optim = FAST

        def adapt(self, backbone: Any, task: Any, client: Any) -> Adaptation:
            return {"lora": (LoRA(2, 4.0, "q"), TEMPORARY), "head": (task.head, SHARED)}

    run = tiny.federation(HeadOnly(), precision="float32")
    exported(run, tmp_path)
    tensors = tensors_in(tmp_path / "adapter_model.safetensors")
    low_rank = {n: t for n, t in tensors.items() if "lora_" in n}
    assert {tuple(t.shape) for t in low_rank.values()} == {(1, 32), (32, 1)}
    assert not any(t.any() for t in low_rank.values())
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, 0)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize(
    ("kind", "checkpoint", "expected"),
    [
        ("bert", "base", ["classifier"]),
        ("bert", "mlm", ["bert.pooler", "classifier"]),
        ("roberta", "base", ["classifier"]),
        ("distilbert", "base", ["pre_classifier", "classifier"]),
        ("modernbert", "base", ["head", "classifier"]),
        ("deberta-v2", "base", ["pooler", "classifier"]),
        ("llama", "base", ["score"]),
    ],
)
def test_the_head_is_saved_as_whole_modules(kind: str, checkpoint: str, expected: list[str]) -> None:
    assert peft_files.head_modules(tiny.backbone(kind, checkpoint=checkpoint)) == expected


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("bert", "q,v", ["query", "value"]),
        ("bert", "o", ["attention.output.dense"]),
        ("bert", "ffn.in", ["intermediate.dense"]),
        ("llama", "all", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        ("gpt2", "o", ["attn.c_proj"]),
    ],
)
def test_target_modules_are_the_shortest_endings_that_mean_these_sites(kind: str, spec: str, expected: list[str]) -> None:
    b = tiny.backbone(kind)
    assert peft_files.endings(b, [s.name for s in b.sites(spec)], peft_files.head_modules(b)) == expected


def test_sites_that_no_ending_describes_are_named_in_full() -> None:
    b = tiny.backbone("bert")
    some = [s.name for s in b.sites("q", blocks=[0, 2])]
    assert peft_files.endings(b, some, ["classifier"]) == some
    every_dense = [s.name for s in b.sites("o,ffn")]
    # "dense" alone would mean the pooler too
    assert peft_files.endings(b, every_dense, ["classifier"]) == ["intermediate.dense", "output.dense"]


# the base -------------------------------------------------------------------------------------------------------------


def test_an_export_names_its_base_by_hub_id_and_weight_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.hub(monkeypatch, tmp_path / "hub", {"someone/some-model": tiny.folder("bert")})
    b = load_backbone("someone/some-model", classes=3, device="cpu", precision="float32")
    run = trained(FEDIT, b)
    folder = tmp_path / "out"
    folder.mkdir()
    report = exported(run, folder)
    about = json.loads((folder / "weft.json").read_text())
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/some-model"
    assert about["base"]["hub_id"] == "someone/some-model"
    assert about["base"]["path"] is None
    assert about["base"]["sha256"] == b.weight_hash == report.sha256
    assert about["id2label"] == dict(zip("012", tiny.names(3), strict=True))
    assert (about["format"], about["kind"], about["run"], about["max_length"]) == (1, "peft", "a-run", 32)
    assert about["method"]["slug"] == "fedit"
    assert about["method"]["settings"]["rank"] == 2
    card = (folder / "README.md").read_text()
    assert "base_model: someone/some-model" in card
    assert b.weight_hash in card
    assert str(tmp_path) not in card + json.dumps(about)  # nothing of this machine


def test_a_folder_as_base_is_named_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one would mean something else in another working directory."""
    base = Path(tiny.folder("bert"))
    monkeypatch.chdir(base.parent)
    b = load_backbone(f"./{base.name}", classes=3, device="cpu", precision="float32")
    exported(trained(FEDIT, b), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_the_offline_backbone_is_exported_under_its_hub_id(tmp_path: Path) -> None:
    b = load_backbone("minilm", classes=3, device="cpu", precision="bfloat16")
    run = tiny.federation(FedIT(rank=2, alpha=4.0, sites="q,v"), b)
    for name, value in run.server.shared.items():  # as if trained
        assert isinstance(value, Tensor)
        run.server.write(name, value + 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    report = exported(run, tmp_path)
    assert report.base == "sentence-transformers/all-MiniLM-L6-v2"
    assert report.kind == "peft"
    assert report.difference <= report.tolerance


def test_a_backbone_in_low_precision_is_compared_on_a_full_copy(tmp_path: Path) -> None:
    """The run's own logits are off by bfloat16's rounding, the export's are not."""
    run = trained(FEDIT, tiny.backbone("bert", precision="bfloat16"))
    report = exported(run, tmp_path)
    assert report.difference <= 1e-5
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, 0)
    torch.testing.assert_close(got, run.global_logits(), rtol=0.0, atol=0.1)
    assert not torch.allclose(got, run.global_logits(), rtol=0.0, atol=1e-5)
