"""Settings of where a run is kept, what is written there besides, and who else is told of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from weft.experiment.declare import Group, Name, setting


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
