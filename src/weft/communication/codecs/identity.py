"""Tensors as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from weft.communication.codecs.configured import Configured
from weft.communication.codecs.known import register


@register
@dataclass(frozen=True)
class Identity(Configured):
    """Tensors as they are, in their own dtype, always as values: n · itemsize bytes."""

    name: ClassVar[str] = "identity"
    source: ClassVar[str] = ""
    differences: ClassVar[bool] = False
    unbiased: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def omega(self, n: int) -> float:
        return 0.0

    def delta(self, n: int) -> float:
        return 1.0

    def alpha(self, n: int) -> float:
        return 0.0

    def encode(
        self,
        tensors: dict[str, Tensor],
        generator: torch.Generator | None,
        *,
        common: torch.Generator | None = None,
        whole: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tensors, {}

    def shapes(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        if meta:
            raise ValueError("it carries settings that this codec does not have")
        for name, tensor in wire.items():
            if not tensor.is_floating_point():
                raise ValueError(f"tensor {name!r} is {tensor.dtype}, not floating point")
        return {name: tuple(tensor.shape) for name, tensor in wire.items()}

    def decode(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
        return dict(wire)
