"""Tables of sequences of items: ids of items for :mod:`weft.backbones.vq_rec`, and the items among which a row is ranked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weft.backbones.spaces import Spaces
from weft.backbones.token_table import Tokens
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.data.rows import Rows


def items(backbone: Backbone, rows: Rows, max_length: int) -> Tokens:
    """The latest ``max_length`` items of sequences, counted from 1, 0 being padding; each row is ranked in its domain.

    Raises:
        UserError: a row's items are of several domains.
    """
    assert rows.items is not None
    limit = min(max_length, backbone.max_length)
    domain = backbone.model.domain.cpu().numpy()
    own = domain[rows.labels]
    for i, sequence in enumerate(rows.items):
        if any(domain[item] != own[i] for item in sequence):
            raise UserError(
                f"row {i} has items of several domains, and is ranked among those of one: give each row items of one."
            )
    kept = [np.asarray(sequence[-limit:], dtype=np.int32) + 1 for sequence in rows.items]
    return Tokens(
        ids=np.concatenate(kept) if kept else np.zeros(0, np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in kept])]).astype(np.int64),
        types=None,
        labels=np.asarray(rows.labels, dtype=np.int64),
        row_ids=np.asarray(rows.ids, dtype=np.int64),
        pad=0,
        allowed=Spaces(own, domain == np.arange(domain.max(initial=0) + 1)[:, None]),
    )
