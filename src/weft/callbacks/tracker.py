"""What all trackers of experiments have in common: settings once, then the numbers of each round, in order and none twice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from weft import distribution, energy
from weft.callbacks.callback import Callback
from weft.errors import UserError
from weft.runs.result import flat
from weft.storage import files

FOLDER = "tracking"
"""In the run's folder."""


class Tracker(Callback):
    """Hands a run on to a library that keeps runs.

    Attributes:
        package: what is imported. extra: of fedweft that installs it.

    Raises:
        UserError: it is not installed.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self) -> None:
        if find_spec(self.package) is None:
            raise UserError(f"{type(self).__name__} needs {self.package}: {distribution.install(self.extra)}.")

    def run_started(self, about: Mapping[str, Any]) -> None:
        place = Path(about["folder"]) / FOLDER
        files.make_folder(place)
        last = self.open(place, about["name"], parameters(about))
        for line in about["played"]:
            if line["round"] + 1 > last:
                self.log(line["round"] + 1, numbers(line))

    def round_done(self, record: Mapping[str, Any]) -> None:
        self.log(record["round"] + 1, numbers(record))

    # what each library does in its own way

    def open(self, place: Path, name: str, settings: Mapping[str, Any]) -> int:
        """Begin to track, or go on with what lies in ``place``; returns the last round that is in there, from 1, 0 if none is."""
        raise NotImplementedError

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a round, which is counted from 1."""
        raise NotImplementedError


def parameters(about: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting by its flat name, what ``auto`` turned out to be in its place; lists as text."""
    found = {name: one["value"] for name, one in about["settings"].items()} | dict(about.get("pinned", {}))
    return {n: v if isinstance(v, bool | int | float | str) else json.dumps(v, ensure_ascii=False) for n, v in found.items()}


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round: of each view ``VIEW/METRIC``, see :meth:`weft.Run.records`, and those that belong to no view.

    Names of energy end with whose word it is: ``energy_kwh_declared``, ``energy_kwh_measured``.
    Every round has ``seconds``, and has them last: where they are, a tracker has the round whole.
    """
    found: dict[str, float] = {}
    of_energy = {name: f"{name}_{energy.kind([line['energy']])}" for name in ENERGY} if line.get("energy") else {}
    for row in flat(dict(line)):
        view = row.pop("view")
        for name, value in row.items():
            if name != "round" and isinstance(value, int | float) and math.isfinite(value):
                found[of_energy.get(name, name if name in COMMON else f"{view}/{name}")] = float(value)
    if LAST in found:
        found[LAST] = found.pop(LAST)
    return found


LAST = "seconds"
ENERGY = ("energy_kwh", "energy_co2_kg")
COMMON = ("training_loss", "aggregation_error", "drift", "effective_rank", "density", "memory", "bytes_down", "bytes_up", LAST)
"""Numbers of a round that are of no view."""


def noted(file: Path) -> dict[str, Any]:
    """What a tracker noted of itself, beside its own files; empty if nothing."""
    try:
        found = files.parsed(files.read(file))
    except (UserError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note(file: Path, known: Mapping[str, Any]) -> None:
    """Write down what :func:`noted` gives back."""
    files.write(file, json.dumps({"format": files.FORMAT} | dict(known)).encode())


def made(names: Iterable[str]) -> list[Tracker]:
    """The trackers that are called so in the setting ``track``.

    Raises:
        UserError: one is not installed.
    """
    from weft.callbacks.mlflow import MLflow
    from weft.callbacks.tensorboard import TensorBoard
    from weft.callbacks.wandb import WandB

    kinds: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
    return [kinds[name]() for name in dict.fromkeys(names)]
