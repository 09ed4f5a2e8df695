"""When the rows of an experiment arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from weft.data import periods
from weft.data.periods import Held
from weft.data.rows import Rows
from weft.experiment import Experiment
from weft.federation.arrivals import Arrivals


def arriving(x: Experiment, rows: Rows, clients: Mapping[str, Held], classes: Sequence[str]) -> tuple[Rows, Arrivals | None]:
    """The rows, told apart among the classes that the settings say, and in which period each of them arrives.

    Raises:
        UserError: these rows can't arrive so.
    """
    if x.periods == 1:
        return rows, None
    of_row = periods.deal(rows, clients, x.periods, x.periods_by, x.seed, classes)
    if x.incremental == "task":
        rows = periods.apart(rows, of_row, clients, x.periods_by, len(classes))
    return rows, Arrivals(of_row, x.periods)


def held(clients: Sequence[str], splits: Sequence[np.ndarray]) -> dict[str, Held]:
    """Where the rows of each client are.

    Args:
        splits: of each client in turn its training, validation and test rows.
    """
    return {c: Held(splits[3 * i], np.concatenate(splits[3 * i + 1 : 3 * i + 3])) for i, c in enumerate(clients)}
