"""What of the settings of energy makes no sense together, whatever machine it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from weft.errors import UserError

if TYPE_CHECKING:
    from weft.experiment.whole import Experiment


def check(x: Experiment) -> None:
    """
    Raises:
        UserError: the idle draw is not below the load, there is none to take it from, or a country is no code of three letters.
    """
    for name in ("idle_watts", "carbon"):
        if x.energy == "off" and (value := getattr(x, name)) is not None:
            raise UserError(f"{name} is {value}, but no energy is taken down: give --energy too, or leave it out.")
    if isinstance(x.energy, float | int) and x.idle_watts is not None and x.idle_watts >= x.energy:
        raise UserError(
            f"idle_watts is {x.idle_watts:g}, but must be less than the {x.energy:g} W that energy declares under load: nothing "
            "would be left to count."
        )
    if isinstance(x.carbon, str) and not re.fullmatch("[A-Za-z]{3}", x.carbon):
        raise UserError(
            f'carbon is "{x.carbon}", but must be grams of CO₂ per kWh, or the three-letter code of a country, such as DEU.'
        )
