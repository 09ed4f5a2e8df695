"""Dropout whose masks are functions of keys: which entry is dropped does not depend on what lies beside it in a pass.

A mask is no draw from a stream but a hash of (row's key, place in the row), computed for all entries at once on any device. So it
is the same whatever rows a pack puts beside it, however far they are padded, and when a block is computed once more in the
backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WEYL, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64 (Steele et al., OOPSLA 2014)
BITS = 24
"""Of a hash that are compared: shares are told apart in steps of 6e-8."""


def dropped(x: Tensor, keys: Tensor, share: float) -> Tensor:
    """x [k, n, d] with a share of its entries set to 0 and the others divided by 1 - share.

    Args:
        keys: [k, b] of the rows, where n = b × positions; [k, 1] makes one row of all.
    """
    k, n, d = x.shape
    places = torch.arange(n // keys.shape[1] * d, device=x.device) * _signed(_WEYL)
    found = mixed(mixed(keys.to(x.device)).unsqueeze(-1) + places)  # [k, b, positions · d]
    stay = (found & ((1 << BITS) - 1)) >= int(share * (1 << BITS))
    return x * stay.view(k, n, d) / (1 - share)


def mixed(value: Tensor) -> Tensor:
    """A hash of each integer (int64, as if without a sign): the finalizer of SplitMix64."""
    value = (value ^ _shifted(value, 30)) * _signed(_FIRST)
    value = (value ^ _shifted(value, 27)) * _signed(_SECOND)
    return value ^ _shifted(value, 31)


def rows_of(keys: Tensor, rows: int) -> Tensor:
    """[k, rows]: a key for each row from one for all rows of a client, [k]."""
    return mixed(keys.unsqueeze(-1) + (torch.arange(rows, device=keys.device) + 1) * _signed(_WEYL))


def _shifted(value: Tensor, by: int) -> Tensor:
    return (value >> by) & ((1 << (64 - by)) - 1)  # torch's shift keeps the sign


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant
