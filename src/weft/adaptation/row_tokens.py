"""Which tokens of what a model reads are the rows' own, for whoever looks at rows as wholes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


def row_tokens(backbone: Backbone, inputs: Mapping[str, Tensor], index: np.ndarray) -> Tensor:
    """bool [k, b, T], the rows' own tokens: neither padding of a row nor a padding row. Of rows without padding [k, b].

    Args:
        inputs: what the model reads of the rows. Of preferences b is twice the rows, of beams so many times.
        index: [k, b] rows of the table, -1 = padding.
    """
    each = next(iter(inputs.values())).shape[0] // index.size
    valid = torch.from_numpy(index >= 0).repeat_interleave(each, 1)
    mask = backbone.own_tokens(inputs)
    if mask is None:
        return valid
    return mask.bool().view(*valid.shape, -1) & valid.to(mask.device).unsqueeze(-1)


def spread(own: Tensor, positions: int) -> Tensor | None:
    """The same for so many positions of a client: bool [k, b, positions / b]; None if they are not the tokens of these rows."""
    rows = own.shape[1]
    if own.dim() == 2:
        return None if positions % rows else own.unsqueeze(-1).expand(-1, -1, positions // rows)
    return own if positions == rows * own.shape[2] else None
