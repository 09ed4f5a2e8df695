"""All settings of a run, composed of the groups that declare them."""

from __future__ import annotations

from typing import Any, get_args

from weft.experiment.aggregation_settings import Asynchronous
from weft.experiment.deal import Deal
from weft.experiment.declare import Group, Names, Setting, declared
from weft.experiment.federation import Federation
from weft.experiment.language import Language
from weft.experiment.lora_settings import LoRA
from weft.experiment.machine import Machine
from weft.experiment.output import Output
from weft.experiment.privacy_settings import Private
from weft.experiment.rules import Rules
from weft.experiment.simulated import Simulated
from weft.experiment.what import What


class Experiment(
    Output, Machine, Language, LoRA, Asynchronous, Private, Rules, Simulated, Federation, Deal, What
):  # read from right to left: the order of help, pages and files
    """All settings of one run.

    Attributes:
    """

    @property
    def models(self) -> list[str]:
        """The backbones of the federation."""
        return list(dict.fromkeys(name.strip() for name in self.model.split(",")))

    def flat(self) -> dict[str, Any]:
        """Every setting under its flat name: ``method``, ``method.rank``, …, ``rounds``, …"""
        own = self.model_dump()
        parameters = own.pop("parameters")
        return {"method": own.pop("method"), **{f"method.{n}": v for n, v in parameters.items()}, **own}


GROUPS: dict[str, type[Group]] = {g.__name__.lower(): g for g in reversed(Experiment.__bases__) if issubclass(g, Group)}
"""The groups by the names of their tables, in the order in which help and pages show them."""
SETTINGS: dict[str, Setting] = {name: s for group in GROUPS.values() for name, s in declared(group).items()}
"""What is declared of every setting, by its name, in the order of the groups."""

LISTS = tuple(n for n, field in Experiment.model_fields.items() if get_args(Names)[-1] in field.metadata)
"""Settings that are lists of names."""
OUTPUT = tuple(declared(Output))
"""Settings of which none changes a number of a run."""

Experiment.__doc__ = (Experiment.__doc__ or "").rstrip() + "".join(
    f"\n        {s.name}: {' '.join(filter(None, (s.help, s.more)))}" for s in SETTINGS.values()
)
