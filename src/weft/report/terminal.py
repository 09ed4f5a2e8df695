"""The figures of a run as text: a row for each evaluated round, and a closing table with what it is compared with.

Eighty columns are enough. Whose rows a number was taken on, in which view and how pooled, is said below the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from weft import devices, energy
from weft.communication.ledger import format_bytes
from weft.engines.evaluation import pick
from weft.runs.result import headline, metrics
from weft.words import count

if TYPE_CHECKING:
    from rich.console import Console

NONE = "-"


# a row for each evaluated round -----------------------------------------------------------------------------------------

WIDTHS = (6, 7, 19, 7, 7, 7, 7, 9, 9)
SHORT = {
    "macro_f1": "F1",
    "matthews": "MCC",
    "entity_f1": "entity F1",
    "precision": "prec.",
    "perplexity": "PPL",
    "token_accuracy": "tokens",
    "rouge_1": "R-1",
    "rouge_2": "R-2",
    "rouge_l": "R-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "exact_match": "match",
    "token_f1": "F1",
    "final_answer": "answer",
    "choice_accuracy": "choice",
    "iou": "IoU",
    "box_accuracy": "acc@.5",
}
"""What a column of a metric is called, if not by its name."""


def round_head(line: dict[str, Any]) -> Text:
    """Names of the columns of :func:`round_row`."""
    first, second = _scored(line)
    second_column = "loss" if "privacy" not in line else "ε"  # no loss of rows is told where they are hidden
    names = ["round", second_column, _short(first)[:18], _short(second)[:6], "mean", "worst", "new", "down", "up"]
    return Text(_aligned(names), style="dim")


def _scored(line: dict[str, Any]) -> tuple[str, str]:
    """The headline's metric and the next, ``""`` if there is none."""
    top = headline(line)
    if top is None:
        return "accuracy", "macro_f1"
    more = [e["metric"] for e in line["evaluations"] if (e["view"], e["people"]) == (top["view"], top["people"])]
    usual = "macro_f1" if top["metric"] == "accuracy" else ""  # which sites may keep back
    return top["metric"], next((m for m in more if m not in (top["metric"], "loss")), usual)


def _short(metric: str) -> str:
    return SHORT.get(metric, metric.replace("f1:", "F1 of "))


def round_row(line: dict[str, Any]) -> Text | None:
    """One line of ``rounds.jsonl``; None if the round was not evaluated."""
    if line.get("evaluations") is None:
        return None
    numbers = metrics([line])
    loss = line.get("loss") if "privacy" not in line else line["privacy"]["epsilon"]
    cells = [
        str(int(line["round"]) + 1),
        NONE if loss is None else _loss(loss),
        f"{_score((headline(line) or {}).get('value'))} {interval(line)}",
        *(_score(numbers.get(n)) for n in (_scored(line)[1], "mean_client", "worst_client", "new_clients")),
        *(sent(line.get("bytes", {}), way) for way in ("down", "up")),
    ]
    return Text(_aligned(cells))


def interval(line: dict[str, Any]) -> str:
    """The 95 % interval of the headline, ``(0.63-0.68)``, or nothing where there is none."""
    top = headline(line) or {}
    return f"({top['low']:.2f}-{top['high']:.2f})" if "low" in top else ""


def sent(phases: Mapping[str, Any], way: str, phase: str = "train") -> str:
    """Bytes of a phase, all clients together, with headers."""
    return format_bytes(phases[phase][way]["wire"]) if phase in phases else NONE


