"""Languages of translations as a backbone is told them: marks of the tokenizers of translators, templates, and words."""

from __future__ import annotations

import functools
import re
import tempfile
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
)

import tiny
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.prompts import PLAIN
from weft.backbones.reply_table import Pairs, replies
from weft.backbones.translators import Translator, marks, shifting
from weft.data.rows import Rows
from weft.errors import UserError
from weft.federation import generating
from weft.methods import FedMNMT
from weft.tasks.generation_settings import Decoding
from weft.testing.models import root, scramble

PAIRS = (("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "de"))
WORDS = [f"▁w{i}" for i in range(40)]
CODES = {
    "mbart-50": {"en": "en_XX", "de": "de_DE", "fr": "fr_XX"},
    "mbart": {"en": "en_XX", "de": "de_DE", "fr": "fr_XX"},
    "nllb": {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn"},
}


def made(kind: str) -> Any:
    """The tokenizer of a translator, of forty words."""
    if kind == "nllb":
        own = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, *"w0123456789"]
        merges: list[tuple[str, str]] = []
        return NllbTokenizer(vocab={word: i for i, word in enumerate(own)}, merges=merges, tgt_lang="eng_Latn")
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((word, -1.0) for word in WORDS)]
    kinds: dict[str, Any] = {"mbart-50": MBart50Tokenizer, "mbart": MBartTokenizer}
    if kind == "mbart":
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces[3:]]
    return kinds[kind](vocab=pieces, src_lang="en_XX", tgt_lang="fr_XX")


@functools.cache
def backbone(kind: str) -> Backbone:
    tokenizer = made(kind)
    common = {
        "vocab_size": len(tokenizer) + 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "forced_eos_token_id": None, "decoder_start_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    shape: Any = (
        (M2M100Config, M2M100ForConditionalGeneration) if kind == "nllb" else (MBartConfig, MBartForConditionalGeneration)
    )
    model = shape[1](shape[0](**common))
    scramble(model)
    at = tempfile.mkdtemp(dir=root())
    model.save_pretrained(at)
    tokenizer.save_pretrained(at)
    return load(at, classes=("answer",), task="generation", precision="float64")


def rows(**more: Any) -> Rows:
    texts, answers = ([f"w{i} w{i + 1}" for i in range(4)], [f"w{i + 5} w{i + 9} w3" for i in range(4)])
    columns: dict[str, Any] = {"texts": texts, "answers": answers, "languages": PAIRS}
    return Rows(**(columns | more))


@pytest.mark.parametrize("kind", CODES)
def test_each_row_has_the_tokens_that_the_tokenizer_gives_when_it_is_set_to_its_languages(kind: str) -> None:
    b, given, codes = backbone(kind), rows(), CODES[kind]
    before = b.tokenizer.src_lang, b.tokenizer.tgt_lang
    table = replies(b, given, 40)
    assert isinstance(table, Pairs)
    assert (b.tokenizer.src_lang, b.tokenizer.tgt_lang) == before, "left as it was"
    assert not any("all rows are marked" in note for note in table.notes)
    for i, (source, target) in enumerate(PAIRS):
        one = made(kind)
        one.src_lang, one.tgt_lang = codes[source], codes[target]
        assert table.ids[table.offsets[i] : table.offsets[i + 1]].tolist() == one((given.texts or ())[i])["input_ids"]
        labels, mask = table.targets(np.array([i]))
        wanted = one(text_target=(given.answers or ())[i])["input_ids"]
        assert labels[mask].tolist() == wanted
        mark = one.convert_tokens_to_ids(codes[target])
        assert mark in (wanted[0], wanted[-1])
        inputs = table.collate(np.array([i]))["decoder_input_ids"]
        assert inputs.tolist() == [[wanted[-1], *wanted[:-1]]], "of all three what ends an answer is put in front"


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("beams", [1, 2])
def test_text_begins_in_the_language_of_its_row(kind: str, beams: int) -> None:
    """As transformers' own generation, a row at a time, told to begin with the mark."""
    b, given, codes = backbone(kind), rows(), CODES[kind]
    table = replies(b, given, 40)
    run = tiny.federation(FedMNMT(clusters="fed", reduction=8, std=0.0), b, task="generation", sizes=(4, 5))
    pack = run.pack([0], 0)
    pack.bench = replace(pack.bench, table=table)
    found = generating.write(pack, run.method.forward, [np.arange(4)], Decoding(new_tokens=6, beams=beams))[0]
    for i, (_, target) in enumerate(PAIRS):
        mark = b.tokenizer.convert_tokens_to_ids(codes[target])
        begins = {"decoder_start_token_id": mark} if kind == "mbart" else {"forced_bos_token_id": mark}
        new = 6 if kind == "mbart" else 7
        asked = {n: v for n, v in table.collate(np.array([i])).items() if n != "decoder_input_ids"}
        out = b.model.generate(**asked, **begins, max_new_tokens=new, num_beams=beams, do_sample=False, forced_eos_token_id=None)
        assert found[i] == b.tokenizer.decode(out[0], skip_special_tokens=True).strip()
    other = replies(b, rows(languages=[("en", "de")] * 4), 40)
    begun = table.beginnings(np.arange(4))  # type: ignore[union-attr]
    assert begun is not None
    assert not torch.equal(begun, other.beginnings(np.arange(4)))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("kind", CODES)
