"""The protocol: a codec turns named tensors into wire tensors and back.

A codec sees plain CPU tensors only. Which of them are differences to what the receiver holds, how factored
values are flattened, and whether a name, shape or number is acceptable is settled in
:mod:`weft.communication.wire`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """One way to write tensors down. Stateless: the same tensors and streams give the same wire tensors.

    A wire tensor is named after the tensor it belongs to, optionally followed by ``::suffix``, so that its
    bytes can be charged to the right part. With C(x) what arrives of a tensor x of n entries:
    """

    name: ClassVar[str]
    """What people call it, without its settings."""

    @property
    def text(self) -> str:
        """Name and all settings, as the header of a message says them; the registry makes the same codec of it."""
        ...

    @property
    def differences(self) -> bool:
        """Whether a tensor of which the receiver holds an older value arrives here as the difference."""
        ...

    @property
    def unbiased(self) -> bool:
        """Whether E C(x) = x over the streams, to float rounding."""
        ...

    @property
    def linear(self) -> bool:
        """Whether the sum of the wire tensors of several messages decodes to the sum of what they decode to, provided that they
        were encoded with one common stream."""
        ...

    def omega(self, n: int) -> float:
        """The least known ω with E‖C(x) - x‖² ≤ ω‖x‖²; inf for a codec that is biased."""
        ...

    def delta(self, n: int) -> float:
        """The largest known δ with E‖C(x) - x‖² ≤ (1 - δ)‖x‖²; 0 where none is."""
        ...

    def alpha(self, n: int) -> float:
        """By how much of what has arrived of a tensor of n entries both ends move what its differences are taken from; 0 where
        that stays what the receiver holds. More than 0 for every n, or for none.

        See :mod:`weft.federation.shifts`.
        """
        ...

    def encode(
        self,
        tensors: dict[str, Tensor],
        generator: torch.Generator | None,
        *,
        common: torch.Generator | None = None,
        whole: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Wire tensors, and a JSON object with whatever else :meth:`decode` needs.

        Args:
            tensors: floating point, of any shape. They belong to the codec and may be returned as they are.
            generator: the stream for this message's random choices, None where the caller has none.
            common: a stream that all messages of the round begin alike, likewise.
            whole: names of tensors that are no differences: to leave an entry out would say that it is zero. At least one bit
                of each entry is sent, so that the receiver can believe a shape that it did not know.
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
