"""Transformers' own masked language model, which fills in the words of classes, given vectors among the words of a text."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

import tiny

LABELS = ("w0", "w7", "w14")


@functools.cache
def model_of(folder: str) -> tuple[Any, Any]:
    """The model in double precision, and its tokenizer."""
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder)


def logits(run: tiny.Federation, words: Tensor, rows: np.ndarray, where: str = "behind") -> Tensor:
    """[n, C], each row a sentence of its own: nothing is padded, and the mask is looked for behind the words."""
    model, tokenizer = model_of(run.bench.backbone.path)
    wanted = tokenizer.convert_tokens_to_ids(list(LABELS))
    found = []
    for i in rows:
        ids = run.bench.table.collate(np.array([i]))["input_ids"]
        own = model.get_input_embeddings()(ids)
        at = int(where == "behind")
        put = torch.cat([own[:, :at], words[None], own[:, at:]], 1)
        slot = ids[0].tolist().index(tokenizer.mask_token_id) + len(words)
        found.append(model(inputs_embeds=put).logits[0, slot, wanted])
    return torch.stack(found)
