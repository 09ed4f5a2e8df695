"""A model of which all weights were trained comes back from our own files, and as a plain folder of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch as st
import torch
from torch import Tensor

import language_exports as exports
import tiny
from exporting import RUN_CLOSE, exported, tensors_in, trained
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.errors import UserError, WeftError
from weft.export import export_run, load
from weft.methods import FedAvg
from weft.testing.federation import Federation

FEDAVG = FedAvg(batch=4, epochs=1.0)
FAST = replace(FEDAVG, optim=Optim("adamw", lr=2e-3, schedule="constant"))


def rows_of(run: Federation) -> np.ndarray:
    return np.arange(len(run.bench.table))


def inputs_of(run: Federation) -> dict[str, Tensor]:
    found: dict[str, Tensor] = run.bench.table.collate(rows_of(run))
    return found


def by_transformers(kind: str, folder: Path, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    """Logits of a folder that somebody loads who has nothing but transformers."""
    import transformers

    torch.manual_seed(99)  # what the folder lacks would be drawn
    model = getattr(transformers, kind).from_pretrained(folder, **more).eval()
    with torch.no_grad():
        found = model(**inputs)
    logits: Tensor = found.logits_per_image if kind == "CLIPModel" else found.logits
    return logits


CLASSES = {"bert": "Sequence", "gpt2": "Sequence", "llama": "Sequence", "vit": "Image"}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_classifier_comes_back_from_our_files_and_from_a_plain_folder(kind: str, tmp_path: Path) -> None:
    run = trained(FEDAVG, kind)
    (tmp_path / "m").mkdir()
    report = exported(run, tmp_path / "m")
    assert (report.kind, report.difference) == ("weft", pytest.approx(0.0, abs=1e-6))
    assert report.files == ["README.md", "weft.json", "weft_adapter.json", "weft_adapter.safetensors"]
    parts = json.loads((tmp_path / "m" / "weft_adapter.json").read_text())["parts"]
    assert {name: (part["kind"], part["settings"]) for name, part in parts.items()} == {
        "weights": ("Weights", {"which": "all"}),
        "head": ("Head", {"std": 0.02}),
    }
    held = sum(t.numel() for t in tensors_in(tmp_path / "m" / "weft_adapter.safetensors").values())
    assert held == sum(p.numel() for p in run.bench.backbone.model.parameters())
    own = load(tmp_path / "m", device="cpu", precision="float32")
    wanted = run.global_logits()
    rows, _, _ = tiny.states(reads="images" if kind == "vit" else "texts")
    torch.testing.assert_close(own.logits_of(rows), wanted, **RUN_CLOSE)
    merged = export_run(tmp_path / "m", tmp_path / "out", merged=True)
    assert (merged.kind, merged.notes[-1]) == ("merged", "Its weights are float32, as they were trained.")
    padded = {} if kind == "vit" else {"pad_token_id": run.bench.backbone.tokenizer.pad_token_id}
    found = by_transformers(f"AutoModelFor{CLASSES[kind]}Classification", tmp_path / "out", inputs_of(run), **padded)
    torch.testing.assert_close(found, wanted, **RUN_CLOSE)
    assert "adapter merged" not in (tmp_path / "out" / "README.md").read_text()


def test_both_towers_of_a_clip_are_in_the_plain_folder(tmp_path: Path) -> None:
    run = trained(FEDAVG, "clip")
    b = run.bench.backbone
    assert b.names is not None
    (tmp_path / "m").mkdir()
    exported(run, tmp_path / "m")
    export_run(tmp_path / "m", tmp_path / "out", merged=True)
    found = by_transformers("CLIPModel", tmp_path / "out", inputs_of(run) | {"input_ids": b.names.ids()})
    torch.testing.assert_close(found, run.global_logits(), rtol=0.0, atol=1e-4)  # logits of a scale of 100
    with torch.no_grad():
        frozen = b.model(**inputs_of(run), **b.class_inputs()).logits
    assert float((found - frozen).abs().max()) > 0.1


def test_of_some_of_the_weights_the_others_are_the_bases(tmp_path: Path) -> None:
    run = trained(replace(FEDAVG, tune=Tune("weights", weights="*.layer.1.*")))
    (tmp_path / "m").mkdir()
    exported(run, tmp_path / "m")
    export_run(tmp_path / "m", tmp_path / "out", merged=True)
    found = by_transformers("AutoModelForSequenceClassification", tmp_path / "out", inputs_of(run))
    torch.testing.assert_close(found, run.global_logits(), **RUN_CLOSE)
    saved = tensors_in(tmp_path / "out" / "model.safetensors")
    base = dict(run.bench.backbone.model.named_parameters())
    other = {n for n, t in saved.items() if not torch.equal(t, base[n])}
    assert {n for n in other if not n.startswith("classifier.")} <= {n for n in saved if ".layer.1." in n}
    assert len(other) > 10


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_a_model_that_writes_does_so_wherever_it_is_loaded(kind: str, tmp_path: Path) -> None:
    exports.finished(tmp_path / "m", kind, FAST)
    wanted = load(tmp_path / "m", **exports.HERE).generate(exports.PROMPTS)  # as many tokens as the plain folder says
    assert len(set(wanted)) > 1
    export_run(tmp_path / "m", tmp_path / "out", merged=True)
    assert [exports.by_readme(tmp_path / "out", p) for p in exports.PROMPTS] == wanted
    tied = {"gpt2": "lm_head.weight", "t5": "encoder.embed_tokens.weight", "bart": "model.decoder.embed_tokens.weight"}
    assert tied.get(kind) not in tensors_in(tmp_path / "out" / "model.safetensors")


def test_a_run_in_half_precision_leaves_its_single_values(tmp_path: Path) -> None:
    run = trained(FEDAVG, precision="bfloat16")
    (tmp_path / "m").mkdir()
    report = exported(run, tmp_path / "m")
    held = tensors_in(tmp_path / "m" / "weft_adapter.safetensors")
    for name, value in run.server.shared.items():
        assert isinstance(value, Tensor)
        assert torch.equal(held[name], value)
    assert report.difference < 1e-6


def test_rounding_is_said_and_by_how_much_training_has_moved_the_logits(tmp_path: Path) -> None:
    exports.finished(tmp_path / "m", "llama", FAST)
    report = export_run(tmp_path / "m", tmp_path / "out", merged=True, precision="bfloat16")
    assert report.notes[-2] == "Its weights are bfloat16, as they were trained."
    assert "at most, where training moves those of the base by " in report.notes[-1]
    moved = float(report.notes[-1].split("of the base by ")[1].split(":")[0])
    assert moved > report.difference > 0


def test_a_base_that_transformers_does_not_know_is_not_merged_into(tmp_path: Path) -> None:
    run = trained(FEDAVG, "t5")
    (tmp_path / "m").mkdir()
    exported(run, tmp_path / "m")
    torch.testing.assert_close(
        load(tmp_path / "m", device="cpu", precision="float32").logits_of(tiny.states()[0]), run.global_logits(), **RUN_CLOSE
    )
    with pytest.raises(UserError, match=r"a class of Weft's own \(T5Classifier\), which transformers lacks"):
        export_run(tmp_path / "m", tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()


def test_a_plain_folder_that_predicts_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.export import peft_files

    run = trained(FEDAVG)
    (tmp_path / "m").mkdir()
    exported(run, tmp_path / "m")
    usual = peft_files.plain_base

    def deaf(*given: Any) -> Any:
        base = usual(*given)
        base.bert.encoder.layer[1].output.dense.forward = lambda x: x[..., :32]
        return base

    monkeypatch.setattr(peft_files, "plain_base", deaf)
    with pytest.raises(WeftError, match="predicts something else than its adapter"):
        export_run(tmp_path / "m", tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_damaged_files_are_said(damage: str, tmp_path: Path) -> None:
    run = trained(FEDAVG)
    (tmp_path / "m").mkdir()
    exported(run, tmp_path / "m")
    path = tmp_path / "m" / "weft_adapter.safetensors"
    held = tensors_in(path)
    name = next(n for n in held if "layer.1.attention.self.query/weight" in n)
    if damage == "missing":
        del held[name]
    else:
        held[name] = held[name][:7].contiguous() if damage == "shape" else held[name] * float("nan")
    path.write_bytes(st.save(held))
    about = json.loads((tmp_path / "m" / "weft.json").read_text())
    (tmp_path / "m" / "weft.json").write_text(json.dumps(about | {"files": {}}))
    with pytest.raises(UserError, match=r"is damaged \(weights/bert\.encoder\.layer\.1\.attention\.self\.query/weight"):
        load(tmp_path / "m", device="cpu")
