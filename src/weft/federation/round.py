"""One exchange between server and cohort, as a method plans it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Who = Literal["sample", "all", "same"] | tuple[str, ...] | list[str]
"""The cohort: a random sample, everybody, the last cohort again, one per value of a fact (``("domain",)``), or client ids."""


@dataclass(frozen=True)
class Round:
    """A planned round.

    Attributes:
        index: server round, from 0.
        kind: told apart by the method (``train``, ``probe`` …).
        who: the cohort.
        extra: set by ``plan``, the same for every client; travels to the client.
        period: whose rows clients train on, from 0; set by the engine, where rows arrive in periods.
    """

    index: int
    kind: str = "train"
    who: Who = "sample"
    extra: dict[str, Any] = field(default_factory=dict)
    period: int = 0
