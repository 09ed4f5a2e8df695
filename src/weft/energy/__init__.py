"""What the rounds of a run draw, in kWh and kilograms of CO₂: by the counters of the machine, or by watts that somebody declares.

Nothing is estimated: what no counter measures is either declared by a person, and called so wherever it is shown, or not told.
"""

from __future__ import annotations

from weft.energy.metering import UNMETERED, Metering, made
from weft.energy.totals import how, kind, total

__all__ = ["UNMETERED", "Metering", "how", "kind", "made", "total"]
