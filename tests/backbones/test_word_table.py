"""The embedding as a table of words, against a plain search through all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from weft.backbones.word_table import Near, WordTable


@pytest.mark.parametrize("near", ["cosine", "distance"])
def test_the_nearest_words_are_those_of_a_search_through_all_that_are_no_special_tokens(near: Near) -> None:
    b = tiny.backbone("bert", task="fill")
    e = b.model.get_input_embeddings().weight.numpy()
    special = set(b.tokenizer.all_special_ids)
    g = np.random.default_rng(0)
    vectors = np.concatenate([g.normal(size=(5, e.shape[1])), e[sorted(special)], 0.02 * e[[40]]])
    words = WordTable(b, torch.float64)
    found = words.nearest(torch.from_numpy(vectors), 4, near).tolist()
    for v, ids in zip(vectors, found, strict=True):
        far = {
            i: -float(v @ e[i]) / float(np.linalg.norm(e[i])) if near == "cosine" else float(np.linalg.norm(v - e[i]))
            for i in range(len(b.tokenizer))
            if i not in special
        }
        assert ids == sorted(far, key=far.__getitem__)[:4]
    assert (found[-1][0] == 40) == (near == "cosine")
    assert len(words.nearest(torch.zeros(1, e.shape[1], dtype=torch.float64), 10**6, near)[0]) == len(b.tokenizer) - len(special)


def test_rows_of_the_embedding_that_are_no_token_are_near_nothing() -> None:
    b = tiny.fresh("bert")
    words = WordTable(b, torch.float64)
    own = len(b.tokenizer)
    assert own < len(words), "no row is without a token"
    near = words.nearest(words.rows[own:], 5)
    assert int(near.max()) < own


def test_the_table_is_the_models_own_bit_for_bit() -> None:
    b = tiny.backbone("bert", task="fill")
    weight = b.model.get_input_embeddings().weight
    assert torch.equal(WordTable(b, torch.float64).rows, weight)
    ids = torch.tensor([[7, 3], [3, 99]])
    assert torch.equal(WordTable(b, torch.float32)[ids], weight[ids].float())
    assert not WordTable(b, torch.float64).rows.requires_grad
