"""What was found in a backbone is shown, and a wrong guess is put right by options: in a run, in its export, for good."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import odd_model
import tiny
from command_line import small, weft
from exporting import FAST, FEDIT, RUN_CLOSE, exported, trained
from weft.adaptation.lora import LoRA
from weft.backbones.backbone import Backbone
from weft.backbones.inventory import inventory
from weft.backbones.load import load
from weft.backbones.options import LINEAR_ROLES, Options
from weft.errors import UserError
from weft.export import load as load_export
from weft.methods.selective.fedbf import FedBF

RIGHT = {"blocks": "trunk.steps", "roles": "mix=q+k+v,weigh=none", "head": "trunk.readout"}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    where = tmp_path_factory.mktemp("odd-model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(where / "modules"))
        yield odd_model.folder(where)


def read(folder: str, **options: str) -> Backbone:
    return load(folder, classes=3, device="cpu", precision="float32", trust_remote_code=True, **options)


# wrong guesses --------------------------------------------------------------------------------------------------------


def test_each_wrong_guess_is_a_sentence_that_names_the_option_for_it(odd: str) -> None:
    with pytest.raises(UserError, match=r"no classification head .* --head"):
        read(odd)
    with pytest.raises(UserError, match=r"take and give neither hidden states of one shape .* --blocks PATH"):
        read(odd, head=RIGHT["head"])


def test_options_put_every_wrong_guess_right(odd: str) -> None:
    guessed = read(odd, blocks=RIGHT["blocks"], head=RIGHT["head"])
    b = read(odd, **RIGHT)
    assert b.blocks == [f"trunk.steps.{i}" for i in range(3)]
    assert [h.name for h in b.heads] == ["trunk.readout"]
    roles = {s.name.rsplit(".", 1)[-1]: s.role for s in guessed.linears}
    assert (roles["mix"], roles["weigh"]) == ("ffn.in", "o")
    roles = {s.name.rsplit(".", 1)[-1]: s.role for s in b.linears}
    assert roles == {"mix": "q+k+v", "back": "o", "big": "ffn.in", "small": "ffn.out"}
    assert {s.name.rsplit(".", 1)[-1] for s in b.sites("q")} == {"mix"}
    assert {s.name for s in b.outer} == {f"trunk.notes.{i}" for i in range(4)}
    assert b.pools == "first"


def test_a_corrected_backbone_trains_is_exported_and_comes_back(odd: str, tmp_path: Path) -> None:
    run = trained(FedBF(bias_scope="linear", batch=4, optim=FAST), read(odd, **RIGHT), sizes=(5, 4), rounds=1)
    exported(run, tmp_path)
    assert json.loads((tmp_path / "weft.json").read_text())["base"]["options"] == asdict(Options(**RIGHT))
    again = load_export(tmp_path, device="cpu", precision="float32", trust_remote_code=True)
    assert again.backbone.linears == run.bench.backbone.linears
    got = again.logits_of(tiny.states((5, 4))[0])
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


def test_plain_peft_loads_what_was_trained_on_a_corrected_backbone(odd: str, tmp_path: Path) -> None:
    report = exported(trained(FEDIT, read(odd, **RIGHT), sizes=(5, 4), rounds=1), tmp_path)
    assert report.kind == "peft"
    assert report.difference <= report.tolerance


def test_a_copy_in_full_precision_is_read_like_its_original(odd: str, tmp_path: Path) -> None:
    from weft.export.write import in_float32

    b = load(odd, classes=tiny.names(3), device="cpu", precision="bfloat16", trust_remote_code=True, **RIGHT)
    copy = in_float32(b, tiny.names(3))
    assert copy.dtype == torch.float32
    assert copy.options == b.options
    assert copy.linears == b.linears


def test_what_an_export_says_of_its_base_never_lets_code_run(odd: str, tmp_path: Path) -> None:
    exported(trained(FEDIT, read(odd, **RIGHT), sizes=(5,), rounds=1), tmp_path)
    assert "trust" not in (tmp_path / "weft.json").read_text()
    with pytest.raises(UserError, match="could not be loaded"):
        load_export(tmp_path, device="cpu", precision="float32")


# options that fit nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": "bert.encoder.layers"}, ['no list of blocks "bert.encoder.layers"', 'Did you mean "bert.encoder.layer"?']),
        ({"roles": "query"}, ['"query" gives no role', "ENDING=ROLE"]),
        ({"roles": "=q"}, ['"=q" gives no role']),
        ({"roles": "query=quary"}, ['unknown role "quary"', *LINEAR_ROLES, "none"]),
        ({"roles": "query=q+none"}, ['unknown role "none"']),
        ({"roles": "dense=o,qery=q"}, ['no linear layer of a block ends in "qery"', "query", 'Did you mean "query"?']),
        ({"head": "clasifier"}, ['no module "clasifier" to be its head', 'Did you mean "classifier"?']),
    ],
)
def test_an_option_that_fits_nothing_is_refused_in_a_sentence(options: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UserError) as e:
        load(tiny.folder("bert"), classes=3, device="cpu", precision="float32", **options)
    for word in words:
        assert word in str(e.value)
    assert "\n" not in str(e.value)


def test_the_first_ending_that_fits_gives_the_role() -> None:
    b = load(
        tiny.folder("bert"),
        classes=3,
        device="cpu",
        precision="float32",
        roles="attention.output.dense=none,dense=ffn.out",
    )
    roles = {s.name.split(".", 4)[-1]: s.role for s in b.linears if s.block == 0}
    assert roles["intermediate.dense"] == roles["output.dense"] == "ffn.out"
    assert "attention.output.dense" not in roles
    assert roles["attention.self.query"] == "q"
    assert {s.name for s in LoRA(1, 1.0, "all").sites(b)} == {s.name for s in b.linears}


def test_a_list_is_chosen_by_the_number_of_blocks_that_the_configuration_tells() -> None:
    from torch import nn

    from weft.backbones.describe import find_blocks

    wide = nn.ModuleList(nn.Linear(8, 80) for _ in range(2))
    base = nn.ModuleDict({"wide": wide, "stack": nn.ModuleList(nn.Linear(8, 8) for _ in range(3))})
    assert find_blocks(base, "", 3) == ["stack.0", "stack.1", "stack.2"]
    assert find_blocks(base, "model", 0) == ["model.wide.0", "model.wide.1"]  # nothing is told: the largest
    assert find_blocks(base, "model", 0, "model.stack")[0] == "model.stack.0"
    with pytest.raises(UserError, match=r"no stack of transformer blocks .* --blocks PATH"):
        find_blocks(nn.ModuleDict({"one": nn.Linear(2, 2)}), "", 3)


# what was found -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny.SHAPES)
def test_the_inventory_counts_what_is_in_the_model(kind: str) -> None:
    b = tiny.backbone(kind)
    found: dict[str, Any] = json.loads(json.dumps(inventory(b)))
    assert found["parameters"] == sum(p.numel() for p in b.model.parameters())
    inside = [n for n, m in b.model.named_modules() if hasattr(m, "weight") and any(n.startswith(p + ".") for p in b.blocks)]
    maps = sum(s.block is not None for s in b.convolutions)
    assert sum(s["count"] for s in found["linears"]) + maps + found["norms"]["in_blocks"] == sum(
        n.rsplit(".", 1)[-1] != "relative_attention_bias" for n in inside
    )
    assert found["convolutions"] >= maps
    for s in found["linears"]:
        shapes = [sorted(b.module(f"{path}.{s['name']}").weight.shape) for path in b.blocks]  # Swin's differ
        assert shapes.count(sorted((s["d_in"], s["d_out"]))) == s["count"]
    heads = {s["name"] for s in found["head"]["modules"]}
    biases = {
        n: p.numel()
        for n, p in b.model.named_parameters()
        if n.endswith("bias")
        and not n.startswith(("text_", "logit_", "vision_model.head.attention", *heads))  # the last are SigLIP's
        and not (n.startswith(("vit.embeddings", "vision_model.embeddings")) and "patch" not in n)
        and "rel_embeddings" not in n
        and not n.startswith("vilt.embeddings.patch_embeddings")  # ViLT's patches are no site
        and b.module(n.rsplit(".", 1)[0]) is not None
    }
    common = {n.split("the bias of ", 1)[1].split(" is common")[0] + ".bias" for n in b.notes}
    assert found["biases"]["elements"] == sum(size for n, size in biases.items() if n not in common)
    if kind == "clip":
        tower = found["text_tower"]
        assert tower["blocks"] == {"path": "text_model.encoder.layers", "count": 2}
        assert {s["role"]: (s["d_in"], s["d_out"], s["bias"], s["count"]) for s in tower["linears"]} == {
            **dict.fromkeys("qkvo", (24, 24, True, 2)),
            "ffn.in": (24, 64, True, 2),
            "ffn.out": (64, 24, True, 2),
        }


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("albert", "methods that leave blocks out can't be used"),
        ("llama", "--set method.add_missing=true"),
        ("clip", "there is no head"),
    ],
)
def test_what_methods_cannot_do_on_a_backbone_is_said(kind: str, words: str) -> None:
    assert any(words in note for note in inventory(tiny.backbone(kind))["notes"])
    assert not inventory(tiny.backbone("bert"))["notes"]


def test_weft_models_shows_one_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.folder("bert")
    shown = weft(capsys, "models", path)
    assert shown.code == 0
    for word in ("bert.encoder.layer", "hidden size 32", "attention.self.query", "ffn.out", "the first token", "--roles"):
        assert word in shown.out
    told = weft(capsys, "models", path, "--roles", "query=none", "--json")
    assert told.code == 0
    found = json.loads(told.out)
    assert {s["role"] for s in found["linears"]} == {"k", "v", "o", "ffn.in", "ffn.out"}
    assert found["options"]["roles"] == "query=none"


@pytest.mark.parametrize("kind", ["clip", "t5", "gpt2", "vit"])
def test_a_card_of_any_backbone_fits_eighty_columns(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = weft(capsys, "models", tiny.folder(kind))
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= 80
    assert ("Text tower" in shown.out) == (kind == "clip")


def test_weft_models_refuses_a_wrong_option_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    said = weft(capsys, "models", tiny.folder("bert"), "--blocks", "nowhere")
    assert said.code == 2
    assert 'no list of blocks "nowhere"' in said.err
    assert "Traceback" not in said.err


def test_a_run_reads_its_backbone_with_the_options_and_so_does_everything_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = weft(capsys, *small(tmp_path, "--method", "fedbf", "--set", "method.bias_scope=linear", "--roles", "query=none"))
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert 'roles = "query=none"' in (folder / "experiment.toml").read_text()
    content = json.loads((folder / "adapter" / "weft_adapter.json").read_text())
    sites = content["parts"]["bias"]["sites"]
    assert sites
    assert not [s for s in sites if s.endswith("query")]
    assert weft(capsys, "predict", folder, "w1 w2", "--device", "cpu").code == 0


def test_corrections_of_one_backbone_are_not_laid_over_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = f"{tiny.folder('bert')},{tiny.folder('gpt2')}"
    said = weft(capsys, *small(tmp_path, "--model", both, "--roles", "query=none"))
    assert said.code == 2
    assert "give a single --model with them" in said.err


@pytest.mark.parametrize(
    ("task", "template", "words"),
    [
        ("fill", "{} {foo} {mask}", r"has \{foo\}, which nothing stands for: use \{\} and \{mask\} and \{pair\}"),
        ("similarity", "a {kind} of {}", r"has \{kind\}, which nothing stands for: use \{\}, as in"),
        ("similarity", "a sketch", r"has no \{\} for the name of a class"),
        ("fill", "{} is {}: {mask}", r"has more than one \{\} for the text"),
    ],
)
def test_a_template_has_its_places_and_no_other(task: str, template: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Options(task=task, template=template)


def test_a_template_may_have_a_second_text_and_other_braces() -> None:
    assert Options(task="fill", template="{} {pair} {a b} It was {mask}.").filled.startswith("{} {pair}")
