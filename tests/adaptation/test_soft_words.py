"""Soft words are vectors in front of the embeddings that transformers' own models are given by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from by_hand import close
from weaving import CLOSE, INDEX, assert_as_alone, batch_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.part import Part
from weft.adaptation.soft_words import SoftWords
from weft.adaptation.tune import Tune
from weft.backbones.run_table import tabulate
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.methods import FedAvg
from weft.testing.data import rows

M = 4
ROWS = INDEX[:1]
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert")


def by_embeddings(bench: Bench, values: dict[str, Tensor], words: Tensor, at: int, index: np.ndarray) -> Tensor:
    """[n, C]: each row by itself, as embeddings, so that nothing is padded."""
    model = own_model(bench.backbone)
    set_head(model, bench.backbone, values)
    found = []
    for i in index:
        ids = bench.table.collate(np.array([i]))["input_ids"]
        assert bench.backbone.reader is not None
        own = model.get_submodule(bench.backbone.reader.name)(ids)
        put = torch.cat([own[:, :at], words[None], own[:, at:]], 1)
        found.append(model(inputs_embeds=put, attention_mask=torch.ones(put.shape[:2], dtype=torch.int64)).logits)
    return torch.cat(found).detach()


def network(values: dict[str, Tensor], site: str) -> Tensor:
    """P-tuning's encoder as a module of PyTorch's."""
    of = {n.rsplit("/", 1)[1]: v for n, v in values.items() if n.startswith(f"prompt/{site}/")}
    h, d = of["weight1"].shape
    made = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, d)).double()
    weights = {f"{2 * i}.{kind}": of[f"{kind}{i + 1}"] for i in range(3) for kind in ("weight", "bias")}
    made.load_state_dict(weights)
    return made(of["words"]).detach()


@pytest.mark.parametrize("where", ["front", "behind"])
@pytest.mark.parametrize("encoder", ["none", "mlp"])
@pytest.mark.parametrize("kind", [*ENCODERS, "gpt2", "llama"])
def test_logits_are_those_of_transformers_given_embeddings(kind: str, encoder: str, where: str) -> None:
    bench = tiny.bench(kind)
    parts: dict[str, Part] = {"prompt": SoftWords(M, where, encoder, hidden=6), "head": Head()}  # type: ignore[arg-type]
    values = values_for(bench, parts, seed=1)
    assert bench.backbone.reader is not None
    site = bench.backbone.reader.name
    words = network(values, site) if encoder == "mlp" else values[f"prompt/{site}/words"]  # type: ignore[arg-type]
    found = pack_of(bench, [parts], [values])(batch_of(bench, ROWS)).logits[0]
    assert len(set(bench.table.widths[ROWS[0]])) > 1, "no row would be padded"
    wanted = by_embeddings(bench, values, words, int(where == "behind"), ROWS[0])  # type: ignore[arg-type]
    close(found, wanted, 1e-5 if kind == "modernbert" else 1e-9)  # whose rotations are in single precision


@pytest.mark.parametrize(("kind", "behind"), [("bert", 1), ("roberta", 1), ("llama", 0), ("t5", 0)])
def test_by_default_the_head_reads_on_what_it_read(kind: str, behind: int) -> None:
    backbone = tiny.backbone(kind)
    assert SoftWords(M).behind(backbone) == behind
    inputs = {"input_ids": torch.tensor([[2, 9, 3]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    grown = SoftWords(2).inputs(backbone, inputs | {"token_type_ids": torch.tensor([[1, 1, 1]])})
    assert grown["input_ids"].tolist() == [[2, -1, -2, 9, 3] if behind else [-1, -2, 2, 9, 3]]
    assert grown["attention_mask"].tolist() == [[1, 1, 1, 1, 0]]
    assert grown["token_type_ids"].tolist() == [[1, 0, 0, 1, 1] if behind else [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("encoder", ["none", "mlp"])
@pytest.mark.parametrize("clients", [None, [2, 0]])
def test_each_client_of_a_pack_has_its_own_words(encoder: str, clients: list[int] | None) -> None:
    parts: dict[str, Part] = {"prompt": SoftWords(M, encoder=encoder, hidden=6), "head": Head()}  # type: ignore[arg-type]
    assert_as_alone(tiny.bench("bert"), [parts] * 3, clients)


def test_no_pass_starts_above_the_words() -> None:
    """Hidden states of lower blocks, kept for each row, were made without them."""
    bench = tiny.bench("bert", prefix=True)
    parts: dict[str, Part] = {"prompt": SoftWords(M), "head": Head()}
    values = values_for(bench, parts, seed=1)
    pack = pack_of(bench, [parts], [values])
    assert pack_of(bench, [{"head": Head()}], [values_for(bench, {"head": Head()}, 1)]).cut() == 3
    assert pack.cut() == 0
    plain = replace(bench, prefix=None)
    torch.testing.assert_close(
        pack(batch_of(bench, ROWS)).logits, pack_of(plain, [parts], [values])(batch_of(plain, ROWS)).logits, **CLOSE
    )


def test_words_that_are_off_leave_rows_as_they_are() -> None:
    bench = tiny.bench("bert")
    parts: dict[str, Part] = {"prompt": SoftWords(M), "head": Head()}
    values = values_for(bench, parts, seed=1)
    head = {n: v for n, v in values.items() if n.startswith("head")}
    off = pack_of(bench, [parts], [values])(batch_of(bench, ROWS), use={}).logits
    torch.testing.assert_close(off, pack_of(bench, [{"head": Head()}], [head])(batch_of(bench, ROWS)).logits, **CLOSE)


def long(bench: Bench, words: int) -> Bench:
    """The same bench over rows of so many words."""
    made = replace(rows(4), texts=[" ".join(f"w{(i * 7 + s) % 90}" for i in range(words)) for s in range(4)])
    return replace(bench, table=tabulate(bench.backbone, made, 64))


def test_rows_that_grow_too_long_lose_the_end_of_their_text_and_keep_their_last_token() -> None:
    bench = tiny.bench("bert")
    full, short = long(bench, 80), long(bench, 64 - M - 2)
    assert full.table.widths.tolist() == [64] * 4
    assert short.table.widths.tolist() == [64 - M] * 4
    parts: dict[str, Part] = {"prompt": SoftWords(M), "head": Head()}
    values = values_for(bench, parts, seed=1)
    index = np.arange(4)[None]
    cut = pack_of(full, [parts], [values])(batch_of(full, index)).logits
    torch.testing.assert_close(cut, pack_of(short, [parts], [values])(batch_of(short, index)).logits, **CLOSE)
    longer = long(bench, 64 - M - 2 + 1)
    torch.testing.assert_close(pack_of(longer, [parts], [values])(batch_of(longer, index)).logits, cut, **CLOSE)


def test_words_that_leave_no_room_for_a_text_are_refused() -> None:
    bench = long(tiny.bench("bert"), 80)
    parts: dict[str, Part] = {"prompt": SoftWords(62), "head": Head()}
    pack = pack_of(bench, [parts], [values_for(bench, parts, seed=1)])
    with pytest.raises(UserError, match="trained tokens leave room for 2 tokens of a row, of which 2 are no text: train fewer"):
        pack(batch_of(bench, np.arange(4)[None]))


def test_words_start_at_embeddings_of_words_the_same_everywhere() -> None:
    backbone = tiny.backbone("roberta")
    assert backbone.reader is not None
    table = backbone.module(backbone.reader.name).weight
    start = SoftWords(7).tensors(backbone, backbone.reader)["words"].draw(3)
    again = SoftWords(7).tensors(backbone, backbone.reader)["words"].draw(4)
    assert torch.equal(start, again)
    rows_ = [int((table.float() == v).all(1).nonzero()[0]) for v in start]
    assert len(set(rows_)) > 3
    assert not set(rows_) & set(backbone.tokenizer.all_special_ids)


def test_a_phrase_gives_the_start_from_its_beginning_again() -> None:
    backbone = tiny.backbone("bert")
    assert backbone.reader is not None
    ids = backbone.tokenizer("w5 w8", add_special_tokens=False)["input_ids"]
    start = SoftWords(3, phrase="w5 w8").tensors(backbone, backbone.reader)["words"].draw(0)
    close(start, backbone.module(backbone.reader.name).weight[[ids[0], ids[1], ids[0]]].float())
    with pytest.raises(UserError, match="holds no words to start at"):
        SoftWords(3, phrase=" ").tensors(backbone, backbone.reader)


def test_words_are_tagged_where_they_stand_in_the_row() -> None:
    """Soft words get no tag, and take none away."""
    run = tiny.federation(FedAvg(tune=Tune("words", tokens=M), epochs=1.0), "bert", task="tokens", rounds=1)
    at = run.bench.table
    pack = run.pack([0])
    index = np.array([[0, 1, 2]])
    out = pack(batch_of(run.bench, index))
    assert out.logits.shape[1] == 3 * at.widths[:3].max()
    run.run()


def test_tuning_words_is_a_kind() -> None:
    assert Tune("words", tokens=5).parts(tiny.backbone("bert"), Head())["words"] == SoftWords(5)
    assert Tune("words", tokens=5, hidden=7).parts(tiny.backbone("bert"), Head())["words"] == SoftWords(
        5, encoder="mlp", hidden=7
    )


def test_what_has_no_words_or_writes_them_is_refused() -> None:
    with pytest.raises(UserError, match="has no embedding of words to put soft words among"):
        tiny.federation(FedAvg(tune=Tune("words")), "vit")
    with pytest.raises(UserError, match="not before what a language model writes"):
        tiny.federation(FedAvg(tune=Tune("words")), "llama", task="generation")
