"""Texts that begin alike are read in few rows, and come out as if each had a row of its own."""

from __future__ import annotations

import pytest
import torch

import tiny
from weft.backbones.clip import ClassNames
from weft.backbones.common_start import arranged

LONG = "w3 w4 w5 w6 w7 w8 w9"
ENDS = ("w11", "w12 w13 w14", "w15", "w16 w17", "w11 w18")  # two of them begin alike further


def names(limit: int = 64) -> ClassNames:
    found = tiny.backbone("clip").names
    assert found is not None
    return ClassNames(found.tokenizer, ENDS, LONG + " {}", limit)


@pytest.mark.parametrize(("limit", "rows"), [(64, 1), (17, 2), (15, 3), (12, None)])
@pytest.mark.parametrize("copies", [1, 3])
def test_texts_and_their_gradients_are_those_of_rows_of_their_own(limit: int, rows: int | None, copies: int) -> None:
    model, own = tiny.backbone("clip").model, names(limit=64)
    ids = own.ids()
    common = arranged(ids, own.tokenizer.eos_token_id, limit)
    if rows is None:  # one in each row saves nothing
        assert common is None
        return
    assert common is not None
    assert len(common.ids) == rows
    assert common.ids.shape[1] <= limit
    weight = model.text_model.embeddings.token_embedding.weight
    slopes = torch.randn(copies * len(ENDS), 16, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
    weight.requires_grad_(True)
    try:
        plain, packed = model.embed_texts(ids.repeat(copies, 1)), model.embed_texts(common.ids.repeat(copies, 1), common)
        wanted, found = (torch.autograd.grad((out * slopes).sum(), weight)[0] for out in (plain, packed))
    finally:
        weight.requires_grad_(False)
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    assert wanted.abs().max() > 0.01


def test_copies_do_not_see_each_other() -> None:
    model, own = tiny.backbone("clip").model, names()
    common = arranged(own.ids(), own.tokenizer.eos_token_id, 64)
    assert common is not None
    other = common.ids.clone()
    other[:, 3] = common.ids[0, 4]
    both = model.embed_texts(torch.cat([common.ids, other]), common)
    torch.testing.assert_close(both[: len(ENDS)], model.embed_texts(common.ids, common), rtol=0, atol=1e-12)
    assert (both[: len(ENDS)] - both[len(ENDS) :]).abs().max() > 1e-3


def test_where_tokens_are_hardly_fewer_every_text_has_its_row() -> None:
    own = ClassNames(names().tokenizer, ENDS, "{} " + LONG, 64)
    assert own.common(own.ids()) is None
    assert names().common(names().ids()) is not None


def test_a_tower_that_reads_padding_has_a_row_for_each_text() -> None:
    backbone = tiny.backbone("siglip")
    assert backbone.names is not None
    assert backbone.names.common(backbone.names.ids()) is None


def test_of_texts_that_are_the_same_each_has_its_own_end() -> None:
    rows = torch.tensor([[1, 5, 6, 2, 2], [1, 5, 6, 2, 2], [1, 5, 6, 7, 2]])
    common = arranged(rows, 2, 20)
    assert common is not None
    assert common.ids.tolist() == [[1, 5, 6, 2, 2, 7, 2]]
    assert common.places.tolist() == [[0, 1, 2, 3, 3, 3, 4]]
    assert common.ends.tolist() == [3, 4, 6]
