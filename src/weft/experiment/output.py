"""Settings of where a run is kept, and of what is written there besides. A replay is a run of its own, so that no saved file has
its place.
"""

from __future__ import annotations

from typing import ClassVar

from weft.experiment.declare import Group, Name, setting


class Output(Group):
    """Where a run is kept."""

    title: ClassVar[str] = "Output"

    name: str | None = setting(
        None,
        "Of the run's folder.",
        "Where the default is taken, `-2`, `-3` … is added; a name of yours that is taken is refused.",
        unset="METHOD-DATA-MODEL-sSEED",
        everyday=True,
    )
    runs: Name = setting("runs", "The folder above it.", everyday=True)
    report: bool = setting(
        True,
        "Write a page of the run, `report.html`, into its folder at the end.",
        "`weft report RUN` writes it later. `WEFT_REPORT=0` in the environment writes none of any run.",
    )
