"""Texts that begin alike, in few rows: what they have in common stands once in a row, and each text goes on from there.

Attention in the text tower of a CLIP is causal, so that what becomes of the start of a text does not depend on how it goes on.
Texts of one row keep the places that they have alone and do not look at each other: all comes out as if each had a row of its
own, to rounding. Of "[start][v_1 … v_16][name][.][end]" for ten classes, a tower then reads 47 tokens instead of 200.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

PAYS = 0.75
"""Share of the tokens that may be left at most: with more, the masks cost what the tokens save."""


@dataclass(frozen=True)
class CommonStart:
    """n texts in g rows of L tokens.

    Attributes:
        ids: int64 [g, L] tokens. places: int64 [g, L], of each token in its own text. sees: bool [g, L, L], which tokens a token
            looks at. ends: int64 [n], where the last tokens of texts stand in the g·L ones.
    """

    ids: Tensor
    places: Tensor
    sees: Tensor
    ends: Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(*(t.to(device) for t in (self.ids, self.places, self.sees, self.ends)))

    def beside(self, copies: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a tower takes beside the tokens [copies · g, L]."""
        hidden = torch.zeros_like(self.sees, dtype=dtype).masked_fill(~self.sees, torch.finfo(dtype).min)
        return {
            "position_ids": self.places.repeat(copies, 1),
            "attention_mask": hidden.repeat(copies, 1, 1).unsqueeze(1),
        }

    def last(self, states: Tensor) -> Tensor:
        """[copies · n, d] the states of the last tokens, of all [copies · g, L, d]."""
        return states.view(-1, self.ids.numel(), states.shape[-1])[:, self.ends].flatten(0, 1)


def arranged(rows: Tensor, end: int, limit: int) -> CommonStart | None:
    """The texts in few rows, or None where that does not pay.

    Args:
        rows: int64 [n, T], texts up to their first ``end``, padded behind it. limit: tokens that a row may have.
    """
    n, width = rows.shape
    lengths = (rows == end).int().argmax(1) + 1
    alike = (rows == rows[0]).all(0).int().cumprod(0).sum()
    start = min(int(alike), int(lengths.min()) - 1)
    texts = [row[:length].tolist() for row, length in zip(rows, lengths.tolist(), strict=True)]
    taken: list[list[list[int]]] = []
    room = 0
    for text in texts:
        own = len(text) - start
        if own > room:
            taken.append([])
            room = limit - start
        taken[-1].append(text)
        room -= own
    wide = max(start + sum(len(text) - start for text in some) for some in taken)
    if len(taken) * wide > PAYS * n * width:
        return None
    ids, places = torch.full((len(taken), wide), end), torch.zeros(len(taken), wide, dtype=torch.int64)
    sees = torch.eye(wide, dtype=torch.bool).repeat(len(taken), 1, 1)
    ends = []
    for g, some in enumerate(taken):
        ids[g, :start], places[g, :start] = rows[0, :start], torch.arange(start)
        sees[g, :start, :start] = torch.ones(start, start, dtype=torch.bool).tril()
        at = start
        for text in some:
            till = at + len(text) - start
            ids[g, at:till], places[g, at:till] = torch.tensor(text[start:]), torch.arange(start, len(text))
            sees[g, at:till, :start] = True
            sees[g, at:till, at:till] = torch.ones(till - at, till - at, dtype=torch.bool).tril()
            ends.append(g * wide + till - 1)
            at = till
    return CommonStart(ids, places, sees, torch.tensor(ends))
