"""What protects a client's rows or a client, as values: where each stands, and what it needs of a method.

There are three seats on the way of an update. **step**: the gradient of each row, inside the client. **leave**: the update,
before it goes. **combine**: what the server makes of all updates of a round together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from weft.communication.codecs.configured import Configured
from weft.errors import UserError
from weft.privacy.factorization import Banded, Factorization, Tree
from weft.typed import Count, NonNegative, Positive

Seat = Literal["step", "leave", "combine"]
SEATS: tuple[Seat, ...] = ("step", "leave", "combine")

Accountant = Literal["pld", "rdp"]
"""How ε is found: privacy loss distributions, or Rényi differential privacy, which is quicker and says a little more."""

BANDS = 64
"""Usual bands of a matrix: noises of the size of an update, one fewer, are kept and saved in each round."""


@dataclass(frozen=True)
class Mechanism(Configured):
    """One link of a chain of ``--privacy``.

    Attributes:
        seat: where it stands. unit: what it hides, a ``row`` or a ``client``; ``""`` = nothing by noise.
        title: one line. gives: what is promised, as a clause. not_given: what is not.
    """

    called: ClassVar[str] = "privacy"
    seat: ClassVar[Seat]
    unit: ClassVar[Literal["row", "client", ""]] = ""
    title: ClassVar[str]
    gives: ClassVar[str]
    not_given: ClassVar[str]


@dataclass(frozen=True)
class Noisy(Mechanism):
    """A mechanism with a bound and Gaussian noise.

    Attributes:
        clip: C, the largest norm of one contribution, over all tensors together.
        noise: z, the standard deviation of the noise over C; None = what ``--epsilon`` takes over the planned rounds.
        accountant: how ε is found.
    """

    clip: Positive = 1.0
    noise: NonNegative | None = None
    accountant: Accountant = "pld"


@dataclass(frozen=True)
class Adaptive(Noisy):
    """A noisy sum whose bound may follow a quantile of the norms, told with noise that is a part of z.

    G. Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, arXiv 1905.03871.

    Attributes:
        quantile: γ, that C follows; None = it stays. rate: η, of its steps.
        counting: standard deviation of the noise on the count of contributions within C; None = a twentieth of as many as are
            expected.
    """

    quantile: Annotated[float, Gt(0), Lt(1)] | None = None
    rate: Positive = 0.2
    counting: Positive | None = None

    def divided(self, z: float, expected: float) -> tuple[float, float]:
        """z of the sum, and the standard deviation of the noise on the count, which together cost what z does (theorem 1).

        Args:
            expected: contributions to a sum.

        Raises:
            UserError: the count alone costs more.
        """
        if self.quantile is None or z == 0:
            return z, 0.0
        counting = self.counting or max(expected / 20, z)
        if 2 * counting <= z:
            raise UserError(
                f"a count with noise {counting:g} takes more than all of the noise {z:.3g}: give {self.name}:counting more than "
                f"{z / 2:.3g}."
            )
        return float((z**-2 - (2 * counting) ** -2) ** -0.5), counting

    def moved(self, clip: float, within: float, came: float, noise: float, expected: float) -> float:
        """C ← C exp(-η (b - γ)), with b = 1/2 + (Σ_i (b_i - 1/2) + noise) / expected the noisy share of contributions within C.

        One contribution more or less moves the sum by 1/2, which is what :meth:`divided` reckons with; it would move Σ_i b_i by
        1, and how many have come is no more to be told than which.

        Args:
            within, came: contributions within C, and all of them. noise: on their count. expected: of them.
        """
        if self.quantile is None:
            return clip
        share = 0.5 + (within - came / 2 + noise) / expected
        return clip * math.exp(-self.rate * (share - self.quantile))


@dataclass(frozen=True)
class DPSGD(Adaptive):
    """M. Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv 1607.00133, algorithm 1.

    In each step of a client every row is drawn with the same chance q, its gradient over all tensors that the step moves is
    scaled down to norm C, and N(0, z²C²) is added to the sum, which is divided by the expected number of rows. With ``quantile``
    each client has a C of its own, which nobody else gets to know.

    Attributes:
        turns: turns that a client is planned to take; None = ``rounds`` times ``participation``, rounded up.
    """

    name: ClassVar[str] = "dp-sgd"
    seat: ClassVar[Seat] = "step"
    unit: ClassVar[Literal["row", "client", ""]] = "row"
    title: ClassVar[str] = "noise on the sum of clipped gradients of single rows, in every step of a client"
    gives: ClassVar[str] = "whoever sees all that a client sends, the server too, can't tell whether one row was among its own"
    not_given: ClassVar[str] = "how many rows a client has, and what many rows have in common, are not hidden"

    turns: Count | None = None


@dataclass(frozen=True)
class LocalDP(Noisy):
    """The update of a client, scaled down to norm C, with N(0, z²C²) added before it leaves.

    Two updates are at most 2C apart, so that z of the accountant is half of this one.
    """

    name: ClassVar[str] = "ldp"
    seat: ClassVar[Seat] = "leave"
    unit: ClassVar[Literal["row", "client", ""]] = "client"
    title: ClassVar[str] = "noise on the clipped update of each client, before it leaves"
    gives: ClassVar[str] = (
        "whoever sees all that a client sends, the server too, can hardly tell it from what another would have sent"
    )
    not_given: ClassVar[str] = (
        "that a client takes part is not hidden; noise that hides a whole client leaves little of one update"
    )

    turns: Count | None = None


@dataclass(frozen=True)
class DPFedAvg(Adaptive):
    """H. B. McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv 1710.06963.

    Each update is scaled down to norm C, all count alike, N(0, z²C²) is added to the sum at the server, and the sum is divided by
    the expected cohort. Every client is drawn with the same chance, by lots that nobody else knows.
    """

    name: ClassVar[str] = "dp-fedavg"
    seat: ClassVar[Seat] = "combine"
    unit: ClassVar[Literal["row", "client", ""]] = "client"
    title: ClassVar[str] = "noise of the server's on the sum of clipped updates"
    gives: ClassVar[str] = "whoever sees the models that the server gives out can't tell whether one client took part"
    not_given: ClassVar[str] = "the server sees every update, and is trusted to add the noise"

    clip: Positive = 0.1


@dataclass(frozen=True)
class DPFTRL(Noisy):
    """P. Kairouz et al., "Practical and Private (Deep) Learning Without Sampling or Shuffling", ICML 2021, arXiv 2103.00039.

    As ``dp-fedavg``, but that each round takes back a part of the noise of earlier ones, so that less is left in the sum over
    rounds: nobody needs to be drawn by secret lots. Each client takes part in one of the rounds of a pass, which is as long as
    all of them take, and has noise of its own.

    Attributes:
        noise: z, the standard deviation of the independent numbers of which the noise is made, over C.
        factorization: of the matrix that adds up rounds, ``banded`` (the square root, its first diagonals; N. P. Kalinin and
            C. Lampert, NeurIPS 2024, arXiv 2405.13763) or ``tree``, that of the paper.
        bands: diagonals of the square root, of which all but one are kept as noises of the size of an update; a pass of fewer
            rounds has as many as these. None = 64.
    """

    name: ClassVar[str] = "dp-ftrl"
    seat: ClassVar[Seat] = "combine"
    unit: ClassVar[Literal["row", "client", ""]] = "client"
    title: ClassVar[str] = "correlated noise over rounds on the sums of clipped updates, for cohorts that are no secret"
    gives: ClassVar[str] = DPFedAvg.gives
    not_given: ClassVar[str] = DPFedAvg.not_given

    clip: Positive = 0.1
    accountant: Accountant = "rdp"
    factorization: Literal["banded", "tree"] = "banded"
    bands: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands is not None and self.factorization != "banded":
            raise UserError("dp-ftrl:bands is of factorization=banded, and a tree has none: leave one of the two out.")

    def factors(self, rounds: int) -> Factorization:
        """Of a pass of so many rounds."""
        return Banded(rounds, self.bands or BANDS) if self.factorization == "banded" else Tree(rounds)


@dataclass(frozen=True)
class Summed(Mechanism):
    """A mechanism by which the server gets the sum of a round's updates, and none of them by itself.

    An update's change is scaled down to norm C, each of its values is one of 2^bits - 1 levels from -C to C, and what the server
    gets is the sum of the levels. Behind ``dp-fedavg`` the norm is that one's, and its noise is added in parts by the clients
    before they send, in whole numbers (N. Agarwal, P. Kairouz, Z. Liu, "The Skellam mechanism for differentially private
    federated learning", NeurIPS 2021, arXiv 2110.04995).

    Attributes:
        clip: C, the largest norm of what a client changes, over all tensors together.
        bits: of a level; None = as many as clients can add up, and 14 under
            noise, which hides finer ones.
        heaviest: examples that a client has at most, if a run refuses none with more; of no effect where all count alike.
        least: clients in a sum at least; noise is so large that theirs is enough.
    """

    seat: ClassVar[Seat] = "combine"
    clip: Positive = 10.0
    bits: Annotated[int, Ge(2), Le(30)] | None = None
    heaviest: Count = 1000
    least: Annotated[int, Ge(2)] = 3


@dataclass(frozen=True)
class SecAgg(Summed):
    """The protocol of K. Bonawitz et al., CCS 2017, on the graph of J. Bell et al., CCS 2020 (:mod:`weft.privacy.secagg`).

    Sums are modulo 2³².

    Attributes:
        share: of those who hold a client's secrets, that can undo its masks. degree: neighbours of a client, an even number;
            None = by their number.
    """

    name: ClassVar[str] = "secagg"
    title: ClassVar[str] = "sums of clipped updates under masks that cancel each other"
    gives: ClassVar[str] = "a server that plays by the rules sees the sum of a round's updates, and none of them by itself"
    not_given: ClassVar[str] = (
        "it sees who takes part, and what the sum tells; keys are not signed, so that a server that lies about them sees more"
    )

    share: Annotated[float, Gt(0.5), Le(1)] = 2 / 3
    degree: Annotated[int, Ge(2)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.degree is not None and self.degree % 2:
            raise UserError(f"secagg:degree={self.degree} can't be had in a ring of neighbours: give an even number.")


@dataclass(frozen=True)
class CKKS(Summed):
    """Sums of ciphertexts, under one key that all sites have and the server has not (:mod:`weft.privacy.ckks`).

    The scheme is that of J. H. Cheon et al., "Homomorphic Encryption for Arithmetic of Approximate Numbers", ASIACRYPT 2017.
    """

    name: ClassVar[str] = "ckks"
    title: ClassVar[str] = "sums of clipped updates that are encrypted, of which one site opens the sum for the server"
    gives: ClassVar[str] = SecAgg.gives
    not_given: ClassVar[str] = (
        "it sees who takes part, and what the sum tells; any one site that gives it the key, or opens for it what is no sum, "
        "shows it everything"
    )
