"""Classes that rows may have, where many rows have the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spaces:
    """Stands for an array bool [n, C] of which most rows are alike.

    Attributes:
        of: int64 [n], the space of each row. spaces: bool [s, C].
    """

    of: np.ndarray
    spaces: np.ndarray

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """bool [..., C] of the rows at ``index``."""
        found: np.ndarray = self.spaces[self.of[index]]
        return found

    @property
    def sizes(self) -> np.ndarray:
        """How many classes each row may have [n]."""
        found: np.ndarray = self.spaces.sum(1)[self.of]
        return found
