"""What a method says about itself; written as literals, so that listings read it without importing the method."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("reparameterized", "adapters", "prompts", "selective", "full")
EVIDENCE = ("paper", "code", "reconstructed")


@dataclass(frozen=True)
class MethodInfo:
    """A method's identity card.

    Attributes:
        slug: its name on the command line. title: one line. paper: authors, venue, year. arxiv: number or "".
        family: one of FAMILIES. challenges: what it addresses, in the surveys' words.
        evidence: what the implementation rests on: the ``paper``, its ``code``, or ``reconstructed`` from descriptions.
        deviations: what differs by default from the paper or its code, beyond what differs for every method (dropout is off).
        sends: what leaves the client, in one sentence.
        views: ways to predict: ``global`` (one model for all) and others (per client); the first is the headline.
        asks: facts about a client that the server needs. tells: keys of facts that the server sends beside tensors.
        reveals: keys of facts that updates carry.
        needs: demands on backbone, data or engine. additive: the server sees nothing but a weighted mean of updates.
    """

    slug: str
    title: str
    paper: str
    family: str
    sends: str
    arxiv: str = ""
    challenges: tuple[str, ...] = ()
    evidence: str = "paper"
    deviations: str = ""
    views: tuple[str, ...] = ("global",)
    asks: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()
    reveals: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    additive: bool = True
