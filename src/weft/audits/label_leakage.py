"""How many rows of each class a client has, out of what its head has moved by.

By the bias of class c the cross-entropy of a row has the gradient p_c - [y = c]: of one row it is below 0 for the row's own class
alone (iDLG: B. Zhao, K. R. Mopuri, H. Bilen, 2020, arXiv 2001.02610). Of n rows each one pulls its class down by about the same
impact m, so that labels are taken off the gradient one by one (LLG: A. Wainakh et al., "User-Level Label Leakage from Gradients
in Federated Learning", 2021, arXiv 2105.09369, Algorithm 1). Neither needs a learning rate: m is read off the gradient itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.audits.outcome import Outcome, lowest_share

if TYPE_CHECKING:
    from weft.audits.audited import Audited
    from weft.backbones.backbone import Backbone
    from weft.storage.updates import KeptUpdate

NAME = "labels"


def attack(run: Audited) -> list[Outcome]:
    """Guess the labels of everybody whose update is kept.

    The score is the share of all their rows whose label is guessed, as LLG counts: of each class the lesser of how many rows were
    guessed and how many there are. By chance somebody guesses each client to be as everybody together is.
    """
    owners = [u for u in run.updates if len(run.rows(u))]
    true = [np.bincount(run.labels(run.rows(u)), minlength=run.classes) for u in owners]
    overall = np.sum(true, axis=0)
    hits = blind = 0
    for update, own in zip(owners, true, strict=True):
        n = int(own.sum())
        slope = head_slope(run, update)
        assert slope is not None
        hits += int(np.minimum(guessed(slope, n), own).sum())
        blind += int(np.minimum(rounded(overall / overall.sum() * n), own).sum())
    n = int(overall.sum())
    score, chance, low = hits / n, blind / n, lowest_share(hits, n)
    more = "more than" if low > chance else "no more than"
    sentence = (
        f"{score:.0%} of {n:,} labels are guessed from the head's update, {more} by guessing each client to be as all "
        f"together are ({chance:.0%})."
    )
    target = f"{len(owners)} clients, round {owners[0].round + 1}"
    return [Outcome(NAME, target, "labels guessed", score, chance, n, low, sentence)]


def missing(run: Audited) -> str | None:
    """What the attack lacks; None if nothing."""
    if not run.classes:
        return "rows have no class each"
    sent = [u for u in run.updates if len(run.rows(u))]
    if any(head_slope(run, u) is None for u in sent):
        return "clients send no head"
    return None


def head_slope(run: Audited, update: KeptUpdate) -> np.ndarray | None:
    """[C] the gradient by the logits' bias, up to a factor above 0, as an update tells it; None where it has no head.

    Of a head without a bias the weights [C, d] tell it: their gradient is that by the bias times what goes into the head, whose
    mean over strangers' rows is known.
    """
    moved = run.moved(update)
    backbone = run.bench(update).backbone
    found = head_of(moved, backbone, run.classes)
    if found is None:
        return None
    role, change = found
    if role == "bias":
        return -change.numpy()
    return -(change @ entering(run, update)).numpy()


def head_of(moved: Mapping[str, Tensor], backbone: Backbone, classes: int) -> tuple[str, Tensor] | None:
    """The change of the logits' bias, or of the weights where that has not moved, of a head that is one layer at the end."""
    ends = [s for s in backbone.heads if s.role == "head" and s.d_out == classes]
    for role in ("bias", "weight") if ends else ():
        for name, change in moved.items():
            if name.endswith(f"/{ends[-1].called}/{role}") and change.shape[0] == classes and bool(change.any()):
                return role, change
    return None


@torch.no_grad()
def entering(run: Audited, update: KeptUpdate) -> Tensor:
    """[d] the mean of what goes into the head, over rows of strangers, when the update's sender began."""
    pack = run.pack(update)
    name = [s for s in run.bench(update).backbone.heads if s.role == "head"][-1].name
    seen: list[Tensor] = []

    def tap(x: Tensor, own: Tensor) -> None:
        seen.append(x[own].double().cpu())

    with pack.tapped({name: tap}):
        pack.observe(lambda p, b: run.method.forward(p, b), [run.strangers[:256]])
    return torch.cat(seen).mean(0)


def guessed(slope: np.ndarray, n: int) -> np.ndarray:
    """int [C] how many of n rows are of each class.

    Args:
        slope: [C] the gradient of their summed loss by the logits' bias, or any positive multiple of it.
    """
    left = slope.astype(np.float64).copy()
    left -= left.mean()  # what moves all logits alike changes no probability, and comes of the optimizer
    below = left < 0
    impact = left[below].sum() / max(n, 1) * (1 + 1 / len(left))
    counts = np.zeros(len(left), dtype=np.int64)
    if impact == 0:
        return rounded(np.full(len(left), n / len(left)))
    for c in np.flatnonzero(below)[np.argsort(left[below])][:n]:
        counts[c] += 1
        left[c] -= impact
    for _ in range(n - int(counts.sum())):
        c = int(left.argmin())
        counts[c] += 1
        left[c] -= impact
    return counts


def rounded(shares: np.ndarray) -> np.ndarray:
    """Whole numbers with the sum of ``shares`` [C], each as near as that allows (largest remainders)."""
    counts = np.floor(shares).astype(np.int64)
    rest = round(float(shares.sum())) - int(counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:rest]] += 1
    return counts
