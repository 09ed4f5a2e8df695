"""Of which class most rows of a client are, out of its update alone: the one whose rows would have moved the model the same way.

Whoever has the model that a client began with, as the server and the other clients do, and some rows of each class, plays its
turn once for each class and compares: the update belongs to the class with the nearest direction. It is the property inference of
L. Melis, C. Song, E. De Cristofaro, V. Shmatikov, "Exploiting Unintended Feature Leakage in Collaborative Learning", S&P 2019,
arXiv 1805.04049, with centroids in the place of a trained classifier, and needs no head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.audits.outcome import Outcome, lowest_share
from weft.federation.method import Method
from weft.federation.split import SplitMethod
from weft.tensors import forms

if TYPE_CHECKING:
    from weft.audits.audited import Audited
    from weft.storage.updates import KeptUpdate

NAME = "property"
ROWS = 32
"""Of strangers that a turn is played with, at most."""


def attack(run: Audited) -> list[Outcome]:
    """Guess the most frequent class of every client. By chance somebody names the one that most clients have."""
    owners = [u for u in run.updates if len(run.rows(u))]
    hits, true = 0, Counter[int]()
    began: KeptUpdate | None = None
    centres: dict[int, dict[str, Tensor]] = {}
    for update in owners:
        counts = np.bincount(run.labels(run.rows(update)), minlength=run.classes)
        true[int(counts.argmax())] += 1
        if began is None or not alike(run, began, update):
            began, centres = update, centroids(run, update)
        hits += int(counts[nearest(run.moved(update), centres)] == counts.max())
    n = len(owners)
    score, chance, low = hits / n, max(true.values()) / n, lowest_share(hits, n)
    more = "more than" if low > chance else "no more than"
    sentence = (
        f"Of {hits} of {n} clients the most frequent class is told from the direction of their update, {more} by naming the same "
        f"class for all ({chance:.0%})."
    )
    return [Outcome(NAME, f"{n} clients, round {owners[0].round + 1}", "clients told", score, chance, n, low, sentence)]


def missing(run: Audited) -> str | None:
    """What the attack lacks; None if nothing."""
    method = run.method
    if run.classes < 2:
        return "rows have no class each"
    if isinstance(method, SplitMethod) or type(method).downloads is not Method.downloads:
        return f"a turn of {method.info.slug} can't be played without the server"
    if run.server.bench.arrivals is not None:
        return "rows arrive in periods, and those of strangers have theirs"
    if len(np.unique(run.labels(run.strangers))) < 2:
        return "there are no rows of several classes beside those of clients"
    return None if all(run.moved(u) for u in run.updates) else "clients send no weights that move"


def centroids(run: Audited, update: KeptUpdate) -> dict[int, dict[str, Tensor]]:
    """Class -> what a client moves that begins as the update's sender did, and whose rows are all of that class."""
    labels = run.labels(run.strangers)
    classes = [c for c in range(run.classes) if bool((labels == c).any())]
    rows = [run.strangers[labels == c][:ROWS] for c in classes]
    return dict(zip(classes, run.shadows(update, rows), strict=True))


def nearest(moved: Mapping[str, Tensor], centres: Mapping[int, Mapping[str, Tensor]]) -> int:
    """The class whose centroid has the smallest angle to an update, by the tensors that all of them have."""
    names = sorted(set(moved).intersection(*centres.values()))
    table = torch.stack([torch.cat([one[n].flatten() for n in names]) for one in centres.values()])
    own = torch.cat([moved[n].flatten() for n in names])
    return list(centres)[int(torch.cosine_similarity(own[None], table, dim=1).argmax())]


def alike(run: Audited, one: KeptUpdate, other: KeptUpdate) -> bool:
    """Whether two turns are the same but for their rows."""
    a, b = (run.by_id[u.client] for u in (one, other))
    if (a.model, a.facts, one.asked, one.told) != (b.model, b.facts, other.asked, other.told):
        return False
    (mine, rest), (theirs, left) = forms.flatten(one.began), forms.flatten(other.began)
    return rest == left and mine.keys() == theirs.keys() and all(torch.equal(v, theirs[n]) for n, v in mine.items())
