"""Questions about pictures as a backbone reads them: tokens of each row, and every picture once."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from weft.backbones.pixels import Pixels, pixels
from weft.backbones.token_table import Tokens, tokenize
from weft.data.rows import Rows

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Pictured(Tokens):
    """Token ids of n rows, and the pictures that they are about.

    Attributes:
        pixels: the pictures, each of them once, as rows of their own. picture: int64 [n], which of them each row is about.
        votes: int64 [v, 2], a row and a class that is right for it, and v numbers, how much so, in the order of the rows; None =
            the labels alone are right.
        classes: how many there are.
    """

    pixels: Pixels
    picture: np.ndarray
    votes: tuple[np.ndarray, np.ndarray] | None = None
    classes: int = 0

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """What each row costs a model [n], in tokens and patches."""
        return self.widths + self.pixels.tokens

    @functools.cached_property
    def spans(self) -> np.ndarray:
        return np.stack([self.lengths, np.zeros_like(self.lengths)], -1)[:, None]

    @functools.cached_property
    def _first_votes(self) -> np.ndarray:
        """Where the votes of each row begin [n + 1]."""
        assert self.votes is not None
        return np.searchsorted(self.votes[0][:, 0], np.arange(len(self) + 1))

    def beside(self, index: np.ndarray) -> torch.Tensor | None:
        """How right each class is for the rows ``index`` ([k, b]; -1 = padding), float32 [k, b, C]; None = the label alone."""
        if self.votes is None:
            return None
        found = np.zeros((index.size, self.classes), dtype=np.float32)
        places, how = self.votes
        for row, i in zip(found, index.reshape(-1).tolist(), strict=True):
            if i >= 0:
                own = slice(self._first_votes[i], self._first_votes[i + 1])
                row[places[own, 1]] = how[own]
        return torch.from_numpy(found.reshape(*index.shape, self.classes))

    def collate(self, index: np.ndarray, width: int | None = None, most: int | None = None) -> dict[str, torch.Tensor]:
        """As of :meth:`Tokens.collate`, with ``pixel_values`` float32 [m, 3, H, W]; those of a padding row are 0."""
        which = np.where(index >= 0, self.picture[index], -1) if len(self) else np.full(len(index), -1)
        return super().collate(index, width, most) | self.pixels.collate(which)


def pictured(backbone: Backbone, rows: Rows, max_length: int = 128) -> Pictured:
    """Tokenise questions, cut to ``max_length`` tokens, and bring each picture to the backbone's size once."""
    assert rows.images is not None
    known: dict[object, int] = {}
    picture = np.array([known.setdefault(rows.images.key(i), len(known)) for i in range(len(rows))], dtype=np.int64)
    first = np.unique(picture, return_index=True)[1]
    alone = Rows(images=rows.images.take(first.tolist()), labels=np.zeros(len(first), np.int64))
    tokens = tokenize(backbone, rows, max_length)
    votes = None
    if rows.votes is not None:
        places = [(i, c) for i, own in enumerate(rows.votes) for c in own]
        how = [v for own in rows.votes for v in own.values()]
        votes = np.array(places, dtype=np.int64).reshape(-1, 2), np.array(how, dtype=np.float32)
    return Pictured(
        **{f.name: getattr(tokens, f.name) for f in fields(tokens)},
        pixels=pixels(backbone, alone),
        picture=picture,
        votes=votes,
        classes=int(backbone.model.config.num_labels),
    )
