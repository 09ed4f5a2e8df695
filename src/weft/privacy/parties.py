"""What each party of a federation can see under a chain, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from weft.privacy.mechanism import Mechanism


def seen(links: Sequence[Mechanism], sends: str) -> dict[str, str]:
    """Party -> what it sees.

    Args:
        sends: what a method sends of each client, in words.
    """
    named = {link.name for link in links}
    step = "under noise in each step that hides single rows" if "dp-sgd" in named else ""
    leave = "clipped, under noise that hides the client" if "ldp" in named else ""
    own = "; ".join(filter(None, (f"of each client: {sends}", step, leave)))
    central = next((link.name for link in links if link.name in ("dp-fedavg", "dp-ftrl")), "")
    given = "the models that the server gives out"
    after = f"{given}, under its noise that hides single clients ({central})" if central else given
    if step and not central:
        after += ", made of values that hide single rows"
    elif leave:
        after += ", made of values that hide single clients"
    return {"server": own, "other clients": after, "who gets the model": after.replace("models", "last model", 1)}


def told(links: Sequence[Mechanism]) -> list[str]:
    """What each link gives and does not give, a line each."""
    return [f"{link.name}: {link.title}. {link.gives[0].upper()}{link.gives[1:]}; but {link.not_given}." for link in links]
