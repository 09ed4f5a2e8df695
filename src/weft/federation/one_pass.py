"""Whether a method predicts by one pass of its pack, with its parts at given weights, or makes more of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from weft.tasks.outputs import Output

if TYPE_CHECKING:
    from weft.adaptation.in_flight import Weight
    from weft.federation.batch import Batch
    from weft.federation.pack import Pack


@dataclass(frozen=True)
class OnePass:
    """The pass. ``use``: the weights of the parts in it; None = each at 1."""

    use: Mapping[str, Weight] | None


def one_pass(pack: Pack, forward: Callable[[Pack, Batch], Output], batch: Batch) -> OnePass | None:
    """The one pass whose output is all that ``forward`` gives; None if it gives anything else. No pass is made to find out."""
    asked = _Asked(pack)
    try:
        out = forward(asked, batch)  # type: ignore[arg-type]
    except _LookedAt:
        return None
    return OnePass(asked.uses[0]) if len(asked.uses) == 1 and out is asked.unread else None


class _LookedAt(Exception):
    """What a pass would give was looked at."""


class _Unread(Output):
    """Stands for the output of a pass that was not made."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        raise _LookedAt


class _Asked:
    """Stands in for a pack, and notes with which weights it is called.

    Attributes:
        uses: of each call. unread: what each gives.
    """

    def __init__(self, pack: Pack):
        self.pack = pack
        self.uses: list[Mapping[str, Weight] | None] = []
        self.unread = _Unread()

    def __call__(
        self, batch: Batch, use: Mapping[str, Weight] | None = None, insert: Mapping[int, Tensor] | None = None
    ) -> Output:
        if insert:  # weights of parts do not tell of them
            raise _LookedAt
        self.uses.append(use)
        return self.unread

    def values(self, given: Mapping[str, Tensor]) -> NoReturn:
        raise _LookedAt  # nor of what stands in for their tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pack, name)
