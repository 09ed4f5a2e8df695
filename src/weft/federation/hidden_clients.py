"""A round's updates as one sum with noise: what the server makes of it can't tell whether one client took part.

H. B. McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv 1710.06963, algorithm 1, with
the estimator of a fixed denominator: with Δ_k what client k changed, over all tensors together,

    Δ = 1/(q N) ( Σ_k Δ_k min(1, C/||Δ_k||) + noise )

The cohort is drawn by secret lots, each of the N clients by itself with chance q (``dp-fedavg``: noise N(0, z²C²)), or is a part
of a division of all clients (``dp-ftrl``: noise correlated over rounds, :mod:`weft.privacy.factorization`). All
clients count alike, for a count is a client's own word. A tensor that a client did not send is unmoved, and of tensors that some
clients have in part each entry is divided by how many of all clients have it: that follows from what is known of them beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.errors import UserError
from weft.federation.message import Update
from weft.federation.one_mean import OneMean, changed, clipped
from weft.federation.server import ServerState
from weft.privacy.factorization import begin_pass
from weft.privacy.hiding import Privacy
from weft.privacy.mechanism import DPFTRL, Adaptive
from weft.tensors.forms import Value

if TYPE_CHECKING:
    from weft.federation.method import Method

CLIP = "clip"
"""Name in what the server holds: the norm that updates are clipped to."""


class HiddenClients:
    """One round of a server.

    Attributes:
        remarks: of the round, for its record: the norm C that it had. Nothing else of the updates may be told.

    Args:
        fresh: this round begins a pass with noise of its own, so that of the last one's nothing is kept any more: not even if the
            round sends nothing, or is undone.
    """

    def __init__(self, method: Method, server: ServerState, privacy: Privacy, fresh: bool = False):
        link = privacy.central
        assert link is not None
        self.method, self.server, self.privacy, self.link = method, server, privacy, link
        self.norm = float(server.hiding.get(CLIP, link.clip))
        self.expected = privacy.chance * len(server.clients)
        self.secret = privacy.secret("clients", server.round.index)
        self.remarks = {"clip": self.norm}
        self.one = OneMean(method, server)
        if fresh:
            begin_pass(server.hiding)

    def passing(self, updates: Iterable[Update], held: Mapping[str, Mapping[str, Value]]) -> Iterator[Update]:
        """Updates that are all made of the noisy mean, in the place of those that came.

        Nothing but the noisy sum depends on who took part: not which tensors are moved, nor how many updates there are.

        Args:
            held: by client, what its update began from.

        Raises:
            UserError: an update holds something that has no norm, or that could not be known beforehand.
        """
        sums = {n: torch.zeros(self.one.whole(n), dtype=torch.float64) for own, _ in self.one.each() for n in own}
        within = came = 0
        for update in updates:
            came += 1
            change, short = clipped(changed(update.tensors, held[update.client.id], self.link.name), self.norm)
            within += short
            for name, value in change.items():
                if name not in sums:
                    raise UserError(
                        f'"{name}" is not known to be sent in this round, so that no noise hides it: choose another method.'
                    )
                sums[name][tuple(slice(0, n) for n in value.shape)] += value
        if not sums:
            return  # nothing is sent in such a round
        mean = self._noisy(sums)
        self._adapt(within, came)
        yield from self.one.given(self.one.expected(self.privacy.chance), mean)

    # all of them ------------------------------------------------------------------------------------------------------------

    def _noisy(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Δ by name."""
        noise = self._drawn(sums, self._divided[0])
        if isinstance(self.link, DPFTRL):
            noise = self.link.factors(self.privacy.pass_rounds).noise(self.server.hiding, noise)
        return {n: (s + noise[n]) / (self.privacy.chance * self.one.holders(n)) for n, s in sums.items()}

    @property
    def _divided(self) -> tuple[float, float]:
        """z of the sum, and the noise on the count of updates within C."""
        z = self.privacy.central_noise
        return self.link.divided(z, self.expected) if isinstance(self.link, Adaptive) else (z, 0.0)

    def _drawn(self, like: Mapping[str, Tensor], z: float) -> dict[str, Tensor]:
        return {n: z * self.norm * self.secret.normal(v.shape) if z else torch.zeros_like(v) for n, v in like.items()}

    def _adapt(self, within: int, came: int) -> None:
        """Let C follow its quantile."""
        if isinstance(self.link, Adaptive) and self.link.quantile is not None:
            noise = self._divided[1] * float(self.secret.normal((1,)))
            self.server.hiding[CLIP] = self.link.moved(self.norm, within, came, noise, self.expected)
