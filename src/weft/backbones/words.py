"""The embedding of a language model as a table of words: its rows, and which of them are near a vector."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone

Near = Literal["cosine", "distance"]


def vocabulary(backbone: Backbone) -> int:
    """V, the rows of the embedding, some of which may be no token's."""
    assert backbone.reader is not None
    return backbone.reader.d_in


@torch.no_grad()
def rows_of(backbone: Backbone, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """E[ids]: what the model makes of a token, which for some is more than to look it up."""
    assert backbone.reader is not None
    found: Tensor = backbone.module(backbone.reader.name)(ids.to(backbone.device))
    return found.to(dtype)


def table_of(backbone: Backbone, dtype: torch.dtype) -> Tensor:
    """E [V, d]."""
    return rows_of(backbone, torch.arange(vocabulary(backbone)), dtype)


class Words:
    """E, and which of its words are near a vector. Special tokens, and rows that are no token's, are near none.

    Attributes:
        rows: E [V, d].

    Args:
        near: by the angle, or by the distance.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype, near: Near = "cosine"):
        self.near, self.rows = near, table_of(backbone, dtype)
        self.barred = torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device)
        self.barred[: len(backbone.tokenizer)] = False
        self.barred[[i for i in backbone.tokenizer.all_special_ids if i < len(self.rows)]] = True

    @functools.cached_property
    def _compared(self) -> Tensor:
        return F.normalize(self.rows, dim=-1) if self.near == "cosine" else self.rows

    @functools.cached_property
    def _squares(self) -> Tensor:
        return self.rows.square().sum(-1)

    def nearest(self, vectors: Tensor, most: int) -> Tensor:
        """int64 [k, most]: ids of the words nearest to each vector [k, d], the nearest first; of fewer words, all."""
        likeness = vectors @ self._compared.T
        if self.near == "distance":
            likeness = 2 * likeness - self._squares
        likeness = likeness.masked_fill(self.barred, -torch.inf)
        return likeness.topk(min(most, int((~self.barred).sum())), dim=-1).indices