def _aligned(cells: Sequence[str]) -> str:
    return "".join(f" {cell:>{width - 1}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _loss(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.2g}"


def _score(value: float | None) -> str:
    """Six characters at most of what is not negative: a perplexity can be large."""
    if value is None:
        return NONE
    digits = next((n for n, limit in ((3, 99.9995), (1, 9999.95), (0, 999999.5)) if abs(value) < limit), None)
    return f"{value:.0e}" if digits is None else f"{value:.{digits}f}"


# the closing table --------------------------------------------------------------------------------------------------------

METRICS = {
    "macro_f1": "F1 (macro)",
    "matthews": "Matthews",
    "top5": "top 5",
    "entity_f1": "entity F1",
    "precision": "precision",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "final_answer": "final answer",
    "choice_accuracy": "choice accuracy",
    "iou": "IoU",
    "box_accuracy": "Acc@0.5",
}
"""What a row of a metric is called, if not by its name."""
CLIENTS = {"mean_client": "mean client", "worst_client": "worst client", "new_clients": "new clients"}


@dataclass(frozen=True)
class Column:
    """One of the things compared: a round of the run, or a baseline.

    Attributes:
        name, more: its title in two lines. line: with ``round`` and ``evaluations``. phases: bytes by phase, energy: of
            :func:`weft.energy.total`, clock: of :func:`weft.devices.total`; None = unknown.
    """

    name: str
    more: str
    line: dict[str, Any]
    phases: Mapping[str, Any] | None = None
    energy: Mapping[str, Any] | None = None
    clock: Mapping[str, Any] | None = None


def columns(summary: Mapping[str, Any], rounds: Sequence[dict[str, Any]]) -> list[Column]:
    """The last round, the best by validation, and each baseline."""
    first = f"round {summary['rounds']}"
    found = [Column("last round", first, _line(summary), summary["bytes"], summary.get("energy"), summary.get("clock"))]
    best = summary["best_by_validation"]
    if best is not None:
        line = next(r for r in rounds if r["round"] == best["round"])
        found.append(Column("best by validation", f"round {best['round'] + 1}", line))
    for name, scored in summary.get("baselines", {}).items():
        title = count(scored["rounds"], "round")
        found.append(Column(name, title, _line(scored), scored["bytes"], scored.get("energy"), scored.get("clock")))
    return found


def _line(scored: Mapping[str, Any]) -> dict[str, Any]:
    return {"round": scored["rounds"] - 1, "evaluations": scored["evaluations"]}


def closing(out: Console, summary: Mapping[str, Any], rounds: Sequence[dict[str, Any]]) -> None:
    """What came out, beside what it is compared with; then what the numbers mean."""
    compared = columns(summary, rounds)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim", border_style="dim")
    table.add_column("")
    for i, c in enumerate(compared):
        table.add_column(f"{c.name}\n{c.more}", justify="right", style="bold" if i == 0 else "")
    numbers: list[dict[str, Any]] = [metrics([c.line]) | {"interval": interval(c.line).strip("()")} for c in compared]
    first = _scored(compared[0].line)[0]
    more = [n for n in dict.fromkeys(n for one in numbers for n in one) if n not in (first, "interval", "loss", *CLIENTS)]
    named = {n: METRICS.get(n, _short(n)).replace("_", " ") for n in (first, *more)}
    for key, label in ({first: named[first], "interval": "  95 % interval"} | named | CLIENTS).items():
        cells = [n.get(key) or NONE if key == "interval" else _score(n.get(key)) for n in numbers]
        if set(cells) != {NONE}:
            table.add_row(label, *cells)
    for view in _other_views(compared[0].line):
        table.add_row(f"view {view}", *(_score(_view_accuracy(c.line, view)) for c in compared))
    for way in ("down", "up"):
        table.add_row(f"bytes {way}", *(NONE if c.phases is None else _all_sent(c.phases, way) for c in compared))
    for label, value in _spent(rounds).items():
        table.add_row(label, value, *[NONE] * (len(compared) - 1))
    for label, cells in (_energy_rows([c.energy for c in compared]) | _clock_rows([c.clock for c in compared])).items():
        table.add_row(label, *cells)
    out.print(table)
    out.print()
    out.print(Text(meaning(summary), style="dim"))


def _spent(rounds: Sequence[dict[str, Any]]) -> dict[str, str]:
    """ε of all rounds, by what it is of; nothing where nobody is hidden by noise."""
    last = next((line["privacy"] for line in reversed(rounds) if "privacy" in line), None)
    if last is None:
        return {}
    units = {"row": "ε of a row", "client": "ε of a client"}
    said = {words: last[f"{unit}_epsilon"] for unit, words in units.items() if f"{unit}_epsilon" in last}
    return {words: "∞" if value is None else f"{value:.2f}" for words, value in said.items()} | {"δ": f"{last['delta']:g}"}


def _all_sent(phases: Mapping[str, Any], way: str) -> str:
    billed = [phases[p][way]["wire"] for p in ("setup", "train") if p in phases]
    return format_bytes(sum(billed)) if billed else NONE


def _energy_rows(each: Sequence[Mapping[str, Any] | None]) -> dict[str, list[str]]:
    """Energy and carbon of what is compared, under names that say whether they were measured or declared; nothing if neither."""
    told = [one for one in each if one is not None]
    if not told:
        return {}
    by = energy.kind(told)
    found = {f"energy, {by}": [NONE if one is None else _scaled(1000 * one["kwh"], "Wh") for one in each]}
    if any(one["co2_kg"] is not None for one in told):
        found[f"CO₂, {by}"] = [
            NONE if one is None or one["co2_kg"] is None else _scaled(1000 * one["co2_kg"], "g") for one in each
        ]
    return found


def _clock_rows(each: Sequence[Mapping[str, Any] | None]) -> dict[str, list[str]]:
    """Time and energy on simulated devices; nothing where nobody kept time."""
    if not any(each):
        return {}
    found = {
        "time on these devices": [NONE if one is None else devices.span(one["seconds"]) for one in each],
        "energy on them": [NONE if one is None else _scaled(one["joules"], "J") for one in each],
    }
    if any(one is not None and one.get("grams") is not None for one in each):
        found["CO₂ on them"] = [NONE if one is None or one.get("grams") is None else _scaled(one["grams"], "g") for one in each]
    return found


def _simulated(summary: Mapping[str, Any]) -> list[str]:
    """Whose time it is."""
    told = summary.get("clock")
    if told is None:
        return []
    late = f", {count(told['late'], 'turn')} behind the deadline" if told["late"] else ""
    late += f", {count(told['gone'], 'turn')} whose clients went away" if told.get("gone") else ""
    late += f"; nobody was available for {devices.span(told['waited'])} of it" if told.get("waited") else ""
    setup = f", without {devices.span(told['setup_seconds'])} of the head's own training" if told["setup_seconds"] else ""
    return [f"time and energy on these devices: by a simulated clock, of all rounds{late}{setup}"]


def _over_lifetime(summary: Mapping[str, Any]) -> list[str]:
    """What an adapter that was trained on has cost with all its runs, and for each of its tasks."""
    told = summary.get("lifetime")
    if summary.get("start") is None or told is None:
        return []
    shown: dict[str, Callable[[float], str]] = {
        "bytes": lambda value: format_bytes(round(value)),
        "seconds": lambda value: f"{devices.span(value)} on devices",
        "joules": lambda value: _scaled(value, "J"),
        "grams": lambda value: f"{_scaled(value, 'g')} of CO₂",
    }
    known = {name: show for name, show in shown.items() if told[name] is not None}
    runs, tasks = count(told["runs"], "run"), count(len(told["tasks"]), "task")
    when = f"over its lifetime of {runs}" if told["whole"] else f"in {runs}, not counting what nobody tells of its past,"
    words = ", ".join(show(told[name]) for name, show in known.items())
    each = ", ".join(show(told[name] / len(told["tasks"])) for name, show in known.items())
    return [f"{when} the adapter took {words}; for each of {tasks} {each}"]


def _scaled(value: float, unit: str) -> str:
    """Three digits, in thousandths of the unit, in the unit, or in thousands."""
    scale, prefix = (1e-3, "k") if abs(value) >= 999.5 else (1, "") if abs(value) >= 0.9995 else (1e3, "m")
    return f"{scale * value:.3g} {prefix}{unit}"


def _other_views(line: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(str(e["view"]) for e in line["evaluations"]))[1:]


def _view_accuracy(line: Mapping[str, Any], view: str) -> float | None:
    mine = [e for e in line["evaluations"] if e["view"] == view]
    top = headline({"round": 0, "evaluations": mine})
    return None if top is None or top["value"] is None else float(top["value"])


PEOPLE = {"global test": "the global test set", "own test": "clients' own test sets"}


def meaning(summary: Mapping[str, Any]) -> str:
    """Which view, whose rows, at which moment and how pooled: for every number of the tables above."""
    top, evaluations = summary["headline"], summary["evaluations"]
    costs = [*_billed(summary), *_drawn(summary), *_simulated(summary), *_over_lifetime(summary)]
    said: list[str] = []
    if top is None:
        nothing = "there were no test rows, so that nothing was scored"
        return f"{'; '.join([nothing, *costs])}. Loss: mean while training."
    view = str(top["view"])
    groups: dict[str, list[str]] = {}  # views that are scored alike
    for name in (view, *_other_views({"evaluations": evaluations})):
        e = headline({"round": 0, "evaluations": [x for x in evaluations if x["view"] == name]})
        if e is not None:
            rows = "the sites' own tests" if "served" in summary else PEOPLE.get(e["people"], e["people"])
            where = f"{count(e['n'], 'row')} of {rows}, {e['pooling']}"
            groups.setdefault(where, []).append(name)
    for where, names in groups.items():
        first, second = _scored({"evaluations": [e for e in evaluations if e["view"] == view], "round": 0})
        what = ", ".join(_short(m) for m in (first, second if view in names else "") if m)
        said.append(f"{what}: view{'s' if len(names) > 1 else ''} {', '.join(names)}, {where}")
    own = pick(evaluations, view=view, people="own test", pooling="mean over clients")
    if own is not None:
        said.append(f"mean, worst: {_short(top['metric'])} of {count(own['n'], 'client')} on their own test rows")
    new = pick(evaluations, view=view, people="new clients", metric=top["metric"])
    if new is not None:
        said.append(f"new: {count(new['n'], 'row')} of clients that were never trained ({summary['data']['new_clients']})")
    if error := summary.get("aggregation_error"):
        said.append(f"aggregation error {error['last']:.2g} in the last round, {error['mean']:.2g} in the mean of all")
    said += costs
    moment = {"received": "the newest server state loaded"}.get(top["moment"], top["moment"])
    return "; ".join(said) + f". Scored with {moment}; loss: mean while training."


def _billed(summary: Mapping[str, Any]) -> list[str]:
    """Which bytes are counted."""
    phases = summary["bytes"]
    if "train" not in phases:
        return []
    setup = sum(phases["setup"][way]["wire"] for way in ("down", "up")) if "setup" in phases else 0
    counted = f", {format_bytes(setup)} of set-up counted" if setup else ""
    return [f"bytes: all clients and rounds, headers included{counted}"]


def _drawn(summary: Mapping[str, Any]) -> list[str]:
    """Whose word the energy is, and what is not in it."""
    told = summary.get("energy")
    if told is None:
        return []
    apart = {"scoring": told["evaluation_kwh"], "the head's own training": told["setup_kwh"]}
    more = [f"{_scaled(1000 * kwh, 'Wh')} of {what}" for what, kwh in apart.items() if kwh]
    return [f"energy of all rounds: {energy.how([told])}{', without ' if more else ''}{' and '.join(more)}"]
