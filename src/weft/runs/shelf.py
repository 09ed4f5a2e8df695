"""Data, backbone, tokens and prefix cache of one run, kept for the next runs of the process that want the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from weft.backbones.options import task_for
from weft.engines.observer import Observer
from weft.experiment import GROUPS, Experiment
from weft.experiment.declare import declared
from weft.runs.fitting_rows import anything
from weft.runs.prepare import Material, prepare

_OF_ROUNDS = ("lora", "rules", "private", "output", "simulated", "federation")
_STILL_READ = frozenset({"seed", "ranks", "devices"})
UNREAD: frozenset[str] = frozenset(
    {"method", "parameters", "baseline", "baselines", "recipes"}.union(*(declared(GROUPS[g]) for g in _OF_ROUNDS)) - _STILL_READ
)
"""Settings that decide nothing of a run's material."""


class Shelf:
    """Holds the material of the last run, which takes as much memory as that run's own would."""

    def __init__(self) -> None:
        self._key: Mapping[str, Any] | None = None
        self._given: Any = None
        self._have = ""
        self._found: tuple[Material, list[str]] | None = None

    def prepare(
        self,
        experiment: Experiment,
        given: Any,
        observer: Observer,
        needs: tuple[str, ...] = (),
        fits: Callable[[str], None] = anything,
    ) -> Material:
        """As :func:`weft.runs.prepare.prepare`; its sentences are said again."""

        def told(have: str) -> None:
            self._have = have
            fits(have)

        if self._found is None or not self.holds(experiment, given, needs):
            self._found = None  # before anything else is loaded
            heard = _Heard(observer)
            self._found = prepare(experiment, given, heard, needs, told), heard.said
            self._key, self._given = _key(experiment, needs), given
        else:
            fits(self._have)
            for sentence in self._found[1]:
                observer.say(sentence)
            for step in ("data", "backbone", "tokens"):
                observer.advance("set-up", step=step)
        material = self._found[0]
        return replace(material, data=dict(material.data))

    def holds(self, experiment: Experiment, given: Any, needs: tuple[str, ...] = ()) -> bool:
        """Whether the material of an experiment is here, so that nothing is loaded for it."""
        return self._found is not None and _key(experiment, needs) == self._key and given is self._given


def _key(experiment: Experiment, needs: tuple[str, ...]) -> Mapping[str, Any]:
    return {n: v for n, v in experiment.model_dump().items() if n not in UNREAD} | {"read as": task_for(needs)}


class _Heard(Observer):
    """Keeps the sentences that it passes on."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.said: list[str] = []
        self.advance = observer.advance  # type: ignore[method-assign]

    def say(self, text: str) -> None:
        self.said.append(text)
        self.observer.say(text)
