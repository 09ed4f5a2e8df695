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


class WordTable:
    """E [V, d], in which a model looks up what it reads: some of its rows may be no token's.

    Args:
        dtype: that its rows are given in.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype):
        assert backbone.reader is not None
        self.backbone, self.site, self.dtype = backbone, backbone.reader, dtype

    def __len__(self) -> int:
        """V."""
        return self.site.d_in

    @torch.no_grad()
    def __getitem__(self, ids: Tensor) -> Tensor:
        """E[ids]: what the model makes of tokens, which for some is more than to look them up."""
        found: Tensor = self.backbone.module(self.site.name)(ids.to(self.backbone.device))
        return found.to(self.dtype)

    @functools.cached_property
    def rows(self) -> Tensor:
        """E."""
        return self[torch.arange(len(self))]

    def nearest(self, vectors: Tensor, most: int, near: Near = "cosine") -> Tensor:
        """int64 [k, most]: ids of the words nearest to each vector [k, d], the nearest first; of fewer words, all.

        Special tokens, and rows that are no token's, are near nothing.

        Args:
            near: by the angle, or by the distance.
        """
        if near == "cosine":
            likeness = vectors @ self._units.T
        else:
            likeness = 2 * vectors @ self.rows.T - self.rows.square().sum(-1)
        likeness = likeness.masked_fill(self._barred, -torch.inf)
        return likeness.topk(min(most, int((~self._barred).sum())), dim=-1).indices

    @functools.cached_property
    def _units(self) -> Tensor:
        return F.normalize(self.rows, dim=-1)

    @functools.cached_property
    def _barred(self) -> Tensor:
        tokenizer = self.backbone.tokenizer
        barred = torch.ones(len(self), dtype=torch.bool)
        barred[: len(tokenizer)] = False
        barred[[i for i in tokenizer.all_special_ids if i < len(self)]] = True
        return barred.to(self.backbone.device)
