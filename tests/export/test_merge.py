"""Adapters are added up exactly, whoever wrote them; held to PEFT's own ΔW and to dense SVDs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import torch as st

import peft_adapters
import tiny
import weft
from command_line import refused
from command_line import weft as command
from exporting import FEDIT, FLORA, exported, tensors_in, trained
from weft.errors import UserError
from weft.export import MergeReport

ODD: list[dict[str, Any]] = [
    {"r": 2, "lora_alpha": 4},
    {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["query", "key", "output.dense"]},
    {
        "r": 4,
        "lora_alpha": 3,
        "target_modules": ["query", "value"],
        "rank_pattern": {"layer.1.attention.self.query": 1, "value": 5},
        "alpha_pattern": {"query": 7, r"layer\.[02]\..*value": 2},
    },
]
GPT2: list[dict[str, Any]] = [
    {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    {"r": 1, "lora_alpha": 3, "use_rslora": True, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
]
LLAMA: list[dict[str, Any]] = [
    {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    {"r": 3, "target_modules": ["v_proj", "down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
]
UNIT = 2.0**-24
"""Largest relative error of one rounding to float32."""


def made(tmp_path: Path, configs: list[dict[str, Any]], kind: str = "bert", **more: Any) -> list[Path]:
    return [peft_adapters.saved(tmp_path / f"in{i}", i, kind, **(c | more)) for i, c in enumerate(configs)]


def summed(folders: list[Path], weights: list[float], kind: str = "bert") -> tuple[dict[str, Any], dict[str, Any]]:
    """Σ w ΔW in float64 by PEFT, and Σ |w| scale |B| |A|."""
    total: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    for folder, weight in zip(folders, weights, strict=True):
        model = peft_adapters.loaded(folder, kind)
        for name, delta in peft_adapters.deltas(model).items():
            total[name] = total.get(name, 0.0) + weight * delta
        for name, one in peft_adapters.bounds(model).items():
            bound[name] = bound.get(name, 0.0) + abs(weight) * one
    return total, bound


@pytest.mark.parametrize(
    ("kind", "configs", "weights"),
    [
        ("bert", ODD, [0.5, -1.25, 2.0]),
        ("bert", ODD[:2], None),
        ("gpt2", GPT2, [0.3, 0.7]),
        ("llama", LLAMA, [1.0, 1.0]),
    ],
    ids=["any mix", "a mean", "gpt2", "llama"],
)
def test_the_sum_is_that_of_pefts_own_changes(
    kind: str, configs: list[dict[str, Any]], weights: list[float] | None, tmp_path: Path
) -> None:
    """Each entry of B is rounded once to float32, and nothing else is lost: |ΔW - Σ w ΔW_i| <= 2^-24 Σ |w_i| s_i |B_i| |A_i|."""
    folders = made(tmp_path, configs, kind)
    report = weft.merge(folders, tmp_path / "out", weights=weights)
    shares = weights or [1 / len(folders)] * len(folders)
    assert report.weights == shares
    assert (report.error, report.worst) == (0.0, None)
    expected, bound = summed(folders, shares, kind)
    found = peft_adapters.deltas(peft_adapters.loaded(tmp_path / "out", kind))
    assert found.keys() == expected.keys()
    for name, delta in found.items():
        torch.testing.assert_close(delta, expected[name], rtol=0.0, atol=1e-6)
        assert bool(((delta - expected[name]).abs() <= UNIT * bound[name] * (1 + 1e-6) + 1e-15).all()), name
        assert delta.abs().max() > 0.1


def test_factors_are_those_of_the_adapters_one_after_the_other(tmp_path: Path) -> None:
    folders = made(tmp_path, ODD)
    report = weft.merge(folders, tmp_path / "out")
    got = tensors_in(tmp_path / "out" / "adapter_model.safetensors")
    parts = [tensors_in(f / "adapter_model.safetensors") for f in folders]
    names = {n for some in parts for n in some if n.endswith("lora_A.weight")}
    assert {n for n in got if n.endswith("lora_A.weight")} == names
    for name in names:
        assert torch.equal(got[name], torch.cat([some[name] for some in parts if name in some]))
        assert len(got[name]) == report.ranks[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert len(set(report.ranks.values())) > 2  # patterns were needed
    assert config["base_model_name_or_path"] == tiny.folder("bert")
    assert not config["use_rslora"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == report.files


def test_heads_are_averaged_in_the_proportions_of_the_weights(tmp_path: Path) -> None:
    folders = made(tmp_path, ODD[:2])
    report = weft.merge(folders, tmp_path / "out", weights=[3, 1])
    assert report.saved == ["classifier"]
    one, two = (peft_adapters.heads(peft_adapters.loaded(f)) for f in folders)
    found = peft_adapters.heads(peft_adapters.loaded(tmp_path / "out"))
    assert found.keys() == one.keys() == {"classifier.weight", "classifier.bias"}
    for name, value in found.items():
        torch.testing.assert_close(value, (0.75 * one[name].double() + 0.25 * two[name].double()).float())


def test_weights_are_taken_as_they_are_unless_they_are_to_be_normalised(tmp_path: Path) -> None:
    folders = made(tmp_path, ODD[:2])
    assert weft.merge(folders, tmp_path / "a", weights=[30, 10]).weights == [30, 10]
    assert weft.merge(folders, tmp_path / "b", weights=[30, 10], normalise=True).weights == [0.75, 0.25]
    expected, _ = summed(folders, [0.75, 0.25])
    found = peft_adapters.deltas(peft_adapters.loaded(tmp_path / "b"))
    for name, delta in found.items():
        torch.testing.assert_close(delta, expected[name], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 100])
def test_a_cut_is_the_best_of_its_rank_and_its_error_is_told(rank: int, tmp_path: Path) -> None:
    folders = made(tmp_path, ODD)
    report = weft.merge(folders, tmp_path / "out", weights=[1, 2, 0.5], rank=rank)
    expected, _ = summed(folders, [1, 2, 0.5])
    found = peft_adapters.deltas(peft_adapters.loaded(tmp_path / "out"))
    rests, norms = {}, {}
    for name, delta in expected.items():
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        best = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
        torch.testing.assert_close(found[name], best, rtol=0.0, atol=2e-6)
        assert report.ranks[name] <= rank
        rests[name], norms[name] = float(s[rank:].square().sum().sqrt()), float(s.square().sum().sqrt())
    whole = sum(r**2 for r in rests.values()) ** 0.5 / sum(n**2 for n in norms.values()) ** 0.5
    if rank == 100:
        assert (report.error, report.worst) == (0.0, None)
        return
    assert report.error == pytest.approx(whole, rel=1e-6)
    assert report.worst is not None
    worst = max(rests, key=lambda n: rests[n] / norms[n])
    assert report.worst == (worst, pytest.approx(rests[worst] / norms[worst], rel=1e-6))


def test_adapters_of_weft_and_of_peft_are_merged_with_each_other(tmp_path: Path) -> None:
    ours = []
    for i, method in enumerate((FEDIT, FLORA)):
        run = trained(method, rounds=2)
        (tmp_path / f"weft{i}").mkdir()
        assert exported(run, tmp_path / f"weft{i}").kind == "peft"
        ours.append(tmp_path / f"weft{i}")
    folders = [*ours, peft_adapters.saved(tmp_path / "peft", 5)]
    weft.merge(folders, tmp_path / "out", weights=[1, 0.5, 2])
    expected, _ = summed(folders, [1, 0.5, 2])
    found = peft_adapters.deltas(peft_adapters.loaded(tmp_path / "out"))
    assert found.keys() == expected.keys()
    for name, delta in found.items():
        torch.testing.assert_close(delta, expected[name], rtol=0.0, atol=1e-6)


def test_modules_named_as_they_were_are_named_so_again(tmp_path: Path) -> None:
    weft.merge(made(tmp_path, [ODD[0], ODD[0]]), tmp_path / "out")
    assert sorted(json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]) == ["query", "value"]


def edited(folder: Path, **changes: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def grown(folder: Path, suffix: str = "lora_A.weight") -> Path:
    """The same with wider inputs everywhere."""
    file = folder / "adapter_model.safetensors"
    tensors = {n: torch.cat([t, t], 1) if n.endswith(suffix) else t for n, t in tensors_in(file).items()}
    file.write_bytes(st.save(tensors, {"format": "pt"}))
    return folder


def cut_to_nothing(folder: Path) -> Path:
    file = folder / "adapter_model.safetensors"
    tensors = {n: t[:0] if "lora_A" in n else t[:, :0].contiguous() if "lora_B" in n else t for n, t in tensors_in(file).items()}
    file.write_bytes(st.save(tensors, {"format": "pt"}))
    return folder


def torn(folder: Path) -> Path:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def poisoned(folder: Path) -> Path:
    file = folder / "adapter_model.safetensors"
    tensors = tensors_in(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    file.write_bytes(st.save(tensors, {"format": "pt"}))
    return folder


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "another base": (lambda f: edited(f, base_model_name_or_path="other/model"), "needs one base"),
    "another revision": (lambda f: edited(f, revision="v2"), "needs one base"),
    "other shapes": (grown, "different bases"),
    "another head": (lambda f: grown(f, "classifier.weight"), "merge adapters whose heads are alike"),
    "dora": (lambda f: edited(f, use_dora=True), "with DoRA"),
    "another type": (lambda f: edited(f, peft_type="IA3"), "type IA3"),
    "biases": (lambda f: edited(f, bias="all"), "trained biases"),
    "pissa": (lambda f: edited(f, init_lora_weights="pissa_niter_4"), "have changed"),
    "torn": (torn, "is damaged"),
    "no json": (lambda f: (f / "adapter_config.json").write_text("{"), "is damaged"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "is damaged"),
    "another rank": (lambda f: edited(f, r=7), "is damaged"),
    "rank 0": (lambda f: edited(cut_to_nothing(f), r=0), "is damaged"),
    "no patterns": (lambda f: edited(f, rank_pattern=[3]), "is damaged"),
    "a bad pattern": (lambda f: edited(f, rank_pattern={"(": 3}), "is damaged"),
    "not finite": (poisoned, "not finite"),
    "no tensors": (lambda f: without(f, "adapter_model.safetensors"), "has no adapter_model.safetensors"),
    "no config": (lambda f: without(f, "adapter_config.json"), "has no adapter_config.json"),
    "gone": (shutil.rmtree, "does not exist"),
}


@pytest.mark.parametrize("what", BAD)
def test_adapters_that_do_not_fit_are_refused_and_nothing_is_written(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = made(tmp_path, ODD[:2])
    change, words = BAD[what]
    change(folders[1])
    refused(command(capsys, "merge", *folders, "-o", tmp_path / "out"), words)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("in")) == []


def test_a_head_that_one_adapter_lacks_is_refused(tmp_path: Path) -> None:
    folders = [*made(tmp_path, ODD[:1]), peft_adapters.saved(tmp_path / "bare", 1, head=False)]
    for order in (folders, folders[::-1]):
        with pytest.raises(UserError, match=r"classifier.bias whole and .*bare has not"):
            weft.merge(order, tmp_path / "out")


def test_heads_of_other_classes_are_not_averaged(tmp_path: Path) -> None:
    folders = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        exported(trained(FEDIT, rounds=1), tmp_path / str(i))
        folders.append(tmp_path / str(i))
    about = json.loads((folders[1] / "weft.json").read_text())
    (folders[1] / "weft.json").write_text(json.dumps(about | {"classes": about["classes"][::-1]}))
    with pytest.raises(UserError, match="is for the classes"):
        weft.merge(folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "1,2,3"], "number of weights is 3"),
        (["--weights", "1"], "number of weights is 1"),
        (["--weights", "1,nan"], "finite"),
        (["--weights", "1,inf"], "finite"),
        (["--weights", "1,x"], "numbers joined by commas"),
        (["--weights", "1,-1", "--normalise"], "add up to 0"),
        (["--weights", "1,-1"], "leave nothing of the heads"),
        (["--weights", "1e300,1"], "beyond those of float32"),
        (["--rank", "0"], "rank is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = made(tmp_path, ODD[:2])
    refused(command(capsys, "merge", *folders, *options, "-o", tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_has_something_in_it_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = made(tmp_path, ODD[:2])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    refused(command(capsys, "merge", *folders, "-o", tmp_path / "out"), "exists already")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_command_says_what_it_has_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = made(tmp_path, ODD[:2])
    exact = command(capsys, "merge", *folders, "--weights", "3,1", "--normalise", "-o", tmp_path / "exact")
    assert exact.code == 0
    assert "Weights: 0.75, 0.25." in exact.out
    assert "Exact:" in exact.out
    got = command(capsys, "merge", *folders, "--rank", 1, "--json", "-o", tmp_path / "cut")
    told = json.loads(got.out)
    assert told["error"] > 0
    assert isinstance(weft.merge(folders, tmp_path / "again", rank=1), MergeReport)
    again = command(capsys, "merge", tmp_path / "exact", "--rank", 1, "-o", tmp_path / "third")
    assert "relative error" in again.out
