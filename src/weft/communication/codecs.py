"""How tensors are written down: a codec turns named tensors into wire tensors and back.

A codec sees plain CPU tensors only. Which of them are differences to what the receiver holds, how factored
values are flattened, and whether a name, shape or number is acceptable is settled in
:mod:`weft.communication.wire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from weft.errors import UserError, nearest


class Codec(Protocol):
    """One way to write tensors down. Stateless: the same tensors and stream give the same wire tensors.

    A wire tensor is named after the tensor it belongs to, optionally followed by ``::suffix``, so that its
    bytes can be charged to the right part.

    Attributes:
        name: what the message's header and people call it.
        differences: whether a tensor of which the receiver holds an older value arrives here as the
            difference.
        exact: whether what is decoded is what was encoded.
    """

    name: ClassVar[str]
    differences: ClassVar[bool]
    exact: ClassVar[bool]

    def encode(self, tensors: dict[str, Tensor], generator: torch.Generator | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Wire tensors, and a JSON object with whatever else :meth:`decode` needs.

        Args:
            tensors: floating point, of any shape. They belong to the codec and may be returned as they are.
            generator: the stream for random choices, None where the caller has none.
        """
        ...

    def shapes(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The names and shapes that :meth:`decode` would give, told without allocating them.

        The receiver checks them first, so that a short message can't claim a tensor that fills the memory.

        Raises:
            ValueError: if ``wire`` and ``meta``, which a stranger may have made, are not what :meth:`encode`
                writes.
        """
        ...

    def decode(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors, floating point of any precision: the receiver casts them to the dtype they came from.

        Called after :meth:`shapes` found nothing wrong.

        Raises:
            ValueError: if the numbers are not what :meth:`encode` writes.
        """
        ...


CODECS: dict[str, type[Codec]] = {}
"""Known codecs by name."""

C = TypeVar("C", bound=type[Codec])


def register(cls: C) -> C:
    """Class decorator that makes a codec known by its name; it must be constructible without arguments."""
    if cls.name in CODECS:
        raise ValueError(f"there already is a codec {cls.name!r}")
    CODECS[cls.name] = cls
    return cls


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in CODECS:
        known = ", ".join(sorted(CODECS))
        raise UserError(f'There is no codec "{name}"; choose from {known}.{nearest(name, CODECS)}')
    return CODECS[name]()


@register
class Identity:
    """Tensors as they are, in their own dtype, always as values."""

    name: ClassVar[str] = "identity"
    differences: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def encode(self, tensors: dict[str, Tensor], generator: torch.Generator | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tensors, {}

    def shapes(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        _no_meta(meta)
        for name, tensor in wire.items():
            if not tensor.is_floating_point():
                raise ValueError(f"tensor {name!r} is {tensor.dtype}, not floating point")
        return {name: tuple(tensor.shape) for name, tensor in wire.items()}

    def decode(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
        return dict(wire)


@register
class Quant8:
    """Unbiased 8-bit quantiser of differences: one float32 scale and one signed byte per element.

    With s the largest magnitude in a tensor x, the element x_i becomes a level in -127..127, drawn from the
    two integers around y_i = 127 x_i / s, the upper one with probability y_i - floor(y_i); the receiver reads
    the level times s / 127. Hence the mean over the stream is x (to float rounding), an element's variance is
    at most s^2 / (4 * 127^2), and zero stays exactly zero: what did not move arrives unmoved. Scales are per
    tensor, as A and B of LoRA differ by orders of magnitude. A tensor with an infinite or NaN element gets a
    scale that is not finite, which every receiver refuses.

    Payload: numel + 4 bytes per tensor.

    Stochastic uniform quantisation follows QSGD (Alistarh et al. 2017, arXiv 1610.02132), here with the
    max-norm; quantising what a client changed instead of what it holds follows FedPAQ (Reisizadeh et al.
    2020, arXiv 1909.13014).
    """

    name: ClassVar[str] = "quant8"
    differences: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    _LEVELS = 127
    _SCALE = "::scale"

    def encode(self, tensors: dict[str, Tensor], generator: torch.Generator | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if generator is None:
            raise ValueError("quant8 rounds at random and needs a generator")
        wire: dict[str, Tensor] = {}
        for name in sorted(tensors):  # not in the order given, which must not change what is drawn
            x = tensors[name].to(torch.float64)
            scale = _float32_not_below(x.abs().max()) if x.numel() else torch.zeros(())
            uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64)
            if 0 < scale < torch.inf:
                y = x / scale * self._LEVELS  # dividing first keeps |y| <= 127 under rounding
                lower = y.floor()
                levels = lower + (uniform < y - lower)
            else:
                levels = torch.zeros_like(x)
            wire[name] = levels.to(torch.int8)
            wire[name + self._SCALE] = scale
        return wire, {}

    def shapes(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        _no_meta(meta)
        names = {name for name in wire if not name.endswith(self._SCALE)}
        if set(wire) != names | {name + self._SCALE for name in names}:
            raise ValueError("levels and scales do not belong together")
        for name in names:
            scale = wire[name + self._SCALE]
            if wire[name].dtype != torch.int8 or scale.dtype != torch.float32 or scale.dim() != 0:
                raise ValueError(f"tensor {name!r} is not 8-bit levels with one float32 scale")
            if not 0 <= scale < torch.inf:
                raise ValueError(f"tensor {name!r} has a scale that is negative or not finite")
        return {name: tuple(wire[name].shape) for name in names}

    def decode(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors = {}
        for name, levels in wire.items():
            if name.endswith(self._SCALE):
                continue
            if (levels < -self._LEVELS).any():
                raise ValueError(f"tensor {name!r} has a level below {-self._LEVELS}")
            # In float64 until the end: scale * level can pass float32's range, scale / 127 can vanish in it
            exact = levels.to(torch.float64) * wire[name + self._SCALE].to(torch.float64) / self._LEVELS
            tensors[name] = exact.to(torch.float32)
        return tensors


def _float32_not_below(x: Tensor) -> Tensor:
    """The smallest float32 >= x, so that no element exceeds the scale; inf or NaN where float32 has none."""
    y = x.to(torch.float32)
    return torch.nextafter(y, torch.full_like(y, torch.inf)) if y < x else y


def _no_meta(meta: Mapping[str, Any]) -> None:
    if meta:
        raise ValueError("it carries settings that this codec does not have")
