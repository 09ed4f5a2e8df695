"""The backbones whose weights are part of Weft: small, whole, in half precision, those of their cards."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoTokenizer

import shipped
from shipped import SHIPPED, folder, plain
from weft import data
from weft.backbones.load import load
from weft.backbones.short_names import KNOWN
from weft.data.glyph_questions import glyph_questions

OF_PICTURES = [name for name in SHIPPED if "image" in KNOWN[name].kind]
CLIPS = [name for name in SHIPPED if KNOWN[name].kind == "image and text"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_half_precision_and_those_of_their_card(name: str) -> None:
    assert sum(file.stat().st_size for file in folder(name).iterdir()) <= 4 * 2**20
    digest = hashlib.sha256((folder(name) / "model.safetensors").read_bytes()).hexdigest()
    card = (folder(name) / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"sha256 of `model.safetensors`: `(\w+)`", card) == [digest]
    assert KNOWN[name].sha256 == digest
    assert "license: apache-2.0" in card
    with safe_open(folder(name) / "model.safetensors", "pt") as tensors:
        weights = [tensors.get_tensor(key) for key in tensors.keys()]  # noqa: SIM118 (not a mapping)
    assert {w.dtype for w in weights} == {torch.float16}
    assert all(bool(w.isfinite().all()) for w in weights)
    count = sum(w.numel() for w in weights)
    assert f"{count:,} parameters" in card
    assert KNOWN[name].parameters == pytest.approx(count / 1e6, abs=0.1)


@pytest.mark.parametrize("name", OF_PICTURES)
def test_transformers_loads_a_shipped_backbone_whole_and_its_processor_gives_what_it_was_trained_on(name: str) -> None:
    model, info = plain(name)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    size = getattr(model.config, "vision_config", model.config).image_size
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained(folder(name), backend="pil")
    given = processor(images=[picture], return_tensors="pt")["pixel_values"]
    by_hand = torch.from_numpy(picture[None] / 127.5 - 1).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(given, by_hand, rtol=0.0, atol=1e-5)


def test_a_backbone_of_questions_is_loaded_whole_and_reads_what_it_was_trained_on() -> None:
    model, info = plain("glyph-vilt")
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder("glyph-vilt"))
    rows = glyph_questions().train
    ids = tokenizer(list(rows.texts or ())[:400])["input_ids"]
    assert all(tokenizer.unk_token_id not in row for row in ids)
    assert {row[0] for row in ids} == {tokenizer.cls_token_id}
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["[CLS]", *(rows.texts or ())[0].replace("?", " ?").split(), "[SEP]"]
    assert len(tokenizer) == model.config.vocab_size
    processor = load("glyph-vilt", classes=2, device="cpu").processor
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    by_hand = torch.from_numpy(picture[None] / 127.5 - 1).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(processor(images=[picture], return_tensors="pt")["pixel_values"], by_hand, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("name", CLIPS)
def test_a_text_ends_with_the_highest_id_where_the_text_tower_looks_for_it(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    ids = tokenizer(["A photo of a K.", "[X] [X] k."])["input_ids"]
    assert [row[0] for row in ids] == [tokenizer.bos_token_id] * 2
    assert [row[-1] for row in ids] == [tokenizer.eos_token_id] * 2
    assert ids[0] == tokenizer("a photo of a k.")["input_ids"]
    assert ids[1][1:3] == [tokenizer.convert_tokens_to_ids("[X]")] * 2
    text = plain(name)[0].config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id,
    )  # fmt: skip
    assert text.eos_token_id == len(tokenizer) - 1 == text.vocab_size - 1
    assert tokenizer.model_max_length == text.max_position_embeddings


def test_a_backbone_that_writes_about_pictures_is_loaded_whole_and_reads_questions_as_words() -> None:
    model, info = plain("glyph-llava")
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder("glyph-llava"))
    assert len(tokenizer) == model.config.text_config.vocab_size
    assert tokenizer.convert_ids_to_tokens(model.config.image_token_id) == "<image>"
    ours = load("glyph-llava", classes=("answer",), device="cpu", task="generation")  # whose language model alone says padding
    assert ours.model.config.pad_token_id == tokenizer.pad_token_id
    assert not ours.notes
    for name in ("glyph_questions", "glyph_boxes"):
        rows = data.load(name, wanted="answers").train
        ids = tokenizer([*(rows.texts or ())[:200], *(rows.answers or ())[:200]])["input_ids"]
        assert all(tokenizer.unk_token_id not in row for row in ids)
        assert {row[0] for row in ids} == {tokenizer.bos_token_id}
        assert all(tokenizer.eos_token_id not in row for row in ids)
    assert tokenizer.decode(tokenizer("[3, 1, 14, 12]", add_special_tokens=False)["input_ids"]).replace(" ", "") == "[3,1,14,12]"


def test_glyph_llava_goes_on_with_what_stands_where_on_pictures_in_its_own_fonts_and_less_well_in_others() -> None:
    script = shipped.script("pretrain_llava")
    captions = script.Captions(AutoTokenizer.from_pretrained(folder("glyph-llava")))
    found = script.measured(plain("glyph-llava")[0].eval(), captions, 20_000)  # a seed that pretraining does not use
    fresh, unseen = found["fresh pictures"], found["pictures of `glyph_questions`"]
    assert fresh["letters"] >= 0.7
    assert fresh["colours"] >= 0.9
    assert 0.4 < unseen["letters"] < fresh["letters"]
    assert 0.6 < unseen["colours"] < fresh["colours"]
