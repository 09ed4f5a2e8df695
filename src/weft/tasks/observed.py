"""What is kept of rows that were put to a model: a few numbers for each, from which every score is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Observed:
    """n rows.

    Attributes:
        columns: arrays [n, …] by name; which there are is the task's affair.
    """

    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def take(self, index: np.ndarray) -> Observed:
        """The rows at these positions, in this order."""
        return Observed({name: column[index] for name, column in self.columns.items()})

    @classmethod
    def concatenate(cls, some: Sequence[Observed]) -> Observed:
        """All rows of one task, one table after another; at least one table."""
        return cls({name: np.concatenate([each[name] for each in some]) for name in some[0].columns})
