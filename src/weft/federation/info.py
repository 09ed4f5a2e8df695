"""What a method says about itself; written as literals, so that listings read it without importing the method."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("reparameterized", "adapters", "prompts", "selective", "full")
EVIDENCE = ("paper", "code", "reconstructed")
CHALLENGES = (
    "communication efficiency",
    "computational heterogeneity",
    "data heterogeneity",
    "privacy preservation",
    "server-side aggregation bias",
)
"""What methods address, in the surveys' words:

communication efficiency: fewer bytes travel.
computational heterogeneity: clients differ in memory, speed or backbone, and each trains what it can.
data heterogeneity: clients' data differ in labels, domains or amount, and a mean of their models serves none of them well.
privacy preservation: less can be learnt about a client's data from what it sends.
server-side aggregation bias: the mean of factors is not the factor of the mean.
"""
NEEDS = (
    "images", "texts", "classes", "all classes", "head", "two towers", "label words", "hidden words", "items",
    "connector", "separate blocks", "all updates", "factors", "own steps", "no gradients", "split",
)  # fmt: skip
"""What methods can't do without:

images: rows are pictures, and the backbone reads them.
texts: rows are texts to be told apart or tagged, and the backbone reads them; none that a language model writes.
classes: each row is of one class; no word has a tag of its own, and no answer is written.
all classes: a loss of its own that is over all classes of the federation, of which none can be kept from any row.
head: a head that is trained, also on a backbone that could compare with the names of the classes instead.
two towers: a backbone that embeds pictures and texts in one space (CLIP), and the names of the classes.
label words: a masked language model that tells classes apart by the words that it fills in.
hidden words: a masked language model that finds hidden words of running texts.
items: a backbone that ranks the items of a domain by codes of their texts, and rows that are sequences of them.
connector: a language model that reads pictures through a connector (LLaVA, PaliGemma, Qwen-VL), and rows with answers to write.
separate blocks: blocks with weights of their own, each of which can be trained, sent or left out without the others.
all updates: the server holds the tensors of all updates of a round at once, so that its memory grows with the cohort. A rule that
    takes one update after the other needs them not, even if a mean is not enough for it (``sums`` is False).
factors: its rule speaks of A and B of LoRA, each in its own way, and knows of no other tensor.
own steps: it moves tensors by steps of its own, too, whose rates are not those of optimizers.
no gradients: it makes passes alone, and learns from their losses.
split: the server computes a part of each step, so that clients have no turns by themselves; it is played in one process.
"""


@dataclass(frozen=True)
class MethodInfo:
    """A method's identity card.

    Attributes:
        slug: its name on the command line. title: one line. paper: authors, venue, year. arxiv: number or "".
        family: one of FAMILIES. challenges: what it addresses, of CHALLENGES.
        evidence: what the implementation rests on: the ``paper``, its ``code``, or ``reconstructed`` from descriptions.
        deviations: what differs by default from the paper or its code, beyond what differs for every method (dropout is off).
        sends: what leaves the client, in one sentence.
        views: ways to predict: ``global`` (one model for all) and others (per client); the first is the headline. ``global/…`` is
            another way in which the one model for all predicts: one of its exits or widths.
        asks: facts about a client that the server needs. tells: keys of facts that the server sends beside tensors.
        reveals: keys of facts that updates carry. derives: those of them that follow from the values that its steps have moved,
            and tell nothing else of its rows. renews: facts among ``asks`` that the server gives new values
            (:meth:`weft.federation.server.ServerState.renew`).
        needs: demands on backbone, data or engine, of NEEDS.
        public: of a method whose server trains on public rows or scores by them, if it is given some: what becomes of it
            without, as a clause.
        noise: of a method that is made for gradients or updates under noise (``--privacy``): what it is without, as a clause.
        codec, download_codec: of a method that is one beside an ordinary rule, or has its own: taken unless another is asked
            for. If ``codec`` is right on average, so has to be that other.
        baseline: of what is no federated method: the baseline that is played of it unless another is asked for.
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
    derives: tuple[str, ...] = ()
    renews: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    public: str = ""
    noise: str = ""
    codec: str = ""
    download_codec: str = ""
    baseline: str = ""


def common(view: str) -> bool:
    """Whether a view is of the one model for all, which the server holds."""
    return view.split("/", 1)[0] == "global"
