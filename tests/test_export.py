"""What is exported loads anywhere and predicts what the run's model predicts, or the export says that it does not."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors import torch as st
from torch import Tensor

import tiny
from weft.adaptation.bias import Bias
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.load import load as load_backbone
from weft.errors import UserError, WeftError
from weft.export import export, load, peft_files
from weft.export.trained import Trained
from weft.export.write import ExportReport
from weft.federation.info import MethodInfo
from weft.federation.method import Adaptation, Method
from weft.federation.pack import Batch, Output, Pack
from weft.federation.scope import SHARED, TEMPORARY
from weft.methods.adapters.feddat import FedDAT
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.reparameterized.fedsa_lora import FedSALoRA
from weft.methods.reparameterized.flexlora import FlexLoRA
from weft.methods.reparameterized.flora import FLoRA
from weft.methods.selective.fedbf import FedBF
from weft.tensors.lowrank import LowRank

INFO = {"run": "a-run", "settings": {"max_length": 32}}
FAST = Optim("adamw", lr=0.05)
FEDIT = FedIT(rank=2, alpha=6.0, sites="all", batch=4, optim=FAST)
FLORA = FLoRA(rank=2, ranks=(1, 2, 3), sites="q,v", batch=4, optim=FAST)
RUN_CLOSE = {"rtol": 0.0, "atol": 2e-5}  # logits of a few units, float32


def trained(method: Method, model: Backbone | str = "bert", **more: Any) -> tiny.Federation:
    return tiny.federation(method, model, **({"precision": "float32"} | more)).run()


def exported(run: tiny.Federation, folder: Path, **more: Any) -> ExportReport:
    return export(run.server, run.bench, folder, INFO, **more)


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Read at once: a file that is mapped into memory must not be written over."""
    return st.load(path.read_bytes())


def by_peft(base: str, folder: Path, inputs: dict[str, Tensor], classes: int, pad: int) -> Tensor:
    """What anybody writes who has never heard of Weft."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(99)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    model.config.pad_token_id = pad
    with torch.no_grad():
        return PeftModel.from_pretrained(model, folder).eval()(**inputs).logits


# PEFT -----------------------------------------------------------------------------------------------------------------


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
    assert about["id2label"] == {"0": "class 0", "1": "class 1", "2": "class 2"}
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


# parts that PEFT does not know ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
@pytest.mark.parametrize(
    "method", [FedBF(batch=4, optim=FAST), FedDAT(reduction=8, batch=4, optim=FAST)], ids=["fedbf", "feddat"]
)
def test_other_parts_come_back_through_our_own_loader(kind: str, method: Method, tmp_path: Path) -> None:
    run = trained(method, kind)
    report = exported(run, tmp_path)
    assert report.kind == "weft"
    assert report.files == ["README.md", "weft.json", "weft_adapter.json", "weft_adapter.safetensors"]
    got = load(tmp_path, device="cpu", precision="float32").logits(all_texts())
    if isinstance(method, FedBF):
        expected = run.global_logits()
    else:  # what a client that was never here starts from
        pack = run.server.bench()
        method.personalise(pack)
        expected = pack.predict(lambda p, b: method.forward(p, b, "dat"), [np.arange(len(run.bench.table))])[0]
    torch.testing.assert_close(got, expected, **RUN_CLOSE)


def all_texts() -> list[str]:
    rows, _, _ = tiny.states()
    return list(rows.texts)


def test_only_the_parts_that_a_view_uses_are_written(tmp_path: Path) -> None:
    run = trained(FedDAT(reduction=8, batch=4, optim=FAST))
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
        "settings": {"reduction": 8, "std": 0.02},
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
    [FedSALoRA(rank=2, batch=4, steps=2, optim=FAST), FedDAT(reduction=8, batch=4, optim=FAST)],
    ids=["fedsa-lora", "feddat"],
)
def test_a_clients_export_is_the_model_that_its_personal_score_is_about(method: Method, tmp_path: Path) -> None:
    run = trained(method)
    rows = np.arange(len(run.bench.table))
    owner = {c.id: run.server for c in run.clients}
    view = method.info.views[0]
    seen = []
    for client in (run.clients[0], run.clients[3]):
        folder = tmp_path / client.id
        folder.mkdir()
        run.simulation.store.load(client)
        report = exported(run, folder, client=client)
        assert (report.client, report.view) == (client.id, view)
        assert report.notes == []
        got = load(folder, device="cpu", precision="float32").logits(all_texts())
        expected = run.simulation._personal_logits(view, owner, [client], {client.id: rows})[client.id]
        torch.testing.assert_close(got, expected, **RUN_CLOSE)
        seen.append(got)
    assert not torch.allclose(seen[0], seen[1], **RUN_CLOSE)


def test_without_a_client_a_personal_methods_export_says_whose_model_it_is(tmp_path: Path) -> None:
    run = trained(FedSALoRA(rank=2, batch=4, steps=2, optim=FAST))
    report = exported(run, tmp_path)
    assert (report.view, report.client) == ("personal", None)
    assert "new client starts from" in report.notes[0]
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


# trust ----------------------------------------------------------------------------------------------------------------


def corruptions() -> Iterator[tuple[str, Any]]:
    sums, write = peft_files.low_rank_sums, peft_files.write

    def scaled(t: Trained, b: Backbone) -> dict[str, LowRank]:
        return {n: v * 1.05 for n, v in sums(t, b).items()}

    def forgotten(t: Trained, b: Backbone) -> dict[str, LowRank]:
        return dict(list(sums(t, b).items())[1:])

    def without_pooler(t: Trained, b: Backbone, base: Any, folder: Path) -> dict[str, int]:
        ranks = write(t, b, base, folder)
        path = folder / peft_files.TENSORS
        path.write_bytes(st.save({n: v for n, v in tensors_in(path).items() if "pooler" not in n}))
        config = json.loads((folder / peft_files.CONFIG).read_text())
        config["modules_to_save"].remove("bert.pooler")
        (folder / peft_files.CONFIG).write_text(json.dumps(config))
        return ranks

    def not_a_number(t: Trained, b: Backbone, base: Any, folder: Path) -> dict[str, int]:
        ranks = write(t, b, base, folder)
        tensors = tensors_in(folder / peft_files.TENSORS)
        tensors["base_model.model.classifier.bias"][0] = float("nan")
        (folder / peft_files.TENSORS).write_bytes(st.save(tensors))
        return ranks

    yield "low_rank_sums", scaled
    yield "low_rank_sums", forgotten
    yield "write", without_pooler
    yield "write", not_a_number


@pytest.mark.parametrize(("what", "fault"), [*corruptions()], ids=["scaled", "a site forgotten", "pooler forgotten", "nan"])
def test_an_export_that_predicts_something_else_is_an_error(
    what: str, fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(FEDIT, tiny.backbone("bert", precision="float32", checkpoint="mlm"))
    monkeypatch.setattr(peft_files, what, fault)
    with pytest.raises(WeftError, match=r"predicts something else|is missing"):
        exported(run, tmp_path)
    assert not (tmp_path / "weft.json").exists()


def test_the_comparison_draws_fresh_modules_otherwise_than_our_loader(tmp_path: Path) -> None:
    """Else a base module that the adapter forgets to bring along would agree by luck."""
    run = trained(FEDIT, tiny.backbone("bert", precision="float32", checkpoint="mlm"))
    exported(run, tmp_path)
    b, inputs = run.bench.backbone, run.bench.table.collate(np.arange(4))
    whole = peft_files.plain_logits(tmp_path, b, 3, inputs)
    torch.testing.assert_close(whole, run.global_logits(np.arange(4)), **RUN_CLOSE)
    path = tmp_path / peft_files.TENSORS
    path.write_bytes(st.save({n: v for n, v in tensors_in(path).items() if "pooler" not in n}))
    config = json.loads((tmp_path / peft_files.CONFIG).read_text())
    (tmp_path / peft_files.CONFIG).write_text(json.dumps(config | {"modules_to_save": ["classifier"]}))
    assert not torch.allclose(peft_files.plain_logits(tmp_path, b, 3, inputs), whole, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("method", [FEDIT, FedDAT(reduction=8, batch=4, optim=FAST)], ids=["fedit", "feddat"])
def test_exporting_changes_nothing_about_the_run(method: Method, tmp_path: Path) -> None:
    one, two = (tiny.federation(method, tiny.fresh("bert", precision="float32"), rounds=3) for _ in range(2))
    one.run(2)
    two.run(2)
    before = frozen_fingerprint(one.bench.backbone)
    state = torch.get_rng_state()
    exported(one, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert frozen_fingerprint(one.bench.backbone) == before
    assert list(tiny.hooks(one.bench.backbone.model)) == []
    for run in (one, two):
        run.simulation.round(2)
    for name, value in one.server.shared.items():
        assert torch.equal(value, two.server.shared[name])  # type: ignore[arg-type]


def test_a_backbone_that_was_never_loaded_from_anywhere_is_refused(tmp_path: Path) -> None:
    b = dataclasses.replace(tiny.fresh("bert", precision="float32"), path="")
    with pytest.raises(UserError, match="save_pretrained"):
        exported(trained(FEDIT, b), tmp_path)


# damaged files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A finished export of each kind."""
    found = {"peft": tmp_path / "peft", "weft": tmp_path / "weft"}
    for kind, method in (("peft", FEDIT), ("weft", FedBF(batch=4, optim=FAST))):
        found[kind].mkdir()
        exported(tiny.federation(method, precision="float32"), found[kind])
    return found


