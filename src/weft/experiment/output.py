"""Settings of where a run is kept, what is written there besides, and who else is told of it. None changes a number of a run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from weft.experiment.declare import Group, Name, Positive, setting


class Output(Group):
    """Where a run is kept. A replay is a run of its own, so that no saved file has its name and the folder above it."""

    title: ClassVar[str] = "Output"

    name: str | None = setting(
        None,
        "Of the run's folder.",
        "Where the default is taken, `-2`, `-3` … is added; a name of yours that is taken is refused.",
        unset="METHOD-DATA-MODEL-sSEED",
        everyday=True,
    )
    runs: Name = setting("runs", "The folder above it.", everyday=True)
    track: Annotated[
        list[Literal["tensorboard", "mlflow", "wandb"]],
        Field(strict=False),
        AfterValidator(lambda given: list(dict.fromkeys(given))),
    ] = setting(
        [],
        "Tell these trackers too, joined by commas: `tensorboard`, `mlflow`, `wandb`.",
        "They write into `tracking/` of the run's folder: see [tracking](tracking.md).",
        unset="none",
    )
    report: bool = setting(
        True,
        "Write a page of the run, `report.html`, into its folder at the end.",
        "`weft report RUN` writes it later. `WEFT_REPORT=0` in the environment writes none of any run.",
    )
    keep_updates: bool = setting(
        False,
        "Keep each client's update, as the server reads it, in `updates/` of the run's folder, for `weft audit`.",
        "Whoever has the folder can attack every single client by them: see [audits](security.md#audits). They take as much room "
        "as all uploads of the run without a codec.",
    )
    energy: Positive | Literal["off", "measure"] = setting(
        "off",
        "Energy of each round: `off`, `measure` (by the counters of this machine), or the watts that it draws under load.",
        "`measure` needs the extra `energy`; watts are declared, and marked as such wherever they are shown: see "
        "[energy and carbon](tracking.md#energy-and-carbon).",
    )
    idle_watts: Annotated[float, Field(ge=0)] | None = setting(
        None,
        "Watts that this machine draws anyway: they are subtracted.",
        unset="measured for 5 seconds before the first round; 0 beside declared watts",
        option=False,
    )
    carbon: Annotated[float, Field(ge=0)] | Name | None = setting(
        None,
        "Carbon of that energy: grams of CO₂ per kWh, or the three-letter code of a country, as `DEU`.",
        "Codes are looked up in the table that comes with the extra `energy`.",
        unset="not told",
    )
