"""Masked language models that tell classes apart, against transformers' own models and whole sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

import tiny
from by_hand import close
from weaving import batch_of, pack_of, values_for
from weft.adaptation.part import Part
from weft.adaptation.soft_words import SoftWords
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.fill import label_words
from weft.backbones.load import load
from weft.backbones.options import Options
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import tabulate
from weft.data.rows import Rows
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.runs.baselines import ZeroShot
from weft.tasks.classification import Classification
from weft.testing.models import ENCODERS

NAMES = ("w0", "w7", "w14")
TEXTS = ("w1 w5 w2", "w9", "w33 w4 w5 w6 w1 w1 w80")


def of_texts(texts: Sequence[str], pairs: Sequence[str] | None = None) -> Rows:
    n = len(texts)
    return Rows(texts=list(texts), pairs=None if pairs is None else list(pairs), labels=np.zeros(n, np.int64), ids=np.arange(n))


def backbone(kind: str = "bert", **more: Any) -> Backbone:
    given: dict[str, Any] = {"classes": NAMES, "device": "cpu", "precision": "float64", "task": "fill"} | more
    return load(tiny.folder(kind, "mlm"), **given)


def bench(b: Backbone, texts: Sequence[str] = TEXTS, length: int = 32, prefix: bool = False) -> Bench:
    return Bench(b, Classification(NAMES), tabulate(b, of_texts(texts), length), 0, PrefixCache(b) if prefix else None)


def by_sentence(kind: str, sentence: str, words: Sequence[Sequence[str]]) -> Tensor:
    """[C] of transformers' own model, given a whole sentence with its mask."""
    folder = tiny.folder(kind, "mlm")
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(sentence, return_tensors="pt")
    slot = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    logits = model(**inputs).logits[0, slot]
    means = [torch.stack([logits[tokenizer.convert_tokens_to_ids(w)] for w in some]).mean() for some in words]
    return torch.stack(means).detach()


def shown(b: Backbone, length: int = 32) -> Tensor:
    of = bench(b, length=length)
    return pack_of(of, [{}], [{}])(batch_of(of, np.arange(len(TEXTS))[None])).logits[0]


@pytest.mark.parametrize("kind", ENCODERS)
def test_logits_are_those_of_the_label_words_at_the_mask_of_the_sentence(kind: str) -> None:
    found = shown(backbone(kind, template="w3 {} w8 {mask} w2"))
    wanted = torch.stack([by_sentence(kind, f"w3 {text} w8 [MASK] w2", [[w] for w in NAMES]) for text in TEXTS])
    close(found, wanted, 1e-4 if kind in ("modernbert", "deberta-v2") else 1e-9)  # parts of which are in single precision


def test_several_words_of_a_class_are_averaged() -> None:
    found = shown(backbone(label_words="w7=w1+w2+w3, w0=w4+w5"))
    words = [["w4", "w5"], ["w1", "w2", "w3"], ["w14"]]
    wanted = torch.stack([by_sentence("bert", f"{text} It was [MASK].", words) for text in TEXTS])
    close(found, wanted)


def test_calibration_takes_off_the_logits_of_an_empty_text() -> None:
    plain, calibrated = shown(backbone()), shown(backbone(calibrate=True))
    nothing = by_sentence("bert", " It was [MASK].", [[w] for w in NAMES])
    assert nothing.abs().max() > 0.1
    close(calibrated, plain - nothing)


def test_pairs_have_a_place_for_either_text() -> None:
    b = backbone(template="{}? {mask}, {pair}")
    table = tabulate(b, of_texts(["w1 w5", "w9"], ["w2 w3 w4", "w8"]), 32)
    of = Bench(b, Classification(NAMES), table, 0)
    found = pack_of(of, [{}], [{}])(batch_of(of, np.array([[0, 1]]))).logits[0]
    wanted = [by_sentence("bert", s, [[w] for w in NAMES]) for s in ("w1 w5? [MASK], w2 w3 w4", "w9? [MASK], w8")]
    close(found, torch.stack(wanted))