def test_rows_that_share_one_of_their_two_languages_have_each_their_own_marks(kind: str) -> None:
    pairs = [("en", "de"), ("fr", "de"), ("fr", "en"), ("fr", "en")]
    given, codes = rows(languages=pairs), CODES[kind]
    table = replies(backbone(kind), given, 40)
    for i, (source, target) in enumerate(pairs):
        one = made(kind)
        one.src_lang, one.tgt_lang = codes[source], codes[target]
        assert table.ids[table.offsets[i] : table.offsets[i + 1]].tolist() == one((given.texts or ())[i])["input_ids"]
        labels, mask = table.targets(np.array([i]))
        assert labels[mask].tolist() == one(text_target=(given.answers or ())[i])["input_ids"]


@pytest.mark.parametrize(
    ("template", "read"),
    [("plain", "w1\n\nw7"), ("say {instruction} or {input} = {output}", "say w1 or w7 = ")],
)
def test_a_translator_reads_an_input_beside_the_text_and_a_template_of_one_s_own(template: str, read: str) -> None:
    b, tokenizer = backbone("mbart-50"), made("mbart-50")
    b = replace(b, options=replace(b.options, template=template))
    table = replies(b, Rows(texts=["w1"], pairs=["w7"], answers=["w2"], languages=[("de", "fr")]), 40)
    tokenizer.src_lang = "de_DE"
    assert table.ids.tolist() == tokenizer(read)["input_ids"]


@pytest.mark.parametrize("known", [{}, {"src_lang": "en_XX"}, {"tgt_lang": "de_DE"}])
def test_a_tokenizer_that_is_not_told_its_languages_is_one_sentence(known: dict[str, str]) -> None:
    tokenizer = SimpleNamespace(**{"src_lang": None, "tgt_lang": None} | known, lang_code_to_token={}, convert_tokens_to_ids=None)
    with pytest.raises(UserError, match="is not told which: set its src_lang and tgt_lang"):
        Translator(tokenizer, PLAIN, None)


@pytest.mark.parametrize("kind", CODES)
def test_marks_are_of_languages_and_no_other_special_tokens(kind: str) -> None:
    tokenizer = made(kind)
    found = marks(tokenizer)
    assert set(CODES[kind].values()) <= found.keys()
    assert all(re.fullmatch(r"[a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}", name) for name in found)
    assert found == {name: tokenizer.convert_tokens_to_ids(name) for name in found}


def test_marks_of_m2m100_and_of_tokenizers_that_list_theirs() -> None:
    ids = {"<s>": 0, "__en__": 7, "__de__": 8, "en_XX": 3, "<extra>": 4}
    common = {"tgt_lang": "en", "convert_tokens_to_ids": ids.__getitem__}
    assert marks(SimpleNamespace(lang_code_to_token={"en": "__en__", "de": "__de__"}, **common)) == {"en": 7, "de": 8}
    special = dict.fromkeys(("pad_token", "eos_token", "bos_token", "unk_token", "mask_token"), "<s>")
    every = {"all_special_tokens": ["<s>", "en_XX", "<extra>"], "lang_code_to_id": {"en_XX": 3}}
    assert marks(SimpleNamespace(**special, **every, **common)) == {"en_XX": 3}
    assert marks(SimpleNamespace()) == {}


