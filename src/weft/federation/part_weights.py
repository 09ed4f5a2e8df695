"""Updates that hold some entries of a tensor: what counts of them in a mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.aggregation.mean import Weight
from weft.tensors.forms import Value
from weft.tensors.masked import Masked


def in_full(values: Mapping[str, Value]) -> dict[str, Tensor]:
    """The tensors among values, those that are there in part with zeros in the place of what is not said."""
    found = {n: v.dense() if isinstance(v, Masked) else v for n, v in values.items()}
    return {n: v for n, v in found.items() if isinstance(v, Tensor)}


def by_entry(weight: Weight, tensors: Mapping[str, Tensor], sent: Mapping[str, Value]) -> Weight:
    """The weight of an update, of each entry where only some of a tensor's count.

    Args:
        tensors: what it counts with, in full. sent: as it came.
    """
    masks = {n: v.mask for n, v in sent.items() if isinstance(v, Masked)}
    if not masks:
        return weight
    found: dict[str, float | Tensor] = {n: weight[n] if isinstance(weight, Mapping) else weight for n in tensors}
    return found | {n: torch.where(mask, torch.as_tensor(found[n], dtype=torch.float64), 0.0) for n, mask in masks.items()}
