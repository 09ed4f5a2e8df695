"""An export that went wrong is an error, damaged files are refused, and the run stays as it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import torch as st
from torch import Tensor

import tiny
from exporting import FAST, FEDIT, RUN_CLOSE, exported, tensors_in, trained
from weft.adaptation.bias import Bias
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.engines.observer import Observer
from weft.errors import UserError, WeftError
from weft.export import export_run, load, peft_files
from weft.export.about import About
from weft.export.trained import Trained
from weft.federation.method import Method
from weft.methods.adapters.feddat import FedDAT
from weft.methods.selective.fedbf import FedBF
from weft.tensors.lowrank import LowRank


class Said(Observer):
    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, text: str) -> None:
        self.words.append(text)


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
    with pytest.raises(WeftError, match=r"predicts something else|is missing|is not finite"):
        exported(run, tmp_path)
    assert not (tmp_path / "weft.json").exists()


def test_the_comparison_draws_fresh_modules_otherwise_than_our_loader(tmp_path: Path) -> None:
    """Else a base module that the adapter forgets to bring along would agree by luck."""
    run = trained(FEDIT, tiny.backbone("bert", precision="float32", checkpoint="mlm"))
    exported(run, tmp_path)
    b, inputs = run.bench.backbone, run.bench.table.collate(np.arange(4))
    about = About.read(tmp_path)

    def plain_logits() -> Tensor:
        return peft_files.logits_of(peft_files.plain_model(tmp_path, b, about), b, inputs)

    whole = plain_logits()
    torch.testing.assert_close(whole, run.global_logits(np.arange(4)), **RUN_CLOSE)
    path = tmp_path / peft_files.TENSORS
    path.write_bytes(st.save({n: v for n, v in tensors_in(path).items() if "pooler" not in n}))
    config = json.loads((tmp_path / peft_files.CONFIG).read_text())
    (tmp_path / peft_files.CONFIG).write_text(json.dumps(config | {"modules_to_save": ["classifier"]}))
    assert not torch.allclose(plain_logits(), whole, rtol=0.0, atol=1e-3)


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
        exported(trained(method), found[kind])
    return found


TENSORS = {"peft": "adapter_model.safetensors", "weft": "weft_adapter.safetensors"}
CONFIGS = {"peft": "adapter_config.json", "weft": "weft_adapter.json"}


def unrecorded(folder: Path) -> None:
    """As an export that was written before its files were recorded."""
    about = json.loads((folder / "weft.json").read_text())
    (folder / "weft.json").write_text(json.dumps({n: v for n, v in about.items() if n != "files"}))


@pytest.mark.parametrize("kind", ["peft", "weft"])
@pytest.mark.parametrize("which", [TENSORS, CONFIGS], ids=["weights", "configuration"])
def test_a_bit_that_was_flipped_since_the_export_is_noticed(which: dict[str, str], kind: str, folders: dict[str, Path]) -> None:
    folder = folders[kind]
    path = folder / which[kind]
    load(folder, device="cpu", precision="float32")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path.name} is missing or damaged: it is not what was exported") as e:
        load(folder, device="cpu", precision="float32")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="is missing or damaged"):
        export_run(folder, folder.parent / "copy")


@pytest.mark.parametrize("kind", ["peft", "weft"])
def test_an_export_without_a_record_of_its_files_is_loaded_with_a_note(kind: str, folders: dict[str, Path]) -> None:
    said = Said()
    whole = load(folders[kind], device="cpu", precision="float32", observer=said).logits(["w1 w2", "w3"])
    assert said.words == []
    unrecorded(folders[kind])
    old = load(folders[kind], device="cpu", precision="float32", observer=said).logits(["w1 w2", "w3"])
    assert ["has no record of its files" in w for w in said.words] == [True]
    assert torch.equal(old, whole)


def test_a_rank_that_the_factors_do_not_have_is_noticed_without_a_record_too(folders: dict[str, Path]) -> None:
    unrecorded(folders["peft"])
    path = folders["peft"] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 99999}))
    with pytest.raises(UserError, match=r"is damaged \(adapter_config\.json says rank 99999"):
        load(folders["peft"], device="cpu", precision="float32")


def test_a_run_that_diverged_has_no_model_to_export(tmp_path: Path) -> None:
    run = trained(FEDIT)
    run.server.write("head/classifier/bias", torch.full((3,), float("nan")))
    with pytest.raises(UserError, match=r"head/classifier/bias is not finite, since training diverged"):
        exported(run, tmp_path)


@pytest.mark.parametrize("kind", ["peft", "weft"])
def test_damaged_files_are_one_sentence(kind: str, folders: dict[str, Path]) -> None:
    folder = folders[kind]
    unrecorded(folder)
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
    unrecorded(folders["weft"])
    for name in ("weft.json", "weft_adapter.json"):
        path = folders["weft"] / name
        good = path.read_text()
        path.write_text(json.dumps(json.loads(good) | {"format": 2}))
        with pytest.raises(UserError, match="format 2"):
            load(folders["weft"], device="cpu")
        path.write_text(good)


def test_a_part_of_another_version_is_refused(folders: dict[str, Path]) -> None:
    unrecorded(folders["weft"])
    path = folders["weft"] / "weft_adapter.json"
    content = json.loads(path.read_text())
    content["parts"]["bias"]["kind"] = "Hologram"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no part Hologram"):
        load(folders["weft"], device="cpu")


def test_bias_values_are_exact_after_a_round_trip(folders: dict[str, Path]) -> None:
    run = trained(FedBF(batch=4, optim=FAST))
    tensors = tensors_in(folders["weft"] / "weft_adapter.safetensors")
    for site in Bias().sites(run.bench.backbone):
        value = run.server.shared[f"bias/{site.name}/bias"]
        assert torch.equal(tensors[f"bias/{site.name}/bias"], value)  # type: ignore[arg-type]
        assert not torch.equal(value, run.bench.backbone.originals[f"{site.name}.bias"])  # type: ignore[arg-type]
