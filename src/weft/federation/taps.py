"""What goes into linear layers of the backbone, shown to functions while rows pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from weft.adaptation.attachments import Attachment
from weft.adaptation.row_tokens import row_tokens, spread
from weft.backbones.backbone import Backbone
from weft.errors import UserError, WeftError

Tap = Callable[[Tensor, Tensor], None]
"""Of x [k, b, T, d], what a layer is called with for the rows of a batch, and own [k, b, T] bool, which of it is a row's own:
neither padding of a row nor a padding row. T is 1 where a layer sees one vector of a row; a row of preferences counts as two.
Whoever keeps x keeps the pass."""


def check(backbone: Backbone, names: Iterable[str]) -> None:
    """
    Raises:
        UserError: a layer is called with more than the rows of a batch, or with tokens of two kinds of rows.
        WeftError: it is none of the linear layers that rows pass through.
    """
    sites = {s.name: s for s in (*backbone.linears, *backbone.outer, *backbone.heads)}
    for name in names:
        if backbone.encoder_decoder:
            raise UserError(
                f'backbone "{backbone.name}" reads a row and writes another, and what goes into its layers is of either: '
                "choose a --model with one stack of blocks."
            )
        if name not in sites:
            raise WeftError(f'"{name}" is no linear layer that rows pass through')
        if not sites[name].per_row:
            raise UserError(
                f'backbone "{backbone.name}" computes {name} for all rows at once too, so that what goes into it is not of rows '
                "alone: choose another --model."
            )


def attachments(backbone: Backbone, taps: Mapping[str, Tap], index: np.ndarray, inputs: Mapping[str, Tensor]) -> list[Attachment]:
    """
    Args:
        index: [k, b] rows of the table, -1 = padding. inputs: what the model reads of them.
    """
    own = row_tokens(backbone, inputs, index)
    found = []
    for name, tap in taps.items():
        run = partial(_run, name=name, tap=tap, tokens=own)
        found.append(Attachment(backbone.module(name), run))
    return found


def _run(module: nn.Module, args: tuple[Any, ...], out: Any, *, name: str, tap: Tap, tokens: Tensor) -> None:
    x: Tensor = args[0]
    k, b = tokens.shape[:2]
    if x.shape[0] % (k * b) or (x.dim() > 2 and x.shape[0] != k * b and tokens.dim() > 2):
        raise WeftError(f'"{name}" is called with {tuple(x.shape)}, which are not {k * b} rows')
    x = x.reshape(k, b, -1, x.shape[-1])  # some models lay the tokens of all rows in one line, or in windows
    one = tokens.dim() > 2 and x.shape[2] == 1  # vector of a row
    own = spread(tokens.any(2) if one else tokens, b * x.shape[2])
    if own is None:
        raise WeftError(f'"{name}" is called with {x.shape[2]} tokens a row, and rows have {tokens.shape[2]}')
    tap(x, own.to(x.device))