@pytest.mark.parametrize("kind", ["nllb", "mbart-50"])
def test_a_decoder_begins_with_its_start_and_padding_of_labels_is_padding(kind: str) -> None:
    model = backbone(kind).model
    start, pad = model.config.decoder_start_token_id, model.config.pad_token_id
    found = shifting(model)(torch.tensor([[5, 6, 7, start], [8, start, -100, -100]]))
    assert found.tolist() == [[start, 5, 6, 7], [start, 8, start, pad]]


def test_without_languages_of_rows_the_tokenizer_s_own_hold_and_that_is_said() -> None:
    table = replies(backbone("mbart-50"), rows(languages=None), 40)
    assert table.notes[0].startswith("all rows are marked as en_XX, and what is to be written as fr_XX")
    labels, _ = table.targets(np.arange(4))
    assert set(labels[:, 0].tolist()) == {backbone("mbart-50").tokenizer.convert_tokens_to_ids("fr_XX")}


def test_an_answer_that_is_cut_still_begins_in_its_language() -> None:
    table = replies(backbone("mbart-50"), rows(texts=["w1"] * 4, answers=["w1"] * 3 + ["w2 " * 30]), 12)
    begun = table.beginnings(np.arange(4))  # type: ignore[union-attr]
    tokenizer = backbone("mbart-50").tokenizer
    assert begun is not None
    assert begun.tolist() == [[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(CODES["mbart-50"][t])] for _, t in PAIRS]


def test_a_language_without_a_mark_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match='marks no language "tlh", or several: call it as the tokenizer does') as caught:
        replies(backbone("mbart-50"), rows(languages=[("en", "tlh")] * 4), 40)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r'marks no language "xe_DE", or several.* Did you mean "de_DE"\?'):
        replies(backbone("mbart-50"), rows(languages=[("en", "xe_DE")] * 4), 40)


# models without marks -----------------------------------------------------------------------------------------------------


def words(kind: str, template: str, **columns: Any) -> str:
    checkpoint = "pair" if kind == "t5" else "lm"
    b = tiny.backbone(kind, classes=1, task="generation", checkpoint=checkpoint)
    b = replace(b, options=replace(b.options, template=template))
    asked: list[str] = []
    inner = b.tokenizer

    class Listening:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def __call__(self, text: str = "", **more: Any) -> Any:
            asked.append(text)
            return inner(text, **more) if text else inner(**more)

    made = {"texts": ["w1 w2"], "answers": ["w3"]} | columns
    replies(replace(b, tokenizer=Listening()), Rows(**made), 60)
    return next(text for text in asked if "w1" in text)


def test_a_model_without_marks_is_asked_to_translate() -> None:
    plain = words("t5", "plain", languages=[("en", "de")])
    assert plain == "Translate from English to German:\n\nw1 w2\n\n"
    alpaca = words("llama", "alpaca", languages=[("cs", "tlh")])
    assert "### Instruction:\nTranslate from Czech to tlh:\n\n### Input:\nw1 w2\n\n" in alpaca
    assert words("t5", "plain") == "w1 w2\n\n", "as ever, where rows tell no languages"
    both = words("t5", "plain", languages=[("en", "de")], pairs=["w4"])
    assert both == "Translate from English to German:\n\nw1 w2\n\nw4\n\n", "an input beside the text is to be translated too"


def test_a_template_may_name_the_languages() -> None:
    named = words("llama", "From {source} into {target}: {instruction} = {output}", languages=[("fr", "cs")])
    assert named == "From French into Czech: w1 w2 = "
    both = words("llama", "Into {target}: {instruction}, {input} = {output}", languages=[("fr", "cs")], pairs=["w4"])
    assert both == "Into Czech: w1 w2, w4 = "
    with pytest.raises(UserError, match="the rows do not tell theirs"):
        words("llama", "From {source}: {instruction} = {output}")
    with pytest.raises(UserError, match=r"has a place \{sauce\} that nothing fills"):
        words("llama", "{sauce} {instruction} = {output}")
