"""What a coordinator asks of a site, and what the site says to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.communication.envelope import unwrap, wrap
from weft.communication.strict import Refused, check_facts
from weft.engines.site import Behind, Diverged, SiteClient
from weft.federation.round import Round
from weft.privacy.sums.packets import KINDS

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Question:
    """What a site is asked.

    Attributes:
        what: ``train`` or ``test``, or one of those of a sum (:data:`weft.privacy.sums.packets.KINDS`).
        round: which, as planned. data: the download, or the question of a sum.
        since: clock up to which the site must be up to date, 0 = not at all. now: up to which it is then.
        counted: the round of its last turn that counted, -1 = none. said: facts about it that the server has renewed.
        layout: of a hidden sum that the turn is for (:class:`weft.federation.sum_layout.SumLayout`); empty = of none.
    """

    what: str
    round: Round
    data: bytes
    since: int
    now: int
    counted: int
    said: Mapping[str, Any]
    layout: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        plan = self.round
        round = {"index": plan.index, "kind": plan.kind, "extra": plan.extra, "period": plan.period}
        about = {"what": self.what, "round": round, "since": self.since, "now": self.now, "counted": self.counted}
        about |= {"said": dict(self.said)} | ({"layout": dict(self.layout)} if self.layout else {})
        return wrap(about, self.data)

    @classmethod
    def decode(cls, raw: bytes) -> Question:
        """Raises:
        Refused: it is none.
        """
        about, data = unwrap(raw)
        kinds = {"what": str, "round": dict, "since": int, "now": int, "counted": int, "said": dict}
        inner = {"index": int, "kind": str, "extra": dict, "period": int}
        round = about.get("round")
        fits = all(type(about.get(n)) is k for n, k in kinds.items()) and about["what"] in (TRAIN, TEST, *KINDS)
        layout = about.get("layout", {})
        if (
            not fits
            or not isinstance(layout, dict)
            or not isinstance(round, dict)
            or not all(type(round.get(n)) is k for n, k in inner.items())
        ):
            raise Refused("The question is none that a site answers.")
        try:
            check_facts(about["said"])
        except ValueError as e:
            raise Refused(f"The question says facts that are none: {e}.") from None
        plan = Round(round["index"], round["kind"], extra=round["extra"], period=round["period"])
        return cls(about["what"], plan, data, about["since"], about["now"], about["counted"], about["said"], layout)


def answer(site: SiteClient, raw: bytes) -> bytes:
    """What a site says to a question.

    Raises:
        Refused: the question or its download is not one of this federation.
    """
    question = Question.decode(raw)
    try:
        if question.what == TRAIN:
            frame, loss = site.turn(
                *(question.round, question.data, question.since, question.now, question.counted, question.said, question.layout)
            )
            about = {"loss": _or_none(loss), "update": frame is not None}
            if site.sums is None:
                return wrap(about, frame or b"")
            return wrap(about | {"spent": site.spent})  # what it has trained stays until it is summed
        if question.what in KINDS:
            return wrap({}, site.part_of_sum(question.what, question.round, question.data))
        found = site.scores(question.round, question.data, question.since, question.said)
    except Behind:
        return wrap({"behind": True})
    except Diverged:
        return wrap({"diverged": True})
    return wrap(found)


def _or_none(loss: float | None) -> float | None:
    """JSON has no word for the loss of a model that has diverged."""
    return loss if loss is not None and math.isfinite(loss) else None
