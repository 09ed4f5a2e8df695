"""What a site says of a test of a language model, and scores of the sums over sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from weft.communication.strict import Refused, is_number
from weft.tasks import judging
from weft.tasks.counts import LARGEST

WRONG = "The sums are not those of a test of a language model."
Sums = tuple[float, ...]


@dataclass(frozen=True)
class Passages:
    """Answers of n rows, and the texts that were written for some of them.

    Attributes:
        tokens, right: of the answers, and those that the model held for the likeliest.
        loss: the sum of the tokens' negative log-likelihoods (nats), not finite where outputs are not.
        written: rows for which a text was generated.
        sums: of these texts, for each metric of :data:`weft.tasks.judging.TEXT` that was asked for: one number, or sacrebleu's.
    """

    n: int
    tokens: int
    right: int
    loss: float
    written: int = 0
    sums: Mapping[str, Sums] = field(default_factory=dict)

    @property
    def blank(self) -> bool:
        return not math.isfinite(self.loss)

    def as_json(self) -> dict[str, Any]:
        """JSON has no word for the loss of a model that has diverged."""
        if self.blank:
            return {"n": self.n, "loss": None, "written": self.written}
        found = {"n": self.n, "tokens": self.tokens, "right": self.right, "loss": self.loss, "written": self.written}
        return found | {"sums": {metric: list(sums) for metric, sums in self.sums.items()}}

    def score(self, metric: str) -> float:
        """One metric, or the ``loss``; not a number where there is nothing to score, or beyond what a float can hold."""
        if metric in judging.CORPUS:
            return judging.of_corpus(metric, [int(value) for value in self.sums[metric]])
        if metric in judging.TEXT:
            return self.sums[metric][0] / self.written
        if not self.tokens:
            return math.nan
        if metric == "token_accuracy":
            return self.right / self.tokens
        loss = self.loss / self.tokens
        return loss if metric == "loss" else _exp(loss)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.nan


def summed(told: Sequence[Passages]) -> Passages:
    """All of them together; at least one."""
    n, tokens, right, written = (sum(c) for c in zip(*((t.n, t.tokens, t.right, t.written) for t in told), strict=True))
    sums = [one.sums for one in told if one.written]
    return Passages(
        n,
        tokens,
        right,
        math.fsum(one.loss for one in told),
        written,
        {m: tuple(map(sum, zip(*(some[m] for some in sums), strict=True))) for m in (sums[0] if sums else ())},
    )


def read(told: Mapping[str, Any], metrics: Sequence[str]) -> Passages:
    """What a stranger says; what it was not asked for is not read.

    Args:
        metrics: of :data:`weft.tasks.judging.TEXT`, those that are to be told where texts were written.

    Raises:
        Refused: these are no scores.
    """
    given: list[Any] = [told.get(key) for key in ("n", "written", "loss", "tokens", "right", "sums")]
    n, written, loss, tokens, right, sums = given
    _check(_count(n) and n > 0 and _count(written) and written <= n)
    if loss is None:
        return Passages(n, 0, 0, math.nan, written)
    _check(_count(tokens) and _count(right) and right <= tokens)
    _check(is_number(loss, int, float) and 0 <= loss < LARGEST and (tokens or not loss))
    asked = metrics if written else ()
    _check(isinstance(sums, dict) or not asked)
    return Passages(n, tokens, right, float(loss), written, {m: _sums(sums.get(m), m, written) for m in asked})


def _sums(told: Any, metric: str, written: int) -> Sums:
    _check(isinstance(told, list) and len(told) == judging.CORPUS.get(metric, 1))
    if metric in judging.CORPUS:
        _check(all(map(_count, told)) and FITS[metric](told))
    else:
        kinds = (int,) if metric in judging.HITS else (int, float)
        _check(is_number(told[0], *kinds) and 0 <= told[0] <= written)
    return tuple(told)


def _bleu(told: Sequence[int]) -> bool:
    """Whether counts can be BLEU's: each word is a run of one, and there are no more long runs of words than short ones."""
    given, wanted, matches, runs = told[0], told[1], told[2:6], told[6:]
    fewer = all(b <= a for some in (matches, runs) for a, b in pairwise(some))
    return fewer and runs[0] == given and matches[0] <= wanted and all(m <= r for m, r in zip(matches, runs, strict=True))


def _chrf(told: Sequence[int]) -> bool:
    """Whether counts can be chrF's: matches are among those given and among those wanted."""
    return all(match <= min(given, wanted) for given, wanted, match in zip(told[::3], told[1::3], told[2::3], strict=True))


FITS: dict[str, Callable[[Sequence[int]], bool]] = {"bleu": _bleu, "chrf": _chrf}


def _count(value: Any) -> bool:
    return is_number(value, int) and 0 <= value < LARGEST


def _check(fits: Any) -> None:
    if not fits:
        raise Refused(WRONG)
