"""Bottleneck adapters leave AdapterHub's form, which gives the run's logits by the rules of its library; elsewhere it is said."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import torch as st

import adapterhub_by_hand
import language_exports as exports
import tiny
from exporting import FAST, RUN_CLOSE, exported, tensors_in, trained
from weft.backbones.load import load as load_backbone
from weft.contract import Tune
from weft.errors import UserError
from weft.export import adapterhub_config, export_run, load, peft_adapter
from weft.export.about import About, Base
from weft.export.adapterhub_places import ARCHITECTURES
from weft.export.card import place
from weft.federation.method import Method
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
    found = adapterhub_by_hand.logits(b.path, folder, inputs, None if writes or b.names is not None else 3, padding)
    return found[table.places(rows)] if writes else found  # type: ignore[union-attr]


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


@pytest.mark.parametrize(("how", "kind"), [(h, k) for h in PLACED for k in ARCHITECTURES if (h, k) not in APART])
def test_by_the_rules_of_adapterhub_it_has_the_logits_of_the_run(how: str, kind: str, tmp_path: Path) -> None:
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
    assert ARCHITECTURES.keys() == adapterhub_by_hand.LAYERS.keys()


def test_weft_reads_it_too(tmp_path: Path) -> None:
    for at, (kind, how) in enumerate([("bert", "sublayers"), ("gpt2", "compacter"), ("distilbert", "parallel")]):
        folder = tmp_path / str(at)
        folder.mkdir()
        run = trained(of(PLACED[how]), kind)
        exported(run, folder)
        rows, _, _ = tiny.states()
        torch.testing.assert_close(load(folder, **HERE).logits_of(rows), run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize(("view", "personal"), [("personal", True), ("shared", False)])
def test_of_feddat_a_view_of_one_adapter_is_one_and_that_of_two_is_not(view: str, personal: bool, tmp_path: Path) -> None:
    run = trained(FedDAT(reduction=8, batch=4, optim=FAST), "bert")
    client, rows = run.clients[0], np.arange(8)
    run.simulation.setup.store.load(client)
    expected = run.personal_logits(view, {client.id: rows})[client.id]
    other = run.personal_logits("dat", {client.id: rows})[client.id]
    run.simulation.setup.store.load(client)
    folder, both = tmp_path / "one", tmp_path / "both"
    folder.mkdir()
    both.mkdir()
    report = exported(run, folder, client=client, view=view)
    assert (report.kind, report.client) == ("adapters", client.id)
    found = by_hand(run, folder, rows).float()
    torch.testing.assert_close(found, expected, **RUN_CLOSE)
    assert (found - other).abs().max() > 1e-3
    report = exported(run, both, client=client, view="dat")
    assert report.kind == "weft"
    assert report.notes[0].startswith("It is in Weft's own files, as it has several adapters at one place, or parts of another")
    texts = load(both, **HERE).logits_of(tiny.states()[0])
    torch.testing.assert_close(texts[:8], other, **RUN_CLOSE)


WHY: dict[str, tuple[str, Method, str]] = {
    "made by a network": (
        "bert",
        C2A(rank=4, batch=4, optim=FAST),
        "a network makes its adapters anew of every row, and AdapterHub's are the same for all",
    ),
    "a stack": (
        "bert",
        FedAdapter(batch=4, optim=FAST),
        "its adapters are stacks that grow, and a file of AdapterHub's holds one adapter",
    ),
    "a frozen head": (
        "bert",
        of(Tune("bottleneck", reduction=8, head=False)),
        "the head of its base is no part of it",
    ),
    "a class of ours": (
        "t5",
        of(Tune("bottleneck", reduction=8)),
        "its base is of no class of transformers' own, which are those that AdapterHub's library knows",
    ),
    "an unknown architecture": (
        "qwen2",
        of(Tune("bottleneck", reduction=8)),
        "nobody has established where AdapterHub's library has adapters in a model of type qwen2",
    ),
}


@pytest.mark.parametrize("case", WHY)
def test_elsewhere_the_card_says_why_it_is_in_our_own_files(case: str, tmp_path: Path) -> None:
    kind, method, why = WHY[case]
    run = trained(method, kind)
    report = exported(run, tmp_path)
    assert report.kind == "weft"
    assert report.notes[0] == f"It is in Weft's own files, as {why}."
    assert report.notes[0] in (tmp_path / "README.md").read_text()
    torch.testing.assert_close(load(tmp_path, **HERE).logits_of(tiny.states()[0]), run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize("roles", ["attention.output.dense=ffn.out", "attention.self.value=ffn.out"])
def test_with_roles_an_adapter_may_follow_layers_that_the_library_has_none_at(roles: str, tmp_path: Path) -> None:
    named = load_backbone(tiny.folder("bert"), classes=tiny.names(3), roles=roles, **HERE)
    report = exported(trained(of(PLACED["ffn"]), named), tmp_path)
    assert report.notes == ["It is in Weft's own files, as its adapters are at layers where AdapterHub's library has none."]


def test_a_bottleneck_is_as_wide_as_the_library_makes_it() -> None:
    for size in (7, 32, 96, 100, 384, 768):
        for width in range(1, size + 1):
            factor = json.loads(json.dumps(adapterhub_config.factor(size, width)))
            assert max(int(size // factor), 1) == width


def test_what_the_library_asks_of_a_folder_is_there(tmp_path: Path) -> None:
    run = trained(of(PLACED["sublayers"]), "roberta")
    exported(run, tmp_path)
    said, head = config(tmp_path), json.loads((tmp_path / "head_config.json").read_text())
    assert (said["name"], said["model_type"], said["model_class"]) == ("fedavg", "roberta", "RobertaForSequenceClassification")
    assert said["hidden_size"] == 32
    assert (said["config"]["scaling"], said["config"]["reduction_factor"]) == ("learned", 32 / 5.5)
    assert (head["num_labels"], head["model_class"]) == (3, said["model_class"])
    assert head["label2id"] == {name: i for i, name in enumerate(run.bench.task.classes)}
    assert set(tensors_in(tmp_path / "model_head.safetensors")) == {
        f"classifier.{m}.{r}" for m in ("dense", "out_proj") for r in ("weight", "bias")
    }
    readme = (tmp_path / "README.md").read_text()
    assert "library_name: adapters\n" in readme
    assert "import adapters\n" in readme
    assert "adapters.init(base)\nbase.load_adapter(str(FOLDER), set_active=True, use_safetensors=True)\n" in readme
    assert "peft" not in readme.lower()


def test_the_lines_of_a_model_that_writes_and_of_one_that_comes_with_weft(tmp_path: Path) -> None:
    exports.finished(tmp_path / "bart", "bart", of(PLACED["sublayers"]))
    readme = (tmp_path / "bart" / "README.md").read_text()
    assert "import adapters\nfrom transformers import AutoModelForSeq2SeqLM" in readme
    assert "adapters.init(base)\n" in readme
    assert config(tmp_path / "bart")["config"]["cross_adapter"] is True
    about = replace(About.read(tmp_path / "bart"), base=Base("glyph-vit", None, None, "0", None))
    where, imports = place(about)
    assert imports == ""  # what Weft would find it with is in another environment
    assert where.startswith("BASE  # ")
    assert "find('glyph-vit')" in where


def test_no_run_starts_from_it_and_it_is_not_merged(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    exported(trained(of(PLACED["block"])), tmp_path / "m")
    with pytest.raises(UserError, match=r"holds a model with parts that are no LoRA: give the folder of a PEFT LoRA adapter\.$"):
        peft_adapter.load(tmp_path / "m")
    with pytest.raises(UserError, match=r"has parts that are not merged into the weights of its base: leave --merged out\.$"):
        export_run(tmp_path / "m", tmp_path / "out", merged=True)
    assert export_run(tmp_path / "m", tmp_path / "copy").kind == "adapters"


def damaged(folder: Path, name: str, content: bytes) -> None:
    """Write a file anew, as if it had been exported so."""
    (folder / name).write_bytes(content)
    about = json.loads((folder / "weft.json").read_text())
    about["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / "weft.json").write_text(json.dumps(about))


def test_a_damaged_adapter_is_said_to_be(tmp_path: Path) -> None:
    exported(trained(of(PLACED["block"])), tmp_path)
    tensors, said = tensors_in(tmp_path / "adapter.safetensors"), config(tmp_path)
    first = sorted(tensors)[0]
    cases: list[tuple[str, bytes, str]] = [
        ("adapter.safetensors", st.save({n: t for n, t in tensors.items() if n != first}), f"{first} is missing"),
        ("adapter.safetensors", st.save(tensors | {"more": torch.ones(1)}), "more is not a tensor of this model"),
        ("adapter.safetensors", st.save(tensors | {first: torch.full_like(tensors[first], torch.nan)}), "is not finite"),
        ("adapter.safetensors", st.save(tensors | {first: torch.ones(3)}), "has shape"),
    ]
    kept = (tmp_path / "adapter.safetensors").read_bytes()
    for more in ({"ln_after": True}, {"original_ln_before": "no"}):
        changed = said | {"config": said["config"] | more}
        cases.append(("adapter_config.json", json.dumps(changed).encode(), "its settings are none that an export has"))
    cases.append(("adapter_config.json", b"{}", "config"))
    for name, content, why in cases:
        damaged(tmp_path, "adapter.safetensors", kept)
        damaged(tmp_path, "adapter_config.json", json.dumps(said).encode())
        damaged(tmp_path, name, content)
        with pytest.raises(UserError, match=rf"is damaged \(.*{why}"):
            load(tmp_path, **HERE)
