"""What differs between runs: settings, data, weights, versions, results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.experiment import OUTPUT, Experiment
from weft.runs import directory as directories
from weft.runs.glance import Glance, glance

APART = (*OUTPUT, "recipes")
"""Settings that are not compared: they change no number, or are spelt out in the others."""


_OTHER = {"data": "other data", "weights": "other weights", "environment": "another environment"}


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in all runs.

    Attributes:
        group: ``settings``, ``data``, ``weights``, ``environment`` or ``results``. values: one of each run; None = it has none.
    """

    group: str
    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: their folders. differences: in the order of the groups.
    """

    runs: tuple[str, ...]
    differences: tuple[Difference, ...]

    def of(self, group: str) -> list[Difference]:
        return [d for d in self.differences if d.group == group]

    @property
    def verdict(self) -> str:
        """Whether settings, and whether results are the same, in a sentence."""
        asked = "" if self.of("settings") else "the same settings"
        got = "" if self.of("results") else "the same results"
        beside = " and ".join(words for group, words in _OTHER.items() if self.of(group))
        if not asked and not got:
            return "Settings and results differ."
        if asked and got:
            return f"{asked.capitalize()} and {got}{f', but {beside}' if beside else ''}."
        if asked:
            why = f", with {beside}" if beside else ""
            return f"{asked.capitalize()}{why}, but other results."
        return f"Other settings, but {got}."

    def as_json(self) -> dict[str, Any]:
        groups: dict[str, dict[str, list[Any]]] = {group: {} for group in GROUPS}
        for one in self.differences:
            groups[one.group][one.name] = list(one.values)
        return {
            "runs": list(self.runs),
            "same_settings": not self.of("settings"),
            "same_results": not self.of("results"),
        } | groups


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Put runs beside each other.

    Raises:
        UserError: there are fewer than two, one is no run, or can't be read.
    """
    if len(folders) < 2:
        raise UserError("one run differs from nothing: give two or more, as in weft diff RUN RUN.")
    runs = [_read(folder) for folder in folders]
    found = [
        Difference(group, name, values)
        for group, facts in GROUPS.items()
        for name, values in _beside([facts(run) for run in runs])
        if any(value != values[0] for value in values)
    ]
    return Comparison(tuple(str(run.folder) for run in runs), tuple(found))


def _read(folder: str | Path) -> Glance:
    found = glance(directories.find(folder).root)
    if not found.summary:
        directories.read_summary(directories.find(folder))  # which says what is missing
    return found


def _beside(each: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, tuple[Any, ...]]]:
    for name in dict.fromkeys(name for facts in each for name in facts):
        yield name, tuple(facts.get(name) for facts in each)


def _settings(run: Glance) -> dict[str, Any]:
    usual = Experiment().flat()  # of settings that there were not when a run was begun
    names = [n for n in dict.fromkeys((*usual, *run.summary["settings"])) if n not in APART]
    found = {n: run.setting(n) if n in run.summary["settings"] else usual[n] for n in names}
    if run.setting("data") is not None and run.summary["data"].get("object"):
        found["data"] = run.summary["data"]["name"]
    return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}


def _data(run: Glance) -> dict[str, Any]:
    data = run.summary["data"]
    rows = {f"{split} rows": n for split, n in data.get("rows", {}).items()}
    public = (data.get("public") or {}).get("fingerprint")
    return {"fingerprint": data.get("fingerprint"), "clients": data.get("clients"), **rows, "public fingerprint": public}


def _weights(run: Glance) -> dict[str, Any]:
    backbone, start = run.summary.get("backbone", {}), run.summary.get("start") or {}
    return {"backbone": backbone.get("sha256"), "precision": backbone.get("precision"), "start": start.get("values")}


def _environment(run: Glance) -> dict[str, Any]:
    environment = dict(run.summary["environment"])
    versions = environment.pop("versions", {})
    return {"commit": environment.pop("commit", None), **versions, **environment}


def _results(run: Glance) -> dict[str, Any]:
    """Of what was counted, not of what it took: seconds differ always."""
    summary = run.summary
    best, adapter, error = (summary.get(name) or {} for name in ("best_by_validation", "adapter", "aggregation_error"))
    return {
        "rounds": len(run.rounds),
        "finished": run.finished,
        **summary.get("metrics", {}),
        "best by validation": best.get("value"),
        "its round": None if best.get("round") is None else best["round"] + 1,
        "exported round": None if adapter.get("round") is None else adapter["round"] + 1,
        "aggregation error": error.get("last"),
        "bytes up": run.bytes("up"),
        "bytes down": run.bytes("down"),
    }


GROUPS = {"settings": _settings, "data": _data, "weights": _weights, "environment": _environment, "results": _results}
"""What is compared, by the name of its group."""
