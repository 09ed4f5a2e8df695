"""Bottleneck adapters leave AdapterHub's form, which means the run's logits by the rules of its library; where not, it is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import torch as st

import hub_by_hand
import tiny
from exporting import FAST, RUN_CLOSE, exported, tensors_in, trained
from weft.backbones.load import load as load_backbone
from weft.contract import Tune
from weft.errors import UserError
from weft.export import export_run, hub_config, load, peft_adapter
from weft.export.hub_places import ARCHITECTURES
from weft.methods.adapters.c2a import C2A
from weft.methods.adapters.fedadapter import FedAdapter
from weft.methods.adapters.feddat import FedDAT
from weft.methods.full.fedavg import FedAvg
from weft.testing.models import PAIRED

HERE: dict[str, Any] = {"device": "cpu", "precision": "float32"}
FILES = ["README.md", "adapter.safetensors", "adapter_config.json", "weft.json"]
HEAD = ["head_config.json", "model_head.safetensors"]
LOADS = "It loads with AdapterHub's library adapters (1.3), "
PLACED = {
    "block": Tune("bottleneck", placement="block", reduction=5),
    "ffn": Tune("bottleneck", placement="ffn", reduction=8, activation="gelu_new", scaling=0.7),
    "sublayers": Tune("bottleneck", placement="sublayers", reduction=6, scaling="learned"),
    "parallel": Tune("bottleneck", placement="parallel", reduction=8),
    "compacter": Tune("compacter", placement="sublayers", reduction=7),
    "compacter of blocks": Tune("compacter", placement="block", reduction=3, products=8, scaling="learned"),
}
POST_NORM = ("albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta")
APART = {
    *(("parallel", kind) for kind in ARCHITECTURES if kind not in POST_NORM),
    *((how, kind) for how in ("ffn", "sublayers", "compacter") for kind in ("beit",)),
    *((how, "albert") for how in ("sublayers", "compacter")),
    *((how, "clip") for how in ("compacter", "compacter of blocks")),  # its tiny towers are of two widths
}
"""Where AdapterHub's library makes something else."""


def of(tune: Tune) -> FedAvg:
    return FedAvg(tune=tune, batch=4, epochs=1.0, optim=FAST)


def played(tune: Tune, kind: str) -> tiny.Federation:
    """A short run in float64, of a model that writes if it has two stacks."""
    if kind not in PAIRED:
        return tiny.federation(of(tune), kind).run()
    stored = tiny.folder(kind, "pair")
    model = load_backbone(stored, classes=("answer",), task="generation", device="cpu", precision="float64")
    return tiny.federation(of(tune), model, task="generation").run()


def by_hand(run: tiny.Federation, folder: Path, rows: np.ndarray) -> torch.Tensor:
    b, table = run.bench.backbone, run.bench.table
    inputs = table.collate(rows)
    writes = b.options.task == "generation"
    if b.names is not None:
        inputs = inputs | {"input_ids": b.names.ids()}
    padding = b.tokenizer.pad_token_id if b.reads == "texts" else None
    found = hub_by_hand.logits(b.path, folder, inputs, None if writes or b.names is not None else 3, padding)
    return found[table.places(rows)] if writes else found  # type: ignore[union-attr]


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("how", PLACED)
def test_by_the_rules_of_adapterhub_it_has_the_logits_of_the_run(how: str, kind: str, tmp_path: Path) -> None:
    if (how, kind) in APART:
        pytest.skip("something else there, see below")
    run = played(PLACED[how], kind)
    report = exported(run, tmp_path)
    assert report.kind == "adapters"
    assert report.difference <= 1e-5
    assert report.files == sorted(FILES + (HEAD if run.bench.backbone.heads else []))
    assert len(report.notes) == 1
    assert report.notes[0].startswith(LOADS)
    rows = np.arange(8)
    expected = run.global_logits(rows, dtype=torch.float64)
    found = by_hand(run, tmp_path, rows)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-6)  # values are float32
    start = tiny.federation(run.method, run.bench.backbone, task=run.bench.backbone.options.task).global_logits(rows)
    assert (found.float() - start).abs().max() > 1e-3  # and it was worth exporting


@pytest.mark.parametrize(("how", "kind"), sorted(APART))
def test_what_the_library_makes_otherwise_is_in_our_own_files(how: str, kind: str, tmp_path: Path) -> None:
    report = exported(played(PLACED[how], kind), tmp_path)
    (note,) = report.notes
    assert report.kind == "weft"
    assert note.startswith("It is in Weft's own files, as AdapterHub's ")
    assert note in (tmp_path / "README.md").read_text()


def test_the_known_architectures_are_those_that_are_held_to_the_rules() -> None:
    assert ARCHITECTURES.keys() == hub_by_hand.LAYERS.keys()