TENSORS = {"peft": "adapter_model.safetensors", "weft": "weft_adapter.safetensors"}
CONFIGS = {"peft": "adapter_config.json", "weft": "weft_adapter.json"}


@pytest.mark.parametrize("kind", ["peft", "weft"])
def test_damaged_files_are_one_sentence(kind: str, folders: dict[str, Path]) -> None:
    folder = folders[kind]
    path = folder / TENSORS[kind]
    good = path.read_bytes()
    tensors = tensors_in(path)
    last = sorted(n for n in tensors if "classifier" in n)[-1]

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as e:
            load(folder, device="cpu", precision="float32")
        assert "\n" not in str(e.value)

    path.write_bytes(good[: len(good) // 2])
    refused("is damaged")
    path.write_bytes(st.save({n: t for n, t in tensors.items() if n != last}))
    refused("is missing")
    where = "base_model.model.classifier.more" if kind == "peft" else "head/classifier/more"
    path.write_bytes(st.save(tensors | {where: torch.zeros(1)}))
    refused("not a tensor of this model")
    path.write_bytes(st.save(tensors | {last: torch.zeros(5, 7)}))
    refused(r"has shape \(5, 7\)")
    path.unlink()
    refused("read")
    path.write_bytes(good)
    (folder / CONFIGS[kind]).write_text("{}")
    refused("is damaged")


def test_a_format_of_another_version_is_refused(folders: dict[str, Path]) -> None:
    for name in ("weft.json", "weft_adapter.json"):
        path = folders["weft"] / name
        good = path.read_text()
        path.write_text(json.dumps(json.loads(good) | {"format": 2}))
        with pytest.raises(UserError, match="format 2"):
            load(folders["weft"], device="cpu")
        path.write_text(good)


def test_a_part_of_another_version_is_refused(folders: dict[str, Path]) -> None:
    path = folders["weft"] / "weft_adapter.json"
    content = json.loads(path.read_text())
    content["parts"]["bias"]["kind"] = "Hologram"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no part Hologram"):
        load(folders["weft"], device="cpu")


def test_bias_values_are_exact_after_a_round_trip(folders: dict[str, Path]) -> None:
    b = tiny.backbone("bert", precision="float32")
    tensors = tensors_in(folders["weft"] / "weft_adapter.safetensors")
    for site in Bias().sites(b):
        assert torch.equal(tensors[f"bias/{site.name}/bias"], b.originals[f"{site.name}.bias"])
