"""What is run: every setting of an experiment, checked, in three layers, and as a TOML file.

A setting comes from the method or its declaration (``default``), from a recipe for the backbone and data at hand (``recipe``),
or from a person (``user``); the later layer wins, and the origin of each is kept. Settings have flat names; those of the method
start with ``method.``, as in ``method.rank``. Each is declared once, by :func:`weft.experiment.declare.setting`, in the file of
its group.
"""

from __future__ import annotations

from weft.experiment.declare import Setting
from weft.experiment.idle import idle
from weft.experiment.layers import Resolved, full_names, resolve
from weft.experiment.names import assignment, assignments, flatten
from weft.experiment.sentences import checked
from weft.experiment.toml_file import FORMAT, read, to_toml
from weft.experiment.what import Baseline
from weft.experiment.whole import GROUPS, OUTPUT, SETTINGS, Experiment

__all__ = [
    "FORMAT",
    "GROUPS",
    "OUTPUT",
    "SETTINGS",
    "Baseline",
    "Experiment",
    "Resolved",
    "Setting",
    "assignment",
    "assignments",
    "checked",
    "flatten",
    "full_names",
    "idle",
    "read",
    "resolve",
    "to_toml",
]
