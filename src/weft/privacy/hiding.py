"""A chain of mechanisms from its text, ``dp-sgd:clip=1+secagg``, with what holds for all of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TypeVar

from weft.communication.codecs.configured import configured
from weft.errors import UserError, nearest
from weft.privacy import accounting, skellam
from weft.privacy.mechanism import CKKS, DPFTRL, DPSGD, SEATS, DPFedAvg, LocalDP, Mechanism, Noisy, SecAgg, Summed
from weft.privacy.secret import Secret

MECHANISMS: dict[str, type[Mechanism]] = {m.name: m for m in (DPSGD, LocalDP, DPFedAvg, DPFTRL, SecAgg, CKKS)}
"""By name, in the order in which people are shown them."""

NONE = "none"

FINEST, NOISY = 30, 14
"""Bits of a level of hidden sums: most, and under noise."""

M = TypeVar("M", bound=Mechanism)


def mechanisms(text: str) -> tuple[Mechanism, ...]:
    """The links of a chain in their order.

    Raises:
        UserError: there is none of a name, its settings are not right, or the order is not that of an update's way.
    """
    if text.strip() == NONE:
        return ()
    found = tuple(_named(piece) for piece in text.split("+"))
    for a, b in itertools.pairwise(found):
        if SEATS.index(a.seat) > SEATS.index(b.seat) or (isinstance(a, Summed) and not isinstance(b, Summed)):
            raise UserError(
                f'"{text}" has {b.name} behind {a.name}, and it comes before it on the way of an update: write {b.name}+{a.name}.'
            )
    for unit, hides in (("row", "rows"), ("client", "clients")):
        same = [m.name for m in found if m.unit == unit]
        if len(same) > 1:
            raise UserError(f"{' and '.join(same)} both hide {hides} by noise: leave one of them out.")
    _check_sums(found)
    return found


def _check_sums(links: tuple[Mechanism, ...]) -> None:
    """
    Raises:
        UserError: noise that needs more than a sum that is hidden.
    """
    sums = [m.name for m in links if isinstance(m, Summed)]
    if len(sums) > 1:
        raise UserError(f"{' and '.join(sums)} both hide updates in their sum: leave one of them out.")
    if not sums:
        return
    if any(isinstance(m, DPFTRL) for m in links):
        raise UserError(f"dp-ftrl adds its noise at the server, which {sums[0]} hides updates from: use dp-fedavg+{sums[0]}.")
    if any(isinstance(m, DPFedAvg) and m.quantile is not None for m in links):
        raise UserError(f"dp-fedavg:quantile looks at the norm of single updates, which {sums[0]} hides: leave quantile out.")


def _named(text: str) -> Mechanism:
    name, _, settings = (part.strip() for part in text.partition(":"))
    if name not in MECHANISMS:
        known = ", ".join((NONE, *MECHANISMS))
        raise UserError(f'there is no privacy "{name}": use {known}.{nearest(name, MECHANISMS)}')
    return configured(MECHANISMS[name], settings)


@dataclass(frozen=True)
class Privacy:
    """The chain of a run.

    Attributes:
        links: of the chain, in order. epsilon: the budget of (ε, δ)-differential privacy; None = whatever the noise gives.
        delta: δ. rounds, participation: planned, by which noise is found for ε. seed: of the run.
        insecure: noise and lots are made from the run's seed, and hide nothing from who knows it.
        key: of ``ckks``, at a site (:mod:`weft.privacy.ckks.cipher`).
    """

    links: tuple[Mechanism, ...] = ()
    epsilon: float | None = None
    delta: float = 1e-5
    rounds: int = 1
    participation: float = 1.0
    seed: int = 0
    insecure: bool = False
    key: bytes = field(default=b"", repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.links)

    def link(self, kind: type[M]) -> M | None:
        """The link of a kind, if there is one."""
        return next((m for m in self.links if isinstance(m, kind)), None)

    @property
    def rows(self) -> DPSGD | None:
        """What stands in steps."""
        return self.link(DPSGD)

    @property
    def local(self) -> LocalDP | None:
        """What updates leave by."""
        return self.link(LocalDP)

    @property
    def central(self) -> DPFedAvg | DPFTRL | None:
        """The server's noise."""
        return self.link(DPFedAvg) or self.link(DPFTRL)

    @property
    def summed(self) -> Summed | None:
        """What hides updates from the server."""
        return self.link(Summed)

    @property
    def hides_clients(self) -> bool:
        """Whether one whole client is to be hidden, so that nothing may depend on what it says of itself."""
        return any(m.unit == "client" for m in self.links)

    @property
    def tells(self) -> bool:
        """Whether clients tell with each update what it has cost them."""
        return self.rows is not None or self.local is not None

    def within(self, epsilon: float) -> bool:
        """Whether the budget allows as much; rounding is none of its business."""
        return self.epsilon is None or epsilon <= self.epsilon * (1 + 1e-9)

    def secret(self, *keys: object) -> Secret:
        """A stream of random numbers for one purpose, which is not begun twice."""
        return Secret.of("weft", self.seed, *keys) if self.insecure else Secret.fresh()

    @property
    def turns(self) -> int:
        """Turns that a client is planned to take."""
        own = next((m.turns for m in self.links if isinstance(m, DPSGD | LocalDP) and m.turns), None)
        return own or max(math.ceil(self.rounds * self.participation - 1e-9), 1)

    def rehearsed(self) -> Privacy:
        """The same without a budget, for rounds of which only sizes are asked."""
        links = tuple(replace(link, noise=1.0) if isinstance(link, Noisy) else link for link in self.links)
        return replace(self, links=links, epsilon=None)

    # one step, one turn, one round ------------------------------------------------------------------------------------------

    def row_noise(self, share: float, steps: int) -> float:
        """z of ``dp-sgd`` for a client whose turn has so many steps, in each of which a row is drawn with chance ``share``."""
        link = self._of(self.rows)
        if link.noise is not None:
            return link.noise
        return accounting.noise_for(self._target, share, self.turns * max(steps, 1), self.delta, link.accountant)

    def spent_on_rows(self, noise: float, share: float, steps: int) -> float:
        """ε of a client after so many steps."""
        return accounting.epsilon(noise, share, steps, self.delta, self._of(self.rows).accountant)

    @property
    def local_noise(self) -> float:
        """z of ``ldp``."""
        link = self._of(self.local)
        if link.noise is not None:
            return link.noise
        return 2 * accounting.noise_for(self._target, 1.0, self.turns, self.delta, link.accountant)

    def spent_on_updates(self, turns: int) -> float:
        """ε of a client after so many turns of ``ldp``."""
        return accounting.epsilon(self.local_noise / 2, 1.0, turns, self.delta, self._of(self.local).accountant)

    @property
    def central_noise(self) -> float:
        """z of the server's noise."""
        link = self._of(self.central)
        if link.noise is not None:
            return link.noise
        if self.summed is not None:
            return skellam.noise_for(self._target, self.sum_levels, self.rounds, self.delta)
        if isinstance(link, DPFedAvg):
            return accounting.noise_for(self._target, self.participation, self.rounds, self.delta, link.accountant)
        passes = -(-self.rounds // self.pass_rounds)
        return self.sensitivity * accounting.noise_for(self._target, 1.0, passes, self.delta, link.accountant)

    def spent_on_clients(self, rounds: int, passes: int = 0) -> float:
        """ε of the server's noise after so many rounds.

        Args:
            passes: of ``dp-ftrl``, that were begun.
        """
        link = self._of(self.central)
        if self.summed is not None:  # the server knows whom it asks: no lot hides anybody from it
            return skellam.epsilon(self.central_noise, self.sum_levels, rounds, self.delta)
        if isinstance(link, DPFedAvg):
            return accounting.epsilon(self.central_noise, self.participation, rounds, self.delta, link.accountant)
        return accounting.epsilon(self.central_noise / self.sensitivity, 1.0, passes, self.delta, link.accountant)

    @property
    def sensitivity(self) -> float:
        """How far a client moves what the noise of a pass of ``dp-ftrl`` is put on, over C."""
        return self._of(self.link(DPFTRL)).factors(self.pass_rounds).sensitivity

    @property
    def sum_norm(self) -> float:
        """C of what goes into a sum that is hidden."""
        return (self.central or self._of(self.summed)).clip

    def sum_bits(self, clients: int = 1) -> int:
        """Of a level of such a sum.

        Args:
            clients: most of them in a sum; of no effect under noise.
        """
        finest = min(32 - max(clients - 1, 1).bit_length(), FINEST)
        return self._of(self.summed).bits or (NOISY if self.central is not None else finest)

    @property
    def sum_levels(self) -> int:
        """Between 0 and C, under noise."""
        return int(2 ** (self.sum_bits() - 1) - 1)

    @property
    def part_of_noise(self) -> int:
        """The variance, in squares of a level, of what each client adds to its part of a sum: that of the least clients that may
        be in one is (zC)² or more."""
        link = self._of(self.summed)
        return 0 if self.central is None else math.ceil((self.central_noise * self.sum_levels) ** 2 / link.least)

    @property
    def chance(self) -> float:
        """Of a client to take part in a round of the server's noise."""
        return 1 / self.pass_rounds if isinstance(self.central, DPFTRL) else self.participation

    @property
    def pass_rounds(self) -> int:
        """Rounds of a pass of ``dp-ftrl``, in one of which each client takes part."""
        return max(math.ceil(1 / self.participation - 1e-9), 1)

    @property
    def _target(self) -> float:
        if self.epsilon is None:
            raise UserError(f"privacy has neither noise nor epsilon: give --epsilon, or {self.links[0].name}:noise=1.")
        return self.epsilon

    @staticmethod
    def _of(link: M | None) -> M:
        assert link is not None
        return link
