"""Grams of CO₂ for a kWh of a country's grid, from the table that codecarbon brings: nothing is asked of a network."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from weft import distribution
from weft.errors import UserError, nearest

TABLE = "data/private_infra/global_energy_mix.json"


def grams(carbon: float | str | None) -> float | None:
    """Per kWh; None where nobody told.

    Args:
        carbon: grams, or the three-letter code of a country.

    Raises:
        UserError: the code is in no table, or there is none.
    """
    if carbon is None or not isinstance(carbon, str):
        return carbon
    spec = find_spec("codecarbon")
    if spec is None or spec.origin is None:
        raise UserError(
            f'carbon = "{carbon}" is looked up in a table of codecarbon: {distribution.install("energy")}, or give grams of CO₂ '
            "per kWh, as in --carbon 380."
        )
    table = json.loads((Path(spec.origin).parent / TABLE).read_text(encoding="utf-8"))
    code = carbon.upper()
    if code not in table:
        raise UserError(
            f'carbon is "{carbon}", which is no country in the table of codecarbon: give a three-letter code, such as DEU, or '
            f"grams of CO₂ per kWh.{nearest(code, table)}"
        )
    return float(table[code]["carbon_intensity"])