def test_texts_are_cut_and_the_template_never() -> None:
    b = backbone(template="w70 {} w71 {mask} w72")
    text = " ".join(f"w{i}" for i in range(50))
    table = tabulate(b, of_texts([text, "w5"]), 12)
    words = [b.tokenizer.decode(table.collate(np.array([i]))["input_ids"][0].tolist()) for i in range(2)]
    assert words[0] == "[CLS] w70 w0 w1 w2 w3 w4 w5 w71 [MASK] w72 [SEP]"
    assert words[1] == "[CLS] w70 w5 w71 [MASK] w72 [SEP]"
    shorter = table.collate(np.array([0, 1]), most=8)["input_ids"]
    assert b.tokenizer.decode(shorter[0].tolist()) == "[CLS] w70 w0 w1 w71 [MASK] w72 [SEP]"
    with pytest.raises(UserError, match="leave room for 6 tokens of a row, of which 6 are no text"):
        table.collate(np.array([0]), most=6)
    with pytest.raises(UserError, match=r'the template "w70 \{\} w71 \{mask\} w72" alone has 6 tokens, and --max-length 6'):
        tabulate(b, of_texts([text]), 6)


def test_of_two_texts_the_longer_is_cut_first() -> None:
    b = backbone(template="{pair} w71 {mask} {}")
    table = tabulate(b, of_texts(["w1 w2 w3 w4 w5 w6 w7"], ["w11 w12 w13 w14"]), 11)
    assert b.tokenizer.decode(table.ids.tolist()) == "[CLS] w11 w12 w13 w14 w71 [MASK] w1 w2 w3 [SEP]"
    again = table.collate(np.array([0]), most=9)["input_ids"][0].tolist()
    assert b.tokenizer.decode(again) == "[CLS] w11 w12 w13 w14 w71 [MASK] w1 [SEP]"


def test_a_mask_in_a_text_is_not_the_one_that_is_asked() -> None:
    b = backbone()
    table = tabulate(b, of_texts(["w1 [MASK] w2"]), 32)
    assert (table.ids == b.tokenizer.mask_token_id).sum() == 1
    assert b.tokenizer.decode(table.ids.tolist()).startswith("[CLS] w1 w2")


@pytest.mark.parametrize("where", ["front", "behind"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "distilbert", "electra"])
def test_the_mask_is_found_behind_soft_words(kind: str, where: str) -> None:
    b = backbone(kind)
    of, parts = bench(b), dict[str, Part](prompt=SoftWords(3, where))  # type: ignore[arg-type]
    values = values_for(of, parts, seed=1)
    (words,) = values.values()
    model = AutoModelForMaskedLM.from_pretrained(tiny.folder(kind, "mlm"), dtype=torch.float64).eval()
    found = pack_of(of, [parts], [values])(batch_of(of, np.arange(3)[None])).logits[0]
    at = int(where == "behind")
    for i, logits in enumerate(found):
        ids = of.table.collate(np.array([i]))["input_ids"]
        own = model.get_input_embeddings()(ids)
        put = torch.cat([own[:, :at], words[None], own[:, at:]], 1)  # type: ignore[index]
        slot = ids[0].tolist().index(b.tokenizer.mask_token_id) + 3
        whole = model(inputs_embeds=put, attention_mask=torch.ones(put.shape[:2], dtype=torch.int64)).logits[0, slot]
        close(logits, whole[b.tokenizer.convert_tokens_to_ids(list(NAMES))].detach())


def test_the_prefix_cache_keeps_all_tokens_of_a_row() -> None:
    """Which token is read differs from row to row, and no cache of one token knows it."""
    b = backbone()
    with_cache, without = bench(b, prefix=True), bench(b)
    index = np.arange(3)[None]
    pack = pack_of(with_cache, [{}], [{}])
    assert pack.cut() == 3
    close(pack(batch_of(with_cache, index)).logits, pack_of(without, [{}], [{}])(batch_of(without, index)).logits)


