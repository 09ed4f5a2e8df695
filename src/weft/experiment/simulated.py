"""Settings of simulated devices: what they are, and when they can be reached."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from weft.experiment.declare import Group, Name, Positive, setting


class Simulated(Group):
    """Devices, and a clock over them. Nothing here is for real sites, but that methods may ask for devices."""

    title: ClassVar[str] = "Simulated devices"

    devices: str | None = setting(
        None,
        "What clients compute on: `jetson-tx2:3,jetson-nx:4`, `phones`, `edge-boxes`, `hospital-servers`, or a `.toml` file.",
        "A [simulated clock](devices.md) tells how long rounds take there; methods that ask for devices get them.",
        unset="no clock, and for methods that ask as the method deals them",
    )
    deadline: Positive | None = setting(
        None,
        "Seconds on the clock of `--devices` after which a round is closed: who is not done is left out.",
        "What was sent to a late client, and by it, is billed; nothing else is left of its turn.",
        unset="rounds wait for the slowest",
    )
    availability: Name | None = setting(
        None,
        "When clients can be reached: `always`, or a `.csv` of spans of the clock.",
        "Its columns are `client` (or `position`), `start` and `end`, in seconds. Who can't be reached is not drawn, and who "
        "goes away in the middle of a turn is lost: see [availability](devices.md#availability).",
        unset="at the hours that kinds in the file of `--devices` have, else always",
    )
    cohorts: Literal["random", "carbon", "battery"] = setting(
        "random",
        "Who is drawn: `random`; `carbon`: whose turns cost the least CO₂; or `battery`: whose battery is full enough.",
        "`carbon` needs `--grids`, and owes everybody a part of the turns; `battery` needs devices with a battery: see "
        "[cohorts](devices.md#cohorts-by-carbon-or-battery).",
    )
    carbon_fairness: Annotated[float, Field(ge=0, le=1)] = setting(
        0.5, "`--cohorts carbon`: share of the turns it would have by lot that every client is owed, 0 to 1.", option=False
    )
    battery_floor: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.2, "`--cohorts battery`: share of its battery below which a client is not drawn.", option=False
    )
    grids: Name | None = setting(
        None,
        "Carbon intensity by the hour of what `--devices` draw: `solar`, `coal-wind`, both in shares, or a `.csv` file.",
        "As in `solar:2,coal-wind`. The file has the columns `region`, `hour` and `g_per_kwh`, and kinds of devices may name a "
        "`region`: see [carbon](devices.md#carbon-and-batteries).",
        unset="no carbon of devices is told",
    )
    energy_budget: Positive | None = setting(
        None, "Joules of all `--devices`: the run ends before a round that would exceed them.", unset="none"
    )
    carbon_budget: Positive | None = setting(
        None, "Grams of CO₂ of all `--devices`, by `--grids`: the run ends before a round that would exceed them.", unset="none"
    )
    clock_hour: Annotated[float, Field(ge=0, lt=24)] = setting(
        0.0, "Hour of the day at which the clock of `--devices` begins.", option=False
    )
