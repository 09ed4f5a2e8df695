"""The plots of a page, as Vega-Lite specifications over data that they share by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from weft.report.page.palette import Style

HEIGHT = 260
ROW = 24
"""Height of a bar with the room around it, in pixels."""
LETTER = alt.condition("datum.stage == 'evaluation'", alt.value("black"), alt.value("white"))
STAGES = {"loading": "#767676", "training": "#0072B2", "evaluation": "#E69F00"}
CLIENTS = {
    "worst": "worst client",
    "low": "first quartile",
    "median": "median client",
    "high": "third quartile",
    "best": "best client",
    "mean": "mean over clients",
}
"""Column of a spread → pooling of the evaluation that it is from."""

Spec = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A column as an axis: its name in the data, and what is written beside it.

    Attributes:
        ticks: of rounds, which are whole numbers; of anything else, Vega finds them.
    """

    column: str
    title: str
    ticks: tuple[int, ...] = ()


SENT = Axis("sent", "megabytes sent so far")
SECONDS = Axis("seconds", "seconds of training so far")
CLOCK = Axis("clock", "seconds on these devices so far")
JOULES = Axis("joules", "joules on these devices so far")


def rounds(first: int, last: int) -> Axis:
    """The axis of the rounds from ``first`` to ``last``, with about eight ticks."""
    step = next(s for power in itertools.count() for s in (10**power, 2 * 10**power, 5 * 10**power) if (last - first) / s <= 8)
    return Axis("round", "round", tuple(range(-(-first // step) * step, last + 1, step)))


def curve(x: Axis, y: Axis, groups: Sequence[Style], several: bool, only: int | None = None) -> Spec:
    """A line for each group of runs: of several runs their mean, with each of them thin behind it and, by round, their range.

    Args:
        several: some group has several runs. only: of the headlines, the one that is drawn.
    """
    data = alt.Chart(alt.NamedData(name="curves")).transform_filter(f"isValid(datum.{y.column})")
    if only is not None:
        data = data.transform_filter(f"datum.k === {only}")
    across = alt.X(
        f"{x.column}:Q",
        title=x.title,
        scale=alt.Scale(zero=not x.ticks, nice=not x.ticks),
        axis=alt.Axis(values=list(x.ticks), format="d") if x.ticks else alt.Axis(format="~s", tickCount=6),
    )
    up = alt.Y(f"{y.column}:Q", title=y.title, scale=alt.Scale(zero=False), axis=alt.Axis(format=".3~g"))
    colour, dash, shape = _encodings(groups)
    layers = []
    if several and x.ticks:
        layers.append(
            data.mark_area(opacity=0.15).encode(
                across, up.aggregate("min"), alt.Y2(f"max({y.column}):Q"), colour, detail="group:N"
            )
        )
    if several:
        layers.append(data.mark_line(strokeWidth=1, opacity=0.55).encode(across, up, colour, dash, detail="run:N"))
    mean = data
    if several:
        mean = data.transform_aggregate(
            groupby=["group", "round"],
            across=f"mean({x.column})",
            up=f"mean({y.column})",
            mark="max(mark)",
        )
        across, up = _renamed(across, "across:Q"), _renamed(up, "up:Q")
    layers.append(mean.mark_line(strokeWidth=2.5).encode(across, up, colour, dash, detail="group:N"))
    points = mean.transform_filter("datum.mark === 1")
    layers.append(points.mark_point(filled=True, size=55, opacity=1).encode(across, up, colour, shape))
    tips = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("round:Q", title="round"),
        *([] if x.ticks else [alt.Tooltip(f"{x.column}:Q", title=x.title, format=".4~s")]),
        alt.Tooltip(f"{y.column}:Q", title=y.title, format=".4~g"),
    ]
    hits = data.mark_point(filled=True, size=150, opacity=0)  # invisible, and as large as a finger needs
    layers.append(hits.encode(_renamed(across, f"{x.column}:Q"), _renamed(up, f"{y.column}:Q"), tooltip=tips))
    return _spec(alt.layer(*layers), HEIGHT)


def spread(name: str, rows: Sequence[dict[str, Any]], metric: str, groups: Sequence[Style]) -> Spec:
    """Clients from the worst to the best for each group: a line from end to end, a bar from quartile to quartile, a tick at
    the median.

    Args:
        name: of the data. rows: what is there, ``group`` and, as far as they are known, ``worst``, ``low``, ``median``, ``high``,
            ``best`` and ``mean``.
    """
    colour, _, shape = _encodings(groups)
    y = alt.Y("group:N", title=None, sort=[s.group for s in groups], axis=_names())
    x: dict[str, Any] = {"title": metric, "scale": alt.Scale(zero=False, nice=True), "axis": alt.Axis(tickCount=6)}
    known = [n for n in CLIENTS if any(row.get(n) is not None for row in rows)]
    tips = [alt.Tooltip("group:N", title="run"), *(alt.Tooltip(f"{n}:Q", title=CLIENTS[n], format=".4~g") for n in known)]
    data = alt.Chart(alt.NamedData(name=name))
    ends = "best" if "best" in known else "mean"
    layers = [data.mark_rule(strokeWidth=2).encode(alt.X("worst:Q", **x), alt.X2(f"{ends}:Q"), y, colour)]
    if "low" in known and "high" in known:
        bars = data.mark_bar(height=12, opacity=0.35)
        layers.append(bars.encode(alt.X("low:Q", **x), alt.X2("high:Q"), y, colour))
    if "median" in known:
        layers.append(data.mark_tick(thickness=4, height=18, orient="vertical").encode(alt.X("median:Q", **x), y, colour))
    layers.append(data.mark_point(filled=True, size=60, opacity=1).encode(alt.X("worst:Q", **x), y, colour, shape))
    layers.append(data.mark_bar(height=20, opacity=0).encode(alt.X("worst:Q", **x), alt.X2(f"{ends}:Q"), y, tooltip=tips))
    return _spec(alt.layer(*layers), _tall(len(rows), 34))


def deal(name: str, clients: Sequence[str], classes: Sequence[str]) -> Spec:
    """Rows of each client and class, as a map: the more rows, the darker.

    Args:
        name: of the data, with ``client``, ``label`` and ``rows``.
    """
    step = 18 if len(clients) <= 30 else 9
    chart = (
        alt.Chart(alt.NamedData(name=name))
        .mark_rect()
        .encode(
            alt.X(
                "label:N", title="class", sort=list(classes), scale=alt.Scale(domain=list(classes)), axis=_slanted(len(classes))
            ),
            alt.Y("client:N", title="client", sort=list(clients), scale=alt.Scale(domain=list(clients)), axis=_names()),
            alt.Color(
                "rows:Q",
                scale=alt.Scale(type="sqrt", scheme="cividis", reverse=True, zero=True),
                legend=alt.Legend(title="rows", orient="top", direction="horizontal", gradientLength=160),
            ),
            tooltip=[alt.Tooltip("client:N"), alt.Tooltip("label:N", title="class"), alt.Tooltip("rows:Q")],
        )
    )
    return _spec(chart, max(60, step * len(clients)), ground="white")  # the more rows the darker, in the dark too


def stages(runs: Sequence[str]) -> Spec:
    """Where the seconds of each run went, as a bar of its stages."""
    data = alt.Chart(alt.NamedData(name="stages"))
    y = alt.Y("label:N", title=None, sort=list(runs), axis=_names())
    colour = alt.Color("stage:N", scale=alt.Scale(domain=list(STAGES), range=list(STAGES.values())), legend=None)
    x = alt.X("start:Q", title="seconds", scale=alt.Scale(zero=True), axis=alt.Axis(format="~s", tickCount=6))
    tips = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("stage:N"),
        alt.Tooltip("seconds:Q", format=".4~g"),
    ]
    bars = data.mark_bar(height=15, stroke="white", strokeWidth=0.8).encode(x, alt.X2("end:Q"), y, colour, tooltip=tips)
    texts = data.transform_filter("datum.letter !== ''").mark_text(fontSize=10, fontWeight="bold", aria=False)
    letter = texts.encode(
        alt.X("middle:Q"),
        y,
        alt.Text("letter:N"),
        color=LETTER,
    )
    return _spec(alt.layer(bars, letter), _tall(len(runs)))


def _encodings(groups: Sequence[Style]) -> tuple[alt.Color, alt.StrokeDash, alt.Shape]:
    names = [s.group for s in groups]
    return (
        alt.Color("group:N", scale=alt.Scale(domain=names, range=[s.colour for s in groups]), legend=None),
        alt.StrokeDash("group:N", scale=alt.Scale(domain=names, range=[list(s.dash) for s in groups]), legend=None),
        alt.Shape("group:N", scale=alt.Scale(domain=names, range=[s.shape for s in groups]), legend=None),
    )


def _renamed(channel: Any, field: str) -> Any:
    """The same channel of another column."""
    other = channel.copy()
    other.shorthand = field
    return other


def _names() -> alt.Axis:
    return alt.Axis(labelLimit=130, labelOverlap="greedy")


def _slanted(names: int) -> alt.Axis:
    """Of columns, all of whose names are told as long as they don't cover each other."""
    return alt.Axis(labelAngle=-55, labelLimit=110, labelOverlap=False if names <= 20 else "greedy")


def _tall(rows: int, row: int = ROW) -> int:
    return 20 + row * max(rows, 1)


def _spec(chart: Any, height: int, ground: str | None = None) -> Spec:
    """As wide as its place on the page, on the page's ground or another."""
    whole = chart.properties(width="container", height=height).configure(background="transparent", font="system-ui, sans-serif")
    whole = whole.configure_axis(labelFontSize=11, titleFontSize=12, titleFontWeight="normal")
    spec: Spec = whole.configure_view(stroke=None, fill=ground).to_dict()
    del spec["$schema"]  # an address, of no use to a page that loads nothing
    return spec
