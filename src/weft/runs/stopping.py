"""When to stop: after some rounds without a better score. It follows from the rounds alone: a resumed run decides alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weft.errors import UserError
from weft.experiment import Experiment
from weft.runs.result import best_by_validation
from weft.tasks.task import goodness
from weft.words import count


@dataclass(frozen=True)
class Score:
    """What a round is judged by.

    Attributes:
        round: its index. metric, value: as people read it. good: the larger, the better.
    """

    round: int
    metric: str
    value: float
    good: float


@dataclass(frozen=True)
class Patience:
    """Attributes:
    after: rounds without a better score. delta: by how much better it must be.
    """

    after: int
    delta: float = 0.0

    def over(self, scores: Sequence[Score]) -> str | None:
        """Why it is over after the last of these rounds, in a few words; None if it is not.

        By another metric nothing is compared, and the count begins anew.
        """
        best: Score | None = None
        for score in scores:
            if best is None or score.metric != best.metric or score.good > best.good + self.delta:
                best = score
        if best is None or (waited := scores[-1].round - best.round) < self.after:
            return None
        by = f" by more than {self.delta:g}" if self.delta else ""
        return f"{count(waited, 'round')} without a better {best.metric}{by} than {best.value:.4g} of round {best.round + 1}"


def of(x: Experiment) -> Patience | None:
    """As the settings have it."""
    return None if x.stop_after is None else Patience(x.stop_after, x.stop_delta)


def stalled(lines: Sequence[dict[str, Any]], patience: Patience) -> str | None:
    """Why a federation stops after these lines of ``rounds.jsonl``; None if it goes on.

    The score is that on the validation rows by which ``keep = "best"`` chooses.
    """
    if not lines or best_by_validation(lines[-1:]) is None:
        return None
    found = (best_by_validation([line]) for line in lines)
    scores = [Score(f["round"], f["metric"], f["validation"], goodness(f["metric"], f["validation"])) for f in found if f]
    why = patience.over(scores)
    return None if why is None else why.replace("a better ", "a better validation ", 1)


def check(x: Experiment, rows: int | None = None) -> None:
    """Refuse what could never stop.

    Args:
        rows: for validation; None: not known yet.

    Raises:
        UserError: no round would be scored on validation rows.
    """
    if x.stop_after is None:
        if x.stop_delta:
            raise UserError(f"stop_delta is {x.stop_delta:g}, but nothing stops the run: give --stop-after too.")
        return
    if not x.eval_every:
        raise UserError("--stop-after compares rounds that are scored, and with --eval-every 0 the last alone is: give another.")
    if rows == 0:
        raise UserError(
            "--stop-after goes by the score on validation rows, and there are none: give --set val_fraction=0.1, or leave it out."
        )
