"""What is left of earlier periods: forgetting and backward transfer, where rows arrive in periods.

Forgetting is that of Chaudhry et al., ECCV 2018, arXiv 1801.10112; backward transfer and the mean over periods are those of
Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weft.engines.evaluation import Evaluation
from weft.federation.arrivals import Arrivals
from weft.tasks.task import LESS_IS_BETTER, goodness

SO_FAR, FORGETTING, BACKWARD = "periods so far", "forgetting", "backward transfer"
"""Whose scores these are, of :attr:`weft.engines.evaluation.Evaluation.people`."""


PERIOD = "period "


def called(period: int) -> str:
    """The test rows of a period, among the people of an evaluation."""
    return f"{PERIOD}{period + 1}"


def by_period(arrivals: Arrivals | None, rows: np.ndarray, period: int) -> dict[str, np.ndarray]:
    """Those of ``rows`` that arrive in each of the periods so far; nothing where rows do not arrive in periods."""
    return {} if arrivals is None else {called(p): arrivals.among(rows, p) for p in range(period + 1)}


def over_periods(lines: Sequence[Mapping[str, Any]], scores: Sequence[Evaluation], period: int) -> list[Evaluation]:
    """Of each view: the mean of its headline over all periods so far, and what of the earlier ones is lost.

    Both are in points of the headline: forgetting from the best that a period ever had at the end of one to what it has now,
    backward transfer from what it had when it ended.

    Args:
        lines: of the rounds before. scores: of this round, in ``period``.
    """
    ends = {line["period"]: line["evaluations"] for line in lines if line.get("evaluations") and line["period"] < period}
    found: list[Evaluation] = []
    for view in dict.fromkeys(e.view for e in scores):
        like = next((e for e in scores if e.view == view and e.people in map(called, range(period + 1))), None)
        now = {} if like is None else _goodness([e.record() for e in scores], view, like.metric)
        if like is None or not now:
            continue
        before = {p: _goodness(records, view, like.metric) for p, records in ends.items()}
        earlier = [q for q in now if any(q in some for some in before.values())]
        values = {
            SO_FAR: [-value if like.metric in LESS_IS_BETTER else value for value in now.values()],
            FORGETTING: [max(some[q] for some in before.values() if q in some) - now[q] for q in earlier],
            BACKWARD: [now[q] - before[q][q] for q in earlier if q in before.get(q, {})],
        }
        for people, some in values.items():
            if some:
                value = float(np.mean(some))
                found.append(Evaluation(view, people, like.moment, like.metric, "mean over periods", value, len(some)))
    return found


def _goodness(records: Sequence[Mapping[str, Any]], view: str, metric: str) -> dict[int, float]:
    """Period -> how good its score is, of those that have one that is a number."""
    scored = {r["people"]: r["value"] for r in reversed(records) if (r["view"], r["metric"]) == (view, metric)}
    numbers = [int(people.removeprefix(PERIOD)) - 1 for people in scored if people.removeprefix(PERIOD).isdigit()]
    found = {q: goodness(metric, scored[called(q)]) for q in sorted(numbers)}
    return {q: value for q, value in found.items() if np.isfinite(value)}
