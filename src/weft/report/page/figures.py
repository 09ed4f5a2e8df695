"""Which plots a page has: those that its runs have numbers for, each with the sentence that says how to read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weft.report.page import plots
from weft.report.page.curves import Row, curves
from weft.report.page.numbers import metric_name, metrics, own
from weft.report.page.palette import Style
from weft.report.page.plots import CLOCK, JOULES, SECONDS, SENT, Axis, Spec
from weft.report.page.shown import Shown
from weft.tasks.task import LESS_IS_BETTER

CLIENTS, CLASSES, DEALS = 100, 50, 4
"""Most rows and columns of the map of a deal, and most maps of a page."""


@dataclass(frozen=True)
class Figure:
    """A plot on a page.

    Attributes:
        id: its anchor. heading, sentence: what it shows, and what a good one looks like. spec: for Vega-Lite.
        key: which styles tell its groups apart: ``groups``, ``stages`` or ``""``.
    """

    id: str
    heading: str
    sentence: str
    spec: Spec
    key: str = "groups"


@dataclass(frozen=True)
class Chapter:
    """Figures under one heading. ``wide``: one beside the other is too narrow for them."""

    id: str
    heading: str
    figures: Sequence[Figure]
    wide: bool = False


def chapters(runs: Sequence[Shown], groups: Sequence[Style]) -> tuple[list[Chapter], dict[str, list[Row]]]:
    """All plots that there are numbers for, and the data that they share, by name."""
    scored = metrics(runs)
    rows = curves(runs, scored)
    several = len(groups) < len(runs)
    found = [
        Chapter("quality", "How good the model became", _quality(rows, scored, groups, several)),
        Chapter("training", "How training went", _training(rows, groups, several)),
    ]
    data: dict[str, list[Row]] = {"curves": rows}
    for chapter, more in (_clients(runs, groups, scored), _deals(runs), _stages(runs)):
        found.insert(1 if chapter.id == "fairness" else len(found), chapter)
        data |= more
    return [c for c in found if c.figures], data


def _quality(rows: Sequence[Row], scored: Sequence[str], groups: Sequence[Style], several: bool) -> list[Figure]:
    found = []
    for k, metric in enumerate(scored):
        mine = [row for row in rows if row["k"] == k and row["value"] is not None]
        if not mine:
            continue
        by_round, name = _by_round(mine), metric_name(metric)
        way = "falls" if metric in LESS_IS_BETTER else "rises"
        end = "low" if metric in LESS_IS_BETTER else "high"
        y = Axis("value", name)
        what = f"{name[:1].upper()}{name[1:]}"
        seeds = " Thick: mean over seeds; thin: each seed; shaded: from the worst seed to the best." if several else ""
        sentences = {
            by_round: f"A good curve {way} early and stays {end}; one that still {way} at the end wants more rounds.{seeds}",
            SENT: f"Traffic of all clients, both ways: a frugal method is {end} already far to the left.",
            CLOCK: f"Time on the devices that the settings name, by a simulated clock: a method that suits them is {end} early.",
            JOULES: f"Energy of these devices, by the same clock: a thrifty method is {end} already far to the left.",
            SECONDS: f"Time spent training, on the hardware named below: a fast method is {end} already far to the left.",
        }
        heads = {by_round: "by round", SENT: "by megabytes sent", SECONDS: "by seconds of training"}
        heads |= {CLOCK: "by simulated time", JOULES: "by joule"}
        for x, sentence in sentences.items():
            if x is by_round or any(row[x.column] for row in mine):
                spec = plots.curve(x, y, groups, several, k)
                found.append(Figure(f"{x.column}-{k}", f"{what} {heads[x]}", sentence, spec))
    return found


TRAINING = (
    ("loss", "Training loss", "A good curve falls and levels off; one that rises or jumps has too high a learning rate."),
    (
        "aggregation_error",
        "Aggregation error",
        "How far what the server made of the clients' changes is from their mean: zero is exact, and a good curve stays near it.",
    ),
    (
        "drift",
        "Client drift",
        "How far clients move apart in a round, by how far they move together: a rising curve says that their data pull the "
        "model apart.",
    ),
    (
        "effective_rank",
        "Effective rank",
        "How many directions a round's change of the model has, in the mean over layers: of one, all layers turn one way.",
    ),
    (
        "density",
        "Density",
        "Share of the entries of pruned tensors that the server holds: the fewer, the less is sent and trained.",
    ),
    (
        "memory",
        "Peak memory, GB",
        "Most memory in use so far, with all that the process had loaded before: a good curve is flat.",
    ),
)


def _training(rows: Sequence[Row], groups: Sequence[Style], several: bool) -> list[Figure]:
    found = []
    for name, head, sentence in TRAINING:
        if mine := [row for row in rows if row[name] is not None]:
            spec = plots.curve(_by_round(mine), Axis(name, head[:1].lower() + head[1:]), groups, several)
            found.append(Figure(name.replace("_", "-"), head, sentence, spec))
    return found


def _by_round(rows: Sequence[Row]) -> Axis:
    rounds = [row["round"] for row in rows]
    return plots.rounds(min(rounds), max(rounds))


def _clients(runs: Sequence[Shown], groups: Sequence[Style], scored: Sequence[str]) -> tuple[Chapter, dict[str, list[Row]]]:
    figures, data = [], {}
    for k, metric in enumerate(scored):
        rows = []
        for style in groups:
            members = [one for one in runs if one.group == style.group and metric in metrics([one])]
            row: Row = {"group": style.group}
            for name, pooling in plots.CLIENTS.items():
                values = [v for one in members if (v := own(one, pooling)) is not None]
                row[name] = float(f"{sum(values) / len(values):.4g}") if values else None
            if row["worst"] is not None and (row["mean"] is not None or row["best"] is not None):
                rows.append(row)
        if rows:
            quartiles = any(row["low"] is not None and row["high"] is not None for row in rows)
            drawn = (
                "from the worst client to the best, the bar holds the middle half, the upright stroke is the median"
                if quartiles
                else "from the worst client to the mean"
            )
            sentence = (
                f"{metric_name(metric).capitalize()} on each client's own test rows after the last round, {drawn}; the mark is "
                "the worst client. A fair method is short, and its worst client is not left behind."
            )
            name = f"spread{k}"
            spec = plots.spread(name, rows, metric_name(metric), groups)
            figures.append(Figure(f"spread-{k}", "Spread over clients", sentence, spec, key=""))
            data[name] = rows
    return Chapter("fairness", "Whom it serves", figures, wide=True), data


def _deals(runs: Sequence[Shown]) -> tuple[Chapter, dict[str, list[Row]]]:
    deals: list[tuple[Any, list[str]]] = []
    for one in runs:
        counts = one.summary["data"].get("counts")
        if _is_deal(counts):
            same = next((whose for known, whose in deals if known == counts), None)
            if same is None:
                deals.append((counts, [one.label]))
            else:
                same.append(one.label)
    figures, data = [], {}
    for i, (counts, whose) in enumerate(deals[:DEALS]):
        clients, classes, rows = _largest(counts)
        left = [
            f"the {len(kept):,} largest of {len(counts[of]):,} {of}"
            for of, kept in (("clients", clients), ("classes", classes))
            if len(kept) < len(counts[of])
        ]
        sentence = (
            "Rows that each client has of each class: even columns are an easy deal; dark cells beside empty ones a skewed one."
        )
        sentence += f" Shown are {' and '.join(left)}." if left else ""
        if len(deals) > 1:
            sentence += f" Deal of {_listed(whose)}."
        if i == DEALS - 1 and len(deals) > DEALS:
            sentence += f" {len(deals) - DEALS} more deals are not drawn."
        name = f"deal{i}"
        figures.append(Figure(f"deal-{i}", "Clients and classes", sentence, plots.deal(name, clients, classes), key=""))
        data[name] = rows
    return Chapter("deal", "How the data are dealt out", figures, wide=len(figures) == 1), data


def _is_deal(counts: Any) -> bool:
    return isinstance(counts, dict) and all(isinstance(counts.get(n), list) and counts[n] for n in ("clients", "classes", "rows"))


def _largest(counts: Any) -> tuple[list[str], list[str], list[Row]]:
    """Names of clients and classes, in their order, and a row for each cell that is not empty."""
    table = counts["rows"]
    by_client = [sum(row) for row in table]
    by_class = [sum(row[j] for row in table) for j in range(len(counts["classes"]))]
    clients, classes = _top(by_client, CLIENTS), _top(by_class, CLASSES)
    names, labels = _unique(counts["clients"]), _unique(counts["classes"])
    cells = [{"client": names[i], "label": labels[j], "rows": table[i][j]} for i in clients for j in classes if table[i][j]]
    return [names[i] for i in clients], [labels[j] for j in classes], cells


def _top(sizes: Sequence[int], most: int) -> list[int]:
    """Places of the largest, in their order."""
    return sorted(sorted(range(len(sizes)), key=lambda i: -sizes[i])[:most])


def _unique(names: Iterable[Any]) -> list[str]:
    """As text, each once: a plot knows rows and columns by their names alone."""
    found: list[str] = []
    for name in map(str, names):
        found.append(name if name not in found else f"{name} ({len(found) + 1})")
    return found


def _stages(runs: Sequence[Shown]) -> tuple[Chapter, dict[str, list[Row]]]:
    rows: list[Row] = []
    for one in runs:
        took = one.summary.get("seconds", {})
        start = 0.0
        mine: list[Row] = []
        for stage in plots.STAGES:
            seconds = float(took.get(stage) or 0.0)
            mine.append({"label": one.label, "stage": stage, "start": start, "end": start + seconds, "seconds": seconds})
            start += seconds
        rows += [row for row in mine if row["seconds"]]
    longest = max((row["end"] for row in rows), default=0.0)
    for row in rows:
        row["middle"] = (row["start"] + row["end"]) / 2
        row["letter"] = row["stage"][0].upper() if row["seconds"] > 0.06 * longest else ""
        row.update({n: float(f"{row[n]:.5g}") for n in ("start", "end", "middle", "seconds")})
    sentence = "Where the time of each run went: a method that costs little has a short bar, most of it training (T)."
    spec = plots.stages(list(dict.fromkeys(row["label"] for row in rows)))
    figures = [Figure("stages", "Seconds by stage", sentence, spec, key="stages")] if rows else []
    return Chapter("time", "What it cost", figures, wide=True), {"stages": rows}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
