"""Runs as a page shows them: each with a label, in a group of runs that differ in nothing but their seed, under a method."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weft import words
from weft.errors import WeftError
from weft.experiment import OUTPUT

JOINT = " · "
OWN = (*OUTPUT, "seed", "method", "rule", "server_step", "baseline", "baselines", "recipes")
"""Settings that no label tells: they belong to one run, or the name of its method has them."""
EVERYWHERE = ("data", "model", "alpha", "clients", "partition")
"""Settings that a label tells if any two runs differ in them; all others if two of one method do."""
MOST = 3
"""More differences than that are not told, and the run's folder is instead."""


class Recorded(Protocol):
    """What a page reads of a run: :class:`weft.playing.run.Run` and :class:`weft.runs.glance.Glance` have it."""

    @property
    def folder(self) -> Path: ...
    @property
    def summary(self) -> Mapping[str, Any]: ...
    @property
    def rounds(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Shown:
    """One run on a page.

    Attributes:
        label: of this run alone. group: of all runs that differ in nothing but the seed. method: its name with the rules over it.
    """

    run: Recorded
    label: str
    group: str
    method: str

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.run.summary

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return self.run.rounds

    def setting(self, name: str) -> Any:
        return self.summary["settings"].get(name, {}).get("value")


def shown(runs: Sequence[Recorded], labels: Sequence[str] | None = None) -> list[Shown]:
    """Runs with their labels, as given or made of what differs.

    Raises:
        WeftError: there are no runs, or not as many labels.
    """
    if not runs:
        raise WeftError("a page is of one run at least.")
    if labels is not None and len(labels) != len(runs):
        raise WeftError(f"there are {len(labels)} labels for {len(runs)} runs.")
    methods = [method_of(run.summary) for run in runs]
    found = _told_apart(runs, list(labels) if labels is not None else _labels(runs, methods))
    return [Shown(run, label, _group(label), method) for run, label, method in zip(runs, found, methods, strict=True)]


def groups_but_for(runs: Sequence[Shown], names: Collection[str]) -> list[str]:
    """Of each run its method and what differs, as in a label, but for settings of these names and the seed."""
    return [_group(label) for label in _labels([one.run for one in runs], [one.method for one in runs], (*OWN, *names))]


def method_of(summary: Mapping[str, Any]) -> str:
    """``fedit``, ``fedit + scaffold``, ``fedit local``, ``probe``."""
    about = summary["method"]
    baseline = summary["settings"].get("baseline", {}).get("value")
    if baseline in ("probe", "zero-shot"):  # whatever the method
        return str(baseline)
    rules = [word for word in (about.get("rule"), about.get("server_step")) if word not in (None, "none")]
    return " ".join([" + ".join([str(about["slug"]), *rules]), *([baseline] if baseline else [])])


def _labels(runs: Sequence[Recorded], methods: Sequence[str], untold: Collection[str] = OWN) -> list[str]:
    """Method, what differs, and the seed."""
    settings = [{n: s["value"] for n, s in run.summary["settings"].items() if n not in untold} for run in runs]
    names = dict.fromkeys(n for one in settings for n in one)
    differ = [
        n
        for n in names
        if (n in EVERYWHERE and _differ(one.get(n) for one in settings))
        or any(_differ(s.get(n) for s, m in zip(settings, methods, strict=True) if m == method) for method in set(methods))
    ]
    told = differ if len(differ) <= MOST else []
    found = []
    for run, method, own in zip(runs, methods, settings, strict=True):
        more = [f"{_short(n)} {words.shown(own.get(n))}" for n in told] if differ == told else [run.folder.name]
        seed = run.summary["settings"].get("seed", {}).get("value")
        found.append(JOINT.join([method, *more, *([] if seed is None else [f"seed {seed}"])]))
    return found


def _told_apart(runs: Sequence[Recorded], labels: list[str]) -> list[str]:
    """Labels that occur once: those of equal runs have the folder before their seed, and a number if that is not enough."""
    times = Counter(labels)
    found = []
    for run, label in zip(runs, labels, strict=True):
        name = label
        if times[label] > 1:
            *before, last = label.split(JOINT)
            name = JOINT.join([*before, run.folder.name, last] if _seed(last) else [label, run.folder.name])
        number, wanted = 2, name
        while wanted in found:
            wanted, number = f"{name}{JOINT}{number}", number + 1
        found.append(wanted)
    return found


def _group(label: str) -> str:
    parts = [part for part in label.split(JOINT) if not _seed(part)]
    return JOINT.join(parts) or label


def _seed(part: str) -> bool:
    return re.fullmatch(r"seed \S+", part.strip()) is not None


def _differ(values: Any) -> bool:
    return len({json.dumps(v, sort_keys=True, default=str) for v in values}) > 1


def _short(name: str) -> str:
    return {"alpha": "α"}.get(name, name.removeprefix("method."))
