"""How much a client has done in its turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Work:
    """Of one client, or of several together.

    Attributes:
        steps: of optimizers. examples: rows whose gradient was taken, each time that it was.
        forward, backward: floating-point operations; None = nobody counts them, see :mod:`weft.federation.counting`.
    """

    steps: int = 0
    examples: int = 0
    forward: int | None = None
    backward: int | None = None

    def add(self, examples: int, moving: bool) -> None:
        """One pass forward and back.

        Args:
            examples: rows, each as often as a gradient is taken of it. moving: it is a step.
        """
        self.steps += int(moving)
        self.examples += examples

    @property
    def flops(self) -> int:
        return (self.forward or 0) + (self.backward or 0)

    def record(self) -> dict[str, Any]:
        """For a line of ``rounds.jsonl``: what was counted."""
        return {name: n for name, n in asdict(self).items() if n is not None}


def total(some: Iterable[Work]) -> Work:
    """Of all of them together."""
    found = Work()
    for one in some:
        found.steps += one.steps
        found.examples += one.examples
        if one.forward is not None and one.backward is not None:
            found.forward, found.backward = (found.forward or 0) + one.forward, (found.backward or 0) + one.backward
    return found
