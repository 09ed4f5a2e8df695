"""The lines in the README of an export, run word for word, give the run's logits: whatever the base brings along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import odd_model
import tiny
from exporting import FEDIT, INFO, RUN_CLOSE, by_readme, exported, trained
from model_folders import VIT, images
from weft.backbones.load import load as load_backbone
from weft.data.rows import Rows
from weft.export import export, load


def readme(folder: Path) -> str:
    return (folder / "README.md").read_text()


def saved(kind: str, to: Path, **special: Any) -> str:
    """A copy of a tiny model whose tokenizer has other special tokens."""
    from transformers import AutoTokenizer

    tiny_folder = Path(tiny.folder(kind))
    to.mkdir()
    for path in tiny_folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(to)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(to)
    return str(to)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("padding", ["<unk>", "</s>", None])
def test_a_decoder_is_padded_as_it_was_trained(kind: str, padding: str | None, tmp_path: Path) -> None:
    """The id of <unk> is 0, which is a padding id like any other."""
    base = saved(kind, tmp_path / "base", **({} if padding is None else {"pad_token": padding}))
    run = trained(FEDIT, load_backbone(base, classes=tiny.names(3), device="cpu", precision="float32"))
    folder = tmp_path / "out"
    folder.mkdir()
    exported(run, folder)
    assert f"base.config.pad_token_id = {0 if padding == '<unk>' else 2}\n" in readme(folder)
    torch.testing.assert_close(by_readme(folder, tiny.states()[0]), run.global_logits(), **RUN_CLOSE)


def test_a_base_whose_own_padding_it_is_needs_no_line(tmp_path: Path) -> None:
    run = trained(FEDIT, "bert")
    exported(run, tmp_path)
    assert "pad_token_id = " not in readme(tmp_path).replace("reader.padding_side, reader.pad_token_id = ", "")
    torch.testing.assert_close(by_readme(tmp_path, tiny.states()[0]), run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize("kind", ["beit", "vit", "data2vec-vision"])
def test_a_base_with_a_classifier_of_its_own_loads_as_the_readme_says(kind: str, tmp_path: Path) -> None:
    base = images(kind, tmp_path / "base", VIT, "AutoModelForImageClassification", num_labels=7)
    run = trained(FEDIT, load_backbone(str(base), classes=tiny.names(3), device="cpu", precision="float32"))
    folder = tmp_path / "out"
    folder.mkdir()
    exported(run, folder)
    assert "ignore_mismatched_sizes=True" in readme(folder)
    torch.testing.assert_close(by_readme(folder, tiny.states(reads="images")[0]), run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_pairs_are_read_by_the_readme_too(kind: str, tmp_path: Path) -> None:
    run = trained(FEDIT, kind)
    export(run.method, run.server, tmp_path, INFO | {"pairs": True})
    rows = tiny.rows(9, pairs=True)
    expected = load(tmp_path, device="cpu", precision="float32").logits_of(rows)
    torch.testing.assert_close(by_readme(tmp_path, rows), expected, **RUN_CLOSE)


def test_texts_are_cut_to_what_the_base_takes_if_the_run_wanted_more(tmp_path: Path) -> None:
    run = trained(FEDIT, "roberta")
    export(run.method, run.server, tmp_path, {"run": "a-run", "settings": {"max_length": 4096}})
    assert json.loads((tmp_path / "weft.json").read_text())["max_length"] == 64
    rows = Rows([" ".join(["w3"] * 200), "w1"], None, np.zeros(2), np.arange(2))
    expected = load(tmp_path, device="cpu", precision="float32").logits_of(rows)
    torch.testing.assert_close(by_readme(tmp_path, rows), expected, **RUN_CLOSE)


def test_a_base_that_brings_its_own_code_is_trusted_by_the_readme(tmp_path: Path) -> None:
    options = {"blocks": "trunk.steps", "roles": "mix=q+k+v,back=o,weigh=none,big=ffn.in,small=ffn.out", "head": "trunk.readout"}
    (tmp_path / "odd").mkdir()
    base = odd_model.folder(tmp_path / "odd")
    b = load_backbone(base, classes=tiny.names(3), device="cpu", precision="float32", trust_remote_code=True, **options)
    run = trained(FEDIT, b)
    folder = tmp_path / "out"
    folder.mkdir()
    exported(run, folder)
    assert "trust_remote_code=True" in readme(folder)
    torch.testing.assert_close(by_readme(folder, tiny.states()[0]), run.global_logits(), **RUN_CLOSE)
