"""Parts that PEFT does not know, and models of single clients, come back through our own loader."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import tiny
from exporting import FAST, FEDIT, RUN_CLOSE, exported, tensors_in, trained
from weft.contract import Optim, Tune, Tuned
from weft.errors import UserError
from weft.export import load
from weft.federation.batch import Batch
from weft.federation.info import MethodInfo
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.methods.adapters.c2a import C2A
from weft.methods.adapters.feddat import FedDAT
from weft.methods.reparameterized.fedsa_lora import FedSALoRA
from weft.methods.reparameterized.slora import SLoRA
from weft.methods.selective.fedbf import FedBF
from weft.tasks.outputs import Output


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
@pytest.mark.parametrize(
    "method",
    [FedBF(batch=4, optim=FAST), FedDAT(reduction=8, batch=4, optim=FAST), C2A(rank=4, batch=4, optim=FAST)],
    ids=["fedbf", "feddat", "c2a"],
)
def test_other_parts_come_back_through_our_own_loader(kind: str, method: Method, tmp_path: Path) -> None:
    run = trained(method, kind)
    report = exported(run, tmp_path)
    assert report.kind == "weft"
    assert report.files == ["README.md", "weft.json", "weft_adapter.json", "weft_adapter.safetensors"]
    got = load(tmp_path, device="cpu", precision="float32").logits(all_texts())
    if method.views[0] == "global":
        expected = run.global_logits()
    else:  # what a client that was never here starts from
        pack = run.server.pack()
        method.personalise(pack)
        expected = pack.predict(lambda p, b: method.forward(p, b, "dat"), [np.arange(len(run.bench.table))])[0]
    torch.testing.assert_close(got, expected, **RUN_CLOSE)


class Anything(Tuned):
    """Of whatever kind."""

    info: ClassVar[MethodInfo] = dataclasses.replace(FedBF.info, slug="anything")
    batch: int = 4
    optim: Optim = FAST


TUNED = {
    "prefix": Tune("prefix", tokens=3),
    "prefix of an MLP": Tune("prefix", tokens=3, hidden=4),
    "words": Tune("words", tokens=3),
    "words of an MLP": Tune("words", tokens=3, hidden=4),
    "adapters in sublayers": Tune("bottleneck", reduction=8, placement="sublayers", activation="gelu_new"),
    "adapters in the feed-forward": Tune("bottleneck", reduction=8, placement="ffn", up_std=0.0),
    "adapters beside the feed-forward": Tune("bottleneck", reduction=8, placement="parallel"),
    "adapters beside it, scaled as learned": Tune("bottleneck", reduction=8, placement="parallel", scaling="learned"),
}


KINDS = {"prefix": ("bert", "gpt2", "llama"), "words": ("bert", "gpt2", "llama"), "adapters": ("modernbert", "opt", "qwen2")}
"""Of adapters, those that AdapterHub's library does not know."""


@pytest.mark.parametrize(
    ("which", "kind"),
    [(w, k) for w in TUNED for k in KINDS[w.split()[0]] if (w.split()[0], k) != ("prefix", "llama")],  # is one of PEFT's too
)
def test_whatever_is_tuned_comes_back_through_our_own_loader(kind: str, which: str, tmp_path: Path) -> None:
    run = trained(Anything(tune=TUNED[which]), kind)
    report = exported(run, tmp_path)
    assert report.kind == "weft"
    content = json.loads((tmp_path / "weft_adapter.json").read_text())
    assert content["forward"] is None, "it is described by its parts, without its method"
    got = load(tmp_path, device="cpu", precision="float32").logits(all_texts())
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)
    start = tiny.federation(Anything(tune=TUNED[which]), kind, precision="float32")
    assert (start.global_logits() - got).abs().max() > 1e-2


def test_entries_of_weights_come_back_at_their_places_and_the_lora_that_they_start_as_an_adapter(tmp_path: Path) -> None:
    """Of a run whose seed its reader does not know."""
    run = tiny.federation(SLoRA(rank=2, sparse_rounds=2, batch=4, optim=FAST), "bert", precision="float32", rounds=4, seed=5)
    texts = list(tiny.states(seed=5)[0].texts)
    start = run.global_logits()
    for t, kind in enumerate(("weft", "peft")):
        run.simulation.round(t)
        folder = tmp_path / kind
        folder.mkdir()
        assert exported(run, folder).kind == kind
        got = load(folder, device="cpu", precision="float32").logits(texts)
        torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)
        assert (start - got).abs().max() > 1e-2
    content = json.loads((tmp_path / "weft" / "weft_adapter.json").read_text())
    assert content["forward"] is None
    assert content["parts"].keys() == {"sparse", "head"}


def test_the_bias_of_a_convolution_comes_back_too(tmp_path: Path) -> None:
    run = trained(Anything(tune=Tune("bias")), "vit")
    exported(run, tmp_path)
    (patches,) = run.bench.backbone.patches
    name = f"bias/{patches.name}/bias"
    assert torch.equal(tensors_in(tmp_path / "weft_adapter.safetensors")[name], run.server.shared[name])
    rows, _, _ = tiny.states(reads="images")
    assert rows.images is not None
    got = load(tmp_path, device="cpu", precision="float32").logits([rows.images[i] for i in range(len(rows))])
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


