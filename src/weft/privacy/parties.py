"""What each party of a federation can see under a chain, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weft.privacy.mechanism import DPFedAvg, Mechanism, Noisy, Summed


def seen(links: Sequence[Mechanism], sends: str) -> dict[str, str]:
    """Party -> what it sees.

    Args:
        links: of which those whose noise is 0 hide nothing. sends: what a method sends of each client, in words.
    """
    links = [link for link in links if not _silent(link)]
    named = {link.name for link in links}
    step = "under noise in each step that hides single rows" if "dp-sgd" in named else ""
    leave = "clipped, under noise that hides the client" if "ldp" in named else ""
    summed = any(isinstance(link, Summed) for link in links)
    what = f"of all clients of a round together: {sends}" if summed else f"of each client: {sends}"
    noise = "under noise of theirs that hides single clients" if summed and "dp-fedavg" in named else ""
    own = "; ".join(filter(None, (what, step, leave, noise)))
    central = next((link.name for link in links if link.name in ("dp-fedavg", "dp-ftrl")), "")
    given = "the models that the server gives out"
    whose = "the clients'" if noise else "its"
    after = f"{given}, under {whose} noise that hides single clients ({central})" if central else given
    if step and not central:
        after += ", made of values that hide single rows"
    elif leave:
        after += ", made of values that hide single clients"
    return {"server": own, "other clients": after, "who gets the model": after.replace("models", "last model", 1)}


def told(links: Sequence[Mechanism]) -> list[str]:
    """What each link gives and does not give, a line each."""
    summed = any(isinstance(link, Summed) for link in links)
    return [_line(IN_PARTS if summed and isinstance(link, DPFedAvg) and not _silent(link) else link) for link in links]


@dataclass(frozen=True)
class _InParts:
    """``dp-fedavg`` whose noise the clients add."""

    name: str = DPFedAvg.name
    title: str = "noise of the clients' on the sum of clipped updates, a part of each"
    gives: str = "whoever sees the sums or the models that the server gives out can't tell what one client has sent"
    not_given: str = (
        "clients that tell the server their parts take these off: the promise is against it and all but `least` of the clients"
    )


IN_PARTS = _InParts()


def _silent(link: Mechanism | _InParts) -> bool:
    """Whether it is for noise, and its noise is 0."""
    return isinstance(link, Noisy) and link.noise == 0


def _line(link: Mechanism | _InParts) -> str:
    if _silent(link):
        return f"{link.name}: its noise is 0, so that it clips and hides nothing: leave noise=0 out and give --epsilon."
    return f"{link.name}: {link.title}. {link.gives[0].upper()}{link.gives[1:]}; but {link.not_given}."
