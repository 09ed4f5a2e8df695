"""What runs were made of: the cards of their methods, their settings, where they ran, and the commands that repeat them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.methods import registry
from weft.report.page.shown import Shown
from weft.report.table import Table

ORIGINS = {"user": "user", "recipe": "recipe", "default": "default"}


@dataclass(frozen=True)
class Card:
    """A method on a page.

    Attributes:
        name: its slug. title, paper, arxiv: as in its identity card. facts: heading → sentence. settings: its own.
    """

    name: str
    title: str
    paper: str
    arxiv: str
    facts: Mapping[str, str]
    settings: Table | None


def cards(runs: Sequence[Shown]) -> list[Card]:
    """One for each method, in the order of the runs."""
    found: dict[str, list[Shown]] = {}
    for one in runs:
        found.setdefault(str(one.summary["method"]["slug"]), []).append(one)
    known = registry.infos()
    made = []
    for slug, members in found.items():
        about = members[0].summary["method"]
        info = None if about.get("object") else known.get(slug)
        facts = {"What left the client": info.sends, "Differs from the paper": info.deviations or "not stated"} if info else {}
        facts |= {n.capitalize(): str(v) for n in ("rule", "server_step") if (v := about.get(n)) not in (None, "none")}
        table = settings(members, f"Settings of {slug}", lambda name: name.startswith("method."))
        arxiv, paper, title = (str(about.get(n) or "") for n in ("arxiv", "paper", "title"))
        made.append(Card(slug, title, paper, arxiv, {n.replace("_", " "): v for n, v in facts.items()}, table))
    return made


def common_settings(runs: Sequence[Shown]) -> Table | None:
    """All settings but those of methods."""
    return settings(
        runs, "Settings of the experiment", lambda name: not name.startswith("method.") and name not in ("name", "runs", "report")
    )


def settings(runs: Sequence[Shown], title: str, wanted: Callable[[str], bool]) -> Table | None:
    """Name, value and origin; those that somebody chose go first. Where runs differ, all values are there, in their order."""
    names = dict.fromkeys(n for one in runs for n in one.summary["settings"] if wanted(n))
    rows = []
    for name in names:
        told = [one.summary["settings"][name] for one in runs if name in one.summary["settings"]]
        values = dict.fromkeys(_value(t.get("value")) for t in told)
        origins = dict.fromkeys(ORIGINS.get(t.get("origin"), str(t.get("origin"))) for t in told)
        rows.append((name.removeprefix("method."), " / ".join(values), " / ".join(origins)))
    if not rows:
        return None
    order = list(ORIGINS)
    rows.sort(key=lambda row: min((order.index(o) if o in order else 0) for o in row[2].split(" / ")))
    notes = ("default: the method's paper, or ours; recipe: of Weft, for the backbone and data; user: typed, or in a file.",)
    return Table(title, ("setting", "value", "origin"), tuple(rows), notes=notes)


def provenance(runs: Sequence[Shown]) -> Table:
    """Data, backbone, versions and hardware; where runs differ, what each value is of."""
    facts: dict[str, dict[str, list[str]]] = {}
    for one in runs:
        for name, value in _facts(one.summary):
            facts.setdefault(name, {}).setdefault(value, []).append(one.label)
    rows = []
    for name, values in facts.items():
        alike = len(values) == 1 and len(next(iter(values.values()))) == len(runs)
        for value, whose in values.items():
            rows.append((name, value, "all runs" if alike else ", ".join(whose[:4]) + (" …" if len(whose) > 4 else "")))
    if len(runs) == 1:
        return Table("Data, versions and hardware", ("what", "value"), tuple(row[:2] for row in rows))
    return Table("Data, versions and hardware", ("what", "value", "of"), tuple(rows))


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, backbone, where = summary["data"], summary.get("backbone", {}), summary["environment"]
    rows = data.get("rows", {})
    told = [
        ("data", data.get("name")),
        ("fingerprint of the data", data.get("fingerprint")),
        ("rows", ", ".join(f"{n} {r:,}" for n, r in rows.items()) if isinstance(rows, Mapping) else None),
        ("clients", data.get("clients")),
        ("backbone", backbone.get("hub_id") or backbone.get("name")),
        ("sha256 of its weights", backbone.get("sha256")),
        ("precision", backbone.get("precision")),
        ("commit of Weft", where.get("commit")),
        *((n, v) for n, v in (where.get("versions") or {}).items()),
        ("Python", where.get("python")),
        ("platform", where.get("platform")),
        ("device", where.get("device")),
        ("processors", where.get("processors")),
        ("threads", where.get("threads")),
    ]
    return [(str(name), str(value)) for name, value in told if value not in (None, "", {})]


def commands(runs: Sequence[Shown]) -> list[str]:
    """What repeats each run."""
    return [shlex.join(["weft", "run", str(one.run.folder / "experiment.toml")]) for one in runs]


def _value(value: Any) -> str:
    if value is None or value == [] or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(str, value))
    return (
        value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    )
