"""Learned scales leave a PEFT adapter of type IA3, with which PEFT alone gives the run's logits; shifts and norms do not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import torch as st

import language_exports as exports
import tiny
from exporting import FAST, RUN_CLOSE, by_peft, by_readme, exported, tensors_in, trained
from weft.contract import Tune
from weft.errors import UserError
from weft.export import export_run, load, peft_adapter
from weft.methods.full.fedavg import FedAvg

HERE: dict[str, Any] = {"device": "cpu", "precision": "float32"}


def of(kind: str, **more: Any) -> FedAvg:
    return FedAvg(tune=Tune(kind, **more), batch=4, epochs=1.0, optim=FAST)  # type: ignore[arg-type]


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


ENDINGS = {
    "bert": ({"key", "value", "output.dense"}, None),
    "gpt2": ({"c_attn", "mlp.c_proj"}, {"mlp.c_proj"}),
    "llama": ({"k_proj", "v_proj", "down_proj"}, {"down_proj"}),
    "roberta": (None, None),
    "deberta-v2": (None, None),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_peft_alone_gives_the_logits_of_the_run_and_so_does_weft(kind: str, tmp_path: Path) -> None:
    run = trained(of("scale"), kind)
    report = exported(run, tmp_path)
    assert (report.kind, report.notes) == ("peft", [])
    assert report.difference <= 1e-5
    said = config(tmp_path)
    assert said["peft_type"] == "IA3"
    inside = {s.name for s in run.bench.backbone.linears if s.role == "ffn.out"}
    names = {n.removeprefix("base_model.model.").removesuffix(".ia3_l"): t.shape for n, t in vectors(tmp_path).items()}
    assert {n for n, shape in names.items() if shape[0] == 1} == inside
    b, table = run.bench.backbone, run.bench.table
    inputs = table.collate(np.arange(len(table)))
    got = by_peft(b.path, tmp_path, inputs, 3, b.tokenizer.pad_token_id)
    expected = run.global_logits()
    torch.testing.assert_close(got, expected, **RUN_CLOSE)
    rows, _, _ = tiny.states()
    torch.testing.assert_close(load(tmp_path, **HERE).logits_of(rows), expected, **RUN_CLOSE)
    torch.testing.assert_close(by_readme(tmp_path, rows), expected, **RUN_CLOSE)
    start = tiny.federation(of("scale"), b, precision="float32").global_logits()
    assert not torch.allclose(got, start, rtol=0.0, atol=1e-2)  # and it was worth exporting


def vectors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors_in(folder / "adapter_model.safetensors").items() if n.endswith("ia3_l")}


@pytest.mark.parametrize("scaled", ["o,ffn.out", "ffn.out", "q"])
def test_endings_that_peft_would_take_for_another_layer_are_written_out(scaled: str, tmp_path: Path) -> None:
    run = trained(of("scale", scaled=scaled), "bert")  # whose attention.output.dense ends like its output.dense
    exported(run, tmp_path)
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, b.tokenizer.pad_token_id)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


def test_pictures_and_a_model_that_writes_leave_one_too(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    run = trained(of("scale"), "vit")
    assert exported(run, tmp_path / "vit").kind == "peft"
    rows, _, _ = tiny.states(reads="images")
    torch.testing.assert_close(by_readme(tmp_path / "vit", rows), run.global_logits(), **RUN_CLOSE)
    exports.finished(tmp_path / "llama", "llama", of("scale"))
    assert (config(tmp_path / "llama")["peft_type"], config(tmp_path / "llama")["task_type"]) == ("IA3", "CAUSAL_LM")
    (wrote,) = load(tmp_path / "llama", **HERE).generate(exports.PROMPTS[:1], new_tokens=8)
    assert exports.by_readme(tmp_path / "llama", exports.PROMPTS[0], tokens=8) == wrote


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_merged_it_is_a_plain_model(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    run = trained(of("scale"), kind)
    (tmp_path / "m").mkdir()
    exported(run, tmp_path / "m")
    export_run(tmp_path / "m", tmp_path / "out", merged=True)
    table = run.bench.table
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    model.config.pad_token_id = run.bench.backbone.tokenizer.pad_token_id
    with torch.no_grad():
        found = model(**table.collate(np.arange(len(table)))).logits
    torch.testing.assert_close(found, run.global_logits(), **RUN_CLOSE)


def test_trained_norms_stand_in_a_plain_model_in_the_place_of_its_own(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    run = trained(of("norm"), "vit")
    (tmp_path / "m").mkdir()
    assert exported(run, tmp_path / "m").kind == "weft"
    export_run(tmp_path / "m", tmp_path / "out", merged=True)
    table = run.bench.table
    with torch.no_grad():
        found = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()(**table.collate(np.arange(len(table))))
    torch.testing.assert_close(found.logits, run.global_logits(), **RUN_CLOSE)


WHY = {
    "shifts": ("bert", of("ssf"), "PEFT scales what layers give and shifts nothing"),
    "a class of ours": ("t5", of("scale"), "its base is of a class of Weft's own, which nobody loads without Weft"),
    "a frozen head": ("bert", of("scale", head=False), "the head of its base is no part of it"),
}


@pytest.mark.parametrize("case", WHY)
def test_elsewhere_the_card_says_why_it_is_in_our_own_files(case: str, tmp_path: Path) -> None:
    kind, method, why = WHY[case]
    run = trained(method, kind)
    report = exported(run, tmp_path)
    assert (report.kind, report.notes) == ("weft", [f"It is in Weft's own files, as {why}."])
    assert why in (tmp_path / "README.md").read_text()
    rows, _, _ = tiny.states()
    torch.testing.assert_close(load(tmp_path, **HERE).logits_of(rows), run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_norms_come_back_from_our_own_files(kind: str, tmp_path: Path) -> None:
    run = trained(of("norm"), kind)
    report = exported(run, tmp_path)
    assert (report.kind, report.notes) == ("weft", [])
    rows, _, _ = tiny.states(reads="images" if kind == "vit" else "texts")
    torch.testing.assert_close(load(tmp_path, **HERE).logits_of(rows), run.global_logits(), **RUN_CLOSE)


def test_no_run_starts_from_scales_as_if_they_were_lora(tmp_path: Path) -> None:
    exported(trained(of("scale")), tmp_path)
    with pytest.raises(UserError, match=r"is an adapter of PEFT's type IA3, and not LoRA alone: give one of plain LoRA\.$"):
        peft_adapter.load(tmp_path)


def test_a_damaged_adapter_is_said_to_be(tmp_path: Path) -> None:
    exported(trained(of("scale")), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = tensors_in(path)
    del tensors[next(n for n in tensors if n.endswith("ia3_l"))]
    path.write_bytes(st.save(tensors, {"format": "pt"}))
    about = json.loads((tmp_path / "weft.json").read_text())
    about["files"]["adapter_model.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "weft.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"is damaged \(scale/.* is missing\)"):
        load(tmp_path, **HERE)
