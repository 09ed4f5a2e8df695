"""A turn in which no row can be told from what leaves it: rows are seen in its steps alone, one by one, clipped and under noise.

M. Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv 1607.00133, algorithm 1: a step of client k moves its
tensors along

    1/(q n) ( Σ_i g_i min(1, C/||g_i||) + N(0, z² C² I) ),    each of its n rows i drawn by itself with chance q,

where g_i is the gradient of row i over all tensors that the step moves. Every row is a client of its own for one pass, so that a
pack needs nothing else for it.

What a method is given in such a turn is blind: clients without their row numbers, and batches without rows. Only
:meth:`weft.federation.pack.Pack.step` knows which these stand for. So whatever a method makes of a turn, it makes of what has
left noisy steps, and a method that looks at rows otherwise fails instead of telling something of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.errors import UserError
from weft.federation.batch import Batch, make_batch
from weft.federation.ghost_rows import GhostRows
from weft.privacy.hiding import Privacy
from weft.privacy.secret import Secret

if TYPE_CHECKING:
    from weft.adaptation.optim import Optimizer
    from weft.federation.pack import Pack

NUMBERS = 1 << 26
"""Of gradients of single rows that are held at once."""

MEMO = "privacy"
"""What a client remembers of its noise: under this name in its memo, and in what it tells of it."""

Objective = Callable[["Pack", Batch], Tensor]


class HiddenRows:
    """The rows of a pack's clients in one turn, and the noise over them.

    Attributes:
        steps: [K] that each client has taken in this turn. shares: [K] chances of its rows to be drawn, the largest of the turn.
        noted: [K] steps that clients have taken note of. counting: steps are counted, and nothing else is done.
        clips: [K] C of each client, which may follow a quantile of the norms of its rows' gradients.
        ghosts: how steps are taken whose gradients of single rows do not fit together.

    Args:
        noise: z of each client.
    """

    def __init__(self, pack: Pack, privacy: Privacy, noise: Sequence[float] | None = None):
        assert privacy.rows is not None
        self.privacy, self.link, self.noise = privacy, privacy.rows, noise
        self.clips = [float(remembered(c.memo).get("clip", self.link.clip)) for c in pack.clients]
        self.counting = noise is None
        self.rows = [c.data.train for c in pack.clients]
        self.steps, self.shares = [0] * len(self.rows), [0.0] * len(self.rows)
        self.secrets = [] if self.counting else [privacy.secret("rows", pack.round.index, c.id) for c in pack.clients]
        self.noted = [0] * len(self.rows)
        self.generation = 0
        self.ghosts = GhostRows()

    def over(self, pack: Pack) -> Pack:
        """The same pack, the same tensors, for a method that is not to see rows."""
        view = copy.copy(pack)
        none = np.zeros(0, dtype=np.int64)
        view.clients = [
            replace(c, data=replace(c.data, train=np.full(len(c.data.train), -1), val=none, test=none, every=None))
            for c in pack.clients
        ]
        view.hidden = self
        return view

    # batches ------------------------------------------------------------------------------------------------------------

    def drawn(self, pack: Pack, lengths: Sequence[int], size: int, stream: str) -> Iterator[Batch]:
        """Blind batches of a turn: as many as its plan has, of rows that are drawn each by itself.

        Args:
            lengths: [K] steps of each client. size: expected rows of a batch.

        Raises:
            UserError: rows of several tasks, which share no batch.
        """
        if pack.bench.table.groups is not None:
            raise UserError("rows of several tasks share no batch, and dp-sgd draws each row by itself: give clients one task.")
        self.generation += 1
        shares = [min(size / max(len(own), 1), 1.0) for own in self.rows]
        lots = [] if self.counting else [self._lots(pack, k, stream) for k in range(len(self.rows))]
        for j in range(max(lengths, default=0)):
            taken: list[np.ndarray | None] = [None] * len(self.rows)
            for k, own in enumerate(self.rows):
                if j < lengths[k]:
                    taken[k] = (
                        np.zeros(0, dtype=np.int64) if self.counting else np.flatnonzero(lots[k].bernoulli(shares[k], len(own)))
                    )
                    self.shares[k] = max(self.shares[k], shares[k])
            real = pack.assembled(taken, self.rows, stream, j)
            expected = torch.tensor([q * len(own) for q, own in zip(shares, self.rows, strict=True)], device=pack.device)
            blind = make_batch(pack.task, pack.bench.table, np.full((len(real.index), 1), -1), None, pack.device)
            keys = None if real.keys is None else real.keys[:, :1]
            blind = replace(blind, mask=torch.ones_like(blind.mask))
            yield replace(blind, clients=real.clients, keys=keys, behind=replace(real, expected=real.of(expected)))

    def _lots(self, pack: Pack, k: int, stream: str) -> Secret:
        return self.privacy.secret("lots", pack.round.index, pack.clients[k].id, stream, self.generation)

    # steps ----------------------------------------------------------------------------------------------------------------

    def step(
        self,
        pack: Pack,
        optimizer: Optimizer,
        objective: Objective,
        batch: Batch,
        names: Sequence[str],
        tick: bool,
        entries: Mapping[str, Tensor],
        watch: Callable[[Mapping[str, Tensor]], None] | None,
    ) -> Tensor:
        """One step of an optimizer along noisy gradients.

        Args:
            names: of the tensors that move. entries: those of their entries that may.

        Returns:
            [k] NaN: nobody is told a loss of rows.

        Raises:
            UserError: the batch is none of :meth:`drawn`, or a rule has the gradients of rows for itself.
        """
        if batch.behind is None or batch.behind.expected is None:
            raise looked("takes steps on rows that it has chosen itself")
        if pack.guidance.noted is not None or pack.guidance.centre:
            raise looked("takes gradients of all rows")
        real = batch.behind
        for k in range(len(self.rows)) if real.clients is None else real.clients.tolist():
            self.steps[k] += 1
        if not self.counting:
            grads = self._noisy(pack, objective, real, names)
            if watch is not None:
                watch(grads)
            rows = {n: pack.rows(n) for n in optimizer.params}
            optimizer.descend(grads, real.clients, rows, tick, entries)
        pack.worked(real)
        return torch.full((len(real.index),), torch.nan, device=pack.device, dtype=pack.dtype)

    def _noisy(self, pack: Pack, objective: Objective, real: Batch, names: Sequence[str]) -> dict[str, Tensor]:
        """[K, …] what the clients of a batch descend, by name."""
        who = torch.arange(len(self.rows), device=pack.device) if real.clients is None else real.clients
        expected = torch.ones(len(self.rows), device=pack.device, dtype=pack.dtype)
        assert real.expected is not None and self.noise is not None
        expected[who] = real.expected.to(expected).clamp(min=1e-12)
        found, within = self._clipped(pack, objective, real, names, who)
        noise = {n: torch.zeros_like(v) for n, v in found.items()}
        for k, came in zip(who.tolist(), real.sizes.tolist(), strict=True):
            z, counting = self.link.divided(self.noise[k], float(expected[k]))
            for name in sorted(found):
                shape = pack.shapes[name][k]
                if shape is not None and z > 0:  # of a client's own size: padding stays 0
                    own = noise[name][k][tuple(slice(0, s) for s in shape)]
                    own += (z * self.clips[k] * self.secrets[k].normal(shape)).to(own)
            if self.link.quantile is not None and len(self.rows[k]):
                more = counting * float(self.secrets[k].normal((1,)))
                self.clips[k] = self.link.moved(self.clips[k], within[k], came, more, float(expected[k]))
        return {n: (v + noise[n]) / expected.view(-1, *[1] * (v.dim() - 1)) for n, v in found.items()}

    def _clipped(
        self, pack: Pack, objective: Objective, real: Batch, names: Sequence[str], who: Tensor
    ) -> tuple[dict[str, Tensor], list[int]]:
        """[K, …] sums of the clipped gradients of each client's rows, by name, and how many of them were within C."""
        at, where = np.nonzero(real.index >= 0)
        chosen, index = who[torch.from_numpy(at).to(who.device)], real.index[at, where][:, None]
        keys = None if real.keys is None else real.keys[torch.from_numpy(at), torch.from_numpy(where)][:, None]
        own = sum(pack.tensors[n][0].numel() for n in names)
        size = max(min(NUMBERS // max(own, 1), len(index)), 1)
        if size < len(index):
            most = max(NUMBERS, own) // 2  # the pass itself keeps about as many
            if (sums := self.ghosts.sums(pack, objective, chosen, index, keys, names, self.clips, most)) is not None:
                return sums
        found = {n: torch.zeros_like(pack.tensors[n]).detach() for n in names}
        clips = torch.tensor(self.clips, dtype=torch.float64, device=chosen.device)
        within = torch.zeros(len(self.clips), dtype=torch.int64, device=chosen.device)
        for i in range(0, len(index), size):
            part = slice(i, i + size)
            grads = pack.gradients_of_rows(objective, chosen[part], index[part], None if keys is None else keys[part], names)
            square = torch.stack([g.double().square().reshape(len(g), -1).sum(1) for g in grads.values()]).sum(0)
            factor = (clips[chosen[part]] / square.sqrt().clamp(min=1e-30)).clamp(max=1.0)
            if not bool(square.isfinite().all()):  # a row without a norm adds nothing, and spoils nobody's sum
                factor = factor.where(square.isfinite(), 0.0)
                grads = {n: g.where(factor.view(-1, *[1] * (g.dim() - 1)) > 0, 0.0) for n, g in grads.items()}
            within.index_add_(0, chosen[part], (factor >= 1).long())
            for name, grad in grads.items():
                scaled = grad * factor.view(-1, *[1] * (grad.dim() - 1)).to(grad)
                found[name].index_add_(0, chosen[part], scaled)
        return found, within.tolist()

    # what it has cost -----------------------------------------------------------------------------------------------------

    def spent(self, k: int, memo: dict[str, object]) -> dict[str, float]:
        """ε of a client after what it has done of this turn, and after another like it; its memo keeps count of the steps."""
        assert self.noise is not None
        before = remembered(memo)
        share = max(float(before.get("share", 0.0)), self.shares[k])
        if share == 0:  # it has no rows, so that no noise was found for it: it may get some
            return told(0.0, 0.0)
        steps = int(before.get("steps", 0)) + self.steps[k] - self.noted[k]
        self.noted[k] = self.steps[k]
        memo[MEMO] = {"noise": self.noise[k], "share": share, "steps": steps, "clip": self.clips[k]}
        spent = self.privacy.spent_on_rows
        return told(spent(self.noise[k], share, steps), spent(self.noise[k], share, steps + self.steps[k]))


def told(epsilon: float, then: float) -> dict[str, float]:
    """What a client says with its update: ε so far, and ``next``, after another turn like this one; nothing of infinite ones."""
    return {n: value for n, value in (("epsilon", epsilon), ("next", then)) if math.isfinite(value)}


def remembered(memo: Mapping[str, object]) -> dict[str, float]:
    """What a client's memo has of its noise; empty before its first turn."""
    found = memo.get(MEMO)
    return dict(found) if isinstance(found, dict) else {}


def looked(what: str) -> UserError:
    """What a method is told that sees rows outside of noisy steps: it ``what``."""
    return UserError(f'the method {what}, which privacy = "dp-sgd" can\'t put noise on: choose another of either.')
