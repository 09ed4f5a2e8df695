"""What a run may cost on its simulated devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weft.devices.clock import Clock
from weft.errors import UserError


@dataclass(frozen=True)
class Budget:
    """Attributes:
    joules, grams: at most; None = any.
    """

    joules: float | None = None
    grams: float | None = None

    def over(self, clock: Clock, cohort: Sequence[str], moment: float) -> str | None:
        """Why a round of these clients that begins then would be too much, in a few words; None if it would not."""
        costs = [clock.cost(client, moment) for client in cohort]
        for i, name, unit, most, spent in self._each(clock):
            if spent + (cost := sum(one[i] for one in costs)) > most:
                left = max(most - spent, 0.0)
                return f"the next would cost about {cost:.3g} {unit}, and {left:.3g} of the {name} of {most:g} {unit} are left"
        return None

    def check(self, clock: Clock) -> None:
        """
        Raises:
            UserError: it is spent already.
        """
        for _, name, unit, most, spent in self._each(clock):
            if spent >= most:
                raise UserError(f"the {name} of {most:g} {unit} is spent already, by {spent:.4g} {unit}: give a larger one.")

    def _each(self, clock: Clock) -> Iterator[tuple[int, str, str, float, float]]:
        if self.joules is not None:
            yield 0, "energy budget", "J", self.joules, clock.joules
        if self.grams is not None:
            yield 1, "carbon budget", "g", self.grams, clock.grams