def test_zero_shot_takes_the_words_as_they_are() -> None:
    b = backbone()
    before = frozen_fingerprint(b)
    run = tiny.federation(ZeroShot(), b, rounds=1).run()
    of = bench(b)
    assert run.bench.backbone.heads == []
    found = pack_of(of, [{}], [{}])(batch_of(of, np.arange(3)[None])).logits[0]
    wanted = torch.stack([by_sentence("bert", f"{text} It was [MASK].", [[w] for w in NAMES]) for text in TEXTS])
    close(found, wanted)
    assert frozen_fingerprint(b) == before


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: a word has another token with the space before it."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "g", "Ġg", "Ġ", "h", "ok", "Ġok"]
    merges = [("Ġ", "g"), ("o", "k"), ("Ġ", "ok")]
    ids = {t: i for i, t in enumerate([*pieces, "o", "k"])}
    inner = Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", mask_token="<mask>", pad_token="<pad>")


def test_a_byte_level_word_is_the_token_with_the_space_before_it() -> None:
    words = byte_level()
    assert label_words("", ["ok", "g"], words).tolist() == [[10], [6]]


@pytest.mark.parametrize(
    ("spec", "names", "said"),
    [
        ("", ("w0", "good bad"), r'the word "good bad" for the class "good bad" is unknown to the tokenizer: choose one'),
        ("w0=w1 w2", NAMES, 'the word "w1 w2" for the class "w0" is 2 tokens to the tokenizer: choose one that is a token'),
        ("w0=w7", NAMES, '"w7" stands for the class "w0" and for "w7": give each class words of its own'),
        ("w1=w7", NAMES, '--label-words names a class "w1", which the data do not have'),
        ("w0", NAMES, '"w0" gives no words to a class: write CLASS=WORD'),
        ("w0=", NAMES, '"w0=" gives no words to a class'),
    ],
)
def test_words_that_do_not_do_are_refused_by_name(spec: str, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        backbone(classes=names, label_words=spec)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("It was {mask}.", r"has no \{\} for the text"),
        ("{} It was.", r"has no \{mask\} for the word"),
        ("{} {} {mask}", r"has more than one \{\} for the text"),
        ("{} {mask} {mask}", r"has more than one \{mask\}"),
    ],
)
def test_a_template_has_one_place_for_the_text_and_one_for_the_mask(template: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Options("fill", template)


def test_pairs_and_single_texts_need_other_templates() -> None:
    with pytest.raises(UserError, match=r"has no \{pair\} for the second text"):
        tabulate(backbone(), of_texts(["w1"], ["w2"]), 32)
    with pytest.raises(UserError, match=r"has a \{pair\}, and the rows are single texts"):
        tabulate(backbone(template="{} {mask} {pair}"), of_texts(["w1"]), 32)


def test_what_fills_no_masks_is_refused() -> None:
    with pytest.raises(UserError, match="fills no masks: choose an encoder of texts with a masked-language head"):
        load(tiny.folder("llama"), classes=NAMES, device="cpu", task="fill")
    with pytest.raises(UserError, match="tells the classes apart by words: give their names"):
        load(tiny.folder("bert", "mlm"), classes=3, device="cpu", task="fill")


def test_a_checkpoint_without_its_masked_language_head_is_refused() -> None:
    with pytest.raises(UserError, match="has no masked-language head, which fills in words: choose another"):
        load(tiny.folder("bert"), classes=NAMES, device="cpu", task="fill", label_words="")


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = tiny.folder("bert", "mlm")
    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "tokenizer_config.json"
    told = json.loads(config.read_text())
    told.pop("mask_token")
    config.write_text(json.dumps(told))
    with pytest.raises(UserError, match="has no mask token to fill"):
        load(str(tmp_path), classes=NAMES, device="cpu", task="fill")