def test_adapters_that_were_written_before_they_had_a_placement_come_back(tmp_path: Path) -> None:
    run = trained(Anything(tune=Tune("bottleneck", reduction=8)), "modernbert")  # of others they are AdapterHub's
    exported(run, tmp_path)
    path = tmp_path / "weft_adapter.json"
    content = json.loads(path.read_text())
    content["parts"]["bottleneck"]["settings"] = {"reduction": 8, "std": 0.02}
    path.write_text(json.dumps(content))
    about = json.loads((tmp_path / "weft.json").read_text())
    about["files"]["weft_adapter.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "weft.json").write_text(json.dumps(about))
    got = load(tmp_path, device="cpu", precision="float32").logits(all_texts())
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


def all_texts() -> list[str]:
    rows, _, _ = tiny.states()
    return list(rows.texts)


def test_only_the_parts_that_a_view_uses_are_written(tmp_path: Path) -> None:
    run = trained(FedDAT(reduction=8, batch=4, optim=FAST), "modernbert")
    for view, parts in (("dat", {"mine", "teacher", "head"}), ("shared", {"ours", "head"}), ("personal", {"mine", "head"})):
        folder = tmp_path / view
        folder.mkdir()
        exported(run, folder, view=view)
        content = json.loads((folder / "weft_adapter.json").read_text())
        assert set(content["parts"]) == parts
        assert {n.split("/")[0] for n in tensors_in(folder / "weft_adapter.safetensors")} == parts
    content = json.loads((tmp_path / "dat" / "weft_adapter.json").read_text())
    assert content["parts"]["mine"] == {
        "kind": "Bottleneck",
        "settings": {
            "reduction": 8,
            "std": 0.02,
            "placement": "block",
            "activation": "relu",
            "up_std": None,
            "like": "",
            "scaling": None,
        },
        "sites": [s.name for s in run.bench.backbone.bottlenecks],
        "weight": 0.5,
    }


class Squared(FedBF):
    """Predicts with more than one pass."""

    info: ClassVar[MethodInfo] = dataclasses.replace(FedBF.info, slug="squared")

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return Output(0.5 * (pack(batch).logits + pack(batch, use={}).logits))


def test_a_model_that_is_more_than_its_parts_is_rebuilt_by_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.methods import registry

    known, classes = registry.infos(), registry.load
    run = trained(Squared(batch=4, optim=FAST))
    with pytest.raises(UserError, match=r'register it under the entry point "weft\.methods"'):
        exported(run, tmp_path)
    monkeypatch.setattr(registry, "infos", lambda: known | {"squared": Squared.info})
    monkeypatch.setattr(registry, "load", lambda slug: Squared if slug == "squared" else classes(slug))
    exported(run, tmp_path)
    got = load(tmp_path, device="cpu", precision="float32").logits(all_texts())
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)
    monkeypatch.undo()
    with pytest.raises(UserError, match='no method "squared"'):
        load(tmp_path, device="cpu")


# a client's own model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        FedSALoRA(rank=2, batch=4, steps=2, optim=FAST),
        FedDAT(reduction=8, batch=4, optim=FAST),
        C2A(rank=4, batch=4, optim=FAST),
    ],
    ids=["fedsa-lora", "feddat", "c2a"],
)
def test_a_clients_export_is_the_model_that_its_personal_score_is_about(method: Method, tmp_path: Path) -> None:
    run = trained(method)
    rows = np.arange(len(run.bench.table))
    view = next(v for v in method.info.views if v != "global")
    seen = []
    for client in (run.clients[0], run.clients[3]):
        folder = tmp_path / client.id
        folder.mkdir()
        run.simulation.setup.store.load(client)
        report = exported(run, folder, client=client)
        assert (report.client, report.view) == (client.id, view)
        ours = "It is in Weft's own files, as "  # of both methods of adapters
        assert [note.startswith(ours) for note in report.notes] == [True] * (report.kind == "weft")
        got = load(folder, device="cpu", precision="float32").logits(all_texts())
        expected = run.personal_logits(view, {client.id: rows})[client.id]
        torch.testing.assert_close(got, expected, **RUN_CLOSE)
        seen.append(got)
    assert not torch.allclose(seen[0], seen[1], **RUN_CLOSE)


def test_without_a_client_a_personal_methods_export_says_whose_model_it_is(tmp_path: Path) -> None:
    run = trained(FedSALoRA(rank=2, batch=4, steps=2, optim=FAST))
    report = exported(run, tmp_path)
    assert (report.view, report.client) == ("personal", None)
    assert report.notes[0].startswith("The head of this model is untrained, so that it guesses: fedsa-lora trains a model of")
    assert report.notes[0] in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"client": True}, "one model for all clients"),
        ({"client": True, "view": "global"}, "one model for all clients"),
        ({"view": "personal"}, 'no view "personal": use global'),
    ],
)
def test_a_view_that_the_method_has_not_got_is_refused(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    run = tiny.federation(FEDIT, precision="float32")
    if "client" in more:
        more = more | {"client": run.clients[0]}
    with pytest.raises(UserError, match=words):
        exported(run, tmp_path, **more)
