"""How many rounds the server's noise has paid for: a file that is written before anything of a round goes out.

A process that is killed in a round may have given something out, and its checkpoint knows nothing of it. So a round counts from
the moment at which it begins, and once more if it has to be begun again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.privacy.hiding import Privacy
from weft.privacy.mechanism import DPFTRL
from weft.storage import files


class Spending:
    """Of one server.

    Attributes:
        rounds: that have begun. passes: of ``dp-ftrl`` that have. last: the round that began last, -1 = none.
    """

    def __init__(self, path: Path, privacy: Privacy):
        self.path, self.privacy = path, privacy
        saved: dict[str, Any] = files.read_sealed(path) if path.exists() else {}
        self.rounds, self.passes = int(saved.get("rounds", 0)), int(saved.get("passes", 0))
        self.last = int(saved.get("last", -1))

    @property
    def epsilon(self) -> float:
        """ε of all rounds so far."""
        return self.privacy.spent_on_clients(self.rounds, self.passes)

    def begin(self, t: int) -> bool:
        """A round begins; whether a pass of ``dp-ftrl`` does, too.

        Raises:
            UserError: it would take ε beyond the budget; or the file does not know of rounds that were played.
        """
        if t > self.last + 1:
            raise UserError(
                f"{self.path} is {'an older one' if self.rounds else 'gone'} and does not count round {t}, which was played, so "
                "that the budget would be told too small: put the newest one back, or begin a new run with another --name."
            )
        if (why := self.over(t)) is not None:
            raise UserError(f"round {t + 1} is not played: {why}.")
        fresh = self._fresh(t)
        self.rounds, self.passes, self.last = self.rounds + 1, self.passes + fresh, t
        files.write_sealed(self.path, {"rounds": self.rounds, "passes": self.passes, "last": t})
        return fresh

    def over(self, t: int) -> str | None:
        """Why a round can't be played, in words; None if it can."""
        if self.privacy.epsilon is None:
            return None
        then = self.privacy.spent_on_clients(self.rounds + 1, self.passes + self._fresh(t))
        if self.privacy.within(then):
            return None
        return f"it would take epsilon to {then:.3g}, beyond the budget of {self.privacy.epsilon:g}"

    def _fresh(self, t: int) -> bool:
        """A pass is of rounds in which each client takes part once at most, and of none that was begun twice."""
        return isinstance(self.privacy.central, DPFTRL) and (t % self.privacy.pass_rounds == 0 or t <= self.last)
