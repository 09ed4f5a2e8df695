"""A tokenizer is compared with the model that reads its tokens, its rows with the positions, and texts with what it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import weft
from model_folders import copy, loaded, refused
from weft.checks import tokenizers
from weft.checks.tokenizers import Reading
from weft.data.rows import Rows, Source
from weft.engines.observer import Observer
from weft.errors import UserError
from weft.testing.models import TOWERS

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Said(Observer):
    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, text: str) -> None:
        self.words.append(text)


@pytest.mark.parametrize("kind", [k for k in tiny.SHAPES if k not in tiny.IMAGES or k in TOWERS])
def test_a_folder_without_its_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    """transformers makes an empty one of most, for which every word is unknown."""
    folder = copy(kind, tmp_path / "m")
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    refused(folder, r"the tokenizer of \S+ (knows \d+ tokens, but|could not be loaded|has ids up to)")


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "clip"])
def test_an_added_token_without_a_row_of_the_embedding_is_refused(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = copy(kind, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new {i}>" for i in range(6)])  # the embedding has 100 rows
    tokenizer.save_pretrained(folder)
    refused(folder, r'has ids up to \d+, but the embedding has only 100 rows: "<new \d>" \(\d+\) has none; resize it')


def test_a_tokenizer_much_smaller_than_the_embedding_is_doubted_or_refused() -> None:
    ids = {f"w{i}": i for i in range(40)}
    assert tokenizers.vocabulary("x", ids, (), 60) == []
    assert tokenizers.vocabulary("x", ids, (), 100) == [
        "the tokenizer knows 40 tokens and the embedding has 100 rows: is it this model's own?"
    ]
    with pytest.raises(UserError, match="knows 40 tokens, but the embedding has 1,000 rows"):
        tokenizers.vocabulary("x", ids, (), 1000)
    with pytest.raises(UserError, match="knows 0 tokens"):  # those that frame a text are none
        tokenizers.vocabulary("x", ids, list(ids), 100)


@pytest.mark.parametrize("names_a_limit", [False, True])
@pytest.mark.parametrize(("kind", "longest"), [("roberta", 64), ("xlm-roberta", 64), ("bert", 64), ("opt", 64), ("gpt2", 64)])
def test_the_longest_row_that_is_made_can_be_read(kind: str, longest: int, names_a_limit: bool, tmp_path: Path) -> None:
    """A RoBERTa of 66 positions takes 64 tokens: the first is the one after its padding id."""
    folder = copy(kind, tmp_path / "m")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["model_max_length"] = 40 if names_a_limit else int(1e30)
    path.write_text(json.dumps(settings))
    b = loaded(folder)
    assert b.max_length == (40 if names_a_limit else longest)
    text = " ".join(f"w{i % 90}" for i in range(300))
    table = weft.backbones.token_table.tokenize(b, Rows([text], None, np.zeros(1), np.arange(1)), 1000)
    assert table.lengths.tolist() == [b.max_length]
    assert bool(torch.isfinite(b.model(**table.collate(np.arange(1))).logits).all())


def test_a_limit_that_leaves_no_room_for_text_is_refused(tmp_path: Path) -> None:
    folder = copy("bert", tmp_path / "m")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 3}))
    refused(folder, "takes rows of 3 tokens at most, which leaves no room for text")


@pytest.mark.parametrize("limit", ["many", [64]])
def test_a_limit_that_is_no_number_is_refused(limit: Any, tmp_path: Path) -> None:
    folder = copy("gpt2", tmp_path / "m")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": limit}))
    refused(folder, "as its model_max_length: write a number of tokens")


def test_a_tokenizer_without_its_settings_is_said(tmp_path: Path) -> None:
    folder = copy("roberta", tmp_path / "m")
    (folder / "tokenizer_config.json").unlink()
    assert loaded(folder).notes[0].startswith("there is no tokenizer_config.json beside the backbone")


def test_another_padding_id_than_the_models_is_said(tmp_path: Path) -> None:
    folder = copy("roberta", tmp_path / "m", pad_token_id=0)
    assert loaded(folder).notes == ("the tokenizer pads with the id 1, and config.json says 0: the tokenizer's is used.",)


def test_pairs_are_read_by_a_model_of_one_kind_of_segment(tmp_path: Path) -> None:
    """Its tokenizer names segment ids, and the model has one row of them."""
    folder = copy("bert", tmp_path / "m", type_vocab_size=1)
    path = folder / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": names}))
    b = loaded(folder)
    assert b.notes == ("the backbone knows one kind of segment: both texts of a pair are read as the same kind.",)
    batch = tiny.table(b, pairs=True).collate(np.arange(4))
    assert bool(torch.isfinite(b.model(**batch).logits).all())


def reading(kind: str, *texts: str) -> Reading:
    b = tiny.backbone(kind, precision="float32")
    return weft.backbones.token_table.tokenize(
        b, Rows(list(texts), None, np.zeros(len(texts)), np.arange(len(texts))), 32
    ).reading


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_empty_rows_and_unknown_tokens_are_counted(kind: str) -> None:
    assert reading(kind, "w1 w2 strange", "odd stuff", "", "w3") == Reading(rows=4, empty=1, lost=1, tokens=6, unknown=3)


def test_texts_of_which_nothing_is_known_are_refused_and_others_said() -> None:
    with pytest.raises(UserError, match=r"makes nothing of these texts: 0 of 3 rows are empty, and 4 of 5 tokens are unknown"):
        tokenizers.legible("x", Reading(3, 0, 2, 5, 4))
    with pytest.raises(UserError, match="2 of 3 rows are empty, and 0 of 4 tokens"):
        tokenizers.legible("x", Reading(3, 2, 0, 4, 0))
    tokenizers.legible("x", Reading(4, 1, 1, 10, 5))
    tokenizers.legible("x", Reading())
    assert tokenizers.known(Reading(4, 1, 1, 10, 5)) == [
        "2 of 4 texts hold no token that the backbone knows.",
        "50% of the tokens of these texts are unknown to the backbone.",
    ]
    assert tokenizers.known(Reading(4, 0, 0, 10, 1)) == tokenizers.known(Reading()) == []


def small(tmp_path: Path, texts: list[str], said: Observer, model: str = "bert", **more: Any) -> weft.Run:
    y = np.arange(len(texts)) % 2
    source = Source("texts", ("left", "right"), Rows(texts, None, y, np.arange(len(texts))))
    settings: dict[str, Any] = {"clients": 2, "rounds": 1, "device": "cpu", "precision": "float32", "runs": str(tmp_path)}
    return weft.run("fedit", tiny.folder(model), source, observer=said, baselines=[], parameters={"batch": 4}, **settings, **more)


def test_a_run_on_texts_that_the_backbone_does_not_know_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes nothing of these texts"):
        small(tmp_path, ["quite another tongue"] * 40, Observer())
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_how_much_of_its_texts_is_unknown(tmp_path: Path) -> None:
    said = Said()
    small(tmp_path, ["w1 w2 w3 strange", "w4 w5 w6 odd"] * 20, said)
    assert "25% of the tokens of these texts are unknown to the backbone." in said.words


def test_classes_that_a_text_tower_can_not_tell_apart_are_said() -> None:
    assert tokenizers.alike(["a", "b", "c"], [[1, 2], [3], [1, 2]]) == [
        'the classes "a" and "c" are the same tokens to the text tower: it can\'t tell them apart.'
    ]
