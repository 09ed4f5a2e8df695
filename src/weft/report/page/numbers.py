"""The tables of a page: headline numbers, what a run is compared with, energy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from weft import devices
from weft import energy as energies
from weft.communication.ledger import format_bytes
from weft.engines.evaluation import pick
from weft.report.page.curves import number
from weft.report.page.shown import Shown
from weft.report.table import Table
from weft.report.terminal import METRICS
from weft.runs.result import headline


def metric_name(metric: str) -> str:
    """As a heading has it."""
    return METRICS.get(metric, metric.replace("_", " ").replace("f1:", "F1 of "))


def last_scored(one: Shown) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The last line with a headline, and that headline; None if nothing was scored."""
    return next(((line, top) for line in reversed(one.rounds) if (top := headline(line)) is not None), None)


def metrics(runs: Sequence[Shown]) -> list[str]:
    """The headlines' metrics, each once."""
    return list(dict.fromkeys(found[1]["metric"] for one in runs if (found := last_scored(one)) is not None))


def own(one: Shown, pooling: str) -> float | None:
    """The headline's metric over clients' own test rows, of the last scored round."""
    found = last_scored(one)
    if found is None:
        return None
    line, top = found
    e = pick(line["evaluations"], view=top["view"], people="own test", metric=top["metric"], pooling=pooling)
    return None if e is None else number(e["value"])


def headlines(runs: Sequence[Shown], metric: str) -> Table | None:
    """A row for each group of runs with this headline; None if there are none."""
    groups: dict[str, list[Shown]] = {}
    for one in runs:
        if (found := last_scored(one)) is not None and found[1]["metric"] == metric:
            groups.setdefault(one.group, []).append(one)
    if not groups:
        return None
    several = any(len(members) > 1 for members in groups.values())
    name = metric_name(metric)
    heads = ["method", name, *(["seeds"] if several else ["95 % interval"]), "worst client", "new clients"]
    heads += ["up / client / round", "down / client / round", "training, s", "peak memory"]
    heads += ["time on devices, s", "energy on devices, J", "CO₂ on devices, g"]
    rows = []
    for group, members in groups.items():
        tops = [found[1] for one in members if (found := last_scored(one)) is not None]
        interval = f"{tops[0]['low']:.3f} to {tops[0]['high']:.3f}" if "low" in tops[0] else ""
        rows.append(
            (
                group,
                _spread([number(top["value"]) for top in tops]),
                str(len(members)) if several else interval,
                _spread([own(one, "worst client") for one in members]),
                _spread([_new(one) for one in members]),
                _size(members, lambda one: _per_turn(one, "up")),
                _size(members, lambda one: _per_turn(one, "down")),
                _seconds(members),
                _size(members, peak),
                *(_on_devices(members, name) for name in ("seconds", "joules", "grams")),
            )
        )
    notes = [f"{name[:1].upper()}{name[1:]} of the last scored round of each run, on test rows that no model was trained on."]
    if several:
        notes.append("±: sample standard deviation over seeds; without it there is one seed.")
    if any(row[heads.index("time on devices, s")] for row in rows):
        notes.append("On devices: by a simulated clock, on the devices that the settings name.")
    filled = [i for i in range(len(heads)) if i < 2 or any(row[i] for row in rows)]
    return Table(
        f"{name[:1].upper()}{name[1:]} and what it cost",
        tuple(heads[i] for i in filled),
        tuple(tuple(row[i] for i in filled) for row in rows),
        notes=tuple(notes),
    )


def baselines(runs: Sequence[Shown]) -> Table | None:
    """What was run beside each run to compare it with; None if nothing was."""
    rows = []
    for one in runs:
        for name, scored in (one.summary.get("baselines") or {}).items():
            top = scored.get("headline")
            if top is not None:
                rows.append((one.label, name, metric_name(top["metric"]), _spread([number(top["value"])])))
    if not rows:
        return None
    return Table("Compared with", ("run", "baseline", "metric", "value"), tuple(rows), notes=(_BASELINES,))


_BASELINES = (
    "local: each client trains alone; central: all rows in one place; probe: a linear head on the frozen backbone; zero-shot: "
    "the backbone as it is."
)


def energy(runs: Sequence[Shown]) -> Table | None:
    """Energy and carbon of each group of runs and of its baselines, and whether they were measured or declared; None if no round
    tells.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in runs:
        if (told := energies.total(one.rounds)) is not None:
            groups.setdefault(one.group, []).append(told)
        for name, scored in (one.summary.get("baselines") or {}).items():
            if (told := scored.get("energy")) is not None:
                groups.setdefault(f"{one.group}, baseline {name}", []).append(told)
    rows = []
    for group, members in groups.items():
        means = [_mean([one[n] for one in members]) for n in ("kwh", "co2_kg")]
        rows.append((group, *("" if mean is None else f"{mean:.3g}" for mean in means), energies.how(members)))
    if not rows:
        return None
    whole = "Of all rounds of a run, less what the machine draws idle; loading, scoring and a head's own training are not counted"
    notes = [f"{whole}{'; the mean over seeds' if any(len(m) > 1 for m in groups.values()) else ''}."]
    if any("declared" in row[3] for row in rows):
        notes.append("declared: computed from the power that somebody declared for the device, not measured on it.")
    return Table("Energy and carbon", ("method", "energy, kWh", "carbon, kg CO₂", "source"), tuple(rows), notes=tuple(notes))


def peak(one: Shown) -> float | None:
    """Most bytes of memory in any round."""
    found = [m for line in one.rounds if (m := number(line.get("memory"))) is not None]
    return max(found, default=None)


def _new(one: Shown) -> float | None:
    found = last_scored(one)
    if found is None:
        return None
    line, top = found
    e = pick(line["evaluations"], view=top["view"], people="new clients", metric=top["metric"], pooling=top["pooling"])
    return None if e is None else number(e["value"])


def _per_turn(one: Shown, way: str) -> float | None:
    """Bytes of training on the wire, in the mean over clients and rounds; None where nobody is apart from anybody."""
    lines = [line for line in one.rounds if line.get("bytes", {}).get("train") and line.get("cohort")]
    turns = sum(len(line["cohort"]) for line in lines)
    return sum(line["bytes"]["train"][way]["wire"] for line in lines) / turns if turns else None


def _size(members: Sequence[Shown], of: Callable[[Shown], float | None]) -> str:
    value = _mean([of(one) for one in members])
    return "" if value is None else format_bytes(value)


def _seconds(members: Sequence[Shown]) -> str:
    value = _mean([sum(line.get("seconds", {}).get("training", 0.0) for line in one.rounds) for one in members])
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _on_devices(members: Sequence[Shown], name: str) -> str:
    value = _mean([None if (told := devices.total(one.rounds)) is None else told[name] for one in members])
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation, empty where nothing is known."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    mean = statistics.fmean(known)
    digits = 4 if abs(mean) < 100 else 1
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")
