"""The energy of rounds, noted in their lines of ``rounds.jsonl`` before these are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weft.energy import carbon, counters
from weft.energy.meters import KWH, Declared, Drawn, Measured, Meter

if TYPE_CHECKING:
    from weft.experiment import Experiment


class Metering:
    """Notes nothing: of a run whose energy nobody asked for."""

    def begin(self) -> None:
        """Work on a round begins now."""

    def trained(self, line: dict[str, Any]) -> None:
        """But for its scoring it has ended, and took ``seconds.training`` of the line."""

    def scored(self, line: dict[str, Any]) -> None:
        """That has ended too, and took ``seconds.evaluation``."""

    def close(self) -> None:
        """No further round."""


UNMETERED = Metering()


class Metered(Metering):
    """Notes what a meter says, less what the machine draws idle.

    A round's number may be negative, if the machine draws less at work than when it was held to be idle: that is said.

    Args:
        grams: of CO₂ for a kWh; None = carbon is not told. say: for sentences to a person.
    """

    def __init__(self, meter: Meter, grams: float | None, say: Callable[[str], None]):
        self.meter, self.grams, self.say = meter, grams, say
        self._told: set[str] = set()

    def begin(self) -> None:
        self.meter.begin()
        idle = f"{self.meter.idle:.3g} W of an idle machine are" if self.meter.idle else "nothing of an idle machine is"
        self._once("source", f"energy: {self.meter.source}; {idle} subtracted.")

    def trained(self, line: dict[str, Any]) -> None:
        drawn = self.meter.drawn(line["seconds"]["training"])
        if drawn is None:
            self._failed(line)
            return
        kwh = self._net(line, drawn)
        line["energy"] = {
            "kwh": kwh,
            "co2_kg": None if self.grams is None else kwh * self.grams / 1000,
            "source": self.meter.source,
            "idle_w": self.meter.idle,
            "gross_kwh": drawn.kwh,
            "g_per_kwh": self.grams,
        }

    def scored(self, line: dict[str, Any]) -> None:
        drawn = self.meter.drawn(line["seconds"]["evaluation"])
        if drawn is None:
            self._failed(line)
        elif "energy" in line:
            line["energy"]["evaluation_kwh"] = self._net(line, drawn)

    def close(self) -> None:
        self.meter.close()

    def _net(self, line: dict[str, Any], drawn: Drawn) -> float:
        kwh = drawn.kwh - self.meter.idle * drawn.seconds / KWH
        if kwh < 0:
            self._once(
                "negative",
                f"energy: round {line['round'] + 1} drew less than the {self.meter.idle:.3g} W of an idle machine, so that its "
                "number is negative: the machine was busy when they were measured, or they are declared too high.",
            )
        return kwh

    def _failed(self, line: dict[str, Any]) -> None:
        line.pop("energy", None)
        self._once(
            "failed",
            f"energy: a counter could not be read in round {line['round'] + 1}, whose energy is not told, nor that of further "
            "rounds in which this happens.",
        )

    def _once(self, what: str, sentence: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self.say(sentence)


def made(x: Experiment, say: Callable[[str], None], jobs: int = 1, of: str = "") -> Metering:
    """What the settings ask for.

    Args:
        say: for sentences to a person. jobs: runs beside each other on this machine.
        of: whose energy it is, if not that of all who take part.

    Raises:
        UserError: there is no counter to be read, or no such country.
    """
    if x.energy == "off":
        return UNMETERED
    grams = carbon.grams(x.carbon)
    meter: Meter
    if isinstance(x.energy, str):
        from weft.backbones.hardware import pick_device

        meter = Measured(counters.of(pick_device(x.device).type), x.idle_watts)
    else:
        meter = Declared(x.energy, x.idle_watts or 0.0, jobs)
    meter.source += of
    return Metered(meter, grams, say)
