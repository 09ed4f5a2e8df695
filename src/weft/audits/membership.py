"""Whether a row was trained on, out of the finished model's loss on it: it is lower on rows that it has seen.

S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF
2018, arXiv 1709.01604. The rate at 1 % of false alarms is what N. Carlini et al., 2022, arXiv 2112.03570, ask such attacks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weft.audits import roc
from weft.audits.outcome import Outcome
from weft.export.trained import pack_of
from weft.federation.info import common
from weft.tensors.keyed import numpy_generator

if TYPE_CHECKING:
    from weft.audits.audited import Audited
    from weft.federation.pack import Pack
    from weft.tasks.observed import Observed

NAME = "membership"
RATE = 0.01
"""Of false alarms."""
MOST = 5000
"""Rows of either kind that are put to a model; drawn, where there are more."""


@dataclass(frozen=True)
class Scores:
    """More is likelier a member. members: [m] of rows that were trained on. others: [n] of rows that were not."""

    members: np.ndarray
    others: np.ndarray


def attack(run: Audited) -> list[Outcome]:
    """Tell rows that clients have trained on from rows that nobody has."""
    scores = by_loss(run)
    members, others = scores.members, scores.others
    area, found = roc.auc(members, others), roc.found_at(members, others, RATE)
    low, n = roc.lowest_auc(area, len(members), len(others)), len(members) + len(others)
    whether = "are told" if low > 0.5 else "are not told"
    sentence = (
        f"Rows that were trained on {whether} from others by their loss (AUC {area:.3f}); at {RATE:.0%} of false alarms "
        f"{found:.1%} of them are found."
    )
    about = {"found_at_1_percent": found, "members": len(members), "others": len(others)}
    return [Outcome(NAME, f"the finished model, view {run.method.views[0]}", "AUC", area, 0.5, n, low, sentence, about)]


def missing(run: Audited) -> str | None:
    """What the attack lacks; None if nothing."""
    if sum(len(c.data.train) for c in run.clients) < 2 or len(run.strangers) < 2:
        return "there are no rows that nobody has trained on, to tell others from"
    pack = next(models(run))[0]
    (seen,) = pack.observe(lambda p, b: run.method.forward(p, b, run.method.views[0]), [run.strangers[:1]])
    assert seen is not None
    return None if losses(seen) is not None else f"the task {pack.task.kind} has no loss of each row"


def by_loss(run: Audited) -> Scores:
    """What is below 0 by the loss of each row: of the one model for all, or of each client's own on its own rows."""
    view = run.method.views[0]
    members: list[np.ndarray] = []
    others: list[np.ndarray] = []
    for pack, train, test in models(run):
        seen = [pack.observe(lambda p, b: run.method.forward(p, b, view), [rows])[0] for rows in (train, test)]
        for into, one in zip((members, others), seen, strict=True):
            into.append(_below(one))
    return Scores(np.concatenate(members), np.concatenate(others))


def models(run: Audited) -> Iterator[tuple[Pack, np.ndarray, np.ndarray]]:
    """The models of the first view, each with rows that it was trained on and rows that it was not."""
    view, server = run.method.views[0], run.server
    if common(view):
        everybody = np.unique(np.concatenate([c.data.train for c in run.clients]))
        yield pack_of(run.method, server, view), few(server.seed, everybody), few(server.seed, run.strangers)
        return
    for client in run.clients:
        test = client.data.test if len(client.data.test) else run.strangers
        if len(client.data.train) and len(test):
            pack = pack_of(run.method, server, view, client)
            yield pack, few(server.seed, client.data.train), few(server.seed, test)


def few(seed: int, rows: np.ndarray) -> np.ndarray:
    """At most :data:`MOST` of them, drawn."""
    if len(rows) <= MOST:
        return rows
    return np.sort(numpy_generator(seed, "audit", "rows").choice(rows, MOST, replace=False))


def losses(seen: Observed) -> np.ndarray | None:
    """[n] the loss of each row: of an answer the mean over its tokens; None where the task keeps none."""
    columns = seen.columns
    if "loss" in columns:
        return columns["loss"]
    return columns["nll"] / np.maximum(columns["tokens"], 1) if "nll" in columns else None


def _below(seen: Observed | None) -> np.ndarray:
    assert seen is not None
    found = losses(seen)
    assert found is not None
    return -np.nan_to_num(found, nan=np.inf, posinf=np.inf)
