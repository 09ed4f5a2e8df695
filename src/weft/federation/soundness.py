"""Which mechanism hides what it promises over which method, and why not: one table for refusals, listings and tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.communication.codecs import codec
from weft.privacy.mechanism import DPSGD, Mechanism

if TYPE_CHECKING:
    from weft.federation.method import Method


def unsound(method: Method, link: Mechanism) -> str:
    """Why a link of a chain does not give what it promises over a method, in words after the method's name; ``""`` if it does."""
    needs = method.info.needs
    if method.info.baseline == "central":
        return "has all rows in one place"
    if "split" in needs:
        return "has a part of each step at its server, which sees what rows become there"
    if isinstance(link, DPSGD):
        if "no gradients" in needs:
            return "learns from the losses of passes, which have no gradients to clip"
        return method.sees_rows
    if method.gives_away:
        return method.gives_away
    if link.seat == "combine" and not method.sums:
        return "needs each update by itself and not their mean"
    if link.seat == "combine" and method.info.codec and codec(method.info.codec).alpha(1) > 0:
        return "adds up the shifts of single clients beside the mean of their updates"
    return ""
