"""How much clients have done in their turns."""

from __future__ import annotations

from dataclasses import dataclass

from weft.federation.batch import Batch


@dataclass
class Work:
    """Of all clients of a pack, or of a round.

    Attributes:
        steps: of optimizers, a step of a pack of k clients counts k. examples: rows whose gradient was taken, each time that it
            was.
    """

    steps: int = 0
    examples: int = 0

    def add(self, batch: Batch, times: int = 1, moving: bool = True) -> None:
        """One pass forward and back.

        Args:
            times: gradients that are taken of it. moving: it is a step.
        """
        self.steps += len(batch.index) if moving else 0
        self.examples += times * int((batch.index >= 0).sum())

    def __iadd__(self, other: Work) -> Work:
        self.steps += other.steps
        self.examples += other.examples
        return self
