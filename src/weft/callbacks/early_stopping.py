"""A run that stops where a number does not get better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.callbacks.callback import Callback
from weft.callbacks.tracker import numbers
from weft.runs.stopping import Patience, Score


class EarlyStopping(Callback):
    """Asks to stop after some rounds in which a number was not better than before.

    For the score on validation rows there is the setting ``stop_after``, which a repeat of the run keeps too.

    Args:
        number: a name of a tracker's numbers, such as ``training_loss`` or ``global/validation``.
        after: rounds without a better one. delta: by how much it must be better.
        less: whether less is better; None: it is for what is a loss or an error, and not for anything else.
    """

    def __init__(self, number: str = "training_loss", after: int = 3, delta: float = 0.0, less: bool | None = None):
        self.number = number
        less = number.endswith(("loss", "error", "perplexity", "mse")) if less is None else less
        self.patience = Patience(after, delta)
        self._sign = -1.0 if less else 1.0
        self._scores: list[Score] = []

    def run_started(self, about: Mapping[str, Any]) -> bool:
        self._scores = []
        return any([self._stalled(line) for line in about["played"]][-1:])

    def round_done(self, record: Mapping[str, Any]) -> bool:
        return self._stalled(record)

    def _stalled(self, line: Mapping[str, Any]) -> bool:
        value = numbers(line).get(self.number)
        if value is None:
            return False
        self._scores.append(Score(line["round"], self.number, value, self._sign * value))
        return self.patience.over(self._scores) is not None
