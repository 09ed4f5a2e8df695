"""A lower bound on ε of differential privacy, out of one run: how often its rows are rightly told from others, against how often
(ε, δ) would allow.

T. Steinke, M. Nasr, M. Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, arXiv 2305.08846 (Theorem 5.2).
Of m rows, each trained on or not by the toss of a coin, an attacker guesses r. Under ε-differential privacy the number of right
guesses is at most a binomial of r tosses with chance e^ε / (1 + e^ε), but for δ. The bound is the least ε at which as many right
guesses as there were are no surprise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weft.audits.membership import NAME as MEMBERSHIP
from weft.audits.membership import Scores, by_loss
from weft.audits.outcome import CONFIDENCE, Outcome
from weft.tensors.keyed import numpy_generator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weft.audits.audited import Audited

NAME = "epsilon"
DELTA = 1e-5
"""Where no accountant names one."""
SHARES = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0)
"""Of all rows, how many are guessed: the surest. Each is a try, and the level is shared among them."""


def attack(run: Audited) -> list[Outcome]:
    """Bound ε of rows by how well their loss tells members.

    The coins are those of the split into training and test rows, of which as many are taken as there are of the fewer.
    """
    told = privacy(run.lines)
    delta = float(told.get("delta") or DELTA)
    members, others = balanced(by_loss(run), run.server.seed)
    bound, n = bound_of(members, others, delta), len(members) + len(others)
    promised = accounted(run.lines)
    what = (
        f"learns of single rows at least as much as ε = {bound:.3g} allows"
        if bound
        else "tells too few rows apart to refute any ε"
    )
    beside = "the run has no accountant" if promised is None else f"its accountant promises at most {promised:.3g}"
    if promised is not None and bound > promised:
        beside += ", and the two contradict each other: the promise does not hold, or not for single rows"
    sentence = f"Whoever looks at the losses of the finished model {what} (δ = {delta:g}); {beside}."
    about = {"delta": delta, "accounted": promised, "confidence": CONFIDENCE, "by": MEMBERSHIP}
    return [Outcome(NAME, "the finished model", "ε, lower bound", bound, 0.0, n, bound, sentence, about, None)]


def privacy(lines: Sequence[Mapping[str, object]]) -> Mapping[str, float]:
    """What the last line of ``rounds.jsonl`` says of privacy; nothing where it says none."""
    found = lines[-1].get("privacy") if lines else None
    return found if isinstance(found, dict) else {}


def accounted(lines: Sequence[Mapping[str, object]]) -> float | None:
    """ε that the run's accountant has come to; None where it has none."""
    epsilon = privacy(lines).get("epsilon")
    return None if epsilon is None else float(epsilon)


def balanced(scores: Scores, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As many of either, drawn."""
    n = min(len(scores.members), len(scores.others))
    draw = numpy_generator(seed, "audit", "balanced")
    chosen = [draw.choice(some, n, replace=False) for some in (scores.members, scores.others)]
    return chosen[0], chosen[1]


def bound_of(members: np.ndarray, others: np.ndarray, delta: float) -> float:
    """The largest lower bound on ε over :data:`SHARES`, at 95 % for all of them together.

    Args:
        members, others: scores [n] each, of which more is likelier a member.
    """
    score = np.concatenate([members, others])
    true = np.concatenate([np.ones(len(members), bool), np.zeros(len(others), bool)])
    order = np.lexsort((numpy_generator(0, "audit", "ties").random(len(score)), score))
    m, best = len(score), 0.0
    for share in SHARES:
        half = max(int(m * share / 2), 1)
        right = int((~true[order[:half]]).sum() + true[order[-half:]].sum())
        best = max(best, epsilon(m, 2 * half, right, delta, (1 - CONFIDENCE) / len(SHARES)))
    return best


def epsilon(m: int, r: int, v: int, delta: float, level: float) -> float:
    """The largest ε that v right ones of r guesses on m rows refute at ``level``; 0 if none, to three digits behind the point."""
    low, high = 0.0, 40.0
    if p_value(m, r, v, low, delta) >= level:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(m, r, v, middle, delta) < level else (low, middle)
    return low


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The most that (ε, δ) allows for the chance of v or more right ones of r guesses on m rows.

    That is P[W ≥ v] + 2 m δ · max_i P[v > W ≥ v - i] / i, for W a binomial of r tosses with chance e^ε / (1 + e^ε).
    """
    from scipy.stats import binom

    chance = 1 / (1 + np.exp(-epsilon))
    beyond = float(binom.sf(v - 1, r, chance))
    if not v or not delta:
        return min(beyond, 1.0)
    near = np.cumsum(binom.pmf(np.arange(v - 1, -1, -1), r, chance)) / np.arange(1, v + 1)
    return min(beyond + 2 * m * delta * float(near.max()), 1.0)
